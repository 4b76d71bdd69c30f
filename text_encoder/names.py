"""What transformers of different age calls the tensors of a text encoder. Standard library only."""

BARE = ("embeddings.", "encoder.", "final_layer_norm.")


def canonical_name(name: str) -> str | None:
    """The name in CLIPTextModel, None for what is dropped.

    transformers from 5.6 on writes a CLIPTextModel without the `text_model.` prefix; older files hold `position_ids`,
    which are always 0, 1, 2, ...
    """
    if name.endswith("embeddings.position_ids"):
        return None
    return f"text_model.{name}" if name.startswith(BARE) else name

"""Textual inversion as a pipeline offers it."""

from pathlib import Path
from typing import Any

from ldm.model import LatentDiffusion


class WithEmbeddings:
    """Words with learned embeddings, for the text encoder of `model`."""

    model: LatentDiffusion

    def load_textual_inversion(
        self, source: Any, token: str | list[str] | None = None, *, weight_name: str | None = None, **hub: Any
    ) -> list[str]:
        """Teaches the model a word that stands for learned vectors, and returns it; use it in prompts as it is.

        source: a file in any layout (.safetensors, .pt, .bin), a folder that holds `weight_name` or `learned_embeds`,
            either on the hub (`org/name`, `org/name/file.pt`), the content of such a file, or a list of these with a
            list of tokens. SDXL takes both its encoders' vectors from one file.
        token: the word to use, by default the file's own or else its name.
        hub: `revision`, `cache_dir`, `token` and `local_files_only`.

        Raises FileNotFoundError, and ValueError for files of another kind or family and for words that are known.
        """
        from ldm.checkpoint.embedding import load_embedding
        from ldm.checkpoint.hub import resolve_part
        from ldm.checkpoint.kinds import EMBEDDING_FILES

        if isinstance(source, list):
            tokens = token if isinstance(token, list) else [token] * len(source)
            if len(tokens) != len(source):
                raise ValueError(f"{len(tokens)} tokens for {len(source)} embeddings: give one for each, or none")
            pairs = zip(source, tokens, strict=True)
            return [word for one, own in pairs for word in self.load_textual_inversion(one, own, **hub)]
        if isinstance(source, (str, Path)):
            source = resolve_part(f"{source}/{weight_name}" if weight_name else source, EMBEDDING_FILES, **hub)
        return load_embedding(self.model.text_encoder, source, token)

    def unload_textual_inversion(
        self, tokens: str | list[str] | None = None, *, token: str | list[str] | None = None
    ) -> None:
        """Makes the model forget words, by default all; the text encoder is then what it was. `token` is `tokens`."""
        from ldm.checkpoint.embedding import unload_embedding

        unload_embedding(self.model.text_encoder, token if tokens is None else tokens)

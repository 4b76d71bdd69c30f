"""What model a LoRA was made for, from its keys, shapes and metadata."""

import re

from ldm.checkpoint.family import described
from ldm.checkpoint.source import Source

OTHERS = {  # pieces of keys -> models that this project does not have
    r"double_blocks|single_blocks|single_transformer_blocks": "Flux",
    r"joint_blocks|context_block": "Stable Diffusion 3",
    r"(self|cross)_attn[._][qkvo]\b": "a video model such as Wan",
}
TEXT_KEYS = re.compile(r"attn2[._](processor[._])?to_[kv]")
INPUT_SIDE = re.compile(r"(lora_down|lora_A|lora\.down|to_[kv]_lora\.down)(\.default)?\.weight$|hada_w1_b$")
SAYS = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")


def made_for(source: Source) -> str:
    """A sentence: "it seems to be made for SDXL ...", or that it does not look like a LoRA at all."""
    said = next((source.metadata[key] for key in SAYS if source.metadata.get(key)), "")
    quoted = f" (its metadata says {said[:80]!r})" if said else ""
    return f"It seems to be {_guess(source)}{quoted}"


def text_width(source: Source) -> int | None:
    """The width of the text that the changed U-Net attends to: columns of a change of a key or value projection."""
    for key, entry in source.entries.items():
        if TEXT_KEYS.search(key) and INPUT_SIDE.search(key) and len(entry.shape) >= 2:
            return entry.shape[1]
    return None


def _guess(source: Source) -> str:
    keys = list(source.entries)
    if any(key.endswith("emb_params") or "string_to_param" in key or key in ("clip_l", "clip_g") for key in keys):
        return "a textual inversion, not a LoRA"
    if not any(re.search(r"lora|hada_|lokr_|\.diff$|_norm$", key) for key in keys):
        return "something else than a LoRA (a whole model?)"
    for pattern, model in OTHERS.items():
        if any(re.search(pattern, key) for key in keys):
            return f"a LoRA for {model}"
    if (width := text_width(source)) is not None:
        return f"a LoRA for text of width {described(width)}"
    if any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in keys):
        return "a LoRA for SDXL"
    return "a LoRA for a model of another architecture"

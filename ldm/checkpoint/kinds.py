"""What a file of weights looks like when it is not a whole model. Standard library only."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

SUPPORTED = "supported are Stable Diffusion 1, 2 and XL"
LORA = "a LoRA"
TINY = "a tiny autoencoder (TAESD)"
EMBEDDING_FILES = ("learned_embeds.safetensors", "learned_embeds.bin")  # in a folder, where all have the same name

# Rows in the order they are tried: what it is called, a pattern of one of its names, and what to do with it.
KINDS: tuple[tuple[str, str, str], ...] = (
    (  # before LoRAs: FaceID holds one
        "an IP-Adapter",
        r"^(image_proj|ip_adapter)\.|\.to_[kv]_ip\.weight$",
        "it steers a model and is not one: load the model itself",
    ),
    (
        LORA,
        r"lora_(down|up|A|B|mid)\.|\.lora\.(down|up)\.|lora_linear_layer|\.(hada_w\d|lokr_w\d)|_lora\.(down|up)\.",
        "load a model first and then this, with load_lora(...) or --lora",
    ),
    ("a control-LoRA", r"^lora_controlnet$", "it belongs beside a model and is not one"),
    (
        "a ControlNet",
        r"^control_model\.|^(input_hint_block|zero_convs)\.|^controlnet_(cond_embedding|down_blocks)\.",
        "it steers a model and is not one: load the model itself",
    ),
    (
        "a T2I-Adapter",
        r"^(adapter\.)?body\.\d+\.(resnets|block1|in_conv)\b",
        "it steers a model and is not one: load the model itself",
    ),
    (
        "a textual inversion (an embedding)",
        r"^(emb_params|clip_l|clip_g|string_to_param\..*|<[^<>]+>)$",
        "load a model first and then this",
    ),
    (
        "a model of another family (SD 3, Flux, or another transformer)",
        r"^(model\.diffusion_model\.)?(joint_blocks|double_blocks|single_blocks|layers|transformer_blocks|blocks)\.\d+\.",
        SUPPORTED,
    ),
    (
        "a model of another family (trained with EDM noise)",
        r"^(edm_mean|edm_vpred\.sigma_max)$",
        "supported are Stable Diffusion 1, 2 and XL with their own noise",
    ),
    (
        "the U-Net of a diffusers folder",
        r"^(down_blocks\.0\.resnets|up_blocks\.0\.resnets|conv_in|time_embedding)\.",
        "name the whole folder, the one with model_index.json",
    ),
    (
        "an autoencoder (VAE) alone",
        r"^(first_stage_model\.|vae\.)?(en|de)coder\.(conv_in|mid|mid_block|down|up|down_blocks|up_blocks)\.",
        "name the model, and pass this as vae=",
    ),
    (
        TINY,
        r"^((taesd_)?(en|de)coder\.(layers\.)?)?\d+\.(conv\.\d+\.)?weight$",
        "name the model, and pass this as vae=",
    ),
    (
        "a text encoder alone",
        r"(^|\.)(text_model\.|transformer\.resblocks\.\d|encoder\.layers\.\d|encoder\.block\.\d)",
        "name the model, and pass this as text_encoder=",
    ),
)
# Files that look like a ControlNet and are none, by a name in them.
NO_CONTROLNET = {
    "a control-LoRA (only the difference from an SDXL model, in low rank)": r"lora_controlnet",
    "a ControlNet stored as the difference from Stable Diffusion 1.5": r"difference",
    "a ControlNet-Union": r"(control_model\.)?(task_embedding|control_type_proj\..*|control_add_embedding\..*)",
    "a ControlNet-LLLite": r"lllite_.*",
    "a ControlNet-XS": r".*(ctrl_to_base|base_to_ctrl).*",
}
NOISES = "a model of another family (trained with EDM noise)"


def kind_of(names: Collection[str], metadata: Mapping[str, str] | None = None) -> tuple[str, str]:
    """(what it looks like, what to do), for a file that is no whole model: ("a LoRA", "load a model first ...").

    The first is "" for what is like nothing known.
    """
    architecture = (metadata or {}).get("modelspec.architecture", "")
    if architecture.endswith("/lora") or "ss_network_module" in (metadata or {}):
        return next((kind, remedy) for kind, _, remedy in KINDS if kind == LORA)
    for kind, pattern, remedy in KINDS:
        if any(re.search(pattern, name) for name in names):
            return kind, remedy
    return "", SUPPORTED


def foreign_noise(names: Collection[str]) -> bool:
    """Whether a whole model says that it was trained with another process (Playground 2.5, CosXL)."""
    pattern = next(pattern for kind, pattern, _ in KINDS if kind == NOISES)
    return any(re.fullmatch(pattern, name) for name in names)


def word_of(path: Path, metadata: Mapping[str, str]) -> str:
    """The word of an embedding that has no place for it: the file's name or, where that is a folder's, as it notes."""
    return metadata.get("name") or path.stem if path.name in EMBEDDING_FILES else path.stem

"""What LoRA files look like: their names in folders, and the names of the tensors in them. Needs no torch."""

import re
from collections.abc import Collection
from pathlib import Path

# what formats call the tensors of a module, behind its name -> role in `Factors`
ROLES = {
    **dict.fromkeys(("lora_down.weight", "lora_A.weight", "lora.down.weight", "down.weight"), "down"),
    **dict.fromkeys(("lora_linear_layer.down.weight", "lora_A.default.weight"), "down"),
    **dict.fromkeys(("lora_up.weight", "lora_B.weight", "lora.up.weight", "up.weight"), "up"),
    **dict.fromkeys(("lora_linear_layer.up.weight", "lora_B.default.weight"), "up"),
    **dict.fromkeys(("lora_up.bias", "lora_B.bias", "lora_B.default.bias"), "up_bias"),
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    **dict.fromkeys(("lora_magnitude_vector", "lora_magnitude_vector.weight"), "dora_scale"),
    "lora_magnitude_vector.default.weight": "dora_scale",
    **{f"hada_{rest}": f"hada_{rest}" for rest in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{rest}": f"lokr_{rest}" for rest in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **dict.fromkeys(("diff", "w_norm"), "diff"),
    **dict.fromkeys(("diff_b", "b_norm"), "diff_b"),
}
IN_FOLDERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin")
# kind -> roles that tell it, and the roles whose rows are the rank
KINDS = {"lora": "up|down|mid", "loha": "hada_.*", "lokr": "lokr_.*", "diff": "diff"}
RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
MARKS = {kind: re.compile(roles) for kind, roles in KINDS.items()}


def kinds_of(roles: Collection[str]) -> list[str]:
    """Which changes of the weight the tensors with these roles are."""
    return [kind for kind, mark in MARKS.items() if any(mark.fullmatch(role) for role in roles)]


def find_lora(path: Path) -> Path:
    """The file of LoRA weights in a folder, by the names that diffusers and peft give it; a file is itself."""
    if not path.exists():
        raise FileNotFoundError(f"there is no LoRA at {path}: give the path of a file, or of a folder that holds one")
    if not path.is_dir():
        return path
    known = [path / name for name in IN_FOLDERS if (path / name).is_file()]
    files = known[:1] or sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise FileNotFoundError(f"{path} holds {len(files)} safetensors files; give the path of the LoRA file itself")
    return files[0]


def role_of(key: str) -> tuple[str, str | None]:
    """A key's module and role: the longest known suffix, None for none."""
    parts = key.split(".")
    for length in (3, 2, 1):
        role = ROLES.get(".".join(parts[-length:]))
        if role is not None and len(parts) > length:
            return ".".join(parts[:-length]), role
    return key, None

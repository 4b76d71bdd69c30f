"""Which files hold the weights of one network: single or sharded, plain or of a variant; safetensors only."""

import json
import re
import stat
from pathlib import Path
from typing import Any

MAX_JSON = 16 * 2**20  # bytes; the largest index of a known model is a hundredth of it
WEIGHT_STEMS = {"text_encoder": "model", "text_encoder_2": "model"}


def weight_stem(part: str) -> str:
    """The name that diffusers (networks) or transformers (text encoders) gives to the weights in a part's folder."""
    return WEIGHT_STEMS.get(part, "diffusion_pytorch_model")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming the file when it holds anything else."""
    require_regular(path)
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, too many for a configuration; is it the right file?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def require_regular(path: Path) -> None:
    """Raises unless the path is a regular file, through links: reading a pipe or a device would block."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; the copy of this model is incomplete, fetch it again")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")


def find_weights(folder: Path, part: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of one network, in name order.

    With a `variant`, its files where the folder has them and the plain ones where it has not. Raises
    FileNotFoundError, saying what is there instead, when neither exists.
    """
    for wanted in (variant, None) if variant else (None,):
        if files := _files_of_variant(folder, weight_stem(part), wanted):
            return files
    raise FileNotFoundError(_what_is_there(folder, weight_stem(part)))


def has_variant(folder: Path, part: str, variant: str) -> bool:
    """Whether the weights of this part exist in the variant itself."""
    return bool(_files_of_variant(folder, weight_stem(part), variant))


def _files_of_variant(folder: Path, stem: str, variant: str | None) -> list[Path]:
    dotted = f".{variant}" if variant else ""
    single = folder / f"{stem}{dotted}.safetensors"
    if single.exists():
        return [single]
    for index in (f"{stem}.safetensors.index{dotted}.json", f"{stem}.safetensors{dotted}.index.json"):
        if (folder / index).exists():
            return _shards(folder / index)
    return []


def _shards(index: Path) -> list[Path]:
    """The files that an index names. They must be plain names: an index is no way out of its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map; fetch it again")
    names = set(map(str, weight_map.values()))
    if bad := sorted(name for name in names if not re.fullmatch(r"[\w.+-]+\.safetensors", name) or ".." in name):
        raise ValueError(f"{index} names the shard {bad[0]!r}; a shard is a plain file name ending in .safetensors")
    if missing := sorted(name for name in names if not (index.parent / name).exists()):
        raise FileNotFoundError(f"{index.parent} lacks {listed(missing)}, named in {index.name}; fetch the model again")
    return [index.parent / name for name in sorted(names)]


def _what_is_there(folder: Path, stem: str) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    variants = {re.sub(r"-\d{5}-of-\d{5}", "", name).split(".")[1] for name in names if _is_variant(name, stem)}
    if variants:
        return f"{folder} holds its weights only as the variant {listed(sorted(variants))}: pass variant=..."
    if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
        return (
            f"{folder} holds only {listed(pickles)}. Pickled weights can run code and are not read (a safe reader "
            "is coming): convert them to safetensors, for example with diffusers' save_pretrained"
        )
    return f"{folder} has no weights: looked for {stem}.safetensors and {stem}.safetensors.index.json"


def _is_variant(name: str, stem: str) -> bool:
    single = rf"{stem}\.[\w-]+\.safetensors|{stem}-\d{{5}}-of-\d{{5}}\.[\w-]+\.safetensors"
    return re.fullmatch(single, name) is not None


def listed(names: list[str], limit: int = 10) -> str:
    """The first names and how many there are in all, for error messages."""
    rest = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest

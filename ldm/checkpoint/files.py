"""Which files hold the weights of one network: single or sharded, plain or of a variant, safetensors before pickles."""

import hashlib
import json
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.checkpoint.errors import CheckpointError

MAX_JSON = 16 * 2**20  # bytes; the largest index of a known model is a hundredth of it
MAX_SHARDS = 1000
MAX_TENSORS = 50_000  # in one file
MAX_SIDES = 16
MAX_CLAIM = 2**36  # elements, were no side empty: only an empty tensor can claim more than its file holds
MAX_LAYERS = 64  # of a kind at one resolution; the largest known model has 32
MAX_LEVELS = 10  # resolutions; the largest known models have 5
MAX_BLOCKS = 256  # levels x layers x transformers in each; SDXL has 60
LEVELS = (
    *("block_out_channels", "channels", "encoder_block_out_channels", "decoder_block_out_channels"),
    "conditioning_embedding_out_channels",
)
LAYERS = ("layers_per_block", "num_hidden_layers", "num_res_blocks", "num_encoder_blocks", "num_decoder_blocks")
DEPTHS = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
STEM = "diffusion_pytorch_model"
WEIGHT_STEMS = {
    ".safetensors": {"text_encoder": "model", "text_encoder_2": "model"},
    ".bin": {"text_encoder": "pytorch_model", "text_encoder_2": "pytorch_model"},
}


def weight_stem(part: str, suffix: str = ".safetensors") -> str:
    """The name that diffusers (networks) or transformers (text encoders) gives to the weights in a part's folder."""
    return WEIGHT_STEMS[suffix].get(part, STEM)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError naming the file when it holds anything else."""
    require_regular(path)
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, too many for a configuration; is it the right file?"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a network. Raises as `read_json`, and for more layers than could ever be built."""
    json = read_json(path)
    levels = [len(json[key]) for key in LEVELS if isinstance(json.get(key), (list, dict, str))] or [4]  # the default
    if max(levels) > MAX_LEVELS:
        raise CheckpointError(f"{path} asks for more than {MAX_LEVELS} levels; is it the right file?")
    numbers = {key: re.findall(r"\d+", str(json.get(key))) for key in (*LAYERS, *DEPTHS)}
    for key, asked in numbers.items():
        if any(len(number) > 3 or int(number) > MAX_LAYERS for number in asked):
            raise CheckpointError(f"{path}: {key} asks for more than {MAX_LAYERS} layers; is it the right file?")
    layers = max((int(number) for key in LAYERS for number in numbers[key]), default=2)
    depths = [int(number) for key in DEPTHS for number in numbers[key]] or [1]
    if max(max(levels) * layers * max(*depths, 1), sum(depths), len(depths)) > MAX_BLOCKS:
        raise CheckpointError(f"{path} asks for more than {MAX_BLOCKS} blocks in all; is it the right file?")
    return json


def require_regular(path: Path) -> None:
    """Raises unless the path is a regular file, through links: reading a pipe or a device would block."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; the copy of this model is incomplete, fetch it again")
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path} is not a regular file")


def find_weights(folder: Path, part: str, variant: str | None = None) -> list[Path]:
    """The files with the weights of one network, in name order: safetensors, or pickles where there are only those.

    With a `variant`, its files where the folder has them and the plain ones where it has not. Raises
    FileNotFoundError, saying what is there instead, when neither exists.
    """
    for wanted in (variant, None) if variant else (None,):
        if files := _files_of_variant(folder, part, wanted):
            return files
    raise FileNotFoundError(_what_is_there(folder, part))


def has_weights(folder: Path, part: str, variant: str | None = None) -> bool:
    """Whether all weights of this part are there, under the names of this very variant (None: the plain ones)."""
    try:
        return bool(_files_of_variant(folder, part, variant))
    except FileNotFoundError:  # an index without its files
        return False


def _files_of_variant(folder: Path, part: str, variant: str | None) -> list[Path]:
    dotted = f".{variant}" if variant else ""
    for suffix in WEIGHT_STEMS:
        stem = weight_stem(part, suffix)
        single = folder / f"{stem}{dotted}{suffix}"
        if single.exists():
            return [single]
        for index in (f"{stem}{suffix}.index{dotted}.json", f"{stem}{suffix}{dotted}.index.json"):
            if (folder / index).exists():
                return _shards(folder / index, suffix)
    return []


def _shards(index: Path, suffix: str) -> list[Path]:
    """The files that an index names. They must be plain names: an index is no way out of its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; fetch it again")
    names = sorted(set(map(str, weight_map.values())))
    if bad := [name for name in names if not re.fullmatch(rf"[\w.+-]{{1,200}}\{suffix}", name) or ".." in name]:
        raise CheckpointError(f"{index} names the shard {bad[0]!r}; a shard is a plain file name ending in {suffix}")
    if len({unicodedata.normalize("NFKC", name).casefold() for name in names}) < len(names):
        raise CheckpointError(f"{index} names shards that some systems take for one file; fetch it again")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names):,} shards, more than {MAX_SHARDS:,}; not a known model")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise FileNotFoundError(f"{index.parent} lacks {listed(missing)}, named in {index.name}; fetch the model again")
    files = [index.parent / name for name in names]
    for file in files:
        _refuse_escape(index, file)
    return files


def _refuse_escape(index: Path, file: Path) -> None:
    """Raises CheckpointError for a link out of the model's folder, unless to where the index lies, as in caches."""
    real, model = file.resolve(), index.parent.parent.resolve()
    if not real.is_relative_to(model) and real.parent != index.resolve().parent:
        raise CheckpointError(f"{file} is a link to {real}, outside of {model}; put the file itself there")


def _what_is_there(folder: Path, part: str) -> str:
    if found := variants(folder, part):
        return f"{folder} holds its weights only as the variant {listed(found)}: pass variant=..."
    names = _file_names(folder)
    if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
        return f"{folder} holds only {listed(pickles)}; name it {weight_stem(part, '.bin')}.bin to have it read"
    stem = weight_stem(part)
    return f"{folder} has no weights: looked for {stem}.safetensors and {stem}.safetensors.index.json"


def variants(folder: Path, part: str) -> list[str]:
    """The variants that some weights of this part are there in, by the names of the files."""
    found = {_variant_in(name, part, suffix) for name in _file_names(folder) for suffix in WEIGHT_STEMS}
    return sorted(name for name in found if name)


def _file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _variant_in(name: str, part: str, suffix: str) -> str | None:
    """The variant in the name of a file of weights: of a single file, or of a shard in the old or new spelling."""
    stem = weight_stem(part, suffix)
    shard = r"-\d{5}-of-\d{5}"
    match = re.fullmatch(rf"{stem}(?:{shard})?\.([\w-]+?)(?:{shard})?\{suffix}", name)
    return match[1] if match else None


def sha256_of(files: Sequence[Path]) -> str:
    """SHA-256, in hex, of files one after the other, read in pieces."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def listed(names: list[str], limit: int = 10) -> str:
    """The first names and how many there are in all, for error messages. Names from files may be any text."""
    rest = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(name[:200] if name.isprintable() else repr(name[:200]) for name in names[:limit]) + rest

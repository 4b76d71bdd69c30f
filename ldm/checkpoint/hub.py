"""From what a person typed, a path or a hub id, to a folder or a file on this machine."""

import difflib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import has_weights, weight_stem

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
OTHERS = ("tokenizer", "tokenizer_2", "scheduler")
REPOSITORY = r"[\w][\w.-]*/[\w][\w.-]*"


def embedded() -> Path:
    """The folder of the model that comes with this package. FileNotFoundError where a build leaves it out."""
    folder = _embedded_folder()
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"no model is named, and this build has no embedded one ({folder} is not there): name a folder in "
            "diffusers format or a hub id such as org/name, in a shell with --model"
        )
    return folder


def is_embedded(source: str | Path) -> bool:
    """Whether a model's source is the embedded one."""
    return Path(source) == _embedded_folder()


def _embedded_folder() -> Path:
    return Path(str(resources.files("ldm"))) / "weights" / "emoji-scenes"


def resolve(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Path:
    """The local folder of a model, `subfolder` included, or the single file that it is.

    What exists here is taken as it is; only a name such as `org/name` that does not (and has no ending of a file, and
    no folder `org` here) is downloaded, and of that only the configurations, the tokenizers and the safetensors files
    of the variant (the plain ones of parts without it, and pickles of parts that have nothing else).

    Raises FileNotFoundError, naming what is nearby, for a path that does not exist, and ValueError when the hub does
    not answer or does not have it.
    """
    local = Path(path_or_id).expanduser()
    if "://" in str(path_or_id) and not local.exists():
        raise ValueError(f"{path_or_id} is an address: download the file, and name it or the hub id (org/name)")
    if local.exists() and not local.is_dir() and subfolder is None:
        return local
    if local.exists():
        return require_folder(local, subfolder)
    if not re.fullmatch(REPOSITORY, str(path_or_id)) or _is_path(local):
        return require_folder(local, subfolder)
    options = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    root = _download(str(path_or_id), variant, f"{subfolder}/" if subfolder else "", options)
    return require_folder(root, subfolder)


def resolve_part(
    path_or_id: str | Path,
    names: Sequence[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local file or folder of what is used beside a model: a LoRA, an embedding, a VAE.

    What exists here is taken as it is. `org/name/file.safetensors` is a file of a repository on the hub; `org/name`
    is a repository of which the files with these names are fetched. What looks like neither is a path, there or not.

    Raises ValueError when the hub does not answer or does not have it.
    """
    local = Path(path_or_id).expanduser()
    match = re.fullmatch(f"({REPOSITORY})(/.+)?", str(path_or_id))
    if match is None or (match[2] is None and _is_path(local)) or Path(local.parts[0]).exists():
        return local
    file = (match[2] or "").removeprefix("/")
    options = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    folder = _snapshot(match[1], [file] if file else list(names), options, here=str(path_or_id))
    if not (folder / file).exists() or not any(folder.iterdir()):
        raise ValueError(f"{match[1]} on the hub has no {file or ' nor '.join(names)}; name one of its files behind it")
    return folder / file


def _is_path(name: Path) -> bool:
    """Whether what could be `org/name` is rather the path of something that is not there."""
    return name.suffix in FILES or Path(name.parts[0]).exists()


def require_folder(path: str | Path, subfolder: str | None = None) -> Path:
    """The folder that holds `model_index.json`. Raises FileNotFoundError or ValueError saying what is there instead."""
    folder = Path(path).expanduser() / (subfolder or "")
    if folder.is_file():
        raise ValueError(
            f"{folder} is a single file; this reads folders in diffusers format (with a model_index.json). "
            "from_pretrained and load_single_file read single files"
        )
    if not folder.exists():
        what = "file" if folder.suffix in FILES else "folder"
        raise FileNotFoundError(f"there is no {what} {folder}{_nearby(folder)}")
    if not (folder / "model_index.json").exists():
        raise ValueError(
            f"{folder} is not a model folder in diffusers format: it has no model_index.json"
            f"{_nearby(folder)}{_contents(folder)}"
        )
    return folder


def _nearby(folder: Path) -> str:
    """Where a model may have been meant instead: below, above, or under a similar name."""
    below = sorted(path.parent for path in folder.glob("*/model_index.json"))
    above = [parent for parent in folder.absolute().parents[:2] if (parent / "model_index.json").exists()]
    siblings = {path.name: path for path in folder.parent.iterdir()} if folder.parent.is_dir() else {}
    siblings.pop(folder.name, None)
    similar = [siblings[name] for name in difflib.get_close_matches(folder.name, siblings, n=3)]
    if found := [*below, *above] or ([] if folder.exists() else similar):
        return f"; did you mean {' or '.join(str(path) for path in found[:3])}?"
    return ""


def _contents(folder: Path) -> str:
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".ckpt", ".bin"))
    if not weights:
        return ""
    return f"; it holds {weights[0]}: if that is a whole model, name the file itself"


def _download(repo: str, variant: str | None, prefix: str, options: dict[str, Any]) -> Path:
    """Weights of the variant first, then plain ones of the parts that lack it; pickles only where there is no other."""
    configs = [
        f"{prefix}model_index.json",
        f"{prefix}vocabulary.json",
        *(f"{prefix}{part}/*.json" for part in NETWORKS + OTHERS),
    ]
    texts = [f"{prefix}{part}/*.txt" for part in OTHERS]
    weights = [name for part in NETWORKS for name in _patterns(prefix, part, variant, ".safetensors")]
    root = _snapshot(repo, [*configs, *texts, *weights], options)
    listed, folder = _listed_networks(root / prefix), root / prefix

    def fetch_lacking(wanted: str | None, suffix: str) -> None:
        lacking = [p for p in listed if not any(has_weights(folder / p, p, each) for each in {variant, wanted})]
        if lacking:
            _snapshot(repo, [name for part in lacking for name in _patterns(prefix, part, wanted, suffix)], options)

    fetch_lacking(variant, ".bin")
    if variant and any(has_weights(folder / part, part, variant) for part in listed):
        fetch_lacking(None, ".safetensors")
        fetch_lacking(None, ".bin")
    return root


def _patterns(prefix: str, part: str, variant: str | None, suffix: str) -> list[str]:
    stem, shard = f"{prefix}{part}/{weight_stem(part, suffix)}", "-?????-of-?????"
    if variant is None:
        return [f"{stem}{suffix}", f"{stem}{shard}{suffix}"]
    return [f"{stem}.{variant}{end}" for end in (suffix, f"{shard}{suffix}")] + [f"{stem}{shard}.{variant}{suffix}"]


def _listed_networks(folder: Path) -> list[str]:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # reported by the loader
    return [part for part in NETWORKS if isinstance(index, dict) and any(index.get(part) or ())]


def _snapshot(repo: str, patterns: list[str], options: dict[str, Any], here: str = "") -> Path:
    """The repository's folder in the cache, with the files of these patterns that it has."""
    import huggingface_hub
    from huggingface_hub import errors

    revision = f" at revision {options['revision']!r}" if options["revision"] else ""
    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns, **options))
    except errors.GatedRepoError:
        problem = "is gated: accept its terms on huggingface.co and pass token=... or run `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = "is not on the hub (or is private: pass token=...)"
    except errors.RevisionNotFoundError:
        problem = "has no such revision on the hub"
    except errors.LocalEntryNotFoundError:
        problem = "is not in the local cache, and the hub was not reached or not to be asked: connect once, without "
        problem += "local_files_only and HF_HUB_OFFLINE, or pass the path of a folder"
    except Exception as error:  # whatever the HTTP library of the day raises
        problem = f"could not be fetched ({type(error).__name__}: {error})"
    what = f"there is no {here} here" if here else f"there is no folder {repo} here"
    raise ValueError(f"{what}, and {repo}{revision} {problem}")

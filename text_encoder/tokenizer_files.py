"""Reads a tokenizer folder as transformers does, whichever version wrote it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

Merges = Sequence[tuple[str, str]]


class DamagedFile(ValueError):
    """A tokenizer file that cannot be what its name says; the message names it."""


_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_AGAIN = "; download it again"


def read_vocabulary(folder: Path) -> tuple[dict[str, int], Merges]:
    """Tokens with their ids, and the merges: from `tokenizer.json` if it is there, as in transformers."""
    unified, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if unified.is_file():
        return _read_unified(unified)
    if vocab.is_file() and merges.is_file():
        return _check_ids(_read_json(vocab), vocab), _read_merges(merges)
    raise FileNotFoundError(
        f"{folder} holds neither tokenizer.json nor vocab.json with merges.txt; "
        "give the tokenizer folder of a diffusers model"
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The entries of `tokenizer_config.json`; where it lists no added tokens, those of the other files too."""
    settings = _read_optional(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        return settings
    settings |= _read_optional(folder / "special_tokens_map.json")
    special = {content(token) for token in (*_named(settings), *_extra(settings))}
    stored: dict[int, dict[str, Any]] = {
        index: {"content": token, "special": token in special}
        for token, index in _read_optional(folder / "added_tokens.json").items()
    }
    stored |= {token["id"]: token for token in _read_optional(folder / "tokenizer.json").get("added_tokens") or ()}
    return {**settings, "added_tokens_decoder": stored}


def special_tokens(settings: dict[str, Any]) -> list[AddedToken]:
    """What matches inside text, in the order in which tokens new to the vocabulary get their ids.

    As in transformers, the stored flags of a token count first; else those of the last role it plays.
    """
    entries = {int(index): token for index, token in settings.get("added_tokens_decoder", {}).items()}
    stored = {content(entries[index]): _added(entries[index]) for index in sorted(entries)}
    roles = {content(token): _added(token) for token in (*_named(settings), *_extra(settings))}
    return list({**stored, **roles, **stored}.values())


def content(token: str | dict[str, Any]) -> str:
    """The text of a special token, which the files give bare or with flags."""
    return token if isinstance(token, str) else str(token["content"])


def _named(settings: dict[str, Any]) -> list[str | dict[str, Any]]:
    return [settings[role] for role in _ROLES if settings.get(role)]


def _extra(settings: dict[str, Any]) -> list[str | dict[str, Any]]:
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return list(extra.values() if isinstance(extra, dict) else extra)


def _added(token: str | dict[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    return AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS if flag in token})


def _read_unified(path: Path) -> tuple[dict[str, int], Merges]:
    model = _read_json(path).get("model")
    if not isinstance(model, dict) or not {"vocab", "merges"} <= model.keys():
        raise DamagedFile(f"{path} holds no byte-pair model; give the folder of a CLIP tokenizer")
    if not isinstance(model["merges"], list):
        raise DamagedFile(f"{path} is damaged: its merges are no list{_AGAIN}")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return _check_ids(model["vocab"], path), [_pair(pair, path) for pair in pairs]


def _read_merges(path: Path) -> Merges:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is no text file ({error}){_AGAIN}") from error
    return [_pair(line.split(" "), path) for line in lines if line and not line.startswith("#version")]


def _pair(parts: list[str], path: Path) -> tuple[str, str]:
    if len(parts) != 2:
        raise DamagedFile(f"{path} is damaged: {parts} is not a pair of tokens{_AGAIN}")
    return parts[0], parts[1]


def _check_ids(vocabulary: Any, path: Path) -> dict[str, int]:
    ids = vocabulary.values() if isinstance(vocabulary, dict) else [None]
    if not all(type(index) is int and 0 <= index < 2**31 for index in ids):
        raise DamagedFile(f"{path} does not map tokens to ids; give the folder of a CLIP tokenizer")
    return dict(vocabulary)


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # malformed JSON or UTF-8, or nested too deep
        raise DamagedFile(f"{path} is damaged ({error}){_AGAIN}") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged: it should hold a JSON object{_AGAIN}")
    return value

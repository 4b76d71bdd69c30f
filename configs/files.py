"""Run files: strict TOML and JSON to the frozen dataclasses of a configuration, and back to plain values."""

import json
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def read(path: str | Path, kind: type[T]) -> T:
    """The configuration in a TOML or JSON file, whose tables and keys are the fields of `kind`, a dataclass.

    Whole numbers are accepted for numbers, nothing else is converted. Raises FileNotFoundError, and ValueError naming
    the file, the key and what is allowed there: for an unknown key the nearest one, for a syntax error its line.
    """
    path = Path(path).expanduser()
    return from_dict(_parsed(path, _text(path)), kind, source=str(path))


def from_dict(values: Mapping[str, Any], kind: type[T], source: str = "the configuration") -> T:
    """The same from values as a parser gives them. `source` begins the text of a ValueError."""
    try:
        config: T = _table(values, kind, "")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as values that JSON can hold; `from_dict` gives it back."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# shipped files


def run_names() -> list[str]:
    """Names of the run files that come with this package, such as "emoji-small"."""
    return sorted(path.stem for path in _runs().glob("*.toml"))


def run_file(name_or_path: str | Path) -> Path:
    """The run file of a shipped name, or at a path. ValueError listing the shipped ones when it is neither."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in run_names():
        return _runs() / f"{name}.toml"
    if path.exists() or path.suffix:
        return path
    near = get_close_matches(name, run_names(), 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no run file {name}: {hint}Shipped are {', '.join(run_names())}; or give a path")


def _runs() -> Path:
    return _shipped("runs")


def _shipped(folder: str) -> Path:
    return Path(str(resources.files("configs"))) / folder


def templates() -> list[str]:
    """Names of the commented run files to begin fine-tuning with, such as "lora"."""
    return sorted(path.stem for path in _shipped("templates").glob("*.toml"))


def template(name: str) -> str:
    """The text of one. ValueError listing them for a name that is none."""
    if name not in templates():
        raise ValueError(f"{name!r} is nothing to begin with: there are {', '.join(templates())}")
    return (_shipped("templates") / f"{name}.toml").read_text(encoding="utf-8")


def is_fine_tuning(path: str | Path) -> bool:
    """Whether a run file, read as `read` reads it, is of fine-tuning: it says a mode, or what the data are."""
    path = Path(path).expanduser()
    values = _parsed(path, _text(path))
    return isinstance(values, Mapping) and bool({"mode", "data"} & set(values))


# files to values


def _text(path: Path) -> str:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a run file, such as {path / 'NAME.toml'}")
    if not path.exists():
        raise FileNotFoundError(f"there is no run file {path}")
    if path.suffix not in (".toml", ".json") or not path.is_file():
        raise ValueError(f"{path} is no run file: its name ends in .toml or .json")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it in that encoding") from None


def _parsed(path: Path, text: str) -> Any:
    try:
        if path.suffix == ".toml":
            return tomllib.loads(text)
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply for a configuration") from None
    except ValueError as error:  # both parsers say line and column
        raise ValueError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which may not name a key twice, as a table of TOML may not."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is there twice")
    return values


# values to dataclasses


def _table(values: Any, kind: Any, place: str) -> Any:
    """A dataclass from a table. `place` is the dotted key of the table with a dot behind it."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{place.rstrip('.') or 'it'} is {values!r}, expected a table of {', '.join(_keys(kind))}")
    keys = _keys(kind)
    for name in values:
        if name not in keys:
            raise ValueError(f"unknown key {place}{name}{_hint(name, kind, place)}")
    if missing := [name for name, (field, _) in keys.items() if name not in values and _required(field)]:
        raise ValueError(f"the key {place}{missing[0]} is missing")
    given = {name: _value(value, keys[name][1], f"{place}{name}") for name, value in values.items()}
    try:
        return kind(**given)
    except ValueError as error:  # a check of the dataclass, which begins with the name of a field
        raise ValueError(f"{place}{error}") from None


@cache
def _keys(kind: Any) -> dict[str, tuple[Field[Any], Any]]:
    """The fields of a dataclass by name, each with its type."""
    hints = get_type_hints(kind)
    return {field.name: (field, hints[field.name]) for field in fields(kind)}


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _hint(name: str, kind: Any, place: str) -> str:
    """Where the key may have been meant: in a table below, under a similar name, or one of those there are."""
    below = _below(kind, place)
    similar = [*get_close_matches(name, _keys(kind), 1), *get_close_matches(name, below, 1)]
    nearest = name if name in below else (similar or [""])[0]
    if nearest:
        return f"; did you mean {below[nearest]}?"
    return f"; there are {', '.join(_keys(kind))}"


def _below(kind: Any, place: str) -> dict[str, str]:
    """Dotted keys of a table and of those in it, by their last word; the first where two share it."""
    found = {name: f"{place}{name}" for name in _keys(kind)}
    for name, (_, hint) in _keys(kind).items():
        if is_dataclass(hint):
            found = _below(hint, f"{place}{name}.") | found
    return found


def _value(value: Any, hint: Any, place: str) -> Any:
    try:
        return _fitted(value, hint, place)
    except TypeError:
        raise ValueError(f"{place} = {_shown(value)} does not fit, expected {_described(hint)}") from None


def _fitted(value: Any, hint: Any, place: str) -> Any:
    """The value as the type has it. TypeError when it is none of the type's."""
    origin, parts = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _table(value, hint, f"{place}.")
    if origin in (Union, types.UnionType):
        return _first_fit(value, parts, place)
    if origin is tuple:
        return _fitted_tuple(value, parts, place)
    if hint is float and type(value) is int and abs(value) <= 2**53:  # all of these are floats exactly
        return float(value)
    fits = any(value == part and type(value) is type(part) for part in parts) if origin is Literal else False
    if not fits and type(value) is not hint:
        raise TypeError
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError
    return value


def _first_fit(value: Any, hints: tuple[Any, ...], place: str) -> Any:
    if value is None and types.NoneType in hints:
        return None
    for hint in hints:
        try:
            return _fitted(value, hint, place)
        except TypeError:
            continue
    raise TypeError


def _fitted_tuple(value: Any, hints: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    each = (hints[0],) * len(value) if hints[-1] is Ellipsis else hints
    if len(each) != len(value):
        raise TypeError
    return tuple(_fitted(item, hint, f"{place}[{i}]") for i, (item, hint) in enumerate(zip(value, each, strict=True)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _described(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(part) for part in parts if part is not types.NoneType)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"a list, each {_described(parts[0])}"
    if origin is tuple:
        return f"a list of {', '.join(_described(part) for part in parts)}"
    return KINDS.get(hint, str(hint))

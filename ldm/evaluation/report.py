"""The evaluation of a model as one record: settings, what was measured, tables for a terminal and for a model card."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm.evaluation.bootstrap import Interval
from ldm.evaluation.rates import Rates

COLUMNS = ("nouns", "colours", "counts", "counts above one", "relations", "relations given nouns", "joint")
PAIRS = "both of a pair"


@dataclass
class Report:
    """What an evaluation found; tables are {row: {column: Interval}}.

    settings: how it was drawn, model and its hash, seeds; plain JSON. splits: rates of each split. kinds: joint rates
    of each kind of scene, split by split. baselines: rates of each split under other drawing functions. sweeps: joint
    rates by setting. validation: rates of the checker itself.
    """

    settings: dict[str, Any]
    splits: dict[str, Rates] = field(default_factory=dict)
    kinds: dict[str, Rates] = field(default_factory=dict)
    baselines: dict[str, dict[str, Rates]] = field(default_factory=dict)
    sweeps: dict[str, Rates] = field(default_factory=dict)
    validation: dict[str, Rates] = field(default_factory=dict)

    def tables(self) -> dict[str, dict[str, Rates]]:
        """Title -> table, without the empty ones."""
        named = {"Checked pictures": self.splits, "Joint, by kind of scene": self.kinds}
        named |= {f"Baseline: {name}": table for name, table in self.baselines.items()}
        named |= {f"Joint, by {name}": {"": table} for name, table in self.sweeps.items()}
        named |= {"The checker itself": self.validation}
        return {title: table for title, table in named.items() if table}

    def save(self, path: str | Path) -> None:
        """Writes JSON that `load` reads; whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Raises ValueError for a file that is no report."""
        try:
            return _decoded(json.loads(Path(path).read_text(encoding="utf-8")))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no report of `ldm evaluate` ({error}): evaluate again.") from None


def _decoded(values: dict[str, Any]) -> Report:
    def one(table: Mapping[str, Any]) -> Rates:
        return {name: Interval(**value) for name, value in table.items()}

    def two(tables: Mapping[str, Any]) -> dict[str, Rates]:
        return {name: one(table) for name, table in tables.items()}

    baselines = {name: two(tables) for name, tables in values["baselines"].items()}
    flat = {name: two(values[name]) for name in ("splits", "kinds", "sweeps", "validation")}
    return Report(settings=values["settings"], baselines=baselines, **flat)


def as_text(report: Report) -> str:
    """For a terminal: aligned columns."""
    parts = [f"{name}: {value}" for name, value in report.settings.items() if not isinstance(value, dict)]
    for title, table in report.tables().items():
        rows = _rows(table)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        parts += ["", title]
        parts += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in parts)


def as_markdown(report: Report) -> str:
    """For a model card: one table under each heading, and how the numbers came about."""
    parts = []
    for title, table in report.tables().items():
        head, *rows = _rows(table)
        parts += [f"### {title}", "", _line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    parts += ["Rates with 95 % intervals, a cluster bootstrap over prompts. Made by `ldm evaluate` with:", ""]
    parts += [f"* {name}: {value}" for name, value in report.settings.items()]
    return "\n".join(parts) + "\n"


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, to a temporary name and renamed; folders are made."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".ldm-", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _rows(table: Mapping[str, Rates]) -> list[list[str]]:
    """The table with its head; a table of one row is turned on its side. Columns that say nothing are left out."""
    names = dict.fromkeys(name for rates in table.values() for name in rates)
    order = sorted(names, key=lambda name: COLUMNS.index(name) if name in COLUMNS else -1 if name == PAIRS else 99)
    columns = [name for name in order if any(_says(rates.get(name)) for rates in table.values())]
    if len(table) == 1:
        (row, rates), *_ = table.items()
        return [["", row or "rate"], *([name, str(rates[name])] for name in columns)]
    body = [[row, *(str(rates[name]) if name in rates else "-" for name in columns)] for row, rates in table.items()]
    return [["", *columns], *body]


def _says(rate: Interval | None) -> bool:
    return rate is not None and rate.rate is not None


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"

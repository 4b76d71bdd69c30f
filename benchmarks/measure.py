"""The timed part of the inference benchmark: what is timed, in which order, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import diffusers
import torch
from common import Budget, Ratio, child, ratio, table
from meters import Stamps, Watch, held, peaks, seconds, settle
from systems import MODELS, WITHOUT, Setting, Shelf, System, build
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from configs.interchange import autoencoder_to_json, unet_to_json
from ldm.checkpoint.meta import on_meta

SECTIONS = {
    "text": "prompts to embeddings",
    "step": "one guided step",
    "vae": "latents to pixels",
    "whole": "prompt to pictures",
    "memory": "peak memory",
}

Embeds = dict[str, Tensor]


class Item(NamedTuple):
    """What is timed, at how many pictures."""

    section: str
    batch: int

    def __str__(self) -> str:
        return self.section if self.section == "text" else f"{self.section} b{self.batch}"


def items_of(sections: Sequence[str], batches: Sequence[int]) -> list[Item]:
    """In the order of a run; the text has no batches."""
    return [
        Item(section, b) for section in SECTIONS if section in sections for b in (batches if section != "text" else [1])
    ]


class Times:
    """Seconds by item, system and round."""

    def __init__(self) -> None:
        self.rounds: dict[Item, dict[str, list[float]]] = {}

    def add(self, item: Item, name: str, value: float) -> None:
        self.rounds.setdefault(item, {}).setdefault(name, []).append(value)

    def against_ours(self) -> dict[tuple[Item, str], Ratio]:
        """How many times ours each of the others takes."""
        return {
            (item, name): ratio(values, rows["ours"])
            for item, rows in self.rounds.items()
            for name, values in rows.items()
            if name != "ours" and "ours" in rows
        }

    def ratios(self) -> dict[str, dict[str, Ratio]]:
        """The same by item and by system."""
        found: dict[str, dict[str, Ratio]] = {}
        for (item, name), value in self.against_ours().items():
            found.setdefault(str(item), {})[name] = value
        return found


def timed(item: Item, system: System, embeds: Embeds, seed: int) -> float:
    """Seconds of an item, on latents that no other round has."""
    setting = system.setting
    noise = setting.noise(item.batch, seed)
    if item.section == "step":
        stamps = Stamps(setting.device)
        system.denoise(noise, embeds, stamps)
        return stamps.per_step()
    work: dict[str, Callable[[], Any]] = {
        "text": system.text,
        "vae": lambda: system.decode(noise),
        "whole": lambda: system.images(noise),
    }
    return seconds(work[item.section], setting.device)


def compare(
    items: list[Item],
    systems: list[str],
    shelf: Shelf,
    embeds: Embeds,
    rounds: int,
    budget: Budget,
    watch: Watch,
    times: Times,
) -> Iterator[Item]:
    """Fills `times`, and yields each item when it is finished.

    With room for all systems they take turns at every round. Without, each is built twice, for half of the rounds of
    all items, and waits for its second turn until the others had their first.
    """

    def block(item: Item, names: list[str], count: int, share: Budget) -> None:
        def turns() -> None:
            for _ in share.rounds(count):
                for name in names:
                    done = len(times.rounds.get(item, {}).get(name, []))
                    times.add(item, name, timed(item, shelf[name], embeds, 1000 + done))

        for name in names:
            timed(item, shelf[name], embeds, 999)  # warms up
        watch.around(f"{item} {'+'.join(names)}", turns)

    if shelf.room:
        for i, item in enumerate(items):
            block(item, systems, rounds, budget.share(len(items) - i))
            yield item
        return
    visits = [(name, item) for _ in range(2) for name in systems for item in items]
    for i, (name, item) in enumerate(visits):
        block(item, [name], math.ceil(rounds / 2), budget.share(len(visits) - i))
    yield from items


# FLOPs


def flops(item: Item, setting: Setting) -> float | None:
    """Of an item, counted on `meta` in diffusers' networks; None for the text. A picture's text is left out too."""
    if item.section == "text":
        return None
    side = setting.size // 8
    latents = torch.empty(item.batch, 4, side, side, device="meta")
    count = {"step": 0.0, "vae": 0.0}
    if item.section != "vae":
        count["step"] = unet_flops(setting, torch.cat([latents, latents]))
    if item.section != "step":
        count["vae"] = vae_flops(setting, latents)
    return count["step"] * (setting.steps if item.section == "whole" else 1) + count["vae"]


def unet_flops(setting: Setting, x: Tensor) -> float:
    config = MODELS[setting.model].unet
    unet = on_meta("the benchmark", diffusers.UNet2DConditionModel.from_config, unet_to_json(config))
    with torch.device("meta"):
        context = torch.empty(len(x), 77, config.context_dim)
        pooled = torch.empty(len(x), config.vector_dim - 6 * config.size_dim) if config.vector_dim else None
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": torch.empty(len(x), 6)}
        return count_flops(lambda: unet(x, torch.empty(1), context, added_cond_kwargs=added))


def vae_flops(setting: Setting, latents: Tensor) -> float:
    config = autoencoder_to_json(MODELS[setting.model].autoencoder)
    vae = on_meta("the benchmark", diffusers.AutoencoderKL.from_config, config)
    return count_flops(lambda: vae.decode(latents))


def count_flops(function: Callable[[], Any]) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function()
    return float(counter.get_total_flops())


# telling it


def times_table(item: Item, times: Times, systems: list[str], setting: Setting, top: dict[torch.dtype, float]) -> str:
    """The systems at one item."""
    work, against = flops(item, setting), times.against_ours()
    rows = []
    for name in systems:
        values = times.rounds[item][name]
        middle = median(values)
        dtype = torch.float32 if name == "B0-fp32" else setting.dtype
        share = None if work is None else f"{work / middle / top[dtype]:.1%}"
        rows.append([name, f"{middle:.4f}", f"{min(values):.4f}", against.get((item, name)), share, len(values)])
    head = [f"{item} ({SECTIONS[item.section]})", "median s", "minimum s", "x ours [95 %]", "of ceiling", "rounds"]
    return table(head, rows)


def ablation(times: Times, systems: list[str]) -> str:
    """What each optimisation is worth: how many times ours it takes without it."""
    against = times.against_ours()
    off = [name for name in systems if name.startswith(WITHOUT)]
    rows = [[name.removeprefix(WITHOUT), *(against.get((item, name)) for item in times.rounds)] for name in off]
    return table(
        ["x ours without", *map(str, times.rounds)], rows or [["nothing to switch off"] + [""] * len(times.rounds)]
    )


# memory


def peak_memory(command: list[str], systems: list[str], budget: Budget) -> dict[str, dict[str, list[float | None]]]:
    """[allocated, reserved] bytes by system and batch, each system in a process of its own while there is time."""
    found = {}
    for name in systems:
        if budget.left <= 0:
            print(f"no time is left for the memory of {name}: give it with --only memory")
            continue
        found[name] = child([*command, "--child", name]).answer
    return found


def run_child(name: str, setting: Setting, batches: Sequence[int]) -> dict[int, list[float | None]]:
    """In the child: most bytes of weights and a run above what the process held before, by batch."""
    settle(setting.device)
    before = held(setting.device)
    system = build(name, setting)
    found: dict[int, list[float | None]] = {}
    for batch in batches:
        system.images(setting.noise(batch, 0))  # what is compiled or captured once is no peak of running
        settle(setting.device)
        system.images(setting.noise(batch, 1))
        found[batch] = [None if peak is None else peak - before for peak in peaks(setting.device)]
    return found

"""DreamBooth's pictures of the class, drawn by the model itself before it is trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from configs.finetuning import FineTuneConfig
from ldm.data.emoji_scenes.keyed import digest
from ldm.data.pictures.cache import key_of
from ldm.training.drawing import Wanted

_log = logging.getLogger(__name__)
_AT_ONCE = 8
Drawn = Callable[[Wanted], list[Image.Image]]
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def class_pictures(config: FineTuneConfig, model_hash: str, draw: Drawn, folder: Path) -> Path:
    """The folder of the class's pictures with captions, as many as are asked for. What is missing is drawn, never
    over a picture that is there. Raises ValueError for pictures that another model or other prompts have drawn."""
    prior, made, place = config.prior, _made(config, model_hash), prior_place(config, model_hash, folder)
    state = PartialState()
    if state.is_main_process:
        place.mkdir(parents=True, exist_ok=True)
        _require_same(place, made)
    state.wait_for_everyone()
    there = {path.stem for path in place.iterdir() if path.suffix.lower() in ENDINGS}
    state.wait_for_everyone()  # all have seen the same before one draws
    named = {f"class-{number:05d}": number for number in range(prior.count)}
    missing = [number for name, number in named.items() if name not in there][: max(prior.count - len(there), 0)]
    if missing and state.is_main_process:
        others = len(there - named.keys())  # a person's own
        _log.info("drawing %d pictures of the prior's prompts into %s (%d are there)", len(missing), place, others)
    firsts = range(0, len(missing), _AT_ONCE)
    for first in firsts[state.process_index :: state.num_processes]:
        _draw(config, draw, place, missing[first : first + _AT_ONCE])
    state.wait_for_everyone()
    return place


def prior_place(config: FineTuneConfig, model_hash: str, folder: Path) -> Path:
    """Where the class's pictures of a run in a folder are."""
    if config.prior.path:
        return Path(config.prior.path).expanduser()
    return folder / f"prior-{key_of(_made(config, model_hash))[:8]}"


def _made(config: FineTuneConfig, model_hash: str) -> dict[str, object]:
    """What its pictures depend on."""
    return {"prompts": list(config.prior.prompts), "model": model_hash, "seed": config.seed}


def _draw(config: FineTuneConfig, draw: Drawn, place: Path, numbers: Sequence[int]) -> None:
    prompts = [config.prior.prompts[number % len(config.prior.prompts)] for number in numbers]
    seed = digest("prior", config.seed, numbers[0]) % 2**31
    for number, prompt, picture in zip(numbers, prompts, draw(Wanted(prompts, seed)), strict=True):
        (place / f"class-{number:05d}.txt").write_text(prompt, encoding="utf-8")
        draft = place / f".class-{number:05d}.part"
        picture.save(draft, "PNG")
        draft.replace(place / f"class-{number:05d}.png")


def _require_same(place: Path, made: dict[str, object]) -> None:
    """Notes what draws the pictures of a folder, where it is empty or says so already."""
    note = place / "class.json"
    if note.exists():
        if json.loads(note.read_text()) != made:
            raise ValueError(f"{place} holds pictures of other prompts or by another model: choose another prior.path")
    elif not any(place.iterdir()):
        note.write_text(json.dumps(made) + "\n")

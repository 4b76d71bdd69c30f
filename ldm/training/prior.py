"""DreamBooth's pictures of the class, drawn by the model itself before it is trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from accelerate import PartialState

from configs.finetuning import FineTuneConfig
from ldm.checkpoint.hash import weights_hash
from ldm.data.emoji_scenes.keyed import digest
from ldm.model import LatentDiffusion
from ldm.training.drawing import Draw, Wanted

_log = logging.getLogger(__name__)
_AT_ONCE = 8
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def class_pictures(config: FineTuneConfig, model: LatentDiffusion, draw: Draw, folder: Path) -> Path:
    """The folder of the class's pictures with captions, as many as are asked for. What is missing is drawn, never
    over a picture that is there. Raises ValueError for pictures that another model or other prompts have drawn."""
    prior = config.prior
    place = Path(prior.path).expanduser() if prior.path else folder / "prior"
    if PartialState().is_main_process:
        place.mkdir(parents=True, exist_ok=True)
        _require_same(place, {"prompts": list(prior.prompts), "model": weights_hash(model)})
        there = sum(1 for path in place.iterdir() if path.suffix.lower() in ENDINGS)
        if there < prior.count:
            _log.info("drawing %d pictures of the prior's prompts into %s", prior.count - there, place)
        for first in range(there, prior.count, _AT_ONCE):
            _draw(config, model, draw, place, range(first, min(first + _AT_ONCE, prior.count)))
    PartialState().wait_for_everyone()
    return place


def _draw(config: FineTuneConfig, model: LatentDiffusion, draw: Draw, place: Path, numbers: range) -> None:
    prompts = [config.prior.prompts[number % len(config.prior.prompts)] for number in numbers]
    seed = digest("prior", config.seed, numbers.start) % 2**31
    for number, prompt, picture in zip(numbers, prompts, draw(model, Wanted(prompts, seed)), strict=True):
        (place / f"class-{number:05d}.txt").write_text(prompt, encoding="utf-8")
        picture.save(place / f"class-{number:05d}.png")


def _require_same(place: Path, made: dict[str, object]) -> None:
    """Notes what draws the pictures of a folder, where it is empty or says so already."""
    note = place / "class.json"
    if note.exists():
        if json.loads(note.read_text()) != made:
            raise ValueError(f"{place} holds pictures of other prompts or by another model: choose another prior.path")
    elif not any(place.iterdir()):
        note.write_text(json.dumps(made) + "\n")

"""Fine-tuning of the embedded model from end to end, and what it does to the model, by the checker of emoji scenes.

    python benchmarks/finetuning.py lora          # a glyph it has never seen, from 8 pictures
    python benchmarks/finetuning.py dreambooth    # the same by DreamBooth, with prior preservation
    python benchmarks/finetuning.py inversion     # a new word for a glyph that it knows
    python benchmarks/finetuning.py controlnet    # things where silhouettes are

Each makes its pictures, trains by `ldm train` with the run file it prints, and draws and counts before and after: how
often the glyph is in pictures of prompts with its word (all that is told of it in place and number), and how often
prompts without it come out right. `-o` keeps everything; a run that is there is measured only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from configs.files import from_dict, read, run_file
from configs.finetuning import FineTuneConfig
from configs.training import RunConfig, WorldConfig
from ldm.data.emoji_scenes.atlas import glyphs
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.rendering import mask, render
from ldm.data.emoji_scenes.scene import Scene, Sprite
from ldm.data.emoji_scenes.world import World
from ldm.evaluation.checker import Checker, Detection
from ldm.evaluation.measure import Amount, measured
from ldm.training.finetune import finetune
from pipelines.drawing import draw
from pipelines.text_to_image import TextToImagePipeline

NEW, KNOWN, KEPT = "octopus", "panda", ("a cat", "a robot")
KNOWN_COUNT = 2400  # pictures of the prior
SIZE = 128
SHOWN = 8  # pictures of a grid's row
Drawn = Callable[[list[str], list[int]], torch.Tensor]


def embedded_world(*more: str) -> WorldConfig:
    """What the embedded model knows, and further nouns."""
    config = read(run_file("emoji-small"), RunConfig).world
    return replace(config, nouns=(*config.nouns, *more))


# pictures to train on


def scenes_with(noun: str, recipes: tuple[str, ...], seed: int) -> Iterator[Scene]:
    """Scenes whose first thing is one such glyph in its own colours."""
    config = embedded_world(*({noun} - set(embedded_world().nouns)))
    config = replace(config, recipes=recipes, shares=())
    scenes = EmojiScenes("train", seed, world=World(config))
    number = 0
    while True:
        scene = scenes[number]
        first = scene.plan.things[0]
        if first.noun == noun and first.count == 1 and not first.colour and not first.size:
            yield scene
        number += 1


def write_pictures(scenes: Sequence[Scene], folder: Path, words: dict[str, str]) -> Path:
    """Pictures and captions in which some words are exchanged for others."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        caption = scene.caption
        for old, new in words.items():
            caption = caption.replace(old, new)
        render(scene, SIZE).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(caption)
    return folder


def silhouettes(scene: Scene) -> Image.Image:
    """Where things are, white on black."""
    whole = Image.new("L", (SIZE, SIZE))
    for number in range(len(scene.objects)):
        whole.paste(255, (0, 0), mask(scene, number, SIZE))
    return whole


# runs


def subject(kind: str, output: Path) -> dict[str, Any]:
    """Eight pictures of the new glyph."""
    source = scenes_with(NEW, ("single",), 1)
    folder = write_pictures([next(source) for _ in range(8)], output / "pictures", {})
    known = known_pictures(output / "known")
    run: dict[str, Any] = {
        "name": kind,
        "mode": "lora",
        "data": {"path": str(folder), "trigger": NEW, "caption_dropout": 0.1},
        "lora": {"rank": 16, "targets": ["attention", "feedforward", "convolutions"]},
        "trains": {"text": True, "text_rate": 0.5},
        "prior": {"prompts": ["a cat"], "path": str(known), "count": KNOWN_COUNT, "weight": 2.0},
        "loop": loop(steps=700, batch=24, rate=1e-3),
        "validation": {"prompts": [*(f"an {NEW}{rest}" for rest in ("", " on the beach", " left of a key")), *KEPT]},
    }
    if kind == "dreambooth":
        run |= {"mode": "full", "loop": loop(steps=450, batch=24, rate=2e-4)}
    return run


def known_pictures(folder: Path) -> Path:
    """What the model is to keep: scenes of the kind it was trained on."""
    scenes = EmojiScenes("train", 9, world=World(embedded_world()))
    return write_pictures([scenes[number] for number in range(KNOWN_COUNT)], folder, {})


def inversion(kind: str, output: Path) -> dict[str, Any]:
    """Pictures of a glyph the model knows, under a word it does not."""
    source = scenes_with(KNOWN, ("single",), 1)
    folder = write_pictures([next(source) for _ in range(8)], output / "pictures", {KNOWN: "<it>"})
    return {
        "name": kind,
        "mode": "inversion",
        "data": {"path": str(folder), "caption_dropout": 0.0},
        "inversion": {"word": "<it>", "start": "dog"},
        "loop": loop(steps=400, batch=8, rate=2e-2),
        "validation": {"prompts": ["<it>", "a <it> on the beach", "a <it> left of a banana", "a cat"]},
    }


def controlnet(kind: str, output: Path) -> dict[str, Any]:
    """Scenes and the silhouettes of their things."""
    world = World(replace(embedded_world(), recipes=("single", "left of", "above"), shares=()))
    scenes = [EmojiScenes("train", 2, world=world)[i] for i in range(2000)]
    folder = write_pictures(scenes, output / "pictures", {})
    (output / "hints").mkdir(exist_ok=True)
    for number, scene in enumerate(scenes):
        silhouettes(scene).save(output / "hints" / f"{number:04d}.png")
    return {
        "name": kind,
        "mode": "controlnet",
        "data": {"path": str(folder), "hints": str(output / "hints"), "caption_dropout": 0.2, "held_out": 0.02},
        "loop": loop(steps=1200, batch=16, rate=1e-3),
        "validation": {"prompts": ["a cat", "a dog left of a banana", "a robot", "a bear above a key"]},
    }


def loop(steps: int, batch: int, rate: float) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch": batch,
        "precision": "no",
        "ema": 0.99,
        "optimizer": {"rate": rate, "warmup": 20},
        "sample_every": max(steps // 4, 1),
        "checkpoint_every": 100,
    }


RUNS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "lora": subject,
    "dreambooth": subject,
    "inversion": inversion,
    "controlnet": controlnet,
}


# what became of the model


def pipeline(kind: str, output: Path) -> TextToImagePipeline:
    """The model as a person would use what the run has left."""
    result = output / "run" / "result"
    if kind == "dreambooth":
        return TextToImagePipeline.from_pretrained(result / kind)
    pipe = TextToImagePipeline.from_pretrained()
    if kind == "lora":
        pipe.load_lora(result / "lora.safetensors")
    if kind == "inversion":
        pipe.load_textual_inversion(result / "inversion.safetensors")
    return pipe


def drawer(pipe: TextToImagePipeline, **options: Any) -> Drawn:
    pipe.set_progress_bar_config(disable=True)

    def drawn(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        images: torch.Tensor = pipe(prompts, seed=seeds, output_type="pt", **options).images
        return images * 2 - 1

    return drawn


def right(drawn: Drawn, noun: str, word: str, count: int) -> float:
    """Share of unseen prompts with the noun, called by the word, that come out right."""
    checker = Checker(world=World(embedded_world(*({noun} - set(embedded_world().nouns)))))
    source = scenes_with(noun, ("single", "left of", "above"), 77)
    scenes = [next(source) for _ in range(count)]
    images = drawn([scene.caption.replace(noun, word) for scene in scenes], list(range(count)))
    return sum(checker.check(image, scene.plan).joint for image, scene in zip(images, scenes, strict=True)) / count


def others(drawn: Drawn, prompts: int, seeds: int) -> str:
    """Joint rate and nouns of what the model knew before, with intervals."""
    checker = Checker(world=World(embedded_world()))
    data = EmojiScenes("iid", world=checker.world)
    found = measured(drawn, checker, data, Amount(prompts, seeds, 16))["all"]
    return f"nouns {found['nouns']}, all {found['joint']}"


def followed(output: Path, scale: float, count: int) -> tuple[float, Image.Image]:
    """Mean IoU of silhouettes asked for and of the things found in the pictures; control images above pictures."""
    world = World(replace(embedded_world(), recipes=("single", "left of", "above"), shares=()))
    scenes = [EmojiScenes("iid", 3, world=world)[i] for i in range(count)]
    checker, pipe = Checker(world=world), TextToImagePipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {
        "controlnet": output / "run" / "result" / "controlnet",
        "controlnet_conditioning_scale": scale,
    }
    hints = [silhouettes(scene).convert("RGB") for scene in scenes]
    images = pipe([scene.caption for scene in scenes], seed=list(range(count)), control_image=hints, **options).images
    shares = []
    for scene, image in zip(scenes, images, strict=True):
        nouns = [thing.noun for thing in scene.plan.things]
        shares.append(overlap(silhouettes(scene), seen(checker.detect(image, nouns))))
    return sum(shares) / count, rows([hints[:SHOWN], images[:SHOWN]])


def seen(found: Sequence[Detection]) -> Image.Image:
    """The silhouettes of what the checker has found."""
    whole = Image.new("L", (SIZE, SIZE))
    for one in found:
        x0, y0, x1, _ = one.box
        u0, v0, u1, _ = glyphs()[one.noun].ink
        side = (x1 - x0) / (u1 - u0)
        sprite = Sprite(glyphs()[one.noun].number, x0 - side * u0, y0 - side * v0, side, None, 0)
        whole.paste(255, (0, 0), mask(Scene("", None, (), (sprite,)), 0, SIZE))  # type: ignore[arg-type]
    return whole


def overlap(a: Image.Image, b: Image.Image) -> float:
    """Intersection over union of two masks."""
    one, other = (torch.tensor(list(picture.tobytes())) > 127 for picture in (a, b))
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


def rows(pictures: Sequence[Sequence[Image.Image]]) -> Image.Image:
    whole = Image.new("RGB", (len(pictures[0]) * (SIZE + 2) - 2, len(pictures) * (SIZE + 2) - 2), "white")
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            whole.paste(picture, (x * (SIZE + 2), y * (SIZE + 2)))
    return whole


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=RUNS)
    parser.add_argument("-o", "--output", type=Path, help="folder (default: runs/finetuning-KIND)")
    parser.add_argument("--steps", type=int, help="train for so many")
    parser.add_argument("--count", type=int, default=64, help="pictures that are counted")
    parser.add_argument(
        "--others", type=int, default=150, metavar="N", help="prompts x 2 without the new word; 0: none"
    )
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--after-only", action="store_true", help="measure only what became of the model")
    options = parser.parse_args(argv)
    kind, output = options.kind, (options.output or Path("runs") / f"finetuning-{options.kind}").resolve()
    output.mkdir(parents=True, exist_ok=True)
    run = RUNS[kind](kind, output)
    if options.steps:
        run["loop"]["steps"] = options.steps
    (output / "run.json").write_text(json.dumps(run, indent=1))
    print(f"run file: {output / 'run.json'}\n{json.dumps(run)}", flush=True)
    if not (output / "run" / "result").exists():
        finetune(from_dict(run, FineTuneConfig), output / "run", draw)
    if options.train_only:
        return 0
    if kind == "controlnet":
        for scale in (0.0, 1.0):
            share, grid = followed(output, scale, options.count)
            grid.save(output / f"followed-{scale:g}.png")
            print(f"controlnet_conditioning_scale {scale:g}: IoU {share:.3f}", flush=True)
        return 0
    noun, word = (KNOWN, "<it>") if kind == "inversion" else (NEW, NEW)
    for name in ("before", "after")[options.after_only :]:
        drawn = drawer(TextToImagePipeline.from_pretrained() if name == "before" else pipeline(kind, output))
        print(f"{name}: {right(drawn, noun, word, options.count):.1%} of prompts with {word!r}", flush=True)
        if options.others:
            print(f"{name}: others {others(drawn, options.others, 2)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

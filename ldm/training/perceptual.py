# mypy: no-warn-return-any
"""Perceptual distance without foreign weights: features of a small classifier of the world, which is trained first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from configs.training import LoopConfig, RunConfig
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.world import World
from ldm.training.crops import cut, multi_hot, seen
from ldm.training.stage import Batch, Player


class Classifier(nn.Module):
    """Which nouns, colours and grounds does a crop show? A plain convolutional network, half the size at each stage.

    `features` are its activations after each stage: for pictures (b, 3, s, s) a list of (b, c_i, s / 2^i, s / 2^i).
    """

    def __init__(self, channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = (3, *channels)
        self.stages = nn.ModuleList(
            _stage(narrow, wide, stride=1 if i == 0 else 2)
            for i, (narrow, wide) in enumerate(zip(widths, channels, strict=False))
        )
        self.head = nn.Linear(channels[-1], classes)

    def features(self, image: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            image = stage(image)
            found.append(image)
        return found

    def forward(self, image: Tensor) -> Tensor:
        """(b, 3, s, s) in [-1, 1] -> logits (b, classes)."""
        return self.head(self.features(image)[-1].amax((2, 3)))  # "is it anywhere" is a maximum over places


class PerceptualDistance(nn.Module):
    """Mean squared distance of unit-length features, averaged over the layers of a classifier (LPIPS without its
    learned weights, 1801.03924, equation 1): two pictures (b, 3, s, s) in [-1, 1] -> (b,)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False).eval()

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.classifier.features(target)
        pairs = zip(self.classifier.features(image), wanted, strict=True)
        layers = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]
        return torch.stack(layers).mean(0)


class Classification(nn.Module):
    """The classifier's loss on a batch of crops."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        logits, labels = self.classifier(batch["image"]), batch["labels"]
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()
        found = (logits > 0) == (labels > 0.5)
        return loss, {"exact": found.all(1).float().mean()}


class ClassifierTraining:
    """The stage that trains the classifier."""

    def __init__(self, run: RunConfig, scenes: EmojiScenes) -> None:
        self.run, self.scenes, world = run, scenes, scenes.world
        self.crop = run.autoencoder.crop or run.size
        self.network = Classifier(run.classifier.channels, len(classes_of(world)))
        self.players = [Player("classifier", Classification(self.network))]

    @property
    def loop(self) -> LoopConfig:
        return self.run.classifier.loop

    def example(self, index: int) -> Batch:
        """A crop and its labels."""
        scene = self.scenes[index]
        image, corner = cut(scene, self.run.size, self.crop, Keyed("crop", self.run.seed, index))
        things = [one for one in scene.objects if seen(one.box, self.run.size, self.crop, corner)]
        ground = scene.plan.background
        names = {one.noun for one in things} | {f"{one.colour} thing" for one in things if one.colour}
        names.add(f"{ground.colour} ground" if ground.colour else ground.kind)
        return {"image": image, "labels": multi_hot(names, classes_of(self.scenes.world))}

    def samples(self, averaged: Mapping[str, nn.Module]) -> Image.Image | None:
        return None


def classes_of(world: World) -> tuple[str, ...]:
    """Everything the classifier tells apart."""
    tinted = [f"{colour} thing" for colour in world.colours]
    return (*world.nouns, *tinted, *(f"{colour} ground" for colour in world.colours), *world.places)


def _stage(narrow: int, wide: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(narrow, wide, 3, stride, 1),
        nn.GroupNorm(8, wide),
        nn.SiLU(),
        nn.Conv2d(wide, wide, 3, 1, 1),
        nn.GroupNorm(8, wide),
        nn.SiLU(),
    )


def _unit(features: Tensor) -> Tensor:
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-6)

"""A small flat world and its checker, made once: templates are kept between checks."""

import pytest

from configs.training import WorldConfig
from ldm.data.emoji_scenes.world import World
from ldm.evaluation.checker import Checker

NOUNS = ("cat", "dog", "fox", "panda", "penguin", "banana", "apple", "pizza", "key", "table", "crown", "top hat")


@pytest.fixture(scope="session")
def world() -> World:
    return World(
        WorldConfig(
            nouns=NOUNS,
            colours=("red", "green", "blue"),
            places=("beach", "snow"),
            styles=("flat",),
            sizes=("big",),
            recipes=("single", "counted", "left of", "above", "holding", "wearing"),
        )
    )


@pytest.fixture(scope="session")
def checker(world: World) -> Checker:
    return Checker(128, world)

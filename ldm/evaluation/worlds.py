"""Which part of the world a model is measured on: what it says it was trained on."""

from dataclasses import replace

from configs.training import WorldConfig
from ldm.data.emoji_scenes.world import RECIPES, World
from ldm.vocabulary import Vocabulary


def checked_world(vocabulary: Vocabulary) -> World:
    """The part of a model's world that the checker can judge: flat pictures, no signs.

    Raises ValueError where nothing is left, or the vocabulary has words that the world of emoji scenes lacks.
    """
    if vocabulary.styles and "flat" not in vocabulary.styles:
        raise ValueError(f'The checker judges the style "flat" only, and this model draws {vocabulary.styles}.')
    relations = tuple(name for name in vocabulary.relations if name in RECIPES)
    return World(
        WorldConfig(
            nouns=tuple(noun for kind in vocabulary.nouns.values() for noun in kind),
            colours=vocabulary.colours,
            places=vocabulary.places,
            styles=("flat",),
            sizes=vocabulary.sizes,
            recipes=("single", *(("counted",) if vocabulary.counts else ()), *relations),
        )
    )


def flat(config: WorldConfig) -> World:
    """A run file's world without what the checker cannot judge, every kind of scene by its own share."""
    recipes = tuple(name for name in config.recipes or RECIPES if name != "sign")
    return World(replace(config, styles=("flat",), recipes=recipes, shares=()))

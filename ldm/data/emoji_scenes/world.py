"""The world, or a part of it that a smaller model learns: which nouns, colours, places, styles, sizes and scenes."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from configs.training import WorldConfig
from ldm.data.emoji_scenes.lattice import Lattice
from ldm.data.emoji_scenes.nouns import NOUNS, UNCOUNTED
from ldm.data.emoji_scenes.vocabulary import COLOURS, SCENES, SIZES, STYLES

# Kind of scene -> its share among a hundred, and the roles of nouns (see `nouns.py`) that it cannot do without.
RECIPES: dict[str, tuple[int, tuple[str, ...]]] = {
    "single": (16, ("any",)),
    "counted": (11, ("countable",)),
    "left of": (12, ("any",)),
    "above": (8, ("any",)),
    "next to": (7, ("any",)),
    "holding": (12, ("a", "h")),
    "wearing": (7, ("t", "w")),
    "riding": (6, ("a", "m")),
    "on top of": (6, ("h", "s")),
    "inside": (4, ("h", "c")),
    "sign": (5, ("a",)),
    "dressed": (2, ("at",)),
    "beside": (4, ("any",)),
}
# Kinds of scenes that are made of others: one of each row must be there.
_NEEDS = {
    "dressed": (("wearing",), ("holding", "riding")),
    "beside": (("holding", "wearing", "riding"), ("left of", "above")),
}
_FLAT_SHARE = 11  # of the style "flat", against one of each other


class World:
    """What scenes may be made of.

    `config` names the parts, in any order; an empty tuple is all of a kind. Raises ValueError for a name the world does
    not have (with the nearest one) and for a kind of scene that no noun is left for.
    """

    def __init__(self, config: WorldConfig | None = None) -> None:
        config = config or WorldConfig()
        self.config = config
        self.nouns = _chosen("noun", config.nouns, NOUNS)
        self.colours = _chosen("colour", config.colours, COLOURS)
        self.places = _chosen("place", config.places, SCENES)
        self.styles = _chosen("style", config.styles, STYLES)
        self.sizes = _chosen("size", config.sizes, [size for size in SIZES if size])
        self.recipes = _chosen("kind of scene", config.recipes, RECIPES)
        shares = dict(zip(config.recipes, config.shares, strict=True)) if config.shares else {}
        self.deck = tuple(name for name in self.recipes for _ in range(RECIPES[name][0]))
        self.training_deck = tuple(name for name in self.recipes for _ in range(shares[name])) if shares else self.deck
        self.style_deck = tuple(style for style in self.styles for _ in range(_FLAT_SHARE if style == "flat" else 1))
        self.lattice = Lattice(config.lattice, config.sides, config.hubs)
        self._roles: dict[str, tuple[str, ...]] = {}
        for recipe in self.recipes:
            self._require(recipe)

    def nouns_for(self, role: str) -> tuple[str, ...]:
        """Nouns that may stand in a role: role letters of `nouns.py` (all of them), "any", or "countable"."""
        if role not in self._roles:
            self._roles[role] = tuple(name for name in self.nouns if _fits(name, role))
        return self._roles[role]

    def _require(self, recipe: str) -> None:
        """Whether a kind of scene can be drawn at all."""
        for role in RECIPES[recipe][1]:
            count = len(self.nouns_for(role))
            if count < 2:
                raise ValueError(
                    f"The kind of scene {recipe!r} needs two or more nouns of the role {role!r} (see nouns.py), but "
                    f"the world has {count}: add nouns or leave this kind out."
                )
        for parts in _NEEDS.get(recipe, ()):
            if not set(parts) & set(self.recipes):
                raise ValueError(f"The kind of scene {recipe!r} is made of others: add {' or '.join(parts)}.")


def _fits(noun: str, role: str) -> bool:
    if role == "countable":
        return noun not in UNCOUNTED
    return role == "any" or set(role) <= set(NOUNS[noun].roles)


def _chosen(kind: str, names: Sequence[str], all_names: Iterable[str]) -> tuple[str, ...]:
    """The named ones in the world's own order, so that the order of a list changes nothing."""
    known = tuple(all_names)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1) or known[:1]
            raise ValueError(f"The world has no {kind} {name!r}: did you mean {near[0]!r}?")
    return tuple(name for name in known if name in names) if names else known


FULL = World()

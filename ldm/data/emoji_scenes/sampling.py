"""Draws plans: which nouns meet in which relation, with which colours, sizes, counts, backgrounds and styles."""

from collections.abc import Callable
from typing import TypeVar

from ldm.data.emoji_scenes.atlas import glyphs
from ldm.data.emoji_scenes.backgrounds import tones
from ldm.data.emoji_scenes.drawn import LETTERS
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.nouns import NOUNS, UNCOUNTED
from ldm.data.emoji_scenes.plan import Background, Link, Plan, Thing
from ldm.data.emoji_scenes.vocabulary import COLOURS, RGB, SIGN_WORDS
from ldm.data.emoji_scenes.world import World

T = TypeVar("T")
VARIANTS = 16
CONTRAST = 70  # least distance of a thing's mean colour from what lies behind it, in levels of 255
_GROUPED = ("small",)
_SCENERY = frozenset({"volcano", "mountain", "rainbow", "castle", "house", "ship", "ferris wheel", "globe"})


class Draw(Keyed):
    """Draws for one key, from one world."""

    __slots__ = ("world",)

    def __init__(self, world: World, *key: object) -> None:
        super().__init__(*key)
        self.world = world


Recipe = Callable[[Draw], Plan]


def single(draw: Draw) -> Plan:
    """One thing."""
    return Plan((_thing(draw, "any", colour=0.5, sizes=draw.world.sizes),))


def counted(draw: Draw) -> Plan:
    """Two, three or four of a kind."""
    return Plan(
        (Thing(draw.pick(draw.world.nouns_for("countable")), _colour(draw, 0.15), count=2 + draw.pick((0, 1, 2))),)
    )


def related(relation: str) -> Recipe:
    """Two things in a spatial relation: "left of", "above" or "next to"."""

    def recipe(draw: Draw) -> Plan:
        a = _thing(draw, "any", colour=0.2, sizes=("tiny", "small", "big"), size=0.2)
        b = _other(draw, "any", (a,), colour=0.2, sizes=("tiny", "small"), size=0.15)
        return Plan((a, b), (Link(relation, 0, 1),))

    return recipe


def holding(draw: Draw) -> Plan:
    """An animal or person with something at its paw."""
    a = _thing(draw, "a", colour=0.15, sizes=_GROUPED, size=0.15)
    return Plan((a, _other(draw, "h", (a,), colour=0.2)), (Link("holding", 0, 1),))


def wearing(draw: Draw) -> Plan:
    """A hat on a head."""
    a = _thing(draw, "t", colour=0.15, sizes=_GROUPED, size=0.15)
    return Plan((a, _other(draw, "w", (a,), colour=0.3)), (Link("wearing", 0, 1),))


def riding(draw: Draw) -> Plan:
    """An animal or person on the back of another, or on a vehicle."""
    a = _thing(draw, "a", colour=0.15)
    return Plan((a, _other(draw, "m", (a,), colour=0.15)), (Link("riding", 0, 1),))


def on_top(draw: Draw) -> Plan:
    """One to four things lying on a flat top."""
    a = _thing(draw, draw.pick(("any", "h", "h")), colour=0.15)
    if a.noun not in UNCOUNTED and draw.chance(0.35):
        a = Thing(a.noun, a.colour, count=2 + draw.pick((0, 1, 2)))
    return Plan((a, _other(draw, "s", (a,), colour=0.15)), (Link("on top of", 0, 1),))


def inside(draw: Draw) -> Plan:
    """Something that sticks out of a container."""
    a = _thing(draw, draw.pick(("any", "h")), colour=0.15)
    return Plan((a, _other(draw, "c", (a,), colour=0.15)), (Link("inside", 0, 1),))


def sign(draw: Draw) -> Plan:
    """A sign with a word or a few letters, alone or held."""
    board = Thing("sign", word=_word(draw))
    if draw.chance(0.5):
        return Plan((board,))
    return Plan((_thing(draw, "a", colour=0.15), board), (Link("holding", 0, 1),))


def dressed(draw: Draw) -> Plan:
    """One that wears a hat and also holds something or rides."""
    a = _thing(draw, "t", colour=0.1)
    while "a" not in NOUNS[a.noun].roles:
        a = _thing(draw, "t", colour=0.1)
    hat = _other(draw, "w", (a,), colour=0.2)
    relation, role = draw.pick(_shown(draw, {"holding": ("holding", "h"), "riding": ("riding", "m")}))
    third = _other(draw, role, (a, hat), colour=0.1)
    return Plan((a, hat, third), (Link("wearing", 0, 1), Link(relation, 0, 2)))


def beside(draw: Draw) -> Plan:
    """A holder, wearer or rider, and one more thing left of it, above it or next to it."""
    group = draw.pick(_shown(draw, {"holding": holding, "wearing": wearing, "riding": riding}))(draw)
    things = tuple(Thing(thing.noun, thing.colour) for thing in group.things)
    third = _other(draw, "any", things, colour=0.1)
    sides = ("left of", "above") if group.links[0].relation == "riding" else ("left of", "above", "next to")
    relation = draw.pick(_shown(draw, {side: side for side in sides}))
    ends = (0, 2) if draw.chance(0.5) or relation == "next to" else (2, 0)
    return Plan((*things, third), (*group.links, Link(relation, *ends)))


def crowd(draw: Draw) -> Plan:
    """Four things: two holders or wearers side by side. Never in the training split."""
    groups = _shown(draw, {"holding": holding, "wearing": wearing})
    left, right = draw.pick(groups)(draw), draw.pick(groups)(draw)
    things = tuple(Thing(thing.noun, thing.colour) for thing in (*left.things, *right.things))
    links = (left.links[0], Link(right.links[0].relation, 2, 3), Link("left of", 0, 2))
    return Plan(things, links)


RECIPES: dict[str, Recipe] = {
    "single": single,
    "counted": counted,
    "left of": related("left of"),
    "above": related("above"),
    "next to": related("next to"),
    "holding": holding,
    "wearing": wearing,
    "riding": riding,
    "on top of": on_top,
    "inside": inside,
    "sign": sign,
    "dressed": dressed,
    "beside": beside,
    "crowd": crowd,
}


def any_recipe(draw: Draw, training: bool = False) -> Recipe:
    """A recipe of the world by its share."""
    return RECIPES[draw.pick(draw.world.training_deck if training else draw.world.deck)]


def draw_plan(draw: Draw, recipe: Recipe) -> Plan:
    """A whole plan: the recipe's things, then style and background to go with them."""
    while True:
        plan = recipe(draw)
        if len({thing.noun for thing in plan.things}) == len(plan.things):
            return _dress(draw, plan)


def _dress(draw: Draw, plan: Plan) -> Plan:
    style = draw.pick(draw.world.style_deck)
    background = _background(draw, plan, style)
    coloured = style in ("flat", "pixelated")
    things = tuple(
        Thing(thing.noun, thing.colour if coloured else "", thing.size, thing.count, thing.word)
        for thing in plan.things
    )
    return Plan(things, plan.links, background, style)


def _background(draw: Draw, plan: Plan, style: str) -> Background:
    """A third unsaid and pale, the rest one colour, a gradient or a place; four tries for one that hides nothing."""
    pale = Background("plain", "", draw.pick(range(VARIANTS)))
    if style == "outline" or draw.chance(0.3):
        return pale
    grounds = (_ground(draw, plan, style) for _ in range(4))
    return next((ground for ground in grounds if not _hides(ground, plan)), pale)


def _ground(draw: Draw, plan: Plan, style: str) -> Background:
    """A place, or one colour where a place would be too small for what stands in it; grey pictures say no colours."""
    tall = any(thing.noun in _SCENERY or thing.size == "huge" for thing in plan.things)
    variant = draw.pick(range(VARIANTS))
    if style == "grayscale" or (draw.chance(0.5) and not tall):
        return Background(draw.pick(draw.world.places), "", variant)
    return Background(draw.pick(("plain", "gradient")), draw.pick(draw.world.colours), variant)


def _hides(ground: Background, plan: Plan) -> bool:
    """Whether a thing is hard to see before most of what is painted from the middle down."""
    if ground.colour and ground.colour in {thing.colour for thing in plan.things}:
        return True
    behind = tones(ground)
    return any(2 * sum(_lost(_tone(thing), tone) for tone in behind) > len(behind) for thing in plan.things)


def _tone(thing: Thing) -> RGB:
    """A thing's mean colour, or the middle of what it is coloured with."""
    if not thing.colour:
        return glyphs()[thing.noun].mean
    r, g, b = ((dark + light) // 2 for dark, light in zip(*COLOURS[thing.colour], strict=True))
    return (r, g, b)


def _lost(thing: RGB, ground: RGB) -> bool:
    """Whether a thing of one colour is hard to see on the other."""
    return sum((a - b) ** 2 for a, b in zip(thing, ground, strict=True)) < CONTRAST**2


def _shown(draw: Draw, options: dict[str, T]) -> tuple[T, ...]:
    """The options of the relations that the world has scenes of."""
    return tuple(option for relation, option in options.items() if relation in draw.world.recipes)


def _thing(draw: Draw, role: str, *, colour: float, sizes: tuple[str, ...] = (), size: float = 0.35) -> Thing:
    noun, said = draw.pick(draw.world.nouns_for(role)), _colour(draw, colour)
    sizes = tuple(name for name in sizes if name in draw.world.sizes)
    return Thing(noun, said, draw.pick(sizes) if sizes and draw.chance(size) else "")


def _other(
    draw: Draw, role: str, others: tuple[Thing, ...], *, colour: float, sizes: tuple[str, ...] = (), size: float = 0.0
) -> Thing:
    """A thing of another noun than the others."""
    while True:
        thing = _thing(draw, role, colour=colour, sizes=sizes, size=size)
        if all(thing.noun != other.noun for other in others):
            return thing


def _word(draw: Draw) -> str:
    """A word of the list, or up to five letters at random, so that spelling is learnt and not the list."""
    if draw.chance(0.6):
        return draw.pick(SIGN_WORDS)
    return "".join(draw.pick(LETTERS) for _ in range(draw.pick((1, 2, 3, 4, 5))))


def _colour(draw: Draw, probability: float) -> str:
    """A colour is drawn even where it is not used: what follows then does not depend on it."""
    colour = draw.pick(draw.world.colours)
    return colour if draw.chance(probability) else ""

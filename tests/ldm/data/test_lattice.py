"""Scenes on a lattice: few sizes, aligned cells, and every relation still what its caption says."""

from dataclasses import replace

import pytest

from configs.training import WorldConfig
from ldm.data.emoji_scenes import EmojiScenes
from ldm.data.emoji_scenes.geometry import holds, told
from ldm.data.emoji_scenes.lattice import Lattice
from ldm.data.emoji_scenes.layout import Piece
from ldm.data.emoji_scenes.world import World

CELLS, SIDES, HUBS = 16, (4, 6, 8), (8, 12)


def scenes(split: str = "train", *recipes: str) -> EmojiScenes:
    return EmojiScenes(split, 3, world=World(WorldConfig(recipes=recipes, lattice=CELLS, sides=SIDES, hubs=HUBS)))


def whole(cells: float) -> bool:
    """Positions are rounded to a 4096th of the picture."""
    return abs(cells - round(cells)) < 0.01


@pytest.mark.parametrize("split", ["train", "swaps"])
def test_relations_hold_and_nothing_leaves_the_picture(split):
    for scene in map(scenes(split).__getitem__, range(400)):
        assert all(holds(*relation) for relation in told(scene)), scene.caption
        for owner in scene.objects:
            assert min(owner.box) >= 0, scene.caption
            assert max(owner.box) <= 1, scene.caption


def test_single_things_and_pairs_fill_whole_cells_in_the_sides_asked_for():
    seen = set()
    for scene in map(scenes("train", "single", "left of", "above").__getitem__, range(200)):
        for sprite in scene.sprites:
            cells = (sprite.x * CELLS, sprite.y * CELLS, sprite.side * CELLS)
            assert all(whole(cell) for cell in cells)
            seen.add((len(scene.sprites), cells[2]))
    assert {side for things, side in seen if things == 1} <= set(SIDES)
    assert {side for things, side in seen if things == 2} >= set(SIDES)  # and others, where a pair has to shrink


def test_what_touches_another_stands_on_half_cells():
    held = 0
    for scene in map(scenes("train", "holding", "wearing", "on top of").__getitem__, range(200)):
        mains = {sprite.owner: sprite for sprite in reversed(scene.sprites)}  # its own picture is an owner's first
        for sprite in mains.values():
            assert whole(sprite.x * CELLS * 2)
            assert whole(sprite.side * CELLS)
            held += 1
    assert held > 300


def test_paws_move_with_what_they_hold():
    """As far from its middle, in its own units, as without a lattice."""
    free = EmojiScenes("train", 3, world=World(WorldConfig(recipes=("holding",))))
    compared = 0
    for i in range(40):
        on, off = scenes("train", "holding")[i], free[i]
        assert on.plan == off.plan
        if len(on.sprites) == 3:  # a body seen from the side, with one paw
            (item, paw), (free_item, free_paw) = on.sprites[1:], off.sprites[1:]
            assert (paw.x - item.x) / item.side == pytest.approx((free_paw.x - free_item.x) / free_item.side, abs=4e-3)
            assert paw.side / item.side == pytest.approx(free_paw.side / free_item.side, abs=4e-3)
            compared += 1
    assert compared > 5


def test_hubs_are_as_large_as_fits_and_what_they_hold_is_of_a_known_side_on_whole_cells():
    hubs: dict[str, set[int]] = {"": set(), "small": set()}
    held: dict[str, set[int]] = {"": set(), "small": set()}
    for scene in map(scenes("train", "holding").__getitem__, range(200)):
        hub, thing = (next(sprite for sprite in scene.sprites if sprite.owner == owner) for owner in (0, 1))
        assert all(whole(cells * CELLS) for cells in (thing.x, thing.y))
        size = scene.plan.things[0].size
        hubs[size].add(round(hub.side * CELLS))
        held[size].add(round(thing.side * CELLS))
    assert 12 in hubs[""] <= set(HUBS)
    assert hubs["small"] == {4, 6}  # what is called small is not drawn large
    assert 6 in held[""] <= set(SIDES)
    assert held["small"] == {2, 3}  # half of that: less than any side


def test_what_stands_on_another_shrinks_to_a_known_side_and_keeps_its_foot():
    lattice, free = Lattice(CELLS, SIDES), Piece("table", 0.0, 0.0, 12 / CELLS, (1, 0))
    apple = Piece("apple", 3 / CELLS, -5 / CELLS, 7 / CELLS, (0, 0))
    settled = lattice.settle([free, apple])[1]
    assert settled.side == 6 / CELLS
    assert abs(settled.ink[3] - apple.ink[3]) <= 0.25 / CELLS  # the nearest half cell
    assert lattice.settle([free, replace(apple, side=3 / CELLS)])[1].side == 3 / CELLS  # less than any side


def test_without_cells_nothing_changes():
    lattice = Lattice()
    assert (lattice.side(0.37), lattice.at_most(0.37), lattice.shift(0.37, 0, 1), lattice.step) == (0.37, 0.37, 0.37, 0)


def test_shifts_stay_within_bounds_where_a_cell_does():
    lattice = Lattice(16)
    assert lattice.shift(0.51, 0.0, 1.0) == 0.5
    assert lattice.shift(0.51, 0.52, 1.0) == 0.5625
    assert lattice.shift(0.51, 0.505, 0.515) == 0.5  # no cell between: the nearest
    assert lattice.at_most(0.9 / 16) == 1 / 16


def test_sides_must_fit_the_lattice():
    with pytest.raises(ValueError, match=r"sides = \(4, 20\) is out of range, expected whole numbers from 1 to"):
        WorldConfig(lattice=16, sides=(4, 20))
    with pytest.raises(ValueError, match="hubs"):
        WorldConfig(hubs=(8,))

"""What of a world an evaluation draws."""

from configs.training import WorldConfig
from ldm.evaluation.worlds import flat


def test_a_flat_world_keeps_everything_else_of_a_run() -> None:
    config = WorldConfig(colours=("red", "blue"), recipes=("single", "sign"), sizes=("big",), lattice=16, sides=(4, 6))
    world = flat(config)
    assert (world.styles, world.recipes) == (("flat",), ("single",))
    assert (world.colours, world.sizes) == (config.colours, config.sizes)
    assert (world.lattice.cells, world.lattice.sides) == (16, (4, 6))


def test_all_kinds_of_scenes_but_signs_where_a_run_names_none() -> None:
    assert set(flat(WorldConfig(styles=("outline", "flat"))).recipes) >= {"single", "holding", "beside"}
    assert "sign" not in flat(WorldConfig()).recipes

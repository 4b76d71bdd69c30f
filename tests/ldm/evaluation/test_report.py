"""Whole evaluations of drawing functions whose result is known beforehand."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.emoji_scenes import EmojiScenes
from ldm.data.emoji_scenes.world import World
from ldm.evaluation.baselines import Draw, Retrieval, unconditional
from ldm.evaluation.checker import Checker
from ldm.evaluation.measure import Amount, measured, seeds_of, splits_for
from ldm.evaluation.report import Report, as_markdown, as_text
from ldm.evaluation.sheet import RIGHT, WRONG, save_sheet, sheet
from ldm.evaluation.validate import picture, true_pictures, wrong_captions
from ldm.evaluation.worlds import checked_world
from ldm.vocabulary import of_world

FEW = Amount(prompts=8, seeds=1, batch=3)


def renderer(data: EmojiScenes, prompts: int, partner: bool = False) -> Draw:
    """Draws the very scene of a caption, or the one with the nouns exchanged."""
    scenes = {data[i].caption: data[i ^ 1 if partner else i] for i in range(prompts)}
    return lambda captions, seeds: torch.stack([picture(scenes[caption], 128) for caption in captions])


def test_a_perfect_drawer_is_always_right(checker: Checker, world: World) -> None:
    for split in ("iid", "swaps"):
        data = EmojiScenes(split, world=world)
        found = measured(renderer(data, 8), checker, data, FEW)
        rates = found["all"]
        assert rates["joint"].rate == 1
        assert (rates["nouns"].clusters, rates["nouns"].trials) == (8, 8)
        assert sum(one.trials for one in found["kinds"].values()) == 8
    assert rates["both of a pair"].rate == 1
    assert rates["both of a pair"].clusters == 4


def test_one_who_confuses_subject_and_object_fails_the_swaps(checker: Checker, world: World) -> None:
    data = EmojiScenes("swaps", world=world)
    rates = measured(renderer(data, 8, partner=True), checker, data, FEW)["all"]
    assert rates["nouns"].rate == 1
    assert rates["relations given nouns"].rate == 0
    assert (rates["joint"].rate, rates["both of a pair"].rate) == (0, 0)


def test_swaps_share_their_seeds_and_nothing_else_does(world: World) -> None:
    amount = Amount(prompts=4, seeds=2, first_seed=7)
    assert seeds_of(EmojiScenes("swaps", world=world), 4, amount) == [[7, 8], [7, 8], [9, 10], [9, 10]]
    assert seeds_of(EmojiScenes("iid", world=world), 2, amount) == [[7, 8], [9, 10]]


def test_retrieval_answers_a_training_caption_with_its_scene(world: World) -> None:
    data = EmojiScenes("train", world=world)
    retrieval = Retrieval(data, captions=20)
    assert retrieval.nearest(data.caption(13)) == min(
        i for i in range(20) if set(data.caption(i).split()) == set(data.caption(13).split())
    )
    assert torch.equal(retrieval([data.caption(13)], [5])[0], picture(data[13], 128))
    with pytest.raises(ValueError, match="training"):
        Retrieval(EmojiScenes("iid", world=world))


def test_unconditional_drops_the_words() -> None:
    heard: list[str] = []

    def draw(prompts: list[str], seeds: list[int]) -> Tensor:
        heard.extend(prompts)
        return torch.zeros(len(prompts), 3, 8, 8)

    assert unconditional(draw)(["a cat", "a dog"], [1, 2]).shape == (2, 3, 8, 8)
    assert heard == ["", ""]


def test_the_checker_validates_itself(checker: Checker, world: World) -> None:
    data = EmojiScenes("iid", seed=8, world=world)
    scenes = [data[i] for i in range(6)]
    assert true_pictures(checker, scenes)["joint"].rate == 1
    assert true_pictures(checker, scenes, torch.zeros_like)["joint"].rate == 0
    wrong = wrong_captions(checker, data, scenes)
    assert {name: rate.rate for name, rate in wrong.items()} == {"near misses": 0, "other scenes": 0}


def test_splits_are_those_that_can_be_measured(world: World) -> None:
    assert {"iid", "pairs", "swaps"} <= set(splits_for(world))
    assert not {"train", "words", "compounds"} & set(splits_for(world))
    assert splits_for(world, ["swaps"]) == ("swaps",)
    for name in ("compounds", "words", "piars"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be measured"):
            splits_for(world, [name])


def test_a_model_is_asked_for_what_it_knows(world: World) -> None:
    asked = checked_world(of_world(world))
    assert asked.config == world.config or (asked.nouns, asked.recipes) == (world.nouns, world.recipes)
    assert (asked.colours, asked.places, asked.sizes) == (world.colours, world.places, world.sizes)


def test_a_report_survives_its_file(checker: Checker, world: World, tmp_path: Path) -> None:
    data = EmojiScenes("iid", world=world)
    found = measured(renderer(data, 4), checker, data, Amount(prompts=4, seeds=1))
    report = Report({"model": "x", "seeds": 1}, {"iid": found["all"]}, {"iid": found["kinds"]})
    report.baselines = {"retrieval": {"iid": found["all"]}}
    report.sweeps = {"sampler": {"ddim": found["all"]["joint"]}}
    path = tmp_path / "new" / "report.json"
    report.save(path)
    assert Report.load(path) == report
    assert [one.name for one in path.parent.iterdir()] == ["report.json"]
    for text in (as_text(report), as_markdown(report)):
        assert "100.0 %" in text
        assert "ddim" in text
    path.write_text('{"settings": {}}')
    with pytest.raises(ValueError, match="no report"):
        Report.load(path)


def test_a_sheet_borders_right_and_wrong(tmp_path: Path) -> None:
    rows = [("a cat holding a very long banana in the snow", torch.zeros(2, 3, 32, 32), [True, False])] * 3
    page = sheet(rows, across=2)
    colours = {colour for _, colour in page.getcolors(1 << 20) or []}
    assert {RIGHT, WRONG, (128, 128, 128)} <= colours
    save_sheet(page, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as saved:
        assert saved.size == page.size
    with pytest.raises(ValueError, match="one for each"):
        sheet([("x", torch.zeros(2, 3, 8, 8), [True])])

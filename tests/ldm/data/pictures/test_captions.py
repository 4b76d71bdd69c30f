"""Captions: dropped at their rate, chosen and shuffled for themselves."""

from collections import Counter
from dataclasses import replace

import pytest

from configs.finetuning import DataConfig
from ldm.data.pictures.captions import caption
from ldm.data.pictures.item import Item

PLAIN = DataConfig("pictures", caption_dropout=0.0)
ITEM = Item("a", ("sks, a, b, c, d, e",), bytes)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_at_their_rate(rate: float) -> None:
    config, count = replace(PLAIN, caption_dropout=rate), 4000
    dropped = sum(caption(ITEM, config, 0, p) == "" for p in range(count))
    assert abs(dropped - rate * count) <= 4 * (count * rate * (1 - rate)) ** 0.5


def test_each_caption_is_chosen_alike() -> None:
    item = Item("a", ("one", "two", "three"), bytes)
    chosen = Counter(caption(item, PLAIN, 5, p) for p in range(3000))
    assert all(abs(chosen[text] - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for text in item.captions)


@pytest.mark.parametrize("keep", [0, 1, 3, 9])
def test_tags_are_shuffled_but_the_first(keep: int) -> None:
    config = replace(PLAIN, shuffle_tags=True, keep_tags=keep)
    tags = ["sks", "a", "b", "c", "d", "e"]
    met = [caption(ITEM, config, 0, p).split(", ") for p in range(800)]
    assert all(sorted(one) == sorted(tags) and one[:keep] == tags[:keep] for one in met)
    if keep == 3:
        orders = Counter(tuple(one) for one in met)
        assert len(orders) == 6
        assert all(abs(count - 800 / 6) < 5 * (800 * 5 / 36) ** 0.5 for count in orders.values())


def test_other_separators() -> None:
    item = Item("a", ("x y |p q||r",), bytes)
    config = replace(PLAIN, shuffle_tags=True, keep_tags=1, tag_separator="|")
    assert {caption(item, config, 0, p) for p in range(40)} == {"x y| p q| r", "x y| r| p q"}


def test_one_choice_moves_no_other() -> None:
    item = Item("a", ("a, b, c", "d, e, f"), bytes)
    plain = [caption(item, PLAIN, 0, p) for p in range(200)]
    dropping = [caption(item, replace(PLAIN, caption_dropout=0.3), 0, p) for p in range(200)]
    assert all(one in ("", other) for one, other in zip(dropping, plain, strict=True))
    shuffled = [caption(item, replace(PLAIN, shuffle_tags=True, keep_tags=0), 0, p) for p in range(200)]
    assert [sorted(text) for text in shuffled] == [sorted(text) for text in plain]
    assert plain != [caption(item, PLAIN, 1, p) for p in range(200)]


def test_which_caption_is_chosen_tells_nothing_of_whether_it_is_dropped() -> None:
    item, config = Item("a", ("one", "two"), bytes), replace(PLAIN, caption_dropout=0.5)
    met = Counter(caption(item, config, 0, p) for p in range(4000))
    assert abs(met["one"] - 1000) < 5 * (4000 * 3 / 16) ** 0.5
    assert abs(met["two"] - 1000) < 5 * (4000 * 3 / 16) ** 0.5


def test_no_caption_is_the_empty_one() -> None:
    assert caption(Item("a", (), bytes), PLAIN, 0, 0) == ""

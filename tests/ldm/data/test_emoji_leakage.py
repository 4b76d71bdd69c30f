"""No training caption says a held-out combination: proved from the words, by a reader that knows no plans."""

from itertools import combinations

import pytest

from ldm.data.emoji_scenes import SPLITS, EmojiScenes, HoldOut
from ldm.data.emoji_scenes import generator as generator_module
from ldm.data.emoji_scenes.drawn import LETTERS
from ldm.data.emoji_scenes.grammar import told_templates
from ldm.data.emoji_scenes.nouns import NOUNS
from ldm.data.emoji_scenes.phrases import FRAMES, PHRASES, STYLE_FRAMES
from ldm.data.emoji_scenes.plan import combinations_of
from ldm.data.emoji_scenes.vocabulary import COLOURS, COUNTS, SCENES, SIGN_WORDS, SIZE_WORDS, STYLES

SYMMETRIC = {"next to"}
CAPTIONS = 10000


def said(reading):
    """The combinations that a caption's words say, worked out here from the reading alone."""
    found = set()
    for noun, colour, _, count, word in reading.mentions:
        found |= {("colour", colour, noun)} if colour else set()
        found |= {("count", COUNTS[count], noun)} if count > 1 else set()
        found |= {("word", word)} if word else set()
    for relation, a, b in reading.relations:
        found |= {("relation", relation, a, b), ("pair", a, b)}
        if relation in SYMMETRIC:
            found |= {("relation", relation, b, a), ("pair", b, a)}
    linked = {frozenset((a, b)) for _, a, b in reading.relations}
    for a, b in combinations([mention[0] for mention in reading.mentions], 2):
        if frozenset((a, b)) not in linked:
            found |= {("pair", a, b), ("pair", b, a)}
    for (first, *_), (second, *_) in combinations(reading.relations, 2):
        found.add(("compound", *sorted((first, second))))
    return found


def is_list(reading):
    """A bare list of nouns, "cat, banana": it has no relation to read."""
    return not reading.relations and len(reading.mentions) > 1


@pytest.mark.parametrize(("fraction", "captions"), [(0.1, CAPTIONS), (0.25, 2000), (0.5, 2000)])
def test_no_training_caption_says_what_is_held_out(read_caption, fraction, captions) -> None:
    held = HoldOut(fraction)
    scenes = EmojiScenes("train", seed=int(100 * fraction), held=held)
    for i in range(captions):
        reading = read_caption(scenes[i].caption)
        combos = said(reading)
        if is_list(reading):  # in whatever order they are read, one of them must be trained
            nouns = [mention[0] for mention in reading.mentions]
            combos = set()
            for a, b in combinations(nouns, 2):
                assert "train" in {held.fate(("pair", a, b)), held.fate(("pair", b, a))}, scenes[i].caption
        assert {held.fate(one) for one in combos} <= {"train"}, scenes[i].caption


def test_no_training_caption_uses_a_held_out_sentence() -> None:
    held = HoldOut()
    captions = [EmojiScenes("train", seed=5, held=held)[i].caption for i in range(6000)]
    for kind, key, options in told_templates():
        for option in options:
            if held.template(kind, key, option, options) != "train" and kind == "frame":
                start, end = option.replace("{is}", "is").split("{x}")
                assert len(start) + len(end) > 3
                hits = [c for c in captions if c.startswith(start) and c.endswith(end)]
                assert not hits, (option, hits[:3])


def test_no_training_caption_uses_a_held_out_phrase(read_caption) -> None:
    """Every way in which training captions tell a relation is a trained one."""
    held = HoldOut()
    scenes = EmojiScenes("train", seed=6, held=held)
    gone = [
        (relation, option)
        for relation, options in PHRASES.items()
        for option in options
        if held.template("phrase", relation, option, options) != "train"
    ]
    assert len(gone) >= 8
    for i in range(4000):
        text = read_caption(scenes[i].caption).text
        for _, option in gone:
            for a, b in ((0, 1), (1, 0), (0, 2), (2, 0)):
                assert option.replace("{a}", f"<{a}>").replace("{b}", f"<{b}>") not in text, scenes[i].caption


def test_the_reading_of_a_caption_is_the_plan(read_caption) -> None:
    """Captions are unambiguous, and the combinations of a plan are those of its words."""
    for split in ("iid", "relations", "compounds", "crowds", "templates"):
        scenes = EmojiScenes(split, seed=3)
        for i in range(300):
            scene = scenes[i]
            reading, things = read_caption(scene.caption), scene.plan.things
            expected = sorted((t.noun, t.colour, t.size, t.count, t.word) for t in things)
            assert sorted(reading.mentions) == expected, scene.caption
            assert said(reading) == combinations_of(scene.plan), scene.caption


@pytest.mark.parametrize(("split", "kind"), [(split, kind) for split, kind in SPLITS.items() if kind])
@pytest.mark.parametrize("fate", ["test", "validation"])
def test_a_split_shows_its_own_kind_and_nothing_else(read_caption, split, kind, fate) -> None:
    held = HoldOut()
    scenes = EmojiScenes(split, seed=1, held=held, fate=fate)
    for i in range(60):
        fates = {(one[0], held.fate(one)) for one in said(read_caption(scenes[i].caption))} - {
            (k, "train") for k in ("colour", "pair", "relation", "count", "compound", "word")
        }
        assert fates == (set() if kind == "template" else {(kind, fate)}), scenes[i].caption


def test_the_two_pictures_of_a_swap_differ_in_the_nouns_alone(read_caption) -> None:
    scenes = EmojiScenes("swaps", seed=2)
    for i in range(200):
        one, two = scenes[2 * i], scenes[2 * i + 1]
        a, b = one.plan.things
        assert [t.noun for t in two.plan.things] == [b.noun, a.noun]
        assert (one.plan.links, one.plan.background, one.plan.style) == (
            two.plan.links,
            two.plan.background,
            two.plan.style,
        )
        assert read_caption(one.caption).shape == read_caption(two.caption).shape
        assert all(HoldOut().allowed(scene.plan) for scene in (one, two))


def test_every_atom_occurs_in_training(read_caption) -> None:
    seen = {"noun": set(), "colour": set(), "size": set(), "count": set(), "word": set(), "relation": set()}
    kinds, styles = set(), set()
    scenes = EmojiScenes("train", seed=4)
    for i in range(10000):
        scene = scenes[i]
        kinds.add(scene.plan.background.kind)
        styles.add(scene.plan.style)
        seen["relation"] |= {link.relation for link in scene.plan.links}
        for t in scene.plan.things:
            for atom, value in zip(seen, (t.noun, t.colour, t.size, t.count, t.word), strict=False):
                seen[atom].add(value)
    assert seen["noun"] == {*NOUNS, "sign"}
    assert seen["colour"] == {"", *COLOURS}
    assert seen["size"] == {"", *SIZE_WORDS}
    assert seen["count"] == {1, *COUNTS}
    assert seen["relation"] == set(PHRASES)
    assert kinds == {"plain", "gradient", *SCENES}
    assert styles == set(STYLES)
    assert set(LETTERS) == set("".join(seen["word"]))
    trained = {word for word in SIGN_WORDS if HoldOut().fate(("word", word)) == "train"}
    assert len(trained & seen["word"]) > 0.8 * len(trained)


def test_there_are_twenty_templates_and_more() -> None:
    assert len(FRAMES) >= 20
    assert all(len(set(options)) == len(options) >= 5 for options in PHRASES.values())
    assert set(STYLE_FRAMES) == set(STYLES)


def test_a_larger_fraction_holds_out_more_of_the_same() -> None:
    small, large = HoldOut(0.1), HoldOut(0.5)
    pairs = [("pair", a, b) for a in list(NOUNS)[:60] for b in list(NOUNS)[60:120]]
    out = {one for one in pairs if small.fate(one) == "test"}
    assert out < {one for one in pairs if large.fate(one) == "test"}
    assert 0.08 < len(out) / len(pairs) < 0.12


@pytest.mark.parametrize("arguments", [{"fraction": -0.1}, {"fraction": 0.74, "validation": 0.1}])
def test_too_much_held_out_is_refused(arguments) -> None:
    with pytest.raises(ValueError, match="training needs to see every word"):
        HoldOut(**arguments)


def test_a_split_without_anything_held_out_says_so(monkeypatch) -> None:
    monkeypatch.setattr(generator_module, "_TRIES", 200)
    with pytest.raises(ValueError, match="Try a fraction of"):
        EmojiScenes("pairs", held=HoldOut(0.0, 0.0))[0]
    with pytest.raises(ValueError, match="No split 'pear'"):
        EmojiScenes("pear")

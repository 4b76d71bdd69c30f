"""The shipped glyphs: complete, small, licensed, and what the font gives."""

import json
from importlib.resources import files

import pytest
from PIL import ImageChops, features

from ldm.data import build_atlas
from ldm.data.emoji_scenes.atlas import glyphs, outlines, pictures
from ldm.data.emoji_scenes.drawn import LETTERS
from ldm.data.emoji_scenes.nouns import NOUNS, with_role

ATLAS = files("ldm.data.emoji_scenes") / "atlas"
needs_font = pytest.mark.skipif(
    not (build_atlas.FONT.is_file() and features.check("raqm")), reason="needs fonts-noto-color-emoji and libraqm"
)


def test_every_noun_letter_and_part_has_a_glyph_with_ink() -> None:
    names = {*NOUNS, "sign", "paw", *(f"letter {letter}" for letter in LETTERS)}
    assert names <= set(glyphs())
    assert len(pictures()) == len(outlines()) == len(glyphs())
    for glyph in glyphs().values():
        alpha = pictures()[glyph.number].getchannel("A")
        assert alpha.getbbox()
        assert outlines()[glyph.number].getchannel("A").getbbox()
    assert len({picture.tobytes() for picture in pictures()}) == len(pictures())


@pytest.mark.parametrize(
    ("role", "anchor"), [("a", "paw"), ("a", "coat"), ("t", "head"), ("m", "top"), ("s", "top"), ("c", "opening")]
)
def test_roles_have_their_anchors_within_the_ink(role, anchor) -> None:
    for name in with_role(role):
        glyph = glyphs()[name]
        value = getattr(glyph, anchor)
        assert value is not None, name
        if anchor != "coat":
            x0, y0, x1, y1 = glyph.ink
            assert x0 <= value[0] <= x1, name
            assert y0 - 0.01 <= value[1] <= y1, name


def test_the_package_data_is_small_and_licensed() -> None:
    assert len(ATLAS.joinpath("atlas.webp").read_bytes()) < 3_000_000
    text = ATLAS.joinpath("LICENSE").read_text("utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in text
    assert "Aileron" in text


@needs_font
def test_the_shipped_glyphs_are_those_of_the_font() -> None:
    for name in ("cat", "banana", "polar bear", "astronaut", "top hat", "squirrel"):
        again = build_atlas._emoji(NOUNS[name].emoji, build_atlas.FONT)
        shipped = pictures()[glyphs()[name].number]
        assert ImageChops.difference(again.getchannel("A"), shipped.getchannel("A")).getextrema()[1] <= 1
        assert (
            build_atlas._facts(name, again).items()
            <= json.loads(ATLAS.joinpath("atlas.json").read_text("utf-8"))["glyphs"][name].items()
        )


def test_a_missing_font_names_its_package(tmp_path, capsys) -> None:
    assert build_atlas.main(["--font", str(tmp_path / "no.ttf"), "--out", str(tmp_path / "atlas")]) == 2
    error = capsys.readouterr().err
    assert "apt-get install fonts-noto-color-emoji" in error
    assert "no.ttf" in error
    assert not (tmp_path / "atlas").exists()


@needs_font
def test_a_font_of_another_kind_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="use the font of Noto Color Emoji"):
        build_atlas._emoji("\N{CAT}\N{DOG}", build_atlas.FONT)

"""Rebuilds the glyph atlas of the emoji scenes from the font: `python -m ldm.data.build_atlas [--font F] [--out D]`."""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from ldm.data.emoji_scenes.anchors import anchors, coat, mean
from ldm.data.emoji_scenes.drawn import drawn_glyphs
from ldm.data.emoji_scenes.nouns import NOUNS

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_VERSION = "Noto Color Emoji 2.042 (Debian 12: fonts-noto-color-emoji 2.042-0+deb12u1)"
STRIKE = 109  # the one bitmap size of the font: 136 x 128 pixels
SIDE = 96
COLUMNS = 16


def build(font: Path, out: Path) -> None:
    """Writes atlas.webp (lossless; RGBA cells of 96 x 96 pixels) and atlas.json (cells, ink, anchors) to the folder."""
    glyphs = {noun.name: _emoji(noun.emoji, font) for noun in NOUNS.values() if noun.emoji != "#"} | drawn_glyphs(SIDE)
    rows = -(-len(glyphs) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    index = {}
    for cell, (name, glyph) in enumerate(glyphs.items()):
        sheet.paste(glyph, (cell % COLUMNS * SIDE, cell // COLUMNS * SIDE))
        index[name] = {"cell": cell} | _facts(name, glyph)
    pictures, table = out / "atlas.webp.part", out / "atlas.json.part"
    sheet.save(pictures, format="WEBP", lossless=True, quality=100, method=6)
    about = {"side": SIDE, "columns": COLUMNS, "font": FONT_VERSION, "glyphs": index}
    table.write_text(_json(about), encoding="utf-8")
    for part in (pictures, table):
        part.replace(part.with_suffix(""))


def _facts(name: str, glyph: Image.Image) -> dict[str, object]:
    roles = NOUNS[name].roles if name in NOUNS else ""
    facts: dict[str, object] = {**anchors(name, roles, glyph), "mean": mean(glyph)}
    if "a" in roles:
        ink = facts["ink"]
        assert isinstance(ink, list)
        facts["coat"] = coat(glyph, _face(roles, ink))
    return facts


def _face(roles: str, ink: list[float]) -> tuple[float, float, float]:
    """Where to look for the colour of the coat: the middle of a face or body."""
    width = 0.5 * (ink[2] - ink[0])
    return ((ink[0] + ink[2]) / 2, ink[1] + 0.35 * (ink[3] - ink[1]), width)


def _emoji(text: str, path: Path) -> Image.Image:
    """One emoji in a square cell, its ink centred and scaled so that the longer side nearly fills the cell."""
    font = ImageFont.truetype(str(path), STRIKE)
    page = Image.new("RGBA", (400, 300))
    ImageDraw.Draw(page).text((50, 200), text, font=font, embedded_color=True, anchor="ls")
    box = page.getbbox()
    if box is None or box[2] - box[0] > 140:
        raise ValueError(f"{path} has no single glyph for {text!r}: use the font of {FONT_VERSION}")
    middle, centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(box[2] - box[0], box[3] - box[1]) / 2 + 2
    square = (middle - half, centre - half, middle + half, centre + half)
    return page.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=square)


def _json(about: dict[str, object]) -> str:
    """One glyph a line, so that a rebuilt index can be compared by eye."""
    glyphs = about["glyphs"]
    assert isinstance(glyphs, dict)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in glyphs.items())
    head = json.dumps({key: value for key, value in about.items() if key != "glyphs"})
    return f'{head[:-1]}, "glyphs": {{\n{lines}\n}}}}\n'


def main(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m ldm.data.build_atlas", description=__doc__)
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmap glyphs (%(default)s)")
    default = Path(__file__).with_name("emoji_scenes") / "atlas"
    parser.add_argument("--out", type=Path, default=default, help="folder to write atlas.webp and atlas.json to")
    args = parser.parse_args(arguments)
    if not args.font.is_file():
        print(
            f"No font at {args.font}. On Debian and Ubuntu: apt-get install fonts-noto-color-emoji; elsewhere give the "
            "path of NotoColorEmoji.ttf with --font.",
            file=sys.stderr,
        )
        return 2
    if not features.check("raqm"):
        print("This Pillow cannot join emoji sequences (no libraqm): install the wheel from PyPI.", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    build(args.font, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Scenes to pictures and masks on the CPU, by Pillow. `render_tensor` draws the same picture on tensors."""

from functools import lru_cache

from PIL import Image

from ldm.data.emoji_scenes.atlas import index, outlines, pictures
from ldm.data.emoji_scenes.backgrounds import paint
from ldm.data.emoji_scenes.scene import Scene, Sprite
from ldm.data.emoji_scenes.vocabulary import RGB

SOLID = 128  # from this opacity on a pixel belongs to an object


def render(scene: Scene, size: int = 128) -> Image.Image:
    """The picture of a scene, RGB, size x size pixels; ValueError if not positive."""
    check_size(size)
    image = paint(scene.plan.background, size).copy()
    for sprite in scene.sprites:
        x, y, side = cell(sprite, size)
        glyph = _glyph(sprite.glyph, sprite.tint, scene.plan.style == "outline", side)
        image.paste(glyph, (x, y), glyph)
    return _style(image, scene.plan.style)


def owners(scene: Scene, size: int = 128) -> Image.Image:
    """Which object is seen at each pixel, mode L: its number in `scene.objects` plus one, 0 for the background."""
    check_size(size)
    image = Image.new("L", (size, size))
    for sprite in scene.sprites:
        x, y, side = cell(sprite, size)
        image.paste(sprite.owner + 1, (x, y), _solid(sprite, side))
    return image


def mask(scene: Scene, number: int, size: int = 128) -> Image.Image:
    """All of an object, also where another hides it: mode L, 255 inside and 0 outside."""
    check_size(size)
    image = Image.new("L", (size, size))
    for sprite in scene.sprites:
        if sprite.owner == number:
            x, y, side = cell(sprite, size)
            image.paste(255, (x, y), _solid(sprite, side))
    return image


def cell(sprite: Sprite, size: int) -> tuple[int, int, int]:
    """Left, top and side of a sprite's cell in whole pixels."""
    return (_nearest(sprite.x * size), _nearest(sprite.y * size), max(1, _nearest(sprite.side * size)))


def check_size(size: int) -> None:
    """Raises ValueError for a picture without pixels."""
    if size <= 0:
        raise ValueError(f"A size of {size} pixels cannot be drawn: use a positive one, say 128.")


def block(size: int) -> int:
    """Side in pixels of a block of the pixelated style: 3 of 128, the coarsest that leaves things to be recognised."""
    return max(2, 3 * size // 128)


def _nearest(value: float) -> int:
    return int(value + 0.5) if value >= 0 else -int(0.5 - value)


def _solid(sprite: Sprite, side: int) -> Image.Image:
    alpha = _glyph(sprite.glyph, None, False, side).getchannel("A")
    return alpha.point(lambda a: 255 if a >= SOLID else 0)


@lru_cache(maxsize=8192)
def _glyph(number: int, tint: tuple[RGB, RGB] | None, outline: bool, side: int) -> Image.Image:
    """A glyph in its colours at its size, RGBA. Pillow weighs colours by opacity while it reduces."""
    picture = (outlines() if outline else pictures())[number]
    if tint and not outline:
        picture = _tinted(picture, tint)
    if side == index()["side"]:
        return picture
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def _tinted(picture: Image.Image, tint: tuple[RGB, RGB]) -> Image.Image:
    """Grey g of 255 becomes dark + (light - dark) * g / 255."""
    grey = picture.convert("RGB").convert("L")
    bands = [grey.point(_ramp(dark, light)) for dark, light in zip(*tint, strict=True)]
    return Image.merge("RGBA", (*bands, picture.getchannel("A")))


def _ramp(dark: int, light: int) -> list[int]:
    return [int(dark + (light - dark) * grey / 255 + 0.5) for grey in range(256)]


def _style(image: Image.Image, style: str) -> Image.Image:
    if style == "grayscale":
        return image.convert("L").convert("RGB")
    if style == "pixelated":
        side = block(image.width)
        small = image.reduce(side)
        large = small.resize((small.width * side, small.height * side), Image.Resampling.NEAREST)
        return large.crop((0, 0, *image.size))
    return image

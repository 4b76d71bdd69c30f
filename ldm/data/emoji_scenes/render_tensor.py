"""Scenes to pictures in batches on tensors, on any device: the pictures of `rendering`, to rounding.

Pillow reduces a glyph by one triangle filter along the rows and one along the columns. Both are matrices here, made
anew for every sprite from where its cell lies on the picture: canvas = rows @ glyph @ columns^T, then alpha "over".
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ldm.data.emoji_scenes.atlas import index, outlines, pictures
from ldm.data.emoji_scenes.backgrounds import paint
from ldm.data.emoji_scenes.plan import Background
from ldm.data.emoji_scenes.rendering import block, cell, check_size
from ldm.data.emoji_scenes.scene import Scene, Sprite

_LUMA = (0.299, 0.587, 0.114)  # Pillow's mode "L": ITU-R 601-2
_NONE = (0, 0, 0, 0, *(0.0,) * 7)


class TensorRenderer:
    """Draws lists of scenes; keeps the glyphs and the backgrounds it has met on the device.

    size: side of the pictures in pixels; ValueError if not positive.
    """

    def __init__(self, size: int = 128, device: torch.device | str = "cpu") -> None:
        check_size(size)
        self.size, self.device = size, torch.device(device)
        # (glyphs, 4, s, s) in 0..1; the second half holds the line drawings
        self.atlas = _stack((*pictures(), *outlines())).to(self.device)
        self._grounds: dict[Background, int] = {}
        self._bank = torch.empty(0, 3, size, size, dtype=torch.uint8, device=self.device)

    @torch.no_grad()
    def __call__(self, scenes: Sequence[Scene]) -> Tensor:
        """b scenes -> (b, 3, size, size) float32 in [-1, 1] on the device."""
        if not scenes:
            raise ValueError("No scenes to draw: pass at least one.")
        canvas = self._background(scenes)
        rows = _table(scenes, self.size)
        outline = torch.tensor([scene.plan.style == "outline" for scene in scenes], device=self.device)
        for layer in rows.to(self.device).unbind(1):
            glyph = self._glyphs(layer, outline)
            canvas = self._over(canvas, glyph, layer)
        return self._style(canvas, scenes) * 2 - 1

    def _background(self, scenes: Sequence[Scene]) -> Tensor:
        """(b, 3, size, size) in 0..1 from the bank, which grows by what it has not met."""
        grounds = [scene.plan.background for scene in scenes]
        new = [ground for ground in dict.fromkeys(grounds) if ground not in self._grounds]
        if new:
            self._grounds |= {ground: len(self._grounds) + n for n, ground in enumerate(new)}
            added = torch.stack([_bytes(paint(ground, self.size)) for ground in new]).to(self.device)
            self._bank = torch.cat([self._bank, added])
        which = torch.tensor([self._grounds[ground] for ground in grounds], device=self.device)
        return self._bank[which].float() / 255

    def _glyphs(self, layer: Tensor, outline: Tensor) -> Tensor:
        """(b, 11) -> (b, 4, s, s): this layer's glyphs, tinted, colours weighed by opacity."""
        number = layer[:, 0].long() + outline * (len(self.atlas) // 2)
        glyph = self.atlas[number]
        colour, alpha = glyph[:, :3], glyph[:, 3:]
        dark, light = layer[:, 5:8, None, None], layer[:, 8:11, None, None]
        tinted = dark + (light - dark) * _luma(colour)
        use = (layer[:, 4].bool() & ~outline)[:, None, None, None]
        return torch.cat([torch.where(use, tinted, colour) * alpha, alpha], 1)

    def _over(self, canvas: Tensor, glyph: Tensor, layer: Tensor) -> Tensor:
        """The glyph, reduced to its cell, over the canvas."""
        x, y, side = layer[:, 1], layer[:, 2], layer[:, 3]
        rows, columns = self._filter(y, side), self._filter(x, side)  # (b, size, s) each
        placed = rows[:, None] @ glyph @ columns[:, None].mT  # (b, 4, size, size)
        return placed[:, :3] + canvas * (1 - placed[:, 3:])

    def _filter(self, start: Tensor, side: Tensor) -> Tensor:
        """(b,), (b,) -> (b, size, s): the share of each glyph line in each line of the picture.

        Pillow's resize with BILINEAR: a triangle of half width max(s / side, 1) glyph pixels around the middle of the
        picture's pixel, cut at the glyph's edge and normalised. Lines outside the cell get nothing.
        """
        source = self.atlas.shape[-1]
        pixel = torch.arange(self.size, device=self.device) - start[:, None]  # (b, size), in the cell
        scale = source / side.clamp_min(1)[:, None]
        centre = (pixel + 0.5) * scale
        lines = torch.arange(source, device=self.device) + 0.5
        distance = (lines - centre[..., None]) / scale.clamp_min(1)[..., None]
        weight = (1 - distance.abs()).clamp_min(0)
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-6)
        within = (pixel >= 0) & (pixel < side[:, None])
        return weight * within[..., None]

    def _style(self, canvas: Tensor, scenes: Sequence[Scene]) -> Tensor:
        canvas = canvas.clamp(0, 1)
        styles = [scene.plan.style for scene in scenes]
        side = block(self.size)
        for n in (n for n, style in enumerate(styles) if style == "grayscale"):
            canvas[n] = _luma(canvas[n : n + 1])[0]
        for n in (n for n, style in enumerate(styles) if style == "pixelated"):
            small = torch.nn.functional.avg_pool2d(canvas[n], side, ceil_mode=True)
            large = small.repeat_interleave(side, 1).repeat_interleave(side, 2)
            canvas[n] = large[:, : self.size, : self.size]
        return canvas


def _table(scenes: Sequence[Scene], size: int) -> Tensor:
    """(b, layers, 11): glyph, x, y, side (pixels), tinted, dark and light colour; short lists end in empty cells."""
    layers = max(len(scene.sprites) for scene in scenes)
    rows = [[_row(sprite, size) for sprite in scene.sprites] for scene in scenes]
    return torch.tensor([row + [_NONE] * (layers - len(row)) for row in rows], dtype=torch.float32)


def _row(sprite: Sprite, size: int) -> tuple[float, ...]:
    dark, light = sprite.tint or ((0, 0, 0), (0, 0, 0))
    tint = (value / 255 for value in (*dark, *light))
    return (sprite.glyph, *cell(sprite, size), float(sprite.tint is not None), *tint)


def _luma(colour: Tensor) -> Tensor:
    """(b, 3, h, w) -> (b, 1, h, w)."""
    return (colour * colour.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def _stack(images: Sequence[Image.Image]) -> Tensor:
    assert images[0].size == (index()["side"],) * 2
    return torch.stack([_bytes(image) for image in images]).float() / 255


def _bytes(image: Image.Image) -> Tensor:
    """An image of c bands -> (c, h, w) uint8."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).permute(2, 0, 1)

"""A convolutional network over overlapping tiles: memory grows with the tile, not with the image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

SMALLEST_TILE = 4  # latent cells; a quarter of a tile overlaps, at least one cell


class InParts(nn.Module):
    """An autoencoder that can take the images of a batch one by one, and large ones in overlapping tiles.

    Needs `factor`, its pixels per latent cell. tile_size: pixels of a tile's side; a smaller one needs less memory.
    """

    def __init__(self, tile_size: int) -> None:
        super().__init__()
        self.slicing = False
        self.tiling = False
        self.tile_size = tile_size

    @property
    def factor(self) -> int:
        raise NotImplementedError

    def enable_slicing(self) -> None:
        """Encodes and decodes the images of a batch one by one: less memory."""
        self.slicing = True

    def disable_slicing(self) -> None:
        self.slicing = False

    def enable_tiling(self) -> None:
        """Encodes and decodes images larger than `tile_size` in overlapping tiles: less memory."""
        self.tiling = True

    def disable_tiling(self) -> None:
        self.tiling = False

    def in_parts(self, network: Callable[[Tensor], Tensor], x: Tensor, units: tuple[int, int]) -> Tensor:
        """`network` over x as slicing and tiling say; units as in `tiled`."""
        tile = max(self.tile_size // self.factor, SMALLEST_TILE)
        if self.slicing and len(x) > 1:
            return torch.cat([self.in_parts(network, one, units) for one in torch.split(x, 1)])
        if self.tiling and max(x.shape[2:]) > tile * units[0]:
            return tiled(network, x, tile, units)
        return network(x)


def tiled(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, units: tuple[int, int]) -> Tensor:
    """Runs `network` on square tiles of `x`, each sharing a quarter of its side with the next, and blends them.

    tile: side in latent cells. units: pixels per latent cell in the input and in the output, (8, 1) to encode and
    (1, 8) to decode. x (b, c, h * units[0], w * units[0]) -> (b, d, h * units[1], w * units[1]).

    Where tiles overlap, each pixel goes linearly from the tile on the left to the tile itself, and then from the strip
    of tiles above to its own: no edge remains, also not where four tiles meet (where diffusers' blend leaves one; along
    a single row or column of tiles the two are equal). Every tile has normalisation statistics of its own, so the
    result differs a little from one pass over the whole.
    """
    overlap = tile // 4
    step, size = (tile - overlap) * units[0], tile * units[0]
    keep, shared = (tile - overlap) * units[1], overlap * units[1]
    above: Tensor | None = None
    strips: list[Tensor] = []
    for top in range(0, x.shape[2], step):
        row: list[Tensor] = []
        for left in range(0, x.shape[3], step):
            y = network(x[:, :, top : top + size, left : left + size])
            if row:
                _blend(row[-1], y, 3, shared)
            row.append(y)
        strip = torch.cat([y[:, :, :, :keep] for y in row], 3)
        if above is not None:
            _blend(above, strip, 2, shared)
        strips.append(strip[:, :, :keep])
        above = strip
    return torch.cat(strips, 2)


def _blend(before: Tensor, tile: Tensor, dim: int, shared: int) -> None:
    """Fades the end of `before` into the start of `tile`, in place, along one dimension (2 downwards, 3 rightwards)."""
    size = before.shape[dim]
    n = min(shared, size, tile.shape[dim])  # tiles at the border may be narrower than the overlap
    start = tile.narrow(dim, 0, n)
    ramp = (torch.arange(n, device=tile.device) / n).to(tile.dtype)  # integers beyond 256 are inexact in bfloat16
    ramp = ramp.view(n, 1) if dim == 2 else ramp  # (n, 1) or (n,), broadcast over the rest
    start.copy_(torch.lerp(before.narrow(dim, size - n, n), start, ramp))

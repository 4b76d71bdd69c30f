"""Random networks, alike on both sides, and one way to compare them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unet import native


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomise() -> Callable[[nn.Module, int], nn.Module]:
    """Sets every parameter, norms included, so that activations stay of order one."""

    def draw(module: nn.Module, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                value = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    value = value / parameter[0].numel() ** 0.5
                elif name.endswith("weight"):
                    value = 1 + 0.3 * value
                else:
                    value = 0.3 * value
                parameter.copy_(value)
        return module.eval()

    return draw


@pytest.fixture
def twins(randomise) -> Callable[[nn.Module, nn.Module, int], None]:
    """Gives both modules the same random parameters, under the same names."""

    def load(ours: nn.Module, theirs: nn.Module, seed: int) -> None:
        ours.load_state_dict(randomise(theirs, seed).state_dict(), strict=True)
        ours.eval()

    return load


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Compares whole tensors: the largest error against the largest value."""

    def check(ours: Tensor, theirs: Tensor, tolerance: float = 3e-6) -> None:
        assert ours.dtype == theirs.dtype
        scale = theirs.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)

    return check


@pytest.fixture
def kernel() -> None:
    """The native attention, or the test is skipped."""
    if native._kernel() is None:
        pytest.skip("needs AVX-512 BF16 and a C compiler")

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from ldm.diffusion.noise import SeededNoise

SHAPE = (3, 4, 6, 5)


def test_image_i_depends_on_its_seed_alone():
    together = SeededNoise(SHAPE, seeds=[5, 6, 7])
    draws = [together() for _ in range(3)]
    for i, seed in enumerate([5, 6, 7]):
        alone = SeededNoise((1, *SHAPE[1:]), seeds=[seed])
        for draw in draws:
            assert torch.equal(draw[i : i + 1], alone())
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_seed_zero_is_seed_zero():
    assert torch.equal(SeededNoise(SHAPE, seeds=[0, 0, 0])(), SeededNoise(SHAPE, seeds=[0, 0, 0])())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_generators_draw_as_in_diffusers(dtype):
    noise = SeededNoise(SHAPE, generator=torch.Generator().manual_seed(3), dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        draw = noise()
        assert draw.dtype == torch.float32
        assert torch.equal(draw, randn_tensor(SHAPE, generator=generator, dtype=dtype).float())
    several = SeededNoise(SHAPE, generator=[torch.Generator().manual_seed(s) for s in (1, 2, 3)], dtype=dtype)
    generators = [torch.Generator().manual_seed(s) for s in (1, 2, 3)]
    for _ in range(2):
        assert torch.equal(several(), randn_tensor(SHAPE, generator=generators, dtype=dtype).float())


def test_without_either_the_global_generator_draws():
    torch.manual_seed(9)
    draw = SeededNoise(SHAPE)()
    torch.manual_seed(9)
    assert torch.equal(draw, torch.randn(SHAPE))


def test_bad_input():
    with pytest.raises(ValueError, match="not both"):
        SeededNoise(SHAPE, seeds=[1, 2, 3], generator=torch.Generator())
    with pytest.raises(ValueError, match="2 seeds or generators for 3 images"):
        SeededNoise(SHAPE, seeds=[1, 2])
    with pytest.raises(ValueError, match="4 seeds or generators for 3 images"):
        SeededNoise(SHAPE, generator=[torch.Generator() for _ in range(4)])


@pytest.mark.cuda
def test_seeds_do_not_depend_on_the_device():
    on_cpu, on_cuda = SeededNoise(SHAPE, seeds=[1, 2, 3]), SeededNoise(SHAPE, seeds=[1, 2, 3], device="cuda")
    assert torch.equal(on_cpu(), on_cuda().cpu())
    with pytest.raises(ValueError, match="use one on the CPU"):
        SeededNoise(SHAPE, generator=torch.Generator("cuda"))

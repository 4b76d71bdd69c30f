import numpy as np
import pytest
import torch
from PIL import Image

from vae.pixels import from_pil, to_numpy, to_pil, to_unit


@pytest.fixture(scope="module")
def processor():
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor(do_resize=False, do_convert_rgb=True)


def decoded(seed, dtype=torch.float32):
    """Some values beyond [-1, 1], every rounding boundary of the 8-bit levels, and an unusual memory layout."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 37, 53, generator=g)
    x[0, 0].view(-1)[:1021] = (torch.arange(1021) / 2 - 0.5) / 255 * 2 - 1
    return x.to(dtype, memory_format=torch.channels_last)


def noise(seed, size, bands):
    return np.random.default_rng(seed).integers(0, 256, (*size, bands), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
def test_to_pixels_bit_for_bit(processor, seed, dtype):
    x = decoded(seed, dtype)
    assert np.array_equal(to_numpy(x), processor.postprocess(x, "np"))
    assert to_numpy(x).dtype == np.float32
    assert torch.equal(to_unit(x), processor.postprocess(x, "pt").float())
    for ours, theirs in zip(to_pil(x), processor.postprocess(x, "pil"), strict=True):
        assert ours.mode == theirs.mode == "RGB"
        assert np.array_equal(np.array(ours), np.array(theirs))


def test_one_channel_gives_grey(processor):
    x = decoded(2)[:, :1]
    assert [image.mode for image in to_pil(x)] == ["L", "L"]
    assert np.array_equal(np.stack(to_pil(x)), np.rint(processor.postprocess(x, "np")[..., 0] * 255).astype(np.uint8))


@pytest.mark.parametrize("convert", [to_unit, to_numpy, to_pil])
def test_nan_says_what_to_try(convert):
    x = torch.zeros(1, 3, 8, 8)
    x[0, 1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"NaN.*float32 or bfloat16"):
        convert(x)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr"])
def test_from_pil_reads_any_mode(processor, mode):
    image = Image.fromarray(noise(0, (11, 17), 4), "RGBA")
    images = [
        image.convert("RGB").convert(mode),
        image.transpose(Image.Transpose.ROTATE_180).convert("RGB").convert(mode),
    ]
    if mode == "RGBA":
        images = [image, image.transpose(Image.Transpose.ROTATE_180)]
    tensor = from_pil(images)
    assert tensor.shape == (2, 3, 11, 17)
    assert torch.equal(tensor, processor.preprocess(images))


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16B", ">u2"), ("I", "=i4")])
def test_sixteen_bit_greys_keep_their_precision(mode, dtype):
    levels = np.random.default_rng(1).integers(0, 65536, (5, 7))
    image = Image.frombytes(mode, (7, 5), levels.astype(dtype).tobytes())
    expected = torch.tensor(levels / 65535 * 2 - 1, dtype=torch.float32).expand(1, 3, 5, 7)
    torch.testing.assert_close(from_pil([image]), expected, rtol=0, atol=2e-7)


def test_eight_bits_survive_the_round_trip():
    pixels = noise(2, (16, 24), 3)
    assert np.array_equal(np.array(to_pil(from_pil([Image.fromarray(pixels)]))[0]), pixels)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"same size.*\(3, 4\), \(5, 4\)"):
        from_pil([Image.new("RGB", (5, 4)), Image.new("RGB", (3, 4))])
    with pytest.raises(ValueError, match="one or more"):
        from_pil([])

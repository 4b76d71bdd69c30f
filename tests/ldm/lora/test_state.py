"""Merging, several at once, by blocks, and back to the bit."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.checkpoint import load_folder, save_folder, weights_hash
from ldm.lora.names import Names
from ldm.model import LatentDiffusion
from tests.ldm.lora.conftest import MODULES, Made, kohya, low_rank, same, spelled, state, write

Make = Callable[..., LatentDiffusion]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def weight(model: LatentDiffusion, own: str) -> Tensor:
    found = Names.of(model).modules[own].weight
    assert isinstance(found, Tensor)
    return found


@pytest.fixture(scope="module")
def files(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Made, Made]:
    """Two LoRAs that share some modules."""
    folder, names = tmp_path_factory.mktemp("loras"), Names.of(make("sd1"))
    one, two = low_rank(names, MODULES[:9], seed=1), low_rank(names, MODULES[4:], seed=2)
    paths = [write(folder / f"{n}.safetensors", kohya(m, spelled)) for n, m in (("one", one), ("two", two))]
    return paths[0], paths[1], one, two


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_rounded_once_and_come_back_to_the_bit(dtype: torch.dtype, make: Make, files: tuple) -> None:
    model, (path, other, one, two) = make("sd1", dtype), files
    before = state(model)
    model.loras.load(path, scale=0.7)
    model.loras.load(other, scale=-1.5)
    for own in MODULES:
        total = before[own.replace("text_encoder.", "text_encoder.model.") + ".weight"].double().flatten(1)
        total = total + (0.7 * one.delta(own) if own in one.changes else 0)
        total = total - (1.5 * two.delta(own) if own in two.changes else 0)
        tolerance = {torch.float16: 2**-11, torch.bfloat16: 2**-8}.get(dtype, 1e-6)  # half a unit in the last place
        found = weight(model, own).flatten(1)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), total, rtol=tolerance, atol=1e-6)
    model.loras.unload("one")
    alone = make("sd1", dtype)
    alone.loras.load(other, scale=-1.5)
    assert same(state(model), state(alone))
    model.loras.unload()
    assert same(state(model), before)
    assert len(model.loras) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_of_loading_does_not_matter(dtype: torch.dtype, make: Make, files: tuple) -> None:
    (path, other, *_), one, two = files, make("sd1", dtype), make("sd1", dtype)
    for model, order in ((one, (path, other)), (two, (other, path))):
        for file in order:
            model.loras.load(file, scale=0.3 if file == path else 0.9)
    assert same(state(one), state(two))


def test_scales_leave_no_trace(make: Make, files: tuple) -> None:
    path, other, *_ = files
    model, plain = make("sd1", torch.float16), make("sd1", torch.float16)
    before = state(model)
    model.loras.load(path)
    model.loras.load(other, name="second", scale=0.1)
    for scale in (3.0, -2.0, 0.25):
        model.loras.set_scales({"one": scale})
    plain.loras.load(path, scale=0.25)
    plain.loras.load(other, scale=0.1)
    assert same(state(model), state(plain))
    model.loras.set_scales({"one": 0.0, "second": 0})
    assert same(state(model), before)
    assert model.loras.scales == {"one": 0.0, "second": 0.0}


def test_the_longest_prefix_decides(make: Make, files: tuple) -> None:
    model, (path, _, one, _) = make("sd1"), files
    before = state(model)
    scale = {"": 0.5, "down_blocks.1": 0.25, "unet.down_blocks.1.resnets": 2.0, "mid_block": 0.0}
    model.loras.load(path, scale=scale)
    wanted = dict.fromkeys(one.changes, 0.5)
    wanted |= {MODULES[3]: 0.25, MODULES[4]: 2.0, MODULES[5]: 0.25, MODULES[6]: 0.0, MODULES[7]: 0.0}
    for own, factor in wanted.items():
        total = before[f"{own}.weight"].double().flatten(1) + factor * one.delta(own)
        torch.testing.assert_close(weight(model, own).flatten(1).double(), total, atol=1e-6, rtol=1e-5)
    model.loras.set_scales({"one": {"text_encoder": 0.0}})
    assert model.loras.scales == {"one": {"": 1.0, "text_encoder": 0.0}}
    model.loras.set_scales({"one": 1.0})
    plain = make("sd1")
    plain.loras.load(path)
    assert same(state(model), state(plain))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (float("nan"), "finite number"),
        ("1", "finite number"),
        ({"down_blocks.1": float("inf")}, "finite number"),
        ({"down_blocks.9": 1.0}, r"begins with 'unet\.down_blocks\.9'"),
        ({"down_block": 1.0}, "begins with"),
    ],
)
def test_scales_that_are_none(scale: object, message: str, make: Make, files: tuple) -> None:
    model = make("sd1")
    before = state(model)
    with pytest.raises(ValueError, match=message):
        model.loras.load(files[0], scale=scale)
    assert same(state(model), before)
    model.loras.load(files[0])
    with pytest.raises(ValueError, match=message):
        model.loras.set_scales({"one": scale})
    assert model.loras.scales == {"one": 1.0}


def test_names(make: Make, files: tuple) -> None:
    model, (path, *_) = make("sd1"), files
    assert [model.loras.load(path, name) for name in (None, None, "style")] == ["one", "one_2", "style"]
    with pytest.raises(ValueError, match="'style' is loaded already"):
        model.loras.load(path, "style")
    for act in (model.loras.unload, lambda name: model.loras.set_scales({name: 1}), model.loras.__getitem__):
        with pytest.raises(ValueError, match="no LoRA 'other' is loaded; there is 'one', 'one_2', 'style'"):
            act("other")


def test_fused_weights_stay_and_can_be_saved(make: Make, files: tuple, tmp_path: Path) -> None:
    model, (path, other, *_) = make("sd1"), files
    base = weights_hash(model)
    model.loras.load(path)
    merged = state(model)
    assert weights_hash(model) == base  # the LoRA is named beside it
    with pytest.raises(ValueError, match=r"merged into these weights \(one\): fuse_lora"):
        save_folder(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.loras.fuse()
    assert weights_hash(model) not in ("", base)
    assert model.loras.scales == {}
    model.loras.load(other)
    model.loras.unload()
    assert same(state(model), merged)
    save_folder(model, tmp_path / "model")


def test_the_hash_is_that_of_the_model_without(make: Make, files: tuple) -> None:
    touched, base = make("sd1"), make("sd1")
    touched.loras.load(files[0])  # nobody asked for the hash before
    assert weights_hash(touched) == weights_hash(base)
    touched.loras.unload()
    assert weights_hash(touched) == weights_hash(base)


def test_the_hash_of_a_unet_edited_after_loading_it(make: Make, files: tuple, tmp_path: Path) -> None:
    model = load_folder(save_folder(make("sd1"), tmp_path / "model"))
    with torch.no_grad():
        model.unet.conv_in.bias.add_(1)
    edited = copy.deepcopy(model)
    model.loras.load(files[0])
    assert weights_hash(model) == weights_hash(edited)


def test_records_name_scale_and_sha256_of_the_file(make: Make, files: tuple) -> None:
    import hashlib

    model, (path, other, *_) = make("sd1"), files
    model.loras.load(other, "b", {"unet": 0.5})
    model.loras.load(path, "a", 2)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, other)]
    assert model.loras.record() == [
        {"name": "a", "scale": 2.0, "sha256": digests[0]},
        {"name": "b", "scale": {"": 1.0, "unet": 0.5}, "sha256": digests[1]},
    ]


def test_converting_a_model_with_loras_rounds_once(make: Make, files: tuple) -> None:
    converted, wanted = make("sd1"), make("sd1").unet
    converted.loras.load(files[0])
    halves = make("sd1", torch.float16)
    halves.loras.load(files[0])
    converted.unet.half()
    converted.text_encoder.half()
    converted.loras.remerge()
    assert same(state(converted), state(halves))
    converted.loras.unload()
    assert same(converted.unet.state_dict(), wanted.half().state_dict())


def test_a_unet_put_in_its_place_is_not_given_the_old_weights(make: Make, files: tuple) -> None:
    model, other = make("sd1"), make("sd1")
    old, before = model.unet, state(model)
    model.loras.load(files[0])
    model.unet = other.unet
    with torch.no_grad():
        model.unet.conv_in.weight.mul_(2)
    kept = state(model)
    model.loras.unload()
    assert torch.equal(model.unet.conv_in.weight, kept["unet.conv_in.weight"])
    assert torch.equal(old.conv_in.weight, before["unet.conv_in.weight"])


def test_biases_norms_and_full_differences(make: Make, tmp_path: Path) -> None:
    model = make("sd1", torch.bfloat16)
    before = state(model)
    diff, norm, bias = torch.randn(4, 8, 3, 3), torch.randn(8), torch.randn(8)
    tensors = {"conv_out.diff": diff, "conv_out.diff_b": torch.randn(4), "conv_norm_out.w_norm": norm}
    tensors |= {"conv_norm_out.b_norm": bias}
    file = write(tmp_path / "full.safetensors", {f"lora_unet_{key}": value for key, value in tensors.items()})
    model.loras.load(file, scale=0.5)
    wanted = (before["unet.conv_norm_out.bias"].float() + 0.5 * bias).bfloat16()
    assert torch.equal(model.unet.conv_norm_out.bias, wanted)
    wanted = (before["unet.conv_out.weight"].float() + 0.5 * diff).bfloat16()
    assert torch.equal(model.unet.conv_out.weight, wanted)
    model.loras.unload()
    assert same(state(model), before)


def test_originals_of_weights_on_the_cpu_are_kept_without_a_copy(make: Make, files: tuple) -> None:
    model = make("sd1")
    places = {own: weight(model, own).data_ptr() for own in MODULES}
    model.loras.load(files[0])
    model.loras.unload()
    assert {own: weight(model, own).data_ptr() for own in MODULES} == places


def test_parameters_stay_the_same_objects(make: Make, files: tuple) -> None:
    """What holds them (an optimizer, a compiled network) goes on seeing the model."""
    model = make("sd1")
    kept = {own: weight(model, own) for own in MODULES}
    model.loras.load(files[0])
    assert all(weight(model, own) is parameter for own, parameter in kept.items())

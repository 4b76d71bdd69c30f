"""The hash of a model is that of its U-Net's files, and changes whenever the U-Net does."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.checkpoint import load_folder, save_folder, weights_hash


def test_the_hash_is_the_sha256_of_the_file(folders: dict[str, Path]) -> None:
    content = (folders["sd1"] / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    expected = hashlib.sha256(content).hexdigest()
    assert weights_hash(folders["sd1"]) == expected
    assert weights_hash(str(folders["sd1"])) == expected
    assert weights_hash(load_folder(folders["sd1"])) == expected
    assert weights_hash(load_folder(folders["sd1"], dtype=torch.float16)) == expected
    assert weights_hash(load_folder(folders["sd2"])) != expected


def test_shards_count_in_the_order_of_their_names(resaved: Callable[..., Path]) -> None:
    folder = resaved("sd1", max_shard_size="50KB", variant="fp16")
    files = sorted((folder / "unet").glob("*.safetensors"))
    assert len(files) > 2
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert weights_hash(load_folder(folder, variant="fp16")) == weights_hash(folder, "fp16") == expected


def test_moving_and_converting_keep_the_hash_changing_does_not(folders: dict[str, Path]) -> None:
    model = load_folder(folders["sd1"])
    stored = weights_hash(model)
    model.unet.to(torch.bfloat16).to("cpu", torch.float32)
    model.unet.to(memory_format=torch.channels_last)
    assert weights_hash(model) == stored
    with torch.no_grad():
        model.unet.get_parameter("conv_in.weight")[0, 0, 0, 0] += 1
    changed = weights_hash(model)
    assert changed != stored
    model.unet.load_state_dict(load_folder(folders["sd1"]).unet.state_dict())
    assert weights_hash(model) not in (stored, changed)


def test_a_unet_of_our_making_is_hashed_by_its_state(folders: dict[str, Path], tmp_path: Path) -> None:
    loaded = load_folder(folders["sd1"])
    given = load_folder(folders["sd1"])
    with torch.no_grad():
        given.unet.get_parameter("conv_in.bias").add_(1)
    mixed = load_folder(folders["sd1"], components={"unet": given.unet})
    assert weights_hash(mixed) == weights_hash(given) != weights_hash(loaded)
    back = load_folder(save_folder(given, tmp_path / "copy"))
    assert weights_hash(back) == weights_hash(tmp_path / "copy")


def test_replaced_weights_are_noticed(folders: dict[str, Path]) -> None:
    model = load_folder(folders["sd1"])
    stored = weights_hash(model)
    model.unet.load_state_dict({n: t + 1 for n, t in model.unet.state_dict().items()}, assign=True)
    assert weights_hash(model) != stored


def test_the_files_are_read_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_folder(folders["sd1"])
    stored = weights_hash(model)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert weights_hash(model) == stored


def test_a_compiled_unet_keeps_its_hash(folders: dict[str, Path]) -> None:
    model = load_folder(folders["sd1"])
    model.unet = torch.compile(model.unet)
    assert weights_hash(model) == weights_hash(folders["sd1"])


@pytest.mark.cuda
def test_moving_to_cuda_keeps_the_hash(folders: dict[str, Path]) -> None:
    model = load_folder(folders["sd1"])
    model.unet.to("cuda", torch.float16)
    assert weights_hash(model) == weights_hash(folders["sd1"])


def test_loading_in_inference_mode_can_be_hashed(folders: dict[str, Path]) -> None:
    with torch.inference_mode():
        model = load_folder(folders["sd1"], dtype=torch.bfloat16)
    assert weights_hash(model) == weights_hash(folders["sd1"])

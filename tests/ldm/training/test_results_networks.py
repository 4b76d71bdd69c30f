"""Whole networks a run leaves, as folders and files: read again they are what was trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from configs.finetuning import ResultConfig
from ldm.checkpoint import load_folder
from ldm.checkpoint.extras import load_controlnet
from ldm.checkpoint.separate_vae import load_vae
from ldm.model import LatentDiffusion
from ldm.training import results
from ldm.training.results import WrongResult, write_controlnet, write_model, write_vae
from tests.ldm.checkpoint.originals import tiny
from tests.ldm.checkpoint.test_controlnet_files import CONTROLNETS
from tests.pipelines.conftest import randomise
from unet.controlnet import ControlNet

TOLD = ResultConfig(precision="fp32", title="A style", author="A. Person", licence="cc0-1.0")


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


@pytest.mark.parametrize(("family", "dtype"), [("sd2", torch.float32), ("sdxl", torch.float16)])
def test_models(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny(family)[0]
    folder, file = write_model(model, tmp_path, "mine", dtype=dtype, result=replace(TOLD, single_file=True))
    assert (folder / "model_index.json").exists()
    assert metadata(file)["modelspec.author"] == "A. Person"
    written = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    torch.testing.assert_close(written["conv_in.bias"], model.unet.conv_in.bias.detach().to(dtype), rtol=0, atol=0)


def test_a_single_file_that_nobody_could_read(tiny_sd_folder: Path, tmp_path: Path) -> None:
    """Its folder is there all the same: a run of days does not end with nothing."""
    model, told = load_folder(tiny_sd_folder), replace(TOLD, single_file=True)
    with pytest.warns(UserWarning, match=r"cannot be a single file that others read: .*\(that has been done\)"):
        paths = write_model(model, tmp_path, "mine", dtype=torch.float32, result=told)
    assert paths == [tmp_path / "mine"]


def test_a_model_that_is_read_as_another_one(
    tiny_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = results.load_model

    def other(path: Path, **options: Any) -> LatentDiffusion:
        model = load(path, **options)
        model.unet.conv_in.bias.data = model.unet.conv_in.bias.data + 1e-3
        return model

    monkeypatch.setattr(results, "load_model", other)
    with pytest.raises(WrongResult, match=r"mine: conv_in\.bias is not what was trained"):
        write_model(load_folder(tiny_sd_folder), tmp_path, "mine", dtype=torch.float32, result=TOLD)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_controlnets(family: str, tmp_path: Path) -> None:
    network = randomise(ControlNet(CONTROLNETS[family]), 2)
    assert isinstance(network, ControlNet)
    folder, file = write_controlnet(network, tmp_path, "mine", dtype=torch.float16, result=TOLD)
    assert metadata(file)["modelspec.architecture"].endswith("/controlnet")
    for path in (folder, file):
        found = load_controlnet(path).state_dict()
        torch.testing.assert_close(found, {k: v.half() for k, v in network.state_dict().items()}, rtol=0, atol=0)


@pytest.mark.parametrize("upcast", [True, False])
def test_autoencoders(upcast: bool, tmp_path: Path) -> None:
    vae = tiny("sdxl")[0].autoencoder
    vae.config = replace(vae.config, force_upcast=upcast)
    folder, file = write_vae(vae, tmp_path, "mine", dtype=torch.float32, result=TOLD)  # type: ignore[arg-type]
    assert metadata(file)["modelspec.title"] == ("A style" if upcast else "A style (fp16-fix)")
    for path in (folder, file):
        found = load_vae(path)
        assert (found.config.scaling_factor, found.config.force_upcast) == (vae.config.scaling_factor, upcast)
        torch.testing.assert_close(dict(found.state_dict()), dict(vae.state_dict()), rtol=0, atol=0)

"""What has one layout only: from any container to a safetensors file, every tensor under its name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.architecture import AdapterConfig
from configs.interchange_extras import adapter_to_json
from ldm.checkpoint.convert import Options, convert
from ldm.checkpoint.extras import load_adapter
from ldm.checkpoint.save import save_network
from tests.ldm.checkpoint.conftest import randomise
from unet.adapter import Adapter

PICTURE = torch.randn(8, 3, 3, 3)
OTHERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "t2i.pth": ({"body.0.in_conv.weight": PICTURE}, {"body.0.in_conv.weight"}),
    "taesd_encoder.pth": ({"0.weight": PICTURE, "1.conv.0.weight": PICTURE}, {"0.weight", "1.conv.0.weight"}),
    "ip.bin": (
        {"image_proj": {"proj.weight": PICTURE}, "ip_adapter": {"1.to_k_ip.weight": PICTURE}},
        {"image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_container_to_safetensors(name: str, tmp_path: Path) -> None:
    content, names = OTHERS[name]
    torch.save(content, tmp_path / name)
    written = load_file(convert(tmp_path / name, tmp_path / "new.safetensors"))
    torch.testing.assert_close(written, dict.fromkeys(names, PICTURE), rtol=0, atol=0)
    half = load_file(convert(tmp_path / name, tmp_path / "half.safetensors", Options(torch.float16)))
    torch.testing.assert_close(half, dict.fromkeys(names, PICTURE.half()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["taesd_encoder.pth", "ip.bin"])
def test_no_folder_of_those_that_have_none(name: str, tmp_path: Path) -> None:
    torch.save(OTHERS[name][0], tmp_path / name)
    with pytest.raises(ValueError, match=r"only a file is written: name it folder\.safetensors"):
        convert(tmp_path / name, tmp_path / "folder")


def test_a_t2i_adapter_becomes_a_folder_and_back(tmp_path: Path) -> None:
    import diffusers

    config = AdapterConfig("full", 1, (8, 16, 16, 24), 2, 8)
    network = randomise(Adapter(config), 3)
    torch.save(network.state_dict(), tmp_path / "adapter.pth")
    folder = convert(tmp_path / "adapter.pth", tmp_path / "folder")
    theirs = diffusers.T2IAdapter.from_pretrained(folder)
    torch.testing.assert_close(dict(theirs.state_dict()), dict(network.state_dict()), rtol=0, atol=0)
    assert load_adapter(folder).config == config
    again = convert(folder, tmp_path / "again.safetensors")
    torch.testing.assert_close(load_file(again), dict(network.state_dict()), rtol=0, atol=0)
    other = save_network(network, adapter_to_json(config), tmp_path / "other", dtype=None, overwrite=False)
    assert (folder / "config.json").read_text() == (other / "config.json").read_text()

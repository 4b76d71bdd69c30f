"""What folders of diffusers are said to hold, as it writes them and as people damage them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.checkpoint.inspection import inspected


@pytest.mark.parametrize(("family", "kind"), [("sd1", "epsilon"), ("sd2", "v_prediction"), ("sdxl_refiner", "epsilon")])
def test_folders(folders: dict[str, Path], family: str, kind: str) -> None:
    found = inspected(folders[family])
    assert (found.kind, found.family, found.format, found.damage) == ("a model", family, "folder", ())
    assert found.prediction["kind"] == kind  # type: ignore[index]
    assert found.absent.count == found.unknown.count == 0
    assert {part.class_name for part in found.components} >= {"UNet2DConditionModel", "AutoencoderKL"}
    weights = folders[family] / "unet/diffusion_pytorch_model.safetensors"
    assert found.hashes["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    part = inspected(folders[family] / "unet")
    assert (part.kind, part.hashes, part.damage) == ("the U-Net of a diffusers folder", found.hashes, ())


def test_folders_in_shards_and_variants(resaved: Callable[..., Path]) -> None:
    found = inspected(resaved("sd1", torch.float16, variant="fp16", max_shard_size="20KB"), hashed=False)
    assert (found.family, found.damage) == ("sd1", ())
    unet = next(part for part in found.components if part.name == "unet")
    assert unet.variants == ("fp16",)
    assert set(unet.dtypes) == {"F16"}
    assert len(unet.files) > 1


def test_damaged_folders(copied: Callable[..., Path]) -> None:
    folder = copied()
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.rmtree(folder / "tokenizer")
    (folder / "text_encoder/model.safetensors").unlink()
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"layers_per_block": 10**9}))
    damage = "\n".join(inspected(folder).damage)
    for complaint in (
        "tokenizer is missing",
        "is damaged",
        "text_encoder has no weights",
        "asks for more than 64 layers",
    ):
        assert complaint in damage
    config["layers_per_block"] += 1
    (folder / "vae/config.json").write_text(json.dumps(config))
    assert inspected(folder / "vae").absent.count > 0

"""What files are said to hold, without a look at their tensors."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.inspection import EXAMPLES, Inspection, inspected
from tests.ldm.checkpoint.crafted import archive, called, state, tensor, text
from tests.ldm.checkpoint.originals import CLIP_SD1, UNET, VAE, hollow, real_shapes

# parameters, as their makers count them
SD1 = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
SDXL = {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Inspection]:
    """What is said of a file with these tensors, all in one dtype."""

    def at(shapes: Shapes, dtype: str = "F16", **metadata: str) -> Inspection:
        notes = {name.replace("__", "."): value for name, value in metadata.items()}
        return inspected(hollow(tmp_path / "file.safetensors", shapes, dtype, notes), hashed=False)

    return at


def parameters(found: Inspection) -> dict[str, int]:
    return {part.name: part.parameters for part in found.components}


# models in one file


@pytest.mark.parametrize(("name", "family", "task", "title", "sizes"), [
    ("sd1", "sd1", "", "Stable Diffusion 1", SD1),
    ("sd1-inpaint", "sd1", "inpaint", "Stable Diffusion 1 (inpainting)", SD1 | {"unet": 859_535_364}),
    ("sdxl", "sdxl", "", "Stable Diffusion XL", SDXL),
])  # fmt: skip
def test_models(look: Any, name: str, family: str, task: str, title: str, sizes: dict[str, int]) -> None:
    found = look(real_shapes(name), "BF16")
    assert (found.kind, found.family, found.task, found.title) == ("a model", family, task, title)
    assert parameters(found) == sizes
    for part in found.components:
        assert part.dtypes == {"BF16": part.parameters}
        assert part.bytes == 2 * part.parameters
    assert found.prediction == {"kind": "epsilon", "zero_snr": False, "reason": "as nearly all models of this family"}
    assert found.absent.count == found.unknown.count == found.foreign.count == 0
    assert found.damage == found.notes == found.missing == ()


def test_what_a_model_predicts(look: Any) -> None:
    plain = look(real_shapes("sd2-v")).prediction
    assert plain["kind"] is None
    assert plain["reason"].endswith("; loading asks the U-Net")
    noted = look(real_shapes("sd2-v"), modelspec__prediction_type="v").prediction
    assert (noted["kind"], noted["reason"]) == ("v_prediction", "modelspec.prediction_type is v_prediction")
    marked = look(real_shapes("sdxl") | {"v_pred": (0,), "ztsnr": (0,)}).prediction
    assert (marked["kind"], marked["zero_snr"]) == ("v_prediction", True)


def test_marks_and_averaged_weights(look: Any) -> None:
    shapes = real_shapes("sd1")
    averaged = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): s for key, s in shapes.items() if UNET in key
    }
    both = look(shapes | averaged, modelspec__title="Fast Turbo v2")
    assert (both.ema, both.distilled) == ("beside the others", "")  # there is none of Stable Diffusion 1
    assert look(real_shapes("sdxl"), modelspec__title="Fast Turbo v2").distilled == "turbo"
    assert parameters(both) == SD1 | {"averaged weights": SD1["unet"]}
    alone = look({key: s for key, s in shapes.items() if UNET not in key} | averaged)
    assert alone.ema == "instead of the others"
    assert parameters(alone) == SD1


def test_what_is_missing_and_what_is_too_much(look: Any) -> None:
    shapes = real_shapes("sd1")
    lacks = look({key: s for key, s in shapes.items() if not key.startswith((VAE, CLIP_SD1))})
    assert set(lacks.missing) == {"vae", "text_encoder"}
    assert any("--text-encoder (text_encoder=...)" in note for note in lacks.notes)
    assert lacks.damage == ()
    holed = look({key: s for key, s in shapes.items() if "input_blocks.4.1.proj_in" not in key})
    assert holed.absent.examples == tuple(f"{UNET}input_blocks.4.1.proj_in.{kind}" for kind in ("weight", "bias"))
    assert "lacks 2 of its tensors" in holed.damage[0]
    more = look(shapes | {f"{UNET}input_blocks.1.0.gate": (1,), **{f"other.{i}": (2,) for i in range(1000)}})
    assert (more.unknown.count, more.foreign.count, len(more.foreign.examples)) == (1, 1000, EXAMPLES)
    assert "has 1 unknown tensors: " in more.damage[0]
    hollowed = look({key: s for key, s in shapes.items() if key != f"{UNET}input_blocks.0.0.weight"})
    assert hollowed.kind == "a model"
    assert "input_blocks.0.0.weight is missing" in hollowed.damage[0]


def test_weights_in_formats_that_are_not_read(look: Any) -> None:
    found = look(real_shapes("sd1"), "F8_E4M3")
    assert {part.bytes / part.parameters for part in found.components} == {1}
    assert found.notes == ("weights stored as F8_E4M3 are not read; read are F64, F32, F16, BF16",)


# what stands beside a model

MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(dtype: torch.dtype, width: int = 768) -> dict[str, torch.Tensor]:
    """Three modules of different ranks and alphas; one key that belongs to none."""
    tensors = {"stray": torch.zeros(1)}
    for name, rank, alpha in ((MODULE, 4, 2.0), (f"{MODULE}2", 8, 1.5), ("lora_te_text_model_x", 8, 1.5)):
        tensors[f"{name}.lora_down.weight"] = torch.zeros(rank, width, dtype=dtype)
        tensors[f"{name}.lora_up.weight"] = torch.zeros(320, rank, dtype=dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_lora(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    """Ranks from shapes, alphas from the scalars themselves."""
    path = tmp_path / f"style{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": lora(dtype), "epoch": 3}, path)
    else:
        save_file(lora(dtype), path, {"sshs_model_hash": "0123456789abcdef", "ss_base_model_version": "sd_v1"})
    found = inspected(path)
    assert (found.kind, found.family, found.title) == ("a LoRA", "sd1", "a LoRA, for Stable Diffusion 1")
    assert found.details == {
        "network": "LoRA",
        "modules": {"unet": 2, "text_encoder": 1},
        "rank": {"8": 2, "4": 1},
        "alpha": {"1.5": 2, "2": 1},
    }
    assert found.foreign.examples == ("stray",)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    noted = {"AutoV3": "0123456789ab"} if suffix == ".safetensors" else {}
    assert found.hashes == {"sha256": digest, "AutoV2": digest[:10], **noted}


@pytest.mark.parametrize(("shapes", "family", "network"), [
    ({f"{MODULE}.hada_w1_b": (4, 2048), f"{MODULE}.hada_w1_a": (320, 4)}, "sdxl", "LoHa"),
    ({f"{MODULE}.lokr_w1": (4, 4), f"{MODULE}.lokr_w2": (80, 192)}, "", "LoKr"),
    ({"lora_unet_conv_in.lora_down.weight": (4, 4, 3, 3), "lora_unet_conv_in.dora_scale": (1, 4, 1, 1)},
     "", "LoRA, with convolutions, DoRA"),
    ({"lora_te2_text_projection.lora_down.weight": (4, 1280)}, "sdxl", "LoRA"),
    ({"unet.x.attn2.processor.to_k_lora.down.weight": (4, 1024)}, "sd2", "LoRA"),
])  # fmt: skip
def test_relatives_of_lora(look: Any, shapes: Shapes, family: str, network: str) -> None:
    found = look(shapes)
    assert (found.kind, found.family, found.details["network"]) == ("a LoRA", family, network)


@pytest.mark.parametrize(("shapes", "kind", "family", "details"), [
    ({"emb_params": (3, 768)}, "a textual inversion (an embedding)", "sd1", {"vectors": 3}),
    ({"<cat>": (1024,)}, "a textual inversion (an embedding)", "sd2", {"word": ["<cat>"], "vectors": 1}),
    ({"toy": (2, 768)}, "a textual inversion (an embedding)", "sd1", {"word": ["toy"]}),
    ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "a textual inversion (an embedding)", "sdxl", {"width": 2048}),
    ({"double_blocks.0.img_attn.proj.weight": (8, 8)},
     "a model of another family (SD 3, Flux, or another transformer)", "", {"looks like": "Flux"}),
    ({"joint_blocks.0.x_block.attn.qkv.weight": (8, 8)},
     "a model of another family (SD 3, Flux, or another transformer)", "", {"looks like": "Stable Diffusion 3"}),
    ({"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
     "an IP-Adapter", "sd1", {"which": "plain", "tokens": 4}),
    ({"image_proj.proj.0.weight": (8, 512), "image_proj.proj.2.weight": (3072, 8), "image_proj.norm.weight": (768,),
      "ip_adapter.1.to_k_ip.weight": (320, 768), "ip_adapter.0.to_q_lora.down.weight": (4, 320)},
     "an IP-Adapter", "sd1", {"which": "face", "tokens": 4, "with a LoRA": True}),
    ({"adapter.conv_in.weight": (320, 768, 3, 3), "adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)},
     "a T2I-Adapter", "sdxl", {"hint channels": 3}),
    ({"encoder.layers.0.weight": (64, 3, 3, 3), "decoder.layers.0.weight": (64, 4, 3, 3)},
     "a tiny autoencoder (TAESD)", "", {"holds": "encoder and decoder"}),
    ({"lora_controlnet": (0,)}, "a control-LoRA", "", {}),
    ({"controlnet_cond_embedding.conv_in.weight": (4, 3, 3, 3), "task_embedding": (6, 8)}, "a ControlNet", "", {}),
    ({"fc.weight": (3, 3)}, "", "", {}),
])  # fmt: skip
def test_what_stands_beside_a_model(look: Any, shapes: Shapes, kind: str, family: str, details: dict[str, Any]) -> None:
    found = look(shapes)
    assert (found.kind, found.family, found.damage) == (kind, family, ())
    assert details.items() <= found.details.items()
    assert found.notes
    json.dumps(asdict(found))


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("cut", [False, True])
def test_controlnet(look: Any, layout: str, cut: bool) -> None:
    """In place of a model: described, and its tensors counted against its own table."""
    from configs.architecture import ControlNetConfig
    from configs.presets import UNET_SD21
    from ldm.checkpoint.meta import on_meta
    from ldm.checkpoint.names_compvis import to_original
    from ldm.checkpoint.names_controlnet import controlnet_names
    from unet import ControlNet

    config = ControlNetConfig(UNET_SD21, (False,) * 4)
    tensors = on_meta("", ControlNet, config).state_dict()
    if layout == "original":
        tensors = {f"control_model.{name}": each for name, each in to_original(controlnet_names(config), tensors)}
    shapes = {name: tuple(each.shape) for name, each in tensors.items()}
    gone = next(name for name in shapes if "conv_in.bias" in name or "input_blocks.0.0.bias" in name)
    found = look({name: shape for name, shape in shapes.items() if not cut or name != gone})
    assert (found.kind, found.family, found.details) == ("a ControlNet", "sd2", {"layout": layout, "hint channels": 3})
    assert found.absent.examples == ((gone.removeprefix("control_model."),) if cut else ())
    assert bool(found.damage) is cut


def test_a_whole_model_with_a_controlnet(look: Any) -> None:
    """As ControlNets were first published: 5.7 GB, most of them the model."""
    found = look(real_shapes("sd1") | {"control_model.zero_convs.0.0.weight": (320, 320, 1, 1)})
    assert (found.kind, found.family) == ("a model", "sd1")
    assert any("it holds a ControlNet" in note for note in found.notes)
    assert not any("ControlNet" in note for note in look(real_shapes("sd1")).notes)


def test_vae_alone(look: Any) -> None:
    shapes = {key.removeprefix(VAE): shape for key, shape in real_shapes("sd1").items() if key.startswith(VAE)}
    found = look(shapes)
    assert (found.kind, found.details["latent channels"]) == ("an autoencoder (VAE) alone", 4)
    assert (found.absent.count, found.foreign.count, parameters(found)) == (0, 0, {"all": SD1["vae"]})
    del shapes["decoder.norm_out.bias"]
    assert look(shapes).absent.examples == ("decoder.norm_out.bias",)


# what is damaged, hostile, or no weights at all


def test_hostile_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    payload = called("os.system", text(f"touch {tmp_path / 'ran'}"))
    path.write_bytes(archive(state(w=tensor(), x=payload)))
    found = inspected(path)
    assert found.globals == ("os.system",)
    assert "'os.system'. None of it was run" in found.damage[0]
    assert parameters(found) == {"all": 2}
    path.write_bytes(archive(state(x=payload)))
    with pytest.raises(CheckpointError, match=r"os\.system"):
        inspected(path)
    assert not (tmp_path / "ran").exists()


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.safetensors").write_text("not weights at all")
    cut = hollow(tmp_path / "cut.safetensors", {"a": (100,)})
    os.truncate(cut, cut.stat().st_size - 1)
    for name in ("empty", "note.safetensors", "cut.safetensors", "gone.safetensors"):
        with pytest.raises((ValueError, FileNotFoundError), match=name.split(".")[0]):
            inspected(tmp_path / name)


MEASURE = """
import resource, sys
from ldm.checkpoint.inspection import inspected
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = inspected(sys.argv[1], hashed=False)
print(found.family, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "torch" in sys.modules)
"""


def test_tensors_stay_on_the_disk(tmp_path: Path) -> None:
    """Fourteen gigabytes, and what was read of them is less than a fiftieth of one; torch is not imported."""
    file = hollow(tmp_path / "xl.safetensors", real_shapes("sdxl"), "F32")
    assert file.stat().st_size > 13e9
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEASURE, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    family, kilobytes, has_torch = done.stdout.split()
    assert (family, has_torch) == ("sdxl", "False")
    assert int(kilobytes) < 60_000

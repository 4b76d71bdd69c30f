"""Loading holds the weights once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

FAMILIES = ["sd1", "sd2", "sdxl", "sdxl_refiner"]

MEASURE = """
import sys
from pathlib import Path
import torch
from ldm.checkpoint import load_folder

load_folder(sys.argv[1])  # everything imported and warm

def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = kilobytes("VmRSS")
model = load_folder(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
for p in model.unet.parameters():
    p.flatten()[::512].sum()  # touches every page
weights = sum(p.numel() * p.element_size() for p in model.unet.parameters())
print((kilobytes("VmHWM") - before) * 1024 / weights)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the kernel's account of memory")
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16")]
)
def test_loading_holds_the_weights_once(
    folders: dict[str, Path], copied: Callable[..., Path], stored: str, wanted: str
) -> None:
    folder = copied()
    config = json.loads((folder / "unet/config.json").read_text()) | {"block_out_channels": [256, 512]}
    (folder / "unet/config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = diffusers.UNet2DConditionModel.from_config(config).state_dict()
    weights = {name: torch.ones(tensor.shape, dtype=getattr(torch, stored)) for name, tensor in shapes.items()}
    assert sum(weight.numel() for weight in weights.values()) > 40e6
    save_file(weights, folder / "unet/diffusion_pytorch_model.safetensors")
    del weights
    command = [sys.executable, "-c", MEASURE, str(folders["sd1"]), str(folder), wanted]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert 0.9 < float(done.stdout) < 1.35, done.stdout

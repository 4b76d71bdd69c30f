"""Damaged files by the thousand: each loads, equal or different, or is refused as a CheckpointError. Nothing else."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from configs.architecture import ControlNetConfig, TextEncoderConfig
from ldm.checkpoint.names_compvis import to_original
from ldm.checkpoint.names_controlnet import controlnet_names
from tests.ldm.checkpoint.crafted import archive, called, state, tensor
from tests.ldm.checkpoint.originals import CLIP_SD1, VAE, model, original_state, randomised, tiny_families
from unet import ControlNet

CASES = 2000
WHOLE = 400  # of models, LoRAs and folders

RUNNER = """
import json, random, resource, signal, sys, traceback
from collections import Counter
from pathlib import Path
import torch
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.source import open_source

def loaded(path):
    source = open_source(path)
    result = [dict(source.metadata)]
    for name, entry in source.entries.items():
        tensor = source.tensor(name)
        assert tuple(tensor.shape) == entry.shape
        result.append((name, entry.dtype, entry.shape, tensor.flatten().clone().view(torch.uint8).numpy().tobytes()))
    return result

def damaged(content, rng):
    data = bytearray(content)
    kind, at = rng.randrange(10), rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + rng.randrange(1, 9) :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    for _ in range(1 if kind < 8 else rng.randrange(2, 9)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data

folder, cases = Path(sys.argv[1]), int(sys.argv[2])
goods = [(path.read_bytes(), loaded(path)) for path in sorted(folder.iterdir())]
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20,) * 2)
signal.signal(signal.SIGALRM, lambda *_: sys.exit("it hangs"))
path, counts = folder.parent / "damaged", Counter()
for case in range(cases):
    content, good = goods[case % len(goods)]
    path.unlink(missing_ok=True)
    path.write_bytes(damaged(content, random.Random(case)))
    print(case, file=sys.stderr, flush=True)
    signal.alarm(60)
    try:
        counts["equal" if loaded(path) == good else "different"] += 1
    except CheckpointError as error:
        assert str(path) in str(error) and len(str(error)) < 3000 and str(error).encode(), error
        counts["refused"] += 1
print(json.dumps(counts))
"""


def write_good_files(folder: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    tensors = {f"layer.{i}.weight": torch.arange(i + 2).to(kind) for i, kind in enumerate(kinds)}
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt", "note": "é"})
    save_file({"w": torch.ones(2, 3), "v_pred": torch.empty(0)}, folder / "b.safetensors")
    nested = {"state_dict": tensors | {"t": torch.ones(2, 3).t()}, "global_step": 875000, "lr": [0.1, {"a": (1, None)}]}
    torch.save(nested, folder / "c.ckpt")
    torch.save(nested, folder / "d.ckpt", pickle_protocol=4)
    callback = called("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    (folder / "e.ckpt").write_bytes(archive(state(w=tensor(), callbacks=callback)))


def test_damaged_files_load_or_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    (tmp_path / "good").mkdir()
    write_good_files(tmp_path / "good")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER, str(tmp_path / "good"), str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"exit {done.returncode} after case {done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert sum(counts.values()) == CASES
    assert min(counts["equal"], counts["different"], counts["refused"]) > CASES // 50, counts


def write_good_models(folder: Path, diffusers_folder: Path) -> None:
    """A model as a file of either format and as a folder; a LoRA, a VAE and a ControlNet."""
    family = tiny_families()["sd1"]
    text = TextEncoderConfig(width=8, layers=2, heads=1, mlp_width=8)
    family = replace(family, unet=replace(family.unet, context_dim=8), texts={CLIP_SD1: text})
    tensors = original_state(model(family), family)
    save_file(tensors, folder / "model.safetensors", {"modelspec.title": "a model"})
    torch.save({"state_dict": tensors, "global_step": 3}, folder / "model.ckpt")
    shutil.copytree(diffusers_folder, folder / "folder")
    inner = {name.removeprefix(VAE): value for name, value in tensors.items() if name.startswith(VAE)}
    save_file(inner, folder / "vae.safetensors")
    config = ControlNetConfig(replace(family.unet, up_depths=()), hint_channels=(4, 8))
    network = randomised(ControlNet(config), 2)
    save_file(dict(to_original(controlnet_names(config), network.state_dict())), folder / "controlnet.safetensors")
    module, lora = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", {}
    for place in (module, module.replace("down_blocks_0", "up_blocks_3")):
        lora |= {f"{place}.lora_down.weight": torch.ones(2, 768), f"{place}.lora_up.weight": torch.ones(320, 2)}
        lora[f"{place}.alpha"] = torch.tensor(4)
    save_file(lora, folder / "lora.safetensors", {"ss_network_module": "networks.lora"})


def test_damaged_models_load_or_are_refused_at_every_door(folders: dict[str, Path], tmp_path: Path) -> None:
    """By the functions and by the command, whose exit status is 0, 1 or 2, without a traceback."""
    pytest.importorskip("resource")
    (tmp_path / "good").mkdir()
    write_good_models(tmp_path / "good", folders["sd1"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.ldm.checkpoint.fuzz_whole", str(tmp_path / "good"), str(WHOLE)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"exit {done.returncode} after case {done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert sum(counts.values()) == WHOLE
    assert min(counts[how] for how in ("loaded", "refused", "status 0", "status 2")) > WHOLE // 50, counts

"""Two thousand damaged files: each loads, equal or different, or is refused as a CheckpointError. Nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.ldm.checkpoint.crafted import archive, called, state, tensor

CASES = 2000

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

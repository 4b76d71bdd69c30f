"""Damages tiny models, LoRAs and folders in many ways and gives them to every door there is: run by `test_fuzz`.

python -m tests.ldm.checkpoint.fuzz_whole FOLDER CASES, where FOLDER holds the good ones; prints how often which end.
"""

import contextlib
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import presets
from ldm.checkpoint.errors import CheckpointError, NoModel
from ldm.checkpoint.extras import load_controlnet
from ldm.checkpoint.inspection import inspected
from ldm.checkpoint.load import load_model
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.separate_vae import load_vae
from ldm.lora.formats import read_lora
from ldm.lora.names import Names
from pipelines.cli import main
from text_encoder import CLIPTextModel
from text_encoder.tokenizer_files import DamagedFile
from unet import UNet

ODD: list[Any] = [
    None,
    -1,
    0,
    1,
    3,
    64,
    10**9,
    10**30,
    1e300,
    0.5,
    "x",
    "",
    "\ud800",
    [],
    {},
    True,
    [1] * 3,
    [[2], [1]],
]
DTYPES = ("F32", "I32", "U32", "F16", "BF16", "I64", "F8_E4M3", "BOOL")
PARTS = ("input_blocks", "encoder", "layers", "weight", "0", "1", "999", "10000", "\u00b2", "lora_up", "alpha", "")
SECONDS = 30  # after which a case hangs


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or a few bits changed, of which most in the beginning, where headers are."""
    data = bytearray(content)
    if rng.random() < 0.2:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 4))):
        data[rng.randrange(len(data) if rng.random() < 0.3 else min(len(data), 4000))] ^= 1 << rng.randrange(8)
    return bytes(data)


def rewritten_json(content: bytes, rng: random.Random) -> bytes:
    """A value exchanged, or a key gone or renamed, anywhere in it."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 3))):
        place = value
        while (inner := [v for v in _values(place) if v and isinstance(v, (dict, list))]) and rng.random() < 0.7:
            place = rng.choice(inner)
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            continue
        key = rng.choice(list(keys))
        if rng.random() < 0.7:
            place[key] = rng.choice(ODD)
        else:
            place.pop(key)
    return json.dumps(value).encode()


def _values(place: Any) -> list[Any]:
    return list(place.values() if isinstance(place, dict) else place)


def rewritten_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file that its library still takes: other names, shapes or dtypes for the same bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 5))):
        name = rng.choice([key for key in header if key != "__metadata__"])
        entry, choice = header[name], rng.randrange(5)
        if choice == 0:
            words = name.split(".")
            words[rng.randrange(len(words))] = rng.choice(PARTS)
            header[".".join(words)] = header.pop(name)
        elif choice == 1:
            entry["shape"] = rng.choice((entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]], []))
        elif choice == 2:
            entry["dtype"] = rng.choice(DTYPES)
        elif choice == 3:
            header[f"{name}.more"] = {"dtype": "F32", "shape": [0], "data_offsets": [entry["data_offsets"][0]] * 2}
        else:
            end = max(each["data_offsets"][1] for key, each in header.items() if key != "__metadata__")
            header[name] = {"dtype": "F32", "shape": [rng.choice((0, 2**40))], "data_offsets": [end, end]}
            header["rest"] = entry
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def damaged(name: str, content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3 or not content:
        return flipped(content or b"x", rng)
    if name.endswith(".safetensors"):
        return rewritten_header(content, rng)
    return rewritten_json(content, rng) if name.endswith(".json") else flipped(content, rng)


def spoil(good: Path, bad: Path, rng: random.Random) -> None:
    """A damaged copy of a file, or of a folder with one of its files damaged."""
    shutil.rmtree(bad) if bad.is_dir() else bad.unlink(missing_ok=True)
    if not good.is_dir():
        bad.write_bytes(damaged(good.name, good.read_bytes(), rng))
        return
    shutil.copytree(good, bad)
    files = [path for path in sorted(bad.rglob("*")) if path.is_file()]
    file = rng.choice([path for path in files if path.suffix == ".json"] if rng.random() < 0.7 else files)
    file.write_bytes(damaged(file.name, file.read_bytes(), rng))
    if rng.random() < 0.05:
        file.unlink()


def told(act: Callable[[], Any]) -> str:
    """Loaded, or refused as what was asked for: any other error ends the run."""
    refusal = ""
    try:
        act()
    except (ValueError, FileNotFoundError) as error:
        kind, refusal = type(error), f"{error}"
    if not refusal:
        return "loaded"
    assert kind in (CheckpointError, NoModel, DamagedFile, ValueError, FileNotFoundError), (kind, refusal)
    assert len(refusal) < 20_000, refusal
    return "refused"


def commanded(*arguments: str) -> str:
    """The status of a command, which complains in one line and never of itself."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    assert status in (0, 1, 2), (status, err.getvalue())
    assert "Traceback" not in err.getvalue(), err.getvalue()
    assert "--debug shows where" not in err.getvalue(), err.getvalue()
    return f"status {status}"


def doors(good: Path, bad: Path, names: Names, out: Path) -> list[Callable[[], str]]:
    load: Callable[[], Any] = {
        "lora": lambda: read_lora(bad, names),
        "vae": lambda: load_vae(bad),
        "controlnet": lambda: load_controlnet(bad),
    }.get(good.stem, lambda: load_model(bad))
    draw = ("a cat", "--steps", "1", "--seed", "1", "--size", "64x64", "-o", str(out / "a.png"))
    drawn = [lambda: commanded(*draw, "--model", str(bad))] * (good.stem in ("model", "folder"))
    return [
        *drawn,
        lambda: told(lambda: inspected(bad, hashed=False)),
        lambda: told(load),
        lambda: told(load),
        lambda: commanded("inspect", str(bad), "--json", "--no-hash"),
        lambda: commanded("convert", str(bad), str(out / good.stem), "--overwrite"),
    ]


def run(folder: Path, cases: int) -> Counter[str]:
    logging.disable()
    goods = sorted(path for path in folder.iterdir())
    networks = on_meta("", UNet, presets.UNET_SD15), on_meta("", CLIPTextModel, presets.CLIP_L)
    names = Names(dict(zip(("unet", "text_encoder"), networks, strict=True)))
    out = folder.parent / "out"
    out.mkdir()
    for good in goods:  # nothing is left to import, and all of them are good
        for door in doors(good, good, names, out):
            assert door() in ("loaded", "status 0"), good
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("it hangs"))
    counts: Counter[str] = Counter()
    for case in range(cases):
        rng, good = random.Random(case), goods[case % len(goods)]
        bad = folder.parent / f"damaged{good.suffix}"
        spoil(good, bad, rng)
        print(case, file=sys.stderr, flush=True)
        signal.alarm(SECONDS)
        counts[rng.choice(doors(good, bad, names, out))()] += 1
    return counts


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))))

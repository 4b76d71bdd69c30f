"""Files made to harm: each is refused as a CheckpointError, or loads without harm, inside of 256 MB and two seconds."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import load_folder
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import find_weights
from ldm.checkpoint.source import read_headers
from tests.ldm.checkpoint.attacks import ARCHIVES, GOOD, HARMLESS, PICKLES, SAFETENSORS, SPECIAL, made
from tests.ldm.checkpoint.crafted import archive

# Opens each file in a process of its own, forked from one where a good file was opened: nothing is left to import.
RUNNER = """
import contextlib, io, json, logging, os, resource, signal, socket, sys, time, traceback
import ldm.checkpoint.pickled
from ldm.checkpoint.load import load_model
from ldm.checkpoint.source import open_source
from pipelines.cli import main

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

def load(path):
    source = open_source(path)
    for name in source.entries:
        source.tensor(name).float().sum()
    return source

def beyond(path):
    "What becomes of it at the other doors: loaded, refused, or what should not be."
    try:
        load_model(path)
        found = ["loaded"]
    except (ValueError, OSError) as error:
        found = ["refused" if len(str(error)) < 3000 else f"{len(str(error))} letters"]
    except BaseException as error:
        found = [repr(error)[:500]]
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        found.append(main(["inspect", path]))
    strange = "Traceback" in told.getvalue() or "--debug shows" in told.getvalue()
    return found + [told.getvalue()[-2000:]] * strange

def attempt(path):
    signal.alarm(100)
    limit = status("VmSize") + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    modules, start = set(sys.modules), time.process_time()
    try:
        source = load(path)
        result = {"outcome": "loaded", "message": " ".join(source.globals), "names": list(source.entries)[:9]}
    except BaseException as error:
        result = {"outcome": type(error).__name__, "message": str(error)[:2000]}
    seconds = time.process_time() - start
    doors, more = beyond(path), time.process_time() - start - seconds
    new = sorted(set(sys.modules) - modules)
    return result | {"seconds": seconds, "modules": new, "beyond": doors, "more": more}

logging.disable()
for good in sys.argv[2:]:
    load(good)
    beyond(good)

def forbidden(*args, **options):
    os._exit(77)

socket.socket = socket.create_connection = os.system = forbidden
for path in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, json.dumps(attempt(path)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        answer = stream.read()
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(answer or json.dumps({"outcome": f"died with {died}", "message": ""}), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each file, opened in a process that may take 256 MB more than it has."""
    pytest.importorskip("resource")
    folder = tmp_path_factory.mktemp("attacks")
    contents = {f"pickle: {name}": archive(made(pickle)) for name, (pickle, _) in PICKLES.items()}
    contents |= {f"archive: {name}": made(content) for name, (content, _) in ARCHIVES.items()}
    contents |= {f"safetensors: {name}": made(content) for name, (content, _) in SAFETENSORS.items()}
    contents |= {f"harmless: {name}": archive(made(pickle)) for name, pickle in HARMLESS.items()}
    paths = {name: folder / str(i) for i, name in enumerate([*contents, *(f"special: {name}" for name in SPECIAL)])}
    for name, content in contents.items():
        paths[name].write_bytes(content)
    for name, (write, _) in SPECIAL.items():
        write(paths[f"special: {name}"])
    (folder / "good.pt").write_bytes(archive(GOOD))
    save_file({"w": torch.ones(2)}, folder / "good.safetensors")
    files, good = json.dumps([str(path) for path in paths.values()]), (folder / "good.pt", folder / "good.safetensors")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER, files, *map(str, good)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: answer | {"path": str(paths[name])} for name, answer in zip(paths, answers, strict=True)}


KINDS: dict[str, Mapping[str, tuple[Any, str]]] = {
    "pickle": PICKLES,
    "archive": ARCHIVES,
    "safetensors": SAFETENSORS,
    "special": SPECIAL,
}
REFUSED = {f"{kind}: {name}": message for kind, cases in KINDS.items() for name, (_, message) in cases.items()}


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_file_is_refused(outcomes: dict[str, dict[str, Any]], what: str) -> None:
    outcome = outcomes[what]
    assert outcome["outcome"] == "CheckpointError", outcome
    with pytest.raises(CheckpointError, match=REFUSED[what] or "."):
        raise CheckpointError(outcome["message"])
    assert outcome["path"] in outcome["message"]
    assert outcome["modules"] == []
    assert outcome["seconds"] < 2
    assert len(outcome["message"]) < 1500
    assert outcome["beyond"] == ["refused", 2]
    assert outcome["more"] < 6


@pytest.mark.parametrize("what", HARMLESS)
def test_a_strange_file_loads_without_harm(outcomes: dict[str, dict[str, Any]], what: str) -> None:
    outcome = outcomes[f"harmless: {what}"]
    assert outcome["outcome"] == "loaded", outcome
    assert "w" in outcome["names"]
    assert outcome["modules"] == []
    assert outcome["seconds"] < 2
    assert outcome["beyond"] == ["refused", 0]


def test_nothing_was_run(outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes["harmless: a friend's name"]["message"] == "pytorch_lightning.os.system"
    assert not Path("/tmp/ldm-was-here").exists()


# folders


def model(root: Path, *names: str, suffix: str = ".safetensors") -> Path:
    """A part's folder with an index that names these shards, each of which exists and holds a tensor of its own."""
    folder = root / "model/unet"
    folder.mkdir(parents=True)
    for name in names:
        if not (folder / name).exists():
            save_file({name: torch.ones(1)}, folder / name)
    index = folder / f"diffusion_pytorch_model{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    return folder


def test_links_stay_inside_of_the_model(tmp_path: Path) -> None:
    folder = model(tmp_path, "a.safetensors", "b.safetensors")
    assert set(read_headers(find_weights(folder, "unet"))) == {"a.safetensors", "b.safetensors"}
    for target in (tmp_path / "outside.safetensors", Path("/dev/zero")):
        if not target.exists():
            save_file({"secret": torch.ones(1)}, target)
        (folder / "b.safetensors").unlink()
        (folder / "b.safetensors").symlink_to(target)
        with pytest.raises(CheckpointError, match=r"b\.safetensors is a link to .*, outside of .*/model;"):
            find_weights(folder, "unet")
    (folder / "b.safetensors").unlink()
    os.link(tmp_path / "outside.safetensors", folder / "b.safetensors")  # a copy like any other: no download makes it
    assert set(read_headers(find_weights(folder, "unet"))) == {"a.safetensors", "secret"}


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    folder = model(tmp_path / "snapshots", "a.safetensors", "b.safetensors")
    (tmp_path / "blobs").mkdir()
    for i, file in enumerate(list(folder.iterdir())):
        file.rename(tmp_path / "blobs" / str(i))
        file.symlink_to(tmp_path / "blobs" / str(i))
    assert set(read_headers(find_weights(folder, "unet"))) == {"a.safetensors", "b.safetensors"}


@pytest.mark.parametrize("twins", [("a.safetensors", "A.safetensors"), ("\u00e9.safetensors", "e\u0301.safetensors")])
def test_names_that_some_systems_take_for_one_are_refused(tmp_path: Path, twins: tuple[str, str]) -> None:
    assert twins[0] != twins[1]
    folder = model(tmp_path, *twins)
    with pytest.raises(CheckpointError, match=r"some systems take for one|a shard is a plain file name"):
        find_weights(folder, "unet")


@pytest.mark.parametrize(
    "name", ["../x.bin", "/x.bin", "x.safetensors", "..bin", "x" * 300 + ".bin", "a\\b.bin", "x.bin\n"]
)
def test_an_index_of_pickles_names_plain_files_too(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path, suffix=".bin")
    index = folder / "diffusion_pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"a shard is a plain file name ending in \.bin"):
        find_weights(folder, "unet")


def test_shards_are_counted(tmp_path: Path) -> None:
    folder = model(tmp_path)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"{i}": f"{i}.safetensors" for i in range(1001)}}))
    with pytest.raises(CheckpointError, match="1,001 shards"):
        find_weights(folder, "unet")


def test_a_pipe_among_shards_does_not_block(tmp_path: Path) -> None:
    folder = model(tmp_path, "a.safetensors")
    (folder / "a.safetensors").unlink()
    os.mkfifo(folder / "a.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_headers(find_weights(folder, "unet"))


def test_configurations_name_no_code(
    copied: Callable[..., Path], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied()
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    load_folder(folder)
    code = {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True, "_class_name": "os.system"}
    for file in ("unet/config.json", "text_encoder/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        content = json.loads((folder / file).read_text())
        keep = {"_class_name": content["_class_name"]} if file.startswith("scheduler") else {}
        (folder / file).write_text(json.dumps(content | code | keep))
    before = set(sys.modules)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    theirs = load_folder(folders["sd1"]).unet.state_dict()
    for name, tensor_ in load_folder(folder).unet.state_dict().items():
        assert torch.equal(tensor_, theirs[name])
    assert set(sys.modules) == before

"""`ldm inspect` as a person meets it."""

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.inspect import printable
from tests.ldm.checkpoint.crafted import archive, called, state, tensor, text
from tests.ldm.checkpoint.originals import UNET, VAE, hollow, real_shapes

ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202egnp\x9b31m\r\n"


def rows(out: str) -> dict[str, str]:
    """The table's lines of a name and a value, and the parts with all that is said of them."""
    pairs = (line.split(None, 1) for line in out.splitlines() if line.strip())
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def test_a_model(ldm: Callable[..., Any], tmp_path: Path) -> None:
    shapes = {key: shape for key, shape in real_shapes("sd2-v").items() if not key.startswith(VAE)}
    file = hollow(tmp_path / "model.safetensors", shapes | {"stray": (1,)}, metadata={"modelspec.title": "Mine"})
    ran = ldm("inspect", "model.safetensors", "--no-hash")
    assert (ran.status, ran.err) == (0, "")
    table = rows(ran.out)
    assert table["what"] == "Stable Diffusion 2"
    assert table["predicts"].startswith("not known (names and shapes do not tell")
    assert table["missing"] == "vae"
    assert table["unet"].split() == ["865,910,724", "1.73", "GB", "float16"]
    assert table["foreign"] == "1: stray"
    assert table["modelspec.title"] == "Mine"
    assert "--vae (vae=...)" in ran.out
    assert "sha256" not in ran.out
    assert file.stat().st_blocks * 512 < 1e6  # nothing was written into the hole


def test_the_embedded_model(ldm: Callable[..., Any]) -> None:
    ran = ldm("inspect")
    assert ran.status == 0
    assert rows(ran.out)["what"].startswith("the embedded model of emoji scenes")
    assert "ldm vocabulary" in ran.out
    assert len(rows(ran.out)["sha256"]) == 64


def test_json_has_everything(ldm: Callable[..., Any], tmp_path: Path) -> None:
    tags = json.dumps({"10_cat": {f"tag {i}": i for i in range(500)}})
    metadata = {"ss_tag_frequency": tags, "ss_network_module": "networks.lora", "long": "x" * 1000}
    file = hollow(tmp_path / "style.safetensors", {"lora_unet_conv_in.lora_down.weight": (4, 4, 1, 1)}, "F32", metadata)
    ran = ldm("inspect", "style.safetensors", "--json")
    found = json.loads(ran.out)
    assert (ran.status, found["kind"], found["metadata"]) == (0, "a LoRA", metadata)
    assert found["hashes"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "tensors" not in found
    table = rows(ldm("inspect", "style.safetensors", "--no-hash").out)
    assert table["ss_tag_frequency"].startswith("500 tags: tag 499 (499), tag 498 (498), ")
    assert table["long"].endswith("x... (1,000 letters, see --json)")
    assert len(table["ss_tag_frequency"]) + len(table["long"]) < 400


def test_keys(ldm: Callable[..., Any], tmp_path: Path) -> None:
    hollow(tmp_path / "model.safetensors", real_shapes("sd1"))
    every = ldm("inspect", "model.safetensors", "--no-hash", "--keys").out.splitlines()
    assert len(every) == len(real_shapes("sd1"))
    some = ldm("inspect", "model.safetensors", "--no-hash", "--keys", "*.time_embed.0.*").out.splitlines()
    assert [line.split() for line in some] == [
        ["float16", "1280", f"{UNET}time_embed.0.bias"],
        ["float16", "1280x320", f"{UNET}time_embed.0.weight"],
    ]
    listed = json.loads(ldm("inspect", "model.safetensors", "--no-hash", "--json", "--keys", "*.out.2.bias").out)
    assert listed["tensors"] == {f"{UNET}out.2.bias": ["F16", [4]]}


def test_text_from_files_does_nothing_to_a_terminal(ldm: Callable[..., Any], tmp_path: Path) -> None:
    """In names, keys and values of metadata, of tables, lists and complaints."""
    shapes = real_shapes("sd1") | {f"{UNET}out.{ESCAPES}": (1,), ESCAPES: (1,)}
    hollow(tmp_path / "model.safetensors", shapes, metadata={ESCAPES: ESCAPES, "ss_tag_frequency": f'{{"{ESCAPES!r}'})
    for options in ((), ("--keys",), ("--json",)):
        ran = ldm("inspect", "model.safetensors", "--no-hash", *options)
        assert ran.status == 2  # of the unknown tensor
        shown = ran.out + ran.err
        assert all(each.isprintable() or each == "\n" for each in shown), options
    assert r"\x1b[2J" in ldm("inspect", "model.safetensors", "--no-hash").out
    pickle = tmp_path / "evil.ckpt"
    values = {f"w{ESCAPES}": tensor(), "x": called("os.system", text(ESCAPES)), ESCAPES: text("v")}
    pickle.write_bytes(archive(state(**values)))
    ran = ldm("inspect", "evil.ckpt", "--no-hash")
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert "'os.system'. None of it was run" in ran.err
    assert rows(ran.out)["code"] == "names os.system; none of it was run"
    assert all(each.isprintable() or each == "\n" for each in ran.out + ran.err)


def test_text_that_the_output_cannot_spell(process: Callable[..., Any], tmp_path: Path, environment: Any) -> None:
    hollow(tmp_path / "x.safetensors", {"ключ": (1,)}, metadata={"名": "値"})
    ran = process("inspect", "x.safetensors", env={**environment, "PYTHONIOENCODING": "ascii"})
    assert ran.status == 0
    assert r"\u540d" in ran.out


def test_long_tables_end(ldm: Callable[..., Any], tmp_path: Path) -> None:
    metadata = {f"key {i}": "v" for i in range(5000)}
    shapes = real_shapes("sd1") | {f"other.{'x' * 300}.{i}": (1,) for i in range(5000)}
    hollow(tmp_path / "model.safetensors", shapes, metadata=metadata)
    ran = ldm("inspect", "model.safetensors", "--no-hash")
    assert len(ran.out) < 10_000
    assert "  foreign          5,000: other.xxx" in ran.out
    assert "and 4900 more, see --json" in ran.out
    hollow(tmp_path / "model.safetensors", {f"k{i}": (0,) for i in range(60_000)})
    ran = ldm("inspect", "model.safetensors", "--no-hash")
    assert (ran.status, ran.out) == (2, "")
    assert "more than 50,000 tensors" in ran.err


@pytest.mark.parametrize(("name", "content", "complaint"), [
    ("note.safetensors", b"this is a text and nothing else", "not a safetensors file"),
    ("nothing.ckpt", b"", "not a safetensors file"),
    ("page.safetensors", b"<!DOCTYPE html><html></html>", "is a web page"),
    ("gone.safetensors", None, "there is no file gone.safetensors"),
    ("folder", None, "there is no folder"),
])  # fmt: skip
def test_what_is_no_weights(
    ldm: Callable[..., Any], tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    ran = ldm("inspect", name)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert complaint in ran.err


def test_hub_ids(process: Callable[..., Any], tmp_path: Path, environment: Any) -> None:
    """What is in the cache is described, what is not is not fetched: nobody calls at the hub."""
    snapshot = tmp_path / "cache/models--org--style/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "cache/models--org--style/refs").mkdir()
    (tmp_path / "cache/models--org--style/refs/main").write_text("0123")
    hollow(snapshot / "style.safetensors", {"<cat>": (2, 768)})
    with socket.create_server(("127.0.0.1", 0)) as hub:
        endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
        settings = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        ran = process("inspect", "org/style", env={**environment, **settings})
        assert (ran.status, rows(ran.out)["word"]) == (0, "<cat>")
        ran = process("inspect", "org/other", env={**environment, **settings})
        assert ran.status == 2
        assert "org/other is not in the local cache" in ran.err
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):
            hub.accept()


def test_torch_is_not_imported(tmp_path: Path, process: Callable[..., Any], environment: Any) -> None:
    """Neither for a file nor for a folder of safetensors: the answer is there before torch would be."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    hollow(tmp_path / "model.safetensors", real_shapes("sd1"))
    alone = {**environment, "PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}
    for path in (("model.safetensors", "--no-hash"), ()):
        assert process("inspect", *path, env=alone).status == 0


def test_printable() -> None:
    assert printable("plain ключ 値", 100) == "plain ключ 値"
    assert printable("\x00\x7f\ud800", 100) == r"\x00\x7f\ud800"
    assert printable("x" * 100, 10) == "x" * 10 + "..."

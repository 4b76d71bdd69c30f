"""Torch files read without running them: the same tensors as torch.load, and names of code that stay names."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoint import load_folder
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.source import Source, open_source
from ldm.model import LatentDiffusion
from tests.ldm.checkpoint import crafted
from text_encoder import CLIPTextEncoder

KINDS = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


def everything() -> dict[str, Tensor]:
    """Each dtype, and each way a tensor may lie in its storage."""
    base = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    state = {f"of.{kind}": (10 * base).abs().to(torch.uint8).to(getattr(torch, kind)) for kind in KINDS}
    return state | {
        "transposed": base.t(),
        "part": base[1:3, 2:9:3],
        "expanded": torch.ones(1, 3).expand(1, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "tied": base,
    }


def tensors(source: Source) -> dict[str, Tensor]:
    return {name: source.tensor(name) for name in source.entries}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape
        assert ours[name].stride() == tensor.stride()
        assert torch.equal(ours[name], tensor), name
        assert not ours[name].requires_grad


def test_every_kind_of_tensor_is_what_torch_reads(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    torch.save(everything(), file)
    source = open_source(file)
    assert_same(tensors(source), torch.load(file, weights_only=True))
    assert source.globals == ()
    assert {entry.dtype for entry in source.entries.values()} == DTYPES
    assert source.entries["part"].shape == (2, 3)
    assert source.entries["part"].file == file


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_pickles(tmp_path: Path, protocol: int) -> None:
    torch.save(
        {"a": torch.arange(3.0), "b": {1, 2}, "c": frozenset("x"), "d": b"y"},
        tmp_path / "x.pt",
        pickle_protocol=protocol,
    )
    assert_same(tensors(open_source(tmp_path / "x.pt")), {"a": torch.arange(3.0)})


def test_state_dicts_are_unwrapped_and_scalars_kept(tmp_path: Path) -> None:
    inner = {"state_dict": {"w": torch.ones(1), "sub": {"b": torch.zeros(2)}}, "global_step": 1, "epoch": 4}
    outer = {"state_dict": inner, "global_step": 875000, "lr": 0.5, "note": "x" * 5000, "big": 1 << 2000, "on": True}
    torch.save(
        outer | {"optimizer_states": [{"state": {0: torch.ones(9)}}], "other": torch.ones(1)}, tmp_path / "x.ckpt"
    )
    source = open_source(tmp_path / "x.ckpt")
    assert_same(tensors(source), {"w": torch.ones(1), "sub.b": torch.zeros(2)})
    assert source.metadata["global_step"] == "875000"
    assert (source.metadata["epoch"], source.metadata["lr"], source.metadata["on"]) == ("4", "0.5", "True")
    assert source.metadata["note"] == "x" * 1000
    assert source.metadata["big"] == hex(1 << 2000)


def test_embeddings_of_other_programs(tmp_path: Path) -> None:
    vector = torch.randn(2, 8)
    for holder in (dict, torch.nn.ParameterDict):
        torch.save(
            {"string_to_token": {"*": 265}, "string_to_param": holder({"*": vector}), "name": "cat"}, tmp_path / "e.pt"
        )
        source = open_source(tmp_path / "e.pt")
        assert_same(tensors(source), {"string_to_param.*": vector})
        assert source.metadata["name"] == "cat"
    torch.save(vector, tmp_path / "bare.pt")
    assert_same(tensors(open_source(tmp_path / "bare.pt")), {"": vector})


def test_a_module_state_keeps_its_order_and_ties(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3))
    module[1].weight = module[0].weight
    torch.save(module.state_dict(), tmp_path / "m.bin")  # an OrderedDict with attributes
    assert_same(tensors(open_source(tmp_path / "m.bin")), dict(module.state_dict()))


# what a file names


def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class that pickles as the callback in the first checkpoints of Stable Diffusion; gone when it is read."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module = types.ModuleType(name)
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return callback


def test_checkpoints_of_lightning_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        callback = lightning(patch)
        used = callback()
        used.best = torch.ones(3)
        callbacks = {callback: {"best_model_score": torch.ones(1), "monitor": "val"}, "again": used}
        scalar = np.float64(3.5)
        torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": callbacks, "loss": scalar}, tmp_path / "sd.ckpt")
    before = set(sys.modules)
    source = open_source(tmp_path / "sd.ckpt")
    assert_same(tensors(source), {"w": torch.ones(2)})
    assert source.globals[0] == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert source.metadata.get("loss") is None
    assert "pytorch_lightning" not in set(sys.modules) - before


def test_unknown_globals_are_named_and_may_be_allowed(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    marker = tmp_path / "ran"
    payload = crafted.called("os.system", crafted.text(f"touch {marker}"))
    file.write_bytes(crafted.archive(crafted.state(w=crafted.tensor(), evil=payload)))
    with pytest.raises(CheckpointError, match=rf"{file} refers to code .*'os\.system'.*allow_unknown_globals=True"):
        open_source(file)
    source = open_source(file, allow_unknown_globals=True)
    assert source.globals == ("os.system",)
    assert_same(tensors(source), {"w": torch.zeros(2)})
    assert not marker.exists()


def test_objects_made_by_foreign_classes_are_dicts_at_most(tmp_path: Path) -> None:
    inside = crafted.MARK + crafted.text("w") + crafted.tensor() + crafted.SETITEMS
    made = crafted.named("some.EasyDict") + crafted.TUPLE0 + crafted.NEWOBJ + inside + crafted.NONE + crafted.BUILD
    (tmp_path / "x.pt").write_bytes(crafted.archive(b"\x80\x02" + made + crafted.STOP))
    source = open_source(tmp_path / "x.pt", allow_unknown_globals=True)
    assert_same(tensors(source), {"w": torch.zeros(2)})


# how it is read


def test_tensors_are_views_of_the_file_that_do_not_write_to_it(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    state = {"a": torch.full((5,), 1.5), "b": torch.full((5,), 2.5)}
    torch.save(state, file)
    content = file.read_bytes()
    starts = [content.index(tensor.numpy().tobytes()) for tensor in state.values()]
    first, second = tensors(open_source(file)).values()
    assert second.data_ptr() - first.data_ptr() == starts[1] - starts[0]
    first += 1
    assert file.read_bytes() == content
    assert first.untyped_storage().nbytes() == 20
    save_file({"a": first, "b": second}, tmp_path / "x.safetensors")  # which refuses tensors that share a storage


def test_misaligned_records_are_read(tmp_path: Path) -> None:
    for shift in range(8):
        file = tmp_path / f"{shift}.pt"
        pickle = crafted.state(w=crafted.tensor((1, 2), (2, 1)))
        file.write_bytes(crafted.archive(pickle, {"version": b"3" * (shift + 1), "data/0": bytes(range(8))}, root="r"))
        loaded = open_source(file).tensor("w")
        assert loaded.numpy().tobytes() == bytes(range(8))
        assert loaded.data_ptr() % 4 == 0


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"x.{kind}"
    state = {"a": torch.zeros(5), "b": torch.zeros(5)}
    save_file(state, file) if kind == "safetensors" else torch.save(state, file)
    source = open_source(file)
    source.tensor("a")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{file} changed while it was read"):
        source.tensor("b")


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for size in range(1, 80):  # some headers' lengths begin as a pickle (0x80) or as a zip (PK) does
        name = "n" * size
        save_file({name: torch.arange(2)}, tmp_path / "x.ckpt", metadata={"format": "pt"})
        source = open_source(tmp_path / "x.ckpt")
        assert source.metadata == {"format": "pt"}
        assert_same(tensors(source), {name: torch.arange(2)})
    torch.save({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    assert_same(tensors(open_source(tmp_path / "x.safetensors")), {"a": torch.ones(1)})


def legacy(file: Path) -> None:
    torch.save({"a": torch.ones(1)}, file, _use_new_zipfile_serialization=False)


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "legacy": (legacy, r"before version 1\.6 .*convert it .*weights_only=True"),
    "tar": (lambda file: file.write_bytes(bytes(257) + b"ustar" + bytes(250)), r"before version 1\.6"),
    "git": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"), "git lfs pull"),
    "html": (lambda file: file.write_text("\n<!DOCTYPE html><html>Log in"), "is a web page"),
    "gguf": (lambda file: file.write_bytes(b"GGUF" + bytes(99)), "is a GGUF file"),
    "script": (lambda file: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file), "TorchScript program"),
    "nothing": (lambda file: torch.save({"a": [1, 2]}, file), "holds no tensors"),
    "big end": (
        lambda file: file.write_bytes(crafted.archive(crafted.state(w=crafted.tensor()), {"byteorder": b"big"})),
        "byte order is b'big'",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", OTHERS)
def test_files_of_other_kinds_are_told_apart(tmp_path: Path, what: str) -> None:
    write, message = OTHERS[what]
    write(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path / "x.ckpt")


# folders


def pickled(folder: Path, part: str, stem: str, shards: int = 1, old: bool = False, variant: str = "") -> None:
    """Replaces the safetensors of a part by pickles under the names diffusers and transformers give them."""
    (file,) = (folder / part).glob("*.safetensors")
    state = load_file(file)
    file.unlink()
    dotted = f".{variant}" if variant else ""
    if shards == 1:
        return torch.save(state, folder / part / f"{stem}{dotted}.bin")
    names = [f"-{i + 1:05}-of-{shards:05}" for i in range(shards)]
    names = [f"{stem}{name}{dotted}.bin" if old else f"{stem}{dotted}{name}.bin" for name in names]
    weight_map = {key: names[i % shards] for i, key in enumerate(state)}
    for name in names:
        torch.save({key: value for key, value in state.items() if weight_map[key] == name}, folder / part / name)
    index = f"{stem}.bin{dotted}.index.json" if old else f"{stem}.bin.index{dotted}.json"
    (folder / part / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return None


def weights(model: LatentDiffusion) -> dict[str, Tensor]:
    assert isinstance(model.text_encoder, CLIPTextEncoder)
    parts = {"unet": model.unet, "vae": model.autoencoder, "text": model.text_encoder.model}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shards": 2},
        {"variant": "fp16"},
        {"shards": 3, "variant": "fp16"},
        {"shards": 2, "old": True, "variant": "fp16"},
    ],
)
def test_folders_with_pickled_weights_load(copied: Callable[..., Path], folders: dict[str, Path], options: Any) -> None:
    folder = copied()
    pickled(folder, "unet", "diffusion_pytorch_model", **options)
    pickled(folder, "text_encoder", "pytorch_model", **options)
    model = load_folder(folder, variant=options.get("variant"))
    assert_same(weights(model), weights(load_folder(folders["sd1"])))
    if "variant" in options:
        with pytest.raises(FileNotFoundError, match=r"only as the variant fp16: pass variant="):
            load_folder(folder)


def test_safetensors_are_preferred_to_pickles(copied: Callable[..., Path], folders: dict[str, Path]) -> None:
    folder = copied()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"never read")
    assert_same(weights(load_folder(folder)), weights(load_folder(folders["sd1"])))

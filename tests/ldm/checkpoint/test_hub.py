"""Hub ids: what is here is never asked for, what is not is fetched sparingly, and failures are one sentence."""

import fnmatch
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file

from ldm.checkpoint import load_folder, resolve
from ldm.checkpoint.hub import resolve_part

Hub = Callable[[Path], list[list[str]]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that holds one folder as `org/name`, and records which files each call fetched."""

    def serve(source: Path) -> list[list[str]]:
        calls: list[list[str]] = []

        def snapshot_download(repo: str, *, allow_patterns: list[str], **options: Any) -> str:
            assert repo == "org/name"
            assert set(options) == {"revision", "cache_dir", "token", "local_files_only"}
            files = [path.relative_to(source).as_posix() for path in source.rglob("*.*") if path.is_file()]
            wanted = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)]
            for file in wanted:
                (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / file, tmp_path / "cache" / file)
            calls.append(sorted(wanted))
            return str(tmp_path / "cache")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return serve


def clutter(folder: Path) -> None:
    """What real repositories hold beside the model, and nobody wants to wait for."""
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "v1.ckpt"):
        write_empty(folder / name)
    for name in ("v1-5-pruned.safetensors", "text_encoder/flax_model.msgpack", "unet/openvino.xml", "README.md"):
        write_empty(folder / name)
    write_empty(folder / "safety_checker/model.safetensors")


def write_empty(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sdxl_refiner"])
def test_only_the_files_of_the_model_are_fetched(copied: Callable[..., Path], hub: Hub, family: str) -> None:
    source = copied(family)
    expected = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.*"))
    clutter(source)
    calls = hub(source)
    assert load_folder(resolve("org/name")).family == family
    assert calls == [expected]


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "50KB"}])
def test_a_variant_is_fetched_with_plain_files_where_it_lacks(
    folders: dict[str, Path], resaved: Callable[..., Path], hub: Hub, shards: dict[str, str]
) -> None:
    source = resaved("sdxl", variant="fp16", **shards)
    for file in (source / "vae").glob("*.safetensors*"):
        file.unlink()
    for plain in ("vae", "unet"):
        file = folders["sdxl"] / plain / "diffusion_pytorch_model.safetensors"
        shutil.copy(file, source / plain)
    calls = hub(source)
    load_folder(resolve("org/name", variant="fp16"), variant="fp16")
    assert [name for name in calls[0] if name.startswith("vae")] == ["vae/config.json"]
    assert "unet/diffusion_pytorch_model.safetensors" not in calls[0]
    assert [call for call in calls[1:] if call] == [["vae/diffusion_pytorch_model.safetensors"]]


def test_a_variant_that_is_nowhere_fetches_no_weights(copied: Callable[..., Path], hub: Hub) -> None:
    calls = hub(copied())
    with pytest.raises(ValueError, match="has weights of variant 'fp16'"):
        load_folder(resolve("org/name", variant="fp16"), variant="fp16")
    assert not [name for call in calls for name in call if name.endswith(".safetensors")]


@pytest.mark.parametrize("max_shard_size", ["10GB", "50KB"])
def test_pickles_are_fetched_where_there_is_nothing_else(
    folders: dict[str, Path], copied: Callable[..., Path], hub: Hub, max_shard_size: str
) -> None:
    source = copied("sd1")
    for file in (source / "unet").glob("*.safetensors*"):
        file.unlink()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet")
    unet.save_pretrained(source / "unet", safe_serialization=False, max_shard_size=max_shard_size)
    pickles = sorted(path.relative_to(source).as_posix() for path in (source / "unet").glob("*.bin"))
    assert (len(pickles) > 1) == (max_shard_size == "50KB")
    write_empty(source / "vae" / "diffusion_pytorch_model.bin")
    calls = hub(source)
    load_folder(resolve("org/name"))
    assert not [name for name in calls[0] if name.endswith(".bin")]
    assert calls[1:] == [pickles]


def test_a_variant_may_be_pickled(copied: Callable[..., Path], hub: Hub) -> None:
    source = copied("sd1")
    for part in ("unet", "vae", "text_encoder"):
        for file in (source / part).glob("*.safetensors"):
            torch.save(load_file(file), file.with_name(f"{PICKLED[file.stem]}.fp16.bin"))
    calls = hub(source)
    load_folder(resolve("org/name", variant="fp16"), variant="fp16")
    weights = [name for call in calls for name in call if name.endswith((".bin", ".safetensors"))]
    assert len(weights) == 3
    assert all(name.endswith(".fp16.bin") for name in weights)


PICKLED = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}


def test_parts_of_a_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    for name in ("deep/style.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_empty(source / name)
    calls = hub(source)
    names = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
    assert resolve_part("org/name", names) == tmp_path / "cache"
    assert resolve_part("org/name/deep/style.safetensors", names).read_bytes() == b""
    assert calls == [["pytorch_lora_weights.safetensors"], ["deep/style.safetensors"]]
    with pytest.raises(ValueError, match=r"org/name on the hub has no other\.safetensors"):
        resolve_part("org/name/other.safetensors", names)
    monkeypatch.chdir(tmp_path)
    calls.clear()
    for path in ("source/none.safetensors", "source/deep/none.safetensors", "none.pt", "no/file.ckpt", str(source)):
        assert resolve_part(path, names) == Path(path)
    assert calls == []


def test_a_subfolder_of_a_repository(copied: Callable[..., Path], hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    copied().rename(tmp_path / "repo" / "inner")
    clutter(tmp_path / "repo" / "inner")
    calls = hub(tmp_path / "repo")
    load_folder(resolve("org/name", subfolder="inner"))
    assert calls
    assert all(name.startswith("inner/") for name in calls[0])


def test_what_exists_here_is_taken_as_it_is(
    copied: Callable[..., Path], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = copied(), hub(Path())
    assert resolve(folder) == folder
    assert resolve(folder.parent, subfolder="sd1") == folder
    (folder.parent / "org").mkdir()
    folder.rename(folder.parent / "org" / "name")
    monkeypatch.chdir(folder.parent)
    assert resolve("org/name") == Path("org/name")
    assert calls == []


@pytest.mark.parametrize("name", ["./org/name", "/org/name", "../org/name", "name", "a/b/c", "org/", "org/na me", ""])
def test_names_that_are_no_hub_ids_are_paths(hub: Hub, name: str) -> None:
    calls = hub(Path())
    with pytest.raises((FileNotFoundError, ValueError), match=r"no folder|no model_index\.json"):
        resolve(name)
    assert calls == []


def error(kind: type[Exception]) -> Exception:
    made = kind.__new__(kind)
    made.args = ("a long story",)
    return made


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "is gated: accept its terms"),
        (errors.RepositoryNotFoundError, "is not on the hub"),
        (errors.RevisionNotFoundError, "at revision 'v9' has no such revision"),
        (errors.LocalEntryNotFoundError, "not in the local cache"),
        (ConnectionError, "could not be fetched .ConnectionError: a long story"),
        (TimeoutError, "could not be fetched .TimeoutError"),
    ],
)
def test_failures_of_the_hub_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str
) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=rf"no folder org/name here, and org/name.*{message}") as caught:
        resolve("org/name", revision="v9")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_interrupting_a_download_is_no_failure_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve("org/name")


OFFLINE = """
import os, sys
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": sys.argv[1]}
from ldm.checkpoint import resolve
assert "torch" not in sys.modules and "huggingface_hub" not in sys.modules
try:
    resolve("org/name", local_files_only=sys.argv[2] == "True")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("local_files_only", [True, False])
def test_the_real_library_offline(tmp_path: Path, local_files_only: bool) -> None:
    command = [sys.executable, "-c", OFFLINE, str(tmp_path), str(local_files_only)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "org/name is not in the local cache" in done.stdout


@pytest.mark.parametrize("name", ["models/modle.safetensors", "models/modle"])
def test_a_path_of_two_parts_that_is_not_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It could be a hub id, but nobody means that: nothing is asked, and what is nearby is named."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    calls = hub(tmp_path)
    near = r"did you mean models/model\.safetensors" if name.endswith("safetensors") else "there is no folder"
    with pytest.raises(FileNotFoundError, match=near):
        resolve(name)
    monkeypatch.chdir(tmp_path / "models")
    with pytest.raises(FileNotFoundError, match=r"there is no file org/name\.safetensors"):
        resolve("org/name.safetensors")
    assert calls == []

"""The cache gives back what was put, or nothing."""

import errno
import multiprocessing
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.data.pictures.buckets import place
from ldm.data.pictures.cache import Cache, key_of

KEY = key_of("a", 1)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    both = torch.randn(1, 8, 4, 6, generator=draw)
    return {"mean": both[:, :4], "std": both[:, 4:].half(), "ids": torch.arange(5), "one": torch.tensor(2.0).bfloat16()}


def test_what_is_put_is_given_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.get(KEY) is None
    cache.put(KEY, tensors())
    found = Cache(tmp_path / "cache").get(KEY)
    assert found is not None
    torch.testing.assert_close(found, tensors(), rtol=0, atol=0)
    assert [path.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").rglob("*.*")] == [
        f"{KEY[:2]}/{KEY}.safetensors"
    ]


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda data: data[:-7], "InvalidHeader|incomplete|invalid|Incomplete"),
        (lambda data: data[:5], ""),
        (lambda data: b"", ""),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "not what was written"),
        (lambda data: data.replace(KEY.encode(), key_of("other").encode()), "of another key"),
    ],
)
def test_a_damaged_entry_is_named_and_made_anew(tmp_path: Path, harm: object, why: str) -> None:
    assert callable(harm)
    cache = Cache(tmp_path)
    cache.put(KEY, tensors())
    (place,) = tmp_path.rglob("*.safetensors")
    place.write_bytes(harm(place.read_bytes()))
    with pytest.warns(UserWarning, match=f"{KEY}.safetensors is not used, and made anew: .*({why})"):
        assert cache.get(KEY) is None
    assert not place.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(KEY) is None
        cache.put(KEY, tensors(1))
        found = cache.get(KEY)
    assert found is not None
    assert torch.equal(found["mean"], tensors(1)["mean"])


def test_nan_is_neither_written_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    bad = {"mean": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match="mean holds NaN or infinities: float16"):
        cache.put(KEY, bad)
    assert not [*tmp_path.rglob("*.*")]
    with monkeypatch.context() as patched:
        patched.setattr("ldm.data.pictures.cache._require_finite", lambda _: None)
        cache.put(KEY, bad)
    with pytest.warns(UserWarning, match="NaN"):
        assert cache.get(KEY) is None


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: make room .* data\.cache = false") as raised:
        Cache(tmp_path).put(KEY, tensors())
    assert raised.value.errno == errno.ENOSPC
    assert not [*tmp_path.rglob("*.*")]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"data\.cache = false"):
        Cache(tmp_path / "file").put(KEY, tensors())


def _writer(folder: Path, seed: int) -> None:
    for _ in range(40):
        Cache(folder).put(KEY, tensors(seed))


def test_processes_may_write_one_entry_at_once(tmp_path: Path) -> None:
    writers = [multiprocessing.get_context("fork").Process(target=_writer, args=(tmp_path, s)) for s in (0, 1)]
    for writer in writers:
        writer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.is_alive() for writer in writers):
            found = Cache(tmp_path).get(KEY)
            assert found is None or any(torch.equal(found["mean"], tensors(s)["mean"]) for s in (0, 1))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len([*tmp_path.rglob("*.*")]) == 1


def test_keys_tell_their_parts_apart() -> None:
    placed = place((100, 80), (64, 64))
    keys = [
        key_of("a", "b"),
        key_of("ab"),
        key_of("a", ("b",)),
        key_of("1"),
        key_of(1),
        key_of(1.0),
        key_of(placed),
        key_of(place((100, 80), (64, 64), (0, 0))),
        key_of(),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
    assert key_of("a", placed) == key_of("a", place((100, 80), (64, 64)))

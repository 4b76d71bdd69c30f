"""The native attention is compiled once, for its user alone, and nothing breaks where it cannot be."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from unet import native

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os
import torch
from unet import native

def attend():
    with torch.no_grad():
        return native.attention(x, x, x)

x = torch.randn(2, 2, 200, 40).bfloat16()
assert native._kernel() is not None
y = attend()
child = os.fork()
if child == 0:
    os._exit(0 if attend().tolist() == y.tolist() else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache folder in which there is nothing yet, and a process that has not looked into it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LDM_NATIVE", raising=False)
    native._kernel.cache_clear()
    yield tmp_path / "cache"
    native._kernel.cache_clear()


@pytest.fixture
def capable(cache, tmp_path, monkeypatch):
    """A processor that says it could run the kernel."""
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {' '.join(native.NEEDED)}\n")
    monkeypatch.setattr(native, "CPU_INFO", tmp_path / "cpuinfo")
    native._flags.cache_clear()
    yield
    native._flags.cache_clear()


def assert_falls_back():
    q, k, v = (torch.randn(1, 2, n, 40).bfloat16() for n in (100, 77, 77))
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(native.attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert native._kernel() is None


def test_switched_off_by_the_environment(cache, monkeypatch):
    monkeypatch.setenv("LDM_NATIVE", "0")
    assert_falls_back()
    assert not cache.exists()


@pytest.mark.parametrize("content", [None, "flags : fpu avx2 avx512f\n", "Features : bf16\n"])
def test_another_processor(capable, cache, tmp_path, content):
    (tmp_path / "cpuinfo").unlink() if content is None else (tmp_path / "cpuinfo").write_text(content)
    assert_falls_back()
    assert not cache.exists()


@pytest.mark.parametrize("words", ["", "no-such-compiler", "'"])
def test_no_compiler(capable, monkeypatch, words):
    monkeypatch.setenv("CC", words)
    monkeypatch.setenv("PATH", "")
    assert_falls_back()


@pytest.mark.parametrize("ending", ["exit 1", "exit 0", "shift $(($# - 1)); echo no library > $1"])
def test_a_failing_compiler_is_called_once(capable, cache, tmp_path, monkeypatch, ending):
    compiler = tmp_path / "my cc"
    compiler.write_text(f"#!/bin/sh\necho called >> '{tmp_path}/log'\n{ending}\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", f"'{compiler}' -g")
    assert_falls_back()
    assert (tmp_path / "log").read_text() == "called\n"
    assert all(path.suffix == ".so" for path in (cache / "ldm-pipelines").iterdir())


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A compiler that never ends, and its child: the end of a pipe that this child holds open, once it has begun."""
    os.mkfifo(tmp_path / "pipe")
    fifo = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n(echo begun; exec sleep 100) > '{tmp_path}/pipe' &\nwait\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    yield fifo
    os.close(fifo)


def read(fifo, seconds=60):
    assert select.select([fifo], [], [], seconds)[0], "a process still holds the pipe open"
    return os.read(fifo, 100)


def test_a_compiler_that_hangs_is_ended_with_its_children(capable, begun, monkeypatch):
    communicate = subprocess.Popen.communicate

    def wait(compiler, source, timeout):
        assert timeout == 60
        assert read(begun) == b"begun\n"
        return communicate(compiler, source, 0.1)

    monkeypatch.setattr(subprocess.Popen, "communicate", wait)
    assert_falls_back()
    assert read(begun) == b""


def test_a_compiler_ends_with_whoever_waits_for_it(capable, begun, monkeypatch):
    """Ctrl-C goes to this process alone."""

    def interrupt(*_):
        assert read(begun) == b"begun\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        native._kernel()
    assert read(begun) == b""


def test_availability_is_told_without_compiling(capable, cache, tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\ntouch '{tmp_path}/called'\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", f"{compiler} -g")
    assert native.availability() == f"not compiled yet; its first use does that, with {compiler} -g"
    assert not cache.exists()
    library = native._place()
    library.parent.mkdir(mode=0o700, parents=True)
    assert native.availability().startswith("not compiled yet")
    library.write_bytes(native._sealed(b"no library"))
    assert native.availability() == f"no, {library} cannot be used"
    library.unlink()
    library.parent.chmod(0o777)
    assert native.availability() == f"no, others can write to {library.parent}"
    assert not (tmp_path / "called").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(compiler))
    assert native.availability() == f"no, nothing can be written to {compiler}/ldm-pipelines"
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.availability() == "no, no C compiler"
    native._flags.cache_clear()
    (tmp_path / "cpuinfo").write_text("flags : fpu avx2\n")
    assert native.availability() == "no, it needs Linux and a processor with AVX-512 BF16"
    monkeypatch.setenv("LDM_NATIVE", "0")
    assert native.availability() == "off, by LDM_NATIVE in the environment"


def test_availability_of_a_kernel_that_works(kernel, cache):
    native._kernel.cache_clear()
    assert native._kernel() is not None
    native._kernel.cache_clear()
    (library,) = (cache / "ldm-pipelines").iterdir()
    assert native.availability() == f"compiled, {library}"


def test_a_cache_that_nobody_or_everybody_can_write(capable, cache):
    cache.write_text("not a folder")
    assert_falls_back()
    native._kernel.cache_clear()
    cache.unlink()
    (cache / "ldm-pipelines").mkdir(parents=True)
    (cache / "ldm-pipelines").chmod(0o777)
    assert_falls_back()


def test_the_cache_is_the_users_alone_and_used_again(kernel, cache, monkeypatch):
    native._kernel.cache_clear()
    assert native._kernel() is not None
    assert (cache / "ldm-pipelines").stat().st_mode & 0o777 == 0o700
    (library,) = (cache / "ldm-pipelines").iterdir()
    before = library.stat()
    assert native._library() == library
    assert library.stat().st_mtime_ns == before.st_mtime_ns
    monkeypatch.setenv("CC", f"{native._compiler()[0]} -g")
    assert native._library() != library


@pytest.mark.parametrize("size", [0, 5000])
def test_a_broken_file_is_made_anew(kernel, cache, size):
    library = native._library()
    whole = library.read_bytes()
    library.write_bytes(whole[:size])
    native._kernel.cache_clear()
    assert native._kernel() is not None
    assert len(library.read_bytes()) == len(whole)


def test_two_processes_at_once_and_their_forks(kernel, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    command = (sys.executable, "-c", SCRIPT)
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(list((tmp_path / "ldm-pipelines").iterdir())) == 1

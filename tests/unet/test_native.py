"""The native attention against torch's, and that nothing breaks where there is none."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.fixture
def kernel():
    if native._kernel() is None:
        pytest.skip("needs AVX-512 BF16 and a C compiler")


@pytest.fixture
def only_native(kernel, monkeypatch):
    monkeypatch.setattr(native, "F", None)  # an error, should it be used
    return torch.no_grad()(native.attention)


@pytest.fixture
def only_torch(monkeypatch):
    monkeypatch.setattr(native, "_run", None)
    return native.attention


def draw(b, heads, n, m, d):
    """q, k, v as the U-Net has them: views of (b, n, heads * d)."""
    return tuple(torch.randn(b, s, heads * d).bfloat16().view(b, s, heads, d).transpose(1, 2) for s in (n, m, m))


def error(y, q, k, v):
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    return ((y.double() - exact).norm() / exact.norm()).item()


SHAPES = [
    (2, 4, 256, 4096, 40),
    (1, 2, 256, 9216, 64),
    (2, 8, 256, 256, 160),
    (2, 3, 333, 77, 80),
    (2, 2, 31, 257, 256),
    (1, 40, 17, 65, 8),
    (3, 7, 1, 513, 32),
]


@pytest.mark.parametrize("spread", [0.1, 1, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(shape, spread, only_native):
    q, k, v = draw(*shape)
    q = q * spread
    ours, theirs = only_native(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert ours.dtype == torch.bfloat16
    assert ours.transpose(1, 2).is_contiguous()  # so that the heads are joined without a copy
    assert error(ours, q, k, v) <= 1.1 * error(theirs, q, k, v)


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_a_score_common_to_all_keys_changes_nothing(offset, only_native):
    """The exponentials are those of differences; keys added to fill a group do not count, though their score is 0."""
    q, k, v = draw(1, 4, 300, 77, 40)
    q[..., 0], k[..., 0] = 64, offset
    assert error(only_native(q, k, v), q, k, v) <= 1.1 * error(F.scaled_dot_product_attention(q, k, v), q, k, v)


def test_equal_scores_weigh_the_same(only_native):
    """However many blocks of keys come later: what an early one loses in each of them adds up."""
    q, k, v = (x.clone() for x in draw(1, 1, 64, 25600, 8))
    k[:], v[:, :, :12800], v[:, :, 12800:] = k[:, :, :1], 1, -1
    assert only_native(q, k, v).abs().max() < 1e-5


@pytest.mark.parametrize(
    "arrange",
    [
        torch.Tensor.contiguous,
        lambda x: torch.stack([x, x + 1], dim=3).select(3, 0),
        lambda x: F.pad(x, (3, 2))[..., 3:-2],  # an odd number of elements from row to row
        lambda x: x[:1].expand(2, -1, -1, -1),
        lambda x: x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    ],
)
def test_any_strides(arrange, only_native):
    for i in range(3):
        inputs = list(draw(2, 3, 100, 77, 40))
        inputs[i] = arrange(inputs[i])
        assert torch.equal(only_native(*inputs), only_native(*(x.contiguous() for x in inputs)))


def test_threads_do_not_change_the_result(only_native):
    before, inputs, results = torch.get_num_threads(), draw(2, 4, 500, 300, 40), []
    for threads in (1, 2, 5, before):
        torch.set_num_threads(threads)
        results += [only_native(*inputs) for _ in range(3)]
    assert all(torch.equal(results[0], y) for y in results)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 76])
def test_a_broken_network_shows(bad, which, place, only_native):
    """NaN and infinity are where the formula has them; torch's attention in bfloat16 loses some."""
    inputs = draw(1, 2, 100, 77, 40)
    inputs[which][0, 1, place, 5] = bad
    q, k, v = (x.double() for x in inputs)
    exact, ours = torch.softmax(q @ k.mT / 40**0.5, dim=-1) @ v, only_native(*inputs)
    assert not exact.isfinite().all()
    assert torch.equal(ours.isnan(), exact.isnan())
    torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=0.02, equal_nan=True)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_are_torchs(which, only_torch):
    inputs = draw(1, 2, 100, 77, 40)
    inputs[which].requires_grad_()
    only_torch(*inputs).sum().backward()
    assert inputs[which].grad.abs().sum() > 0


def test_parameters_are_no_obstacle_without_grad(only_native):
    assert not only_native(*(x.requires_grad_() for x in draw(1, 2, 100, 77, 40))).requires_grad


@pytest.mark.parametrize(
    "inputs",
    [
        tuple(x.float() for x in draw(1, 2, 100, 77, 40)),
        draw(1, 2, 100, 77, 44),
        draw(1, 2, 100, 77, 264),
        draw(1, 2, 3, 4, 40),
        (*draw(1, 2, 100, 77, 40), torch.zeros(100, 77).bfloat16()),
        (*draw(1, 2, 100, 77, 40), None, False),
        tuple(x.flatten(0, 1) for x in draw(1, 2, 100, 77, 40)),
        tuple(x.transpose(2, 3) for x in draw(1, 2, 80, 80, 80)),
        (draw(1, 2, 100, 77, 40)[0], *draw(1, 1, 100, 77, 40)[1:]),
        tuple(x.to("meta") for x in draw(1, 2, 100, 77, 40)),
    ],
    ids=["float32", "d=44", "d=264", "small", "mask", "off", "3 dims", "strided d", "one head", "meta"],
)
def test_others_are_torchs(inputs, only_torch):
    with torch.no_grad():
        y, theirs = only_torch(*inputs), F.scaled_dot_product_attention(*inputs[:3], *inputs[3:4])
    assert y.is_meta or torch.equal(y, theirs)


class Names(TorchDispatchMode, list):  # of the operations that torch is asked for
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:There is a performance drop:UserWarning")
def test_tracers_see_torchs_operation(only_torch):
    q, k, v = draw(1, 2, 100, 77, 40)
    expected = F.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        with Names() as names:
            only_torch(q, k, v)
        assert any("scaled_dot_product" in name for name in names)
        with torch.device("meta"):
            assert torch.equal(only_torch(q, k, v), expected)
        with FakeTensorMode() as mode:
            only_torch(*map(mode.from_tensor, (q, k, v)))
        assert torch.equal(torch.jit.trace(only_torch, (q, k, v), check_trace=False)(q, k, v), expected)
        assert torch.vmap(only_torch)(q[None], k[None], v[None]).shape == (1, *expected.shape)
        with forward_ad.dual_level():
            assert torch.equal(only_torch(q, k, v), expected)
        compiled = torch.compile(only_torch, backend="eager", fullgraph=True)
        assert torch.equal(compiled(q, k, v), expected)


def assert_falls_back():
    q, k, v = draw(1, 2, 100, 77, 40)
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

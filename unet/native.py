"""Attention in bfloat16 on the CPU: a kernel of our own, compiled on first use, where torch's takes twice as long.

It needs Linux, a processor with AVX-512 BF16 and a C compiler; elsewhere, and with LDM_NATIVE=0 in the environment,
torch's attention does the work.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

SOURCE = Path(__file__).with_name("native_attention.c")
CPU_INFO = Path("/proc/cpuinfo")
NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
OPTIONS = ("-O3", "-march=native", "-shared", "-fPIC", "-x", "c", "-", "-lm")
WIDEST = 256  # CHANNELS of the kernel
LEAST_WORK = 2**18  # multiply-adds; with fewer, calling the kernel takes longer than torch
PATIENCE = 60.0  # seconds that a compiler may take
PROCESS = os.getpid()

_Kernel = Callable[[ctypes.Array[ctypes.c_int64], int], bool]  # (the problem, threads) -> whether memory sufficed


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, native: bool = True) -> Tensor:
    """softmax(q k' / sqrt(d) + mask) v, of q (b, heads, n, d) and k, v (b, heads, m, d), as (b, heads, n, d).

    The native kernel takes bfloat16 on the CPU that needs neither mask nor gradient; its result lies in memory as
    (b, n, heads, d). Everything else, and everything with `native` off, is left to torch.
    """
    if native and mask is None and _suitable(q, k, v):
        kernel = _kernel()
        y = None if kernel is None else _run(kernel, q, k, v)
        if y is not None:
            return y
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def availability() -> str:
    """Whether there is a kernel here, in a few words for a person. Nothing is compiled or written to find out."""
    if _switched_off():
        return "off, by LDM_NATIVE in the environment"
    if not _flags() >= NEEDED:
        return "no, it needs Linux and a processor with AVX-512 BF16"
    try:
        compiler, library = _compiler(), _place()
        if not _whole(library):
            _require_room(library.parent)
            return f"not compiled yet; its first use does that, with {shlex.join(compiler)}"
    except (OSError, RuntimeError, ValueError) as error:
        return f"no, {error}"
    return f"compiled, {library}" if _kernel() is not None else f"no, {library} cannot be used"


def _suitable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return not _watched() and all(map(_plain, (q, k, v))) and _fitting(q, k, v)


def _watched() -> bool:
    """Whether a compiler, a mode or a transform of functions waits for torch's own operations."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
    )


def _plain(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def _fitting(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        return False
    (b, heads, n, d), m = q.shape, k.shape[2]
    return (
        k.shape == (b, heads, m, d)
        and d % 8 == 0
        and d <= WIDEST
        and q.stride(3) == k.stride(3) == v.stride(3) == 1
        and b * heads * n * m * d >= LEAST_WORK
    )


def _run(kernel: _Kernel, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    b, heads, n, d = q.shape
    y = q.new_empty(b, n, heads, d).transpose(1, 2)
    fields = [field for x in (q, k, v, y) for field in (x.data_ptr(), *x.stride()[:3])]
    fields += [b, heads, n, k.shape[2], d]
    # the threads of OpenMP do not survive a fork
    threads = torch.get_num_threads() if os.getpid() == PROCESS else 1
    return y if kernel((ctypes.c_int64 * len(fields))(*fields), threads) else None


@functools.cache
def _kernel() -> _Kernel | None:
    """None where there is no kernel to be had, which is found out once in a process."""
    if _switched_off() or not _flags() >= NEEDED:
        return None
    try:
        return _load(_library())
    except (OSError, AttributeError, RuntimeError, ValueError, subprocess.SubprocessError):
        return None


def _switched_off() -> bool:
    return os.environ.get("LDM_NATIVE", "").lower() in ("0", "false", "no", "off")


def _load(library: Path) -> _Kernel:
    function = ctypes.CDLL(str(library)).attention
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    # The runtime that torch has loaded: a second team of threads would fight with the first for the cores.
    runtime = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    parallel = ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p)
    return lambda problem, threads: bool(function(problem, parallel, threads))


def _library() -> Path:
    """The compiled kernel in the user's cache, made if it is not there or not whole."""
    library = _place()
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_private(library.parent)
    if not _whole(library):
        with tempfile.TemporaryDirectory(dir=library.parent) as room:
            made = Path(room) / "attention.so"
            _compile((*_compiler(), *OPTIONS, "-o", str(made)), SOURCE.read_bytes())
            made.write_bytes(_sealed(made.read_bytes()))
            made.replace(library)
    return library


def _place() -> Path:
    """Where the kernel is, or will be: its name tells source, command and processor."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "ldm-pipelines"
    made_with = repr(((*_compiler(), *OPTIONS), sorted(_flags()))).encode()
    return folder / f"attention-{hashlib.sha256(SOURCE.read_bytes() + made_with).hexdigest()[:32]}.so"


def _require_private(folder: Path) -> None:
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"others can write to {folder}")


def _require_room(folder: Path) -> None:
    """Raises OSError where `_library` would, in making the folder or in writing to it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there == folder:
        _require_private(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise PermissionError(f"nothing can be written to {folder}")


def _compile(command: Sequence[str], source: bytes) -> None:
    """Has a compiler read the source. One that hangs, or is not waited for, ends with everything it has started."""
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True
    ) as compiler:
        try:
            compiler.communicate(source, PATIENCE)
        finally:
            if compiler.returncode is None:
                os.killpg(compiler.pid, signal.SIGKILL)
    if compiler.returncode:
        raise subprocess.CalledProcessError(compiler.returncode, command)


def _sealed(code: bytes) -> bytes:
    """With its own digest at the end, where no loader looks: to load half a library ends the process."""
    return code + hashlib.sha256(code).digest()


def _whole(library: Path) -> bool:
    if not library.is_file():
        return False
    content = library.read_bytes()
    return content == _sealed(content[:-32])


def _compiler() -> tuple[str, ...]:
    """The words of CC, or the first compiler of the system."""
    chosen = shlex.split(os.environ.get("CC", ""))
    for name, *rest in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(name)
        if path is not None:
            return (path, *rest)
    raise FileNotFoundError("no C compiler")


@functools.cache
def _flags() -> frozenset[str]:
    """What the processor can do."""
    try:
        with CPU_INFO.open(encoding="utf-8") as lines:
            words = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(words.split())

"""``native.c``, built by the machine's own C compiler when it is first wanted: dot products, writes, gathers and more.

torch's sampled product needs both operands transposed, and a transposing copy in torch takes one thread and, for 1 %
of the entries, twice the time of the dot products. The C code transposes in the cache, on all threads. It is
compiled once (about a second) into the user's cache folder; where there is no compiler, ``sampled`` is used instead.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse.gradient.product import product

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = (
    *("-O3", "-shared", "-fPIC", "-w"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
DTYPES = (torch.float32, torch.bfloat16)
BLOCK = 64
"""Tokens a block; ``B`` in the C source."""
LEAST_FOR_THREADS = 1 << 15
"""Entries of the operands below which a second thread costs more than it brings."""
LEAST_WRITES = 1 << 12
"""As many for writes, which wait for memory."""
MOST_SUMS = 1 << 22
"""Sums that threads with tokens of their own may hold in all: 16 MiB."""


def can_take(dy: Tensor, positions: Tensor) -> bool:
    """Whether operands of this kind are for ``native``: fp32 or bf16 on a CPU, with positions below 2**31."""
    return dy.device.type == "cpu" and dy.dtype in DTYPES and positions.dtype == torch.int32


def native(
    dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor, factors: Sequence[Tensor] = ()
) -> Tensor:
    """Gradient at sorted ``positions`` (k,) from dy (tokens, rows) and x (tokens, columns) of its dtype; fp32.

    With ``factors``, from the product of x and these, one after the other, with the same bits; in fp32 no product is
    made in memory. They are one of the shape of x, or one a token (tokens, 1) and one a column (1, columns).
    """
    built = library()
    assert built is not None
    assert can_take(dy, positions)
    dy, x = (operand if operand.stride(-1) == 1 else operand.contiguous() for operand in (dy, x))
    if factors and not _can_multiply(x, factors):
        x, factors = product(x, factors).contiguous(), ()
    pointers = [factor.data_ptr() for factor in factors]
    times, by_token, by_column = (None, *pointers) if len(factors) == 2 else (*pointers, *[None] * 3)[:3]
    (tokens, rows), columns = dy.shape, x.shape[1]
    threads = torch.get_num_threads() if dy.numel() + x.numel() >= LEAST_FOR_THREADS else 1
    splits = max(1, min(threads, -(-tokens // BLOCK), MOST_SUMS // max(1, positions.numel())))
    sums = torch.empty(splits, positions.numel())
    scratch = torch.empty(threads, columns * BLOCK)
    built.multiticket_sampled(
        *(dy.data_ptr(), dy.stride(0), x.data_ptr(), x.stride(0)),
        *(times, by_token, by_column),
        *(dy.dtype == torch.bfloat16, tokens, rows, columns),
        *(starts.data_ptr(), positions.data_ptr(), sums.data_ptr(), scratch.data_ptr()),
        *(splits, threads),
    )
    return sums[0]


def _can_multiply(x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Whether the kernel multiplies x by these as it reads them."""
    if x.dtype != torch.float32:
        return False
    if len(factors) == 1:
        return factors[0].stride() == x.stride()
    return all(factor.is_contiguous() for factor in factors)


def columns(x: Tensor, positions: Tensor) -> Tensor:
    """``x[:, positions]`` for x (tokens, features) and positions (k,) that `can_take` takes: (tokens, k), its dtype."""
    built = library()
    assert built is not None
    x = x if x.stride(1) == 1 else x.contiguous()
    taken = x.new_empty(x.shape[0], positions.numel())
    built.multiticket_columns(
        *(x.data_ptr(), x.stride(0), x.dtype == torch.bfloat16, x.shape[0]),
        *(positions.data_ptr(), positions.numel(), taken.data_ptr()),
    )
    return taken


def column_sums(dy: Tensor, positions: Tensor, times: Tensor | None = None) -> Tensor:
    """``dy[:, positions].sum(0)`` (k,) in fp32, or that of its product with ``times`` (tokens, k) of the same dtype."""
    built = library()
    assert built is not None
    dy = dy if dy.stride(1) == 1 else dy.contiguous()
    sums = torch.empty(positions.numel())
    built.multiticket_column_sums(
        *(dy.data_ptr(), dy.stride(0)),
        None if times is None else times.data_ptr(),
        *(dy.dtype == torch.bfloat16, dy.shape[0]),
        *(positions.data_ptr(), positions.numel(), sums.data_ptr()),
    )
    return sums


def can_write(dense: Tensor, positions: Tensor, content: Tensor) -> bool:
    """Whether `write` may be asked: a CPU weight in one piece, its own dtype, positions below 2**31, and a compiler."""
    plain = (
        type(dense) in (Tensor, torch.nn.Parameter) and dense.device.type == "cpu" and dense.is_contiguous()
    )
    whole = content.dtype == dense.dtype and content.is_contiguous() and dense.dtype.itemsize in (2, 4, 8)
    return plain and whole and positions.dtype == torch.int32 and library() is not None


def write(dense: Tensor, positions: Tensor, content: Tensor) -> None:
    """``dense.put_(positions, content)`` for sorted positions (k,) and content (k,), in a few nanoseconds an entry."""
    write_many([dense], [positions], content)


def write_many(dense: Sequence[Tensor], positions: Sequence[Tensor], content: Tensor) -> None:
    """``write`` for each of the weights, with its piece of ``content``: the pieces lie one after the other.

    All weights have the dtype of ``content``. torch is told of the changes, as of any other in place.
    """
    writer(dense, positions)(content)
    for one in dense:
        torch.autograd.graph.increment_version(one)


class _Places:
    """The C code's tables of the positions of many weights, for as long as these stay where they are."""

    def __init__(self, dense: Sequence[Tensor], positions: Sequence[Tensor]) -> None:
        counts = [one.numel() for one in positions]
        pointers, numbers = ctypes.c_void_p * len(counts), ctypes.c_int64 * len(counts)
        self.pointers = pointers
        self.count, self.counts, self.sum = len(counts), numbers(*counts), sum(counts)
        self.dense, self.positions = (
            pointers(*(one.data_ptr() for one in tensors)) for tensors in (dense, positions)
        )
        self.threads = torch.get_num_threads() if self.sum >= LEAST_WRITES else 1
        self.held = (*dense, *positions)  # addresses stay theirs


def writer(dense: Sequence[Tensor], positions: Sequence[Tensor]) -> Callable[[Tensor], None]:
    """A function that writes content into these weights, for as long as they stay where they are; torch is not told."""
    built, places = library(), _Places(dense, positions)
    assert built is not None

    def put(content: Tensor) -> None:
        built.multiticket_write(
            *(places.count, places.dense, content.dtype.itemsize, places.positions, places.counts),
            *(content.data_ptr(), places.threads),
        )

    return put


def can_gather(positions: Sequence[Tensor]) -> bool:
    """Whether `gatherer` takes such positions: below 2**31, on a CPU, where there is a compiler."""
    near = all(at.device.type == "cpu" and at.dtype == torch.int32 for at in positions)
    return near and library() is not None


_dtype, _is_cpu = attrgetter("dtype"), attrgetter("is_cpu")


def gatherer(positions: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor | None]:
    """A function that takes tensors and gives their entries at these positions, one tensor's after the other's.

    They come in the tensors' dtype; None where those are of several, or not each in one piece in a CPU's memory.
    """
    built, places = library(), _Places((), positions)
    assert built is not None

    def take(dense: Sequence[Tensor]) -> Tensor | None:
        first = dense[0]
        alike = len(set(map(_dtype, dense))) == 1 and first.dtype.itemsize in (2, 4, 8)
        if not alike or not all(map(Tensor.is_contiguous, dense)) or not all(map(_is_cpu, dense)):
            return None  # asked every step, so the loops are in C
        taken = first.new_empty(places.sum)
        built.multiticket_gather(
            *(places.count, places.pointers(*map(Tensor.data_ptr, dense)), first.dtype.itemsize),
            *(places.positions, places.counts, taken.data_ptr(), places.threads),
        )
        return taken

    return take


def changed(dense: Sequence[Tensor], positions: Sequence[Tensor], content: Sequence[Tensor]) -> list[bool]:
    """Of each weight, whether it no longer holds its ``content`` (k,) at its positions (k,), bit for bit.

    All are such as `can_write` takes, and of one dtype.
    """
    differing = {*comparer(dense, positions)([one.data_ptr() for one in content])}
    return [index in differing for index in range(len(positions))]


def comparer(dense: Sequence[Tensor], positions: Sequence[Tensor]) -> Callable[[Sequence[int]], list[int]]:
    """A function that says which of these weights no longer hold their content, while they stay where they are.

    It takes the address of each weight's content (k,), in its dtype and in one piece; a list that is given again must
    hold the same. The comparison is bit for bit.
    All weights are such as `can_write` takes, and of one dtype.
    """
    built, places, size = library(), _Places(dense, positions), dense[0].dtype.itemsize
    assert built is not None
    last: Sequence[int] = ()
    where = None

    def compare(content: Sequence[int]) -> list[int]:
        nonlocal last, where
        if content is not last:
            last, where = content, places.pointers(*content)
        flags = (ctypes.c_uint8 * places.count)()
        built.multiticket_changed(
            *(places.count, places.dense, size, places.positions, places.counts, where, flags, places.threads)
        )
        return [index for index, flag in enumerate(flags) if flag] if any(flags) else []

    return compare


def is_product(x: Tensor, factors: Sequence[Tensor]) -> bool | None:
    """Whether x (..., features) is the product of ``factors``, one after the other; None where this cannot tell.

    The factors are as `native` takes them, the first of the shape of x. NaN is told from NaN.
    """
    built = library() if x.device.type == "cpu" else None
    alike = all(factor.dtype == x.dtype and factor.is_contiguous() for factor in (x, *factors))
    known = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and len(factors) == 2)
    if built is None or not alike or not known or not x.numel():
        return None
    pointers = [factor.data_ptr() for factor in factors]
    times, by_token, by_column = (pointers[1], None, None) if len(factors) == 2 else (None, *pointers[1:])
    threads = torch.get_num_threads() if x.numel() >= LEAST_FOR_THREADS else 1
    return bool(
        built.multiticket_is_product(
            *(x.data_ptr(), pointers[0], times, by_token, by_column),
            *(x.dtype == torch.bfloat16, x.numel() // x.shape[-1], x.shape[-1], threads),
        )
    )


@cache
def library() -> ctypes.CDLL | None:
    """The built kernel, from the cache folder or built now; None where no compiler can build it."""
    compiler = _compiler()
    if compiler is None:
        return None
    for openmp in (("-fopenmp",), ()):
        try:
            path = _build(compiler, openmp)
            built = ctypes.CDLL(str(path))
            _declare(built)
        except (OSError, subprocess.SubprocessError, AttributeError):
            continue
        return built
    return None


def _declare(built: ctypes.CDLL) -> None:
    pointer: Any = ctypes.c_void_p
    integer, number = ctypes.c_int, ctypes.c_int64
    operand = [pointer, number]
    sampled = [*operand * 2, *[pointer] * 3, integer, *[number] * 3, *[pointer] * 4, *[integer] * 2]
    built.multiticket_sampled.argtypes = sampled
    built.multiticket_columns.argtypes = [*operand, integer, number, *operand, pointer]
    built.multiticket_column_sums.argtypes = [*operand, pointer, integer, number, *operand, pointer]
    built.multiticket_write.argtypes = [number, pointer, integer, *[pointer] * 3, integer]
    built.multiticket_gather.argtypes = [number, pointer, integer, *[pointer] * 3, integer]
    built.multiticket_changed.argtypes = [number, pointer, integer, *[pointer] * 4, integer]
    built.multiticket_is_product.argtypes = [*[pointer] * 5, integer, number, number, integer]
    for function in ("sampled", "columns", "column_sums", "write", "gather", "changed"):
        getattr(built, f"multiticket_{function}").restype = None


def _compiler() -> list[str] | None:
    chosen = os.environ.get("CC")
    if chosen:
        return shlex.split(chosen)
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return None if found is None else [found]


def _build(compiler: list[str], openmp: tuple[str, ...]) -> Path:
    """The shared library's path: as it was built before by this compiler from this source, or built now."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    made_of = [SOURCE.read_bytes(), version, platform.machine().encode(), repr((FLAGS, openmp)).encode()]
    name = f"native-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}.so"
    folder = _cache_folder()
    path = folder / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / name
            command = [*compiler, *FLAGS, *openmp, "-o", str(made), str(SOURCE)]
            subprocess.run(command, capture_output=True, check=True, timeout=120)
            made.replace(path)
    return path


def _cache_folder() -> Path:
    """The user's cache folder, or one for this process alone where that cannot be written."""
    try:
        home = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(home) if home else Path.home() / ".cache") / "multiticket"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    folder = Path(tempfile.mkdtemp(prefix="multiticket-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder

"""bfloat16 matmuls of one tile on AMX, and the decision whether to use AMX.

AMX has eight tile registers of 16 rows by 64 bytes. One instruction multiplies two of them. Inputs are pairs: an int32
holds two bfloat16 neighbors along the summed axis, the first in its low half. Each thread configures the tiles before
its matmuls and releases them afterwards.

Numba can only generate code for these intrinsics if the target processor has AMX. So call `available()` before
compiling a function that uses them.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2, the TILE and
TDPBF16PS instructions.
"""

import contextlib
import ctypes
import functools
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import entry
from .kernel_cache import readable_folder, replace_file, writable_folder
from .pointer import element_pointer
from .processor import compiled_features

ROWS, COLUMNS = 32, 32  # shape of the block of C that `multiply_tile` computes, in 2 x 2 tile registers
PAIRS = 16  # pairs along k that one instruction sums
NEEDED = "amx-tile", "amx-bf16"
PERMISSION_ERRORS = {
    22: "the kernel is older than Linux 5.16",
    28: "a thread's signal stack is too small to save them",
    38: "arch_prctl is not implemented",
    95: "the kernel has disabled them",
}  # by errno; `os.strerror` describes the others
REPEATS = 20  # matmuls between two checks of the clock

TILES = np.zeros(64, np.uint8)  # the configuration that `configure_tiles` loads: eight tiles of the largest size
TILES[0] = 1  # palette
TILES[16:32:2] = 64  # bytes per row, 16 bits for each tile
TILES[48:56] = 16  # rows


def emit(builder, name, *operands):
    """Emit one AMX instruction. Operands that are tile indices must be constants."""
    shape = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    builder.call(cgutils.get_or_insert_function(builder.module, shape, f"llvm.x86.{name}"), operands)


def address(context, builder, array_type, array, offset):
    """The address of element `offset`, as a pointer to bytes."""
    return builder.bitcast(element_pointer(context, builder, array_type, array, offset), ir.IntType(8).as_pointer())


@intrinsic
def configure_tiles(typingctx, config):
    """Configure the calling thread's tiles and zero them. config: 64 bytes, such as TILES"""

    def codegen(context, builder, signature, args):
        emit(
            builder, "ldtilecfg", address(context, builder, signature.args[0], args[0], ir.Constant(ir.IntType(64), 0))
        )
        return context.get_dummy_value()

    return types.void(config), codegen


@intrinsic
def release_tiles(typingctx):
    """Release the calling thread's tiles, so that a context switch does not save their 8 KiB."""

    def codegen(context, builder, signature, args):
        emit(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def multiply_tile(
    typingctx,
    c,
    c_offset,
    c_row,
    a,
    a_offset,
    a_row,
    a_step,
    b,
    b_offset,
    b_step,
    k,
    accumulate,
):
    """C (ROWS, COLUMNS) = A (ROWS, k) B (k, COLUMNS), or += if `accumulate` is not 0. k > 0: pairs, a multiple of PAIRS

    The bfloat16 version of `microkernel_f32.multiply_tile`, with the same parameters: C is float32, and A and B are
    int32 pairs along k. `a_step` must be 1, since a tile loads contiguous rows of A. The calling thread must have
    configured TILES. The arrays must hold the whole tile. Denormals count as zero, and each sum of PAIRS pairs is
    rounded before it is added to C.
    """
    if not (a.dtype == b.dtype == types.int32 and c.dtype == types.float32):
        return None

    def codegen(context, builder, signature, args):
        c, c_offset, c_row, a, a_offset, a_row, _, b, b_offset, b_step, k, accumulate = args
        array_types, word = signature.args, ir.IntType(64)
        side = ir.Constant(word, 16)  # rows of a tile, and 4-byte elements of its rows

        def tile(index):
            return ir.Constant(ir.IntType(8), index)

        def advance(pointer, elements):
            return builder.gep(pointer, [builder.mul(elements, ir.Constant(word, 4))])

        a_bytes, b_bytes, c_bytes = (builder.mul(stride, ir.Constant(word, 4)) for stride in (a_row, b_step, c_row))
        a0, b0, c0 = (
            address(context, builder, array_types[i], array, offset)
            for i, array, offset in ((3, a, a_offset), (7, b, b_offset), (0, c, c_offset))
        )
        a1, b1, c1 = advance(a0, builder.mul(a_row, side)), advance(b0, side), advance(c0, builder.mul(c_row, side))
        quarters = list(enumerate((c0, advance(c0, side), c1, advance(c1, side))))

        with builder.if_else(builder.icmp_signed("!=", accumulate, ir.Constant(word, 0))) as (add, overwrite):
            with add:
                for index, pointer in quarters:
                    emit(builder, "tileloadd64", tile(index), pointer, c_bytes)
            with overwrite:
                for index, _ in quarters:
                    emit(builder, "tilezero", tile(index))
        with cgutils.for_range_slice(builder, ir.Constant(word, 0), k, ir.Constant(word, PAIRS)) as (i, _):
            b_row = builder.mul(i, b_step)
            # Each tile is loaded just before its first use, so that the first matmul does not wait for all four.
            emit(builder, "tileloadd64", tile(4), advance(a0, i), a_bytes)
            emit(builder, "tileloadd64", tile(6), advance(b0, b_row), b_bytes)
            emit(builder, "tdpbf16ps", tile(0), tile(4), tile(6))
            emit(builder, "tileloadd64", tile(7), advance(b1, b_row), b_bytes)
            emit(builder, "tdpbf16ps", tile(1), tile(4), tile(7))
            emit(builder, "tileloadd64", tile(5), advance(a1, i), a_bytes)
            emit(builder, "tdpbf16ps", tile(2), tile(5), tile(6))
            emit(builder, "tdpbf16ps", tile(3), tile(5), tile(7))
        for index, pointer in quarters:
            emit(builder, "tilestored64", tile(index), pointer, c_bytes)
        return context.get_dummy_value()

    i = types.intp
    return types.void(c, i, i, a, i, i, i, b, i, i, i, i), codegen


def available():
    """(whether to use AMX, the reason as a clause): the machine must provide AMX and pass the self-test."""
    if refusal():
        return False, refusal()
    if not self_test():
        return False, "AMX failed its self-test on this machine and stays disabled until the next reboot"
    return True, "this processor has AMX and its self-test passed"


@functools.cache
def refusal():
    """Why this process cannot use AMX, as a clause, or "" if it can.

    The processor must have AMX, Numba must generate code for it, and the operating system must permit it. The result is
    cached, since neither the machine nor $SLM_NP_AMX changes while a process runs.
    """
    if os.environ.get("SLM_NP_AMX") == "0":
        return "SLM_NP_AMX=0 disables AMX"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"AMX requires Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    for owner, features in (
        ("this processor", binding.get_host_cpu_features()),
        ("the chosen instruction set", compiled_features()),
    ):
        missing = [feature for feature in NEEDED if not features.get(feature)]
        if missing:
            return f"{owner} has no {' and no '.join(missing)}"
    error = ask_permission()
    if error:
        reason = PERMISSION_ERRORS.get(error, os.strerror(error))
        return f"the operating system does not provide AMX tiles: {reason}"
    return ""


def ask_permission():
    """Request permission from Linux to use AMX in all threads of this process. Returns 0 or the errno.

    This calls arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). Permission is required because the tiles enlarge the
    memory in which the kernel saves a thread's registers.
    """
    arch_prctl, request, tile_data = (ctypes.c_long(number) for number in (158, 0x1023, 18))
    return ctypes.get_errno() if ctypes.CDLL(None, use_errno=True).syscall(arch_prctl, request, tile_data) else 0


@entry
def count_wrong(c, expected, before, a, b, k, accumulate, repeats):
    """Multiply `repeats` times. Returns how many results differ from `expected`. Rows of A and B are padded."""
    configure_tiles(TILES)
    wrong = 0
    for _ in range(repeats):
        for i in range(c.size):
            c[i] = before[i]
        multiply_tile(
            c,
            0,
            COLUMNS,
            a,
            0,
            a.size // ROWS,
            1,
            b,
            0,
            b.size // k,
            k,
            accumulate,
        )
        differing = 0
        for i in range(c.size):
            differing += c[i] != expected[i]
        wrong += differing > 0
    release_tiles()
    return wrong


def integer_matmul(rng, k, accumulate):
    """The arguments of `count_wrong` for a random matmul of integers.

    Every partial sum is an integer that float32 holds exactly, so the order of summation does not change the bits.
    """
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((ROWS, k, 2), (k, COLUMNS, 2)))
    before = rng.integers(-999, 1000, (ROWS, COLUMNS)).astype(np.float32)
    expected = a.reshape(ROWS, -1) @ b.transpose(0, 2, 1).reshape(-1, COLUMNS) + (before if accumulate else 0)
    # The upper half of such a float32 is its exact bfloat16. The padding of each row is NaN, to expose stray reads.
    pairs = [
        np.pad(
            (x.view(np.uint32) >> 16).astype(np.uint16).view(np.int32)[..., 0], ((0, 0), (0, PAIRS)), constant_values=-1
        )
        for x in (a, b)
    ]
    return (np.empty(ROWS * COLUMNS, np.float32), *(x.reshape(-1) for x in (expected, before, *pairs)), k, accumulate)


def multiply_integers(seconds, seed=0):
    """Multiply integer matrices of several shapes for `seconds`. Returns (matmuls, wrong matmuls)."""
    rng = np.random.default_rng(seed)
    problems = [
        integer_matmul(rng, k, accumulate)
        for k, accumulate in ((PAIRS, 0), (3 * PAIRS, 1), (16 * PAIRS, 0), (64 * PAIRS, 1))
    ]
    total = wrong = 0
    end = time.perf_counter() + seconds
    while not total or time.perf_counter() < end:
        wrong += sum(count_wrong(*problem, REPEATS) for problem in problems)
        total += len(problems) * REPEATS
    return total, wrong


def _multiply_on_one_core(seed):
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # affects this thread only
    return multiply_integers(0.2, seed)


def self_test():
    """Whether integer matmuls are exact. The test takes less than a second.

    The result is cached until the machine reboots or the kernels' source changes.

    Some virtual machines lose tiles when a thread is interrupted (OpenZFS #15168, Intel's erratum SPR4). So four
    threads compete for one core.
    """
    start = boot()
    result = f"amx-{start}"  # in the cache folder of this processor's compiled kernels
    if start:
        with contextlib.suppress(OSError):
            return (readable_folder() / result).read_text(encoding="utf-8") == "exact"
    with ThreadPoolExecutor(4) as threads:
        exact = not any(wrong for _, wrong in threads.map(_multiply_on_one_core, range(4)))
    if start:
        with contextlib.suppress(OSError):
            replace_file(writable_folder() / result, b"exact" if exact else b"wrong")
    return exact


def boot():
    """An identifier of the machine's last boot, or None if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None

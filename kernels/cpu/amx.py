"""A tile of a product of bfloat16 on AMX, eight registers of 16 rows by 64 bytes that one instruction multiplies; and whether to trust them here.

bfloat16 travels in pairs: an int32 holds two neighbours along the summed axis, the first in its low half. Tiles belong to a thread: it
configures them before its products and releases them after. Code that holds these intrinsics can only be generated where Numba knows the
processor to have tiles, so ask `available()` before a function that calls them is compiled.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2, the TILE and TDPBF16PS instructions.
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

from .blas import element_pointer
from .jit import CACHE, row
from .processor import compiled_features

ROWS, COLUMNS, PAIRS = 32, 32, 16  # of C, from two by two tiles; and the pairs of k that one instruction sums
NEEDED = "amx-tile", "amx-bf16"
REFUSALS = {
    22: "its kernel is older than Linux 5.16",
    28: "the stack for signals of one of this process's threads is too small to save them",
    38: "it has no arch_prctl",
    95: "its kernel has them switched off",
}  # by the error's number; others speak for themselves
REPEATS = 20  # products between two looks at the clock

TILES = np.zeros(64, np.uint8)  # what `configure_tiles` loads: palette 1, eight tiles as large as they can be
TILES[0] = 1
TILES[16:32:2] = 64  # bytes in a row, 16 bits a tile
TILES[48:56] = 16  # rows


def instruction(builder, name, *operands):
    """Emit one AMX instruction; the numbers of tiles are constants."""
    shape = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    builder.call(cgutils.get_or_insert_function(builder.module, shape, f"llvm.x86.{name}"), operands)


def address(context, builder, array_type, array, offset):
    return builder.bitcast(element_pointer(context, builder, array_type, array, offset), ir.IntType(8).as_pointer())


@intrinsic
def configure_tiles(typingctx, config):
    """Give the calling thread the tiles that `config`, 64 bytes such as TILES, describes, all zero."""

    def codegen(context, builder, signature, args):
        instruction(
            builder, "ldtilecfg", address(context, builder, signature.args[0], args[0], ir.Constant(ir.IntType(64), 0))
        )
        return context.get_dummy_value()

    return types.void(config), codegen


@intrinsic
def release_tiles(typingctx):
    """Give the calling thread's tiles back: whenever the system runs another thread it has 8 KiB less to save."""

    def codegen(context, builder, signature, args):
        instruction(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def multiply_tile(typingctx, c, c_offset, c_row, a, a_offset, a_row, a_step, b, b_offset, b_step, k, accumulate):
    """C (ROWS, COLUMNS) = A (ROWS, k) B (k, COLUMNS), or += where `accumulate` is not 0; k > 0 pairs, a multiple of PAIRS.

    `tile.multiply_tile` for bfloat16: C is float32, A and B are int32 pairs along k, all else means the same, but that a tile reads A's rows
    as they lie: `a_step` is always 1. The calling thread must have configured TILES. Everything the tile covers must exist.
    Denormal numbers count as zeros, and each sum of PAIRS pairs is rounded before it is added to C.
    """
    if not (a.dtype == b.dtype == types.int32 and c.dtype == types.float32):
        return None

    def codegen(context, builder, signature, args):
        c, c_offset, c_row, a, a_offset, a_row, _, b, b_offset, b_step, k, accumulate = args
        kinds, word = signature.args, ir.IntType(64)
        side = ir.Constant(word, 16)  # rows of a tile, and numbers in a row of it

        def tile(number):
            return ir.Constant(ir.IntType(8), number)

        def moved(pointer, elements):
            return builder.gep(pointer, [builder.mul(elements, ir.Constant(word, 4))])

        a_bytes, b_bytes, c_bytes = (builder.mul(stride, ir.Constant(word, 4)) for stride in (a_row, b_step, c_row))
        a0, b0, c0 = (
            address(context, builder, kinds[i], array, offset)
            for i, array, offset in ((3, a, a_offset), (7, b, b_offset), (0, c, c_offset))
        )
        a1, b1, c1 = moved(a0, builder.mul(a_row, side)), moved(b0, side), moved(c0, builder.mul(c_row, side))
        quarters = list(enumerate((c0, moved(c0, side), c1, moved(c1, side))))

        with builder.if_else(builder.icmp_signed("!=", accumulate, ir.Constant(word, 0))) as (add, overwrite):
            with add:
                for number, place in quarters:
                    instruction(builder, "tileloadd64", tile(number), place, c_bytes)
            with overwrite:
                for number, _ in quarters:
                    instruction(builder, "tilezero", tile(number))
        with cgutils.for_range_slice(builder, ir.Constant(word, 0), k, ir.Constant(word, PAIRS)) as (i, _):
            down = builder.mul(i, b_step)
            # A tile is loaded when it is first needed, so that products do not wait for all four.
            instruction(builder, "tileloadd64", tile(4), moved(a0, i), a_bytes)
            instruction(builder, "tileloadd64", tile(6), moved(b0, down), b_bytes)
            instruction(builder, "tdpbf16ps", tile(0), tile(4), tile(6))
            instruction(builder, "tileloadd64", tile(7), moved(b1, down), b_bytes)
            instruction(builder, "tdpbf16ps", tile(1), tile(4), tile(7))
            instruction(builder, "tileloadd64", tile(5), moved(a1, i), a_bytes)
            instruction(builder, "tdpbf16ps", tile(2), tile(5), tile(6))
            instruction(builder, "tdpbf16ps", tile(3), tile(5), tile(7))
        for number, place in quarters:
            instruction(builder, "tilestored64", tile(number), place, c_bytes)
        return context.get_dummy_value()

    i = types.intp
    return types.void(c, i, i, a, i, i, i, b, i, i, i, i), codegen


def available():
    """(whether products may use AMX, a sentence that says why): the machine offers tiles and products of integers on them are exact."""
    if refusal():
        return False, refusal()
    if not self_test():
        return False, "AMX products of integers are wrong on this machine, so its tiles stay unused until it restarts"
    return True, "this processor has AMX and products of integers on it are exact"


@functools.cache
def refusal():
    """Why there are no tiles to be used, a sentence; "" if there are. Asked once a process, as neither the machine nor $SLM_NP_AMX changes.

    The processor must have them, Numba generate code for them, and the system lend them.
    """
    if os.environ.get("SLM_NP_AMX") == "0":
        return "SLM_NP_AMX=0 switches AMX off"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"AMX is used on Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    for owner, has in (
        ("this processor", binding.get_host_cpu_features()),
        ("the chosen instruction set", compiled_features()),
    ):
        missing = [feature for feature in NEEDED if not has.get(feature)]
        if missing:
            return f"{owner} has no {' and no '.join(missing)}"
    error = ask_permission()
    return f"this system lends no AMX tiles: {REFUSALS.get(error, os.strerror(error))}" if error else ""


def ask_permission():
    """Ask Linux for tiles, for all threads of this process: 0, or the number of the error.

    arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): a thread that keeps tiles needs more memory wherever its registers are saved.
    """
    arch_prctl, request, tile_data = (ctypes.c_long(number) for number in (158, 0x1023, 18))
    return ctypes.get_errno() if ctypes.CDLL(None, use_errno=True).syscall(arch_prctl, request, tile_data) else 0


@row
def wrong_products(c, expected, before, a, b, k, accumulate, repeats):
    """How many of `repeats` products differ from `expected`; rows of A and B lie further apart than they are long."""
    configure_tiles(TILES)
    wrong = 0
    for _ in range(repeats):
        for i in range(c.size):
            c[i] = before[i]
        multiply_tile(c, 0, COLUMNS, a, 0, a.size // ROWS, 1, b, 0, b.size // k, k, accumulate)
        differing = 0
        for i in range(c.size):
            differing += c[i] != expected[i]
        wrong += differing > 0
    release_tiles()
    return wrong


def integer_product(rng, k, accumulate):
    """Arguments of `wrong_products` whose every sum is an integer that float32 holds: any order of summing gives the same bits."""
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((ROWS, k, 2), (k, COLUMNS, 2)))
    before = rng.integers(-999, 1000, (ROWS, COLUMNS)).astype(np.float32)
    expected = a.reshape(ROWS, -1) @ b.transpose(0, 2, 1).reshape(-1, COLUMNS) + (before if accumulate else 0)
    # The upper half of such a float32 is its bfloat16, exactly. Beside what is multiplied lie pairs of NaN.
    pairs = [
        np.pad(
            (x.view(np.uint32) >> 16).astype(np.uint16).view(np.int32)[..., 0], ((0, 0), (0, PAIRS)), constant_values=-1
        )
        for x in (a, b)
    ]
    return (np.empty(ROWS * COLUMNS, np.float32), *(x.reshape(-1) for x in (expected, before, *pairs)), k, accumulate)


def exact_products(seconds, seed=0):
    """(products, wrong products): integers multiplied for some seconds, in several shapes."""
    rng = np.random.default_rng(seed)
    problems = [
        integer_product(rng, k, accumulate)
        for k, accumulate in ((PAIRS, 0), (3 * PAIRS, 1), (16 * PAIRS, 0), (64 * PAIRS, 1))
    ]
    made = wrong = 0
    end = time.perf_counter() + seconds
    while not made or time.perf_counter() < end:
        wrong += sum(wrong_products(*problem, REPEATS) for problem in problems)
        made += len(problems) * REPEATS
    return made, wrong


def _on_one_core(seed):
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone
    return exact_products(0.2, seed)


def self_test():
    """Whether products of integers are exact, told in under a second; the answer is kept until the machine restarts or the kernels change.

    Some virtual machines lose tiles when a thread is interrupted (OpenZFS #15168, Intel's erratum SPR4), so four threads contend for one core.
    """
    start = boot()
    verdict = CACHE / f"amx-{start}"  # in the folder of this processor's compiled kernels
    if start and verdict.exists():
        return verdict.read_text(encoding="utf-8") == "exact"
    with ThreadPoolExecutor(4) as threads:
        exact = not any(wrong for _, wrong in threads.map(_on_one_core, range(4)))
    if start:
        with contextlib.suppress(OSError):
            CACHE.mkdir(parents=True, exist_ok=True)
            part = verdict.with_suffix(f".{os.getpid()}")
            part.write_text("exact" if exact else "wrong", encoding="utf-8")
            part.replace(verdict)
    return exact


def boot():
    """A name of the machine's last start; None where the system keeps none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None

"""How CPU kernels are compiled: one decorator, one cache on disk, one pool of threads.

Numba's cache notices a change in the file of a kernel but not in the helpers it inlines from other files. So the cache lies in a
folder named by a hash of all kernel sources, and helpers can be shared freely.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

# A thread that waits spins for a few microseconds, as the next loop mostly comes sooner, and then sleeps. If it slept at once, waking it
# would take 45 microseconds a loop (a seventh of a small model's step); if it spun on, as OpenMP does by default, it would keep the core
# from the very thread it waits for whenever anything else runs on the machine: a loop of 10 microseconds then takes 8 milliseconds.
# OpenMP reads this when Numba starts its threads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same wish in the words of LLVM's OpenMP, in milliseconds

import numba  # noqa: E402
import numpy as np  # noqa: E402
from numba import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

from slm_np.paths import cache_dir  # noqa: E402

from .processor import FEATURES, compiled_name  # noqa: E402  first of all, as it chooses the instruction set

# Sums may be reordered and multiplications fused, so that loops vectorise; NaN and infinity keep their meaning.
FAST = {"reassoc", "nsz", "arcp", "contract"}
unsigned = np.uint64  # an index of this type cannot be negative, see below
BLOCK = 8192  # numbers in a block of an elementwise kernel: four arrays of them fit the second-level cache

# How loops are written here: an inner loop counts from zero over a slice, `for i in range(part.size)`. An index that starts
# elsewhere could be negative for all the compiler knows; it would then test for Python's wrap-around and gather instead of load.


def kernel_cache():
    """The cache's folder: it depends on every kernel source and where it lies, on Numba and on the instruction set."""
    digest = hashlib.sha256(f"{numba.__version__} {compiled_name()} {sorted(FEATURES.items())}".encode())
    for source in sorted(Path(__file__).resolve().parent.glob("*.py")):
        digest.update(f"{source} {source.stat().st_mtime_ns}".encode() + source.read_bytes())
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


CACHE = kernel_cache()


def _compiled(function, **options):
    previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE)
    try:
        return numba.njit(function, cache=True, error_model="numpy", nogil=True, **options)
    finally:
        numba.config.CACHE_DIR = previous


def compile_ahead(name, commands):
    """Run `commands`, which compile kernels, in parallel processes of their own, unless `name` is complete in the cache.

    Numba optimizes a loop that it has just compiled and the same loop from its cache in different rounds, so their sums may
    differ in the last bit, and a run begun on a cold cache would not resume with the same bits. So training only ever runs
    kernels that it loads from the cache.
    """
    complete, child = CACHE / f"complete-{name}", "SLM_NP_COMPILING"
    if os.environ.get(child) or complete.exists():
        return
    print("compiling kernels for this processor, once (about a minute) ...", file=sys.stderr, flush=True)
    environment = {
        **os.environ,
        child: "1",
        "SLM_NP_CACHE": str(CACHE.parent.parent),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    children = [subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) for command in commands]
    if not any([child.wait() for child in children]):  # otherwise kernels are compiled where they are first called
        complete.touch()


def kernel(function):
    """Compile a kernel whose outer loop is a `prange`."""
    return _compiled(function, parallel=True, fastmath=FAST)


def row(function):
    """Compile a serial function that kernels call for one row or one block."""
    return _compiled(function, fastmath=FAST)


def inlined(function):
    """A part of several kernels that is compiled within each: where a call would keep the compiler from what it knows there of indices and sums."""
    return _compiled(function, fastmath=FAST, inline="always")


def exact(function):
    """Compile a serial function whose sums must not be reordered."""
    return _compiled(function, fastmath={"contract"})


@intrinsic
def float_of_bits(typingctx, bits):
    """The float32 whose bits are those of an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen

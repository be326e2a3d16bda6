"""Compilation of the CPU kernels: Numba decorators, one cache on disk, one thread pool.

Numba's cache detects a change in a kernel's own file, but not in helpers that it inlines from other files. So the
cache folder's name is a hash of all kernel sources, and files can share helpers freely.

In kernels, an inner loop counts from zero over a slice: `for i in range(part.size)`. If an index starts elsewhere, the
compiler cannot rule out that it is negative. It then adds Python's wrap-around test and gathers elements instead of
loading vectors.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from slm_np.paths import cache_dir

from .processor import FEATURES, compiled_name, for_this_processor
from .threads import one_at_a_time

# Sums may be reordered and multiply-adds fused, so that loops vectorize. NaN and infinity keep their meaning.
FAST = {"reassoc", "nsz", "arcp", "contract"}
unsigned = np.uint64  # the type of an index that the compiler must know to be nonnegative
BLOCK = 8192  # elements in a block of an elementwise kernel: blocks of four arrays fit the second-level cache


def kernel_cache():
    """The cache folder. Its name depends on the kernel sources and their paths, on Numba and on the instruction set."""
    digest = hashlib.sha256(f"{numba.__version__} {compiled_name()} {sorted(FEATURES.items())}".encode())
    for source in sorted(Path(__file__).resolve().parent.glob("*.py")):
        digest.update(f"{source} {source.stat().st_mtime_ns}".encode() + source.read_bytes())
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


CACHE = kernel_cache()


def _compiled(function, **options):
    previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE)
    try:
        return for_this_processor(numba.njit(function, cache=True, error_model="numpy", nogil=True, **options))
    finally:
        numba.config.CACHE_DIR = previous


def compile_ahead(name, commands):
    """Run `commands`, which compile kernels, in parallel child processes, unless `name` is complete in the cache.

    A loop that Numba has just compiled and the same loop loaded from its cache go through different optimization
    passes, so their sums may differ in the last bit. A run that compiles its kernels would then not resume with the
    same bits. So training only uses kernels that it loads from the cache.
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
    if not any([child.wait() for child in children]):  # if one fails, each kernel is compiled at its first call
        complete.touch()


def kernel(function):
    """Compile a kernel whose outer loop is a `prange`."""
    return one_at_a_time(_compiled(function, parallel=True, fastmath=FAST))


def row(function):
    """Compile a serial function that kernels call for one row or one block."""
    return _compiled(function, fastmath=FAST)


def inlined(function):
    """Compile a serial function into each kernel that calls it.

    Inlining lets the optimizer use what it knows at the call about indices and sums.
    """
    return _compiled(function, fastmath=FAST, inline="always")


def exact(function):
    """Compile a serial function whose sums must not be reordered."""
    return _compiled(function, fastmath={"contract"})


@intrinsic
def float_of_bits(typingctx, bits):
    """The float32 with the bits of an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen

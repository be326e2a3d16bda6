"""Compilation of the CPU kernels: the decorators, and what happens at the first call of a kernel.

A function that Python calls is a `kernel` or an `entry`. Its compiled form is kept on disk, see kernel_cache.py. The
functions that it calls are compiled into it, and never kept by themselves. So the machine code of a kernel depends on
its sources and its argument types alone.

In kernels, an inner loop counts from zero over a slice: `for i in range(part.size)`. If an index starts elsewhere, the
compiler cannot rule out that it is negative. It then adds Python's wrap-around test and gathers elements instead of
loading vectors.
"""

import contextlib
import functools
import threading

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .kernel_cache import KernelCache
from .parallel import run_tasks
from .processor import for_this_processor
from .threads import one_at_a_time

# Sums may be reordered and multiply-adds fused, so that loops vectorize. NaN and infinity keep their meaning.
FAST = {"reassoc", "nsz", "arcp", "contract"}
unsigned = np.uint64  # the type of an index that the compiler must know to be nonnegative
BLOCK = 8192  # elements in a block of an elementwise kernel: blocks of four arrays fit the second-level cache

ENTRIES = {}  # {name: compiled function}: all that Python calls
VARIANT = ""  # of the machine code of the functions decorated from now on; "amx" where the processor has it


def blocks_of(x):
    """The number of blocks of an array."""
    return -(-x.size // BLOCK)


def _compiled(function, **options):
    return for_this_processor(numba.njit(function, error_model="numpy", nogil=True, **options))


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


def _launcher(function):
    """A function (tasks, ...) that calls function(task, ...) for task = 0 ... tasks - 1 in parallel."""
    task = _compiled(function, fastmath=FAST, forceinline=True)

    def launch(tasks, *arguments):
        run_tasks(task, tasks, arguments)

    launch.__name__, launch.__module__, launch.__doc__ = function.__name__, function.__module__, function.__doc__
    return launch


def loop(function):
    """Compile `function(task, ...)` into a parallel loop (tasks, ...) that compiled functions call."""
    return row(_launcher(function))


def kernel(function):
    """Compile `function(task, ...)` into a kernel (tasks, ...), the parallel loop over task = 0 ... tasks - 1."""
    return entry(_launcher(function))


def entry(function):
    """Compile a function that Python calls, or take its compiled form from the cache."""
    compiled = row(function)
    name = f"{function.__module__}.{function.__name__}"
    if name in ENTRIES:
        raise ValueError(f"two compiled functions are named {name}")
    compiled._cache = KernelCache(name, VARIANT)
    compiled._compile_for_args = functools.partial(_first_call, compiled)
    ENTRIES[name] = compiled
    return one_at_a_time(compiled)


class Recorder(threading.local):
    """The first calls of a Python thread while it records them instead of making them; None while it does not."""

    calls = None


RECORDER = Recorder()


def _first_call(compiled, *arguments, **named):
    """What Numba asks for the compiled form of a function when it sees arguments of new types."""
    if RECORDER.calls is not None:
        RECORDER.calls[compiled, tuple(map(compiled.typeof_pyval, arguments))] = None
        return _do_nothing
    return type(compiled)._compile_for_args(compiled, *arguments, **named)


def _do_nothing(*arguments):
    """What is called instead of a recorded function."""


def recording():
    """Whether this Python thread is within `recorded`."""
    return RECORDER.calls is not None


@contextlib.contextmanager
def recorded():
    """Within, kernels that would be loaded or compiled are not called, but listed: yields [(entry, argument types)].

    Only for code that does not depend on the results of kernels.
    """
    RECORDER.calls = {}  # a dictionary, to keep the order and drop repetitions
    try:
        yield RECORDER.calls
    finally:
        RECORDER.calls = None


@intrinsic
def float_of_bits(typingctx, bits):
    """The float32 with the bits of an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen

"""The threads of kernels: how many, on which of Numba's threading layers, and after a fork; what multiplies.

Numba runs the loops of a process on one pool of threads. Its threading layer is one of

    omp        OpenMP, the default on Linux
    tbb        Intel's TBB, where it is installed
    workqueue  Numba's own, the default on macOS. It aborts the process if two Python threads run loops at once, so
               kernels take turns on it.
"""

import contextlib
import ctypes
import os
import sys
import threading

import numba
from numba.core.registry import CPUDispatcher
from numba.np.ufunc import parallel

from slm_np.errors import UserError
from slm_np.machine import available_cores

from .blas import ON_APPLE
from .processor import FEATURES

# A waiting thread spins for a few microseconds, because the next loop usually starts within that time. Then it sleeps.
# Sleeping at once would add 45 microseconds of wake-up time to each loop, a seventh of a small model's step. Spinning
# longer, as OpenMP does by default, takes a core from the thread that it waits for if the machine is busy: a loop of 10
# microseconds then takes 8 milliseconds.
SPINNING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}  # for GNU's OpenMP, and for LLVM's in milliseconds
USERS_CHOICE = ("OMP_WAIT_POLICY", *SPINNING)  # variables by which a user decides this for all libraries
LAYERS = {
    "default": None,  # the first of NUMBA_THREADING_LAYER_PRIORITY
    "safe": ["tbb"],
    "threadsafe": ["tbb", "omp"],
    "forksafe": ["tbb", "workqueue"] if sys.platform.startswith("linux") else ["tbb", "omp", "workqueue"],
    "tbb": ["tbb"],
    "omp": ["omp"],
    "workqueue": ["workqueue"],
}  # what NUMBA_THREADING_LAYER may name, and what Numba then tries in turn


def load_layer():
    """Load the threading layer that Numba will choose, without starting its threads. Returns its name.

    Raises UserError if Numba's settings name one that is unknown or not installed.
    """
    if parallel._is_initialized:  # by functions of the user
        return numba.threading_layer()
    choice, priority = str(numba.config.THREADING_LAYER).lower(), list(numba.config.THREADING_LAYER_PRIORITY)
    if sorted(priority) != ["omp", "tbb", "workqueue"]:
        raise UserError(
            f"NUMBA_THREADING_LAYER_PRIORITY={' '.join(priority)!r} does not order the threading layers tbb, omp and "
            "workqueue; name all three, or unset it"
        )
    if choice not in LAYERS:
        raise UserError(f"NUMBA_THREADING_LAYER={choice} is unknown; set it to one of {', '.join(LAYERS)}, or unset it")
    for layer in LAYERS[choice] or priority:
        with contextlib.suppress(ImportError):
            if layer == "tbb":
                parallel._check_tbb_version_compatible()
                from numba.np.ufunc import tbbpool  # noqa: F401
            elif layer == "omp":
                _load_openmp()
            return layer
    raise UserError(
        f"NUMBA_THREADING_LAYER={choice} needs {' or '.join(LAYERS[choice])}, which cannot be loaded here; install it, "
        "or unset NUMBA_THREADING_LAYER"
    )


def _load_openmp():
    """Load Numba's OpenMP layer with short spinning, and with an OpenMP library of its own if another one is loaded.

    OpenMP reads its variables once: GNU's when the library is loaded, LLVM's at the first call. Here they are set for
    that time only. If PyTorch, say, has loaded its own GNU OpenMP before, Numba's layer would bind to that one, which
    has its settings already. RTLD_DEEPBIND makes it prefer the library that it is linked with.
    """
    if "numba.np.ufunc.omppool" in sys.modules:
        return
    flags = sys.getdlopenflags() if hasattr(sys, "getdlopenflags") else 0
    unset = {} if any(name in os.environ for name in USERS_CHOICE) else SPINNING
    os.environ.update(unset)
    try:
        if flags and hasattr(os, "RTLD_DEEPBIND") and _loaded("libgomp", "libomp", "libiomp"):
            sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
        from numba.np.ufunc import omppool

        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(omppool.__file__).omp_get_max_threads()
    finally:
        if flags:
            sys.setdlopenflags(flags)
        for name in unset:
            os.environ.pop(name, None)


def _loaded(*names):
    """Whether a shared library whose file name starts with one of `names` is loaded. False where Linux is not."""
    with contextlib.suppress(OSError):
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            return any(line.rpartition("/")[2].startswith(names) for line in maps)
    return False


LAYER = load_layer()
TURN = threading.RLock()  # whoever holds it may run loops on the workqueue


class InTurn(CPUDispatcher):
    """A compiled function that waits until no other Python thread runs one. Compiled functions call it as any other."""

    def __call__(self, *arguments):
        with TURN:
            return super().__call__(*arguments)


def one_at_a_time(compiled):
    """The compiled function that Python calls; on the workqueue it takes turns with all others."""
    if LAYER == "workqueue":
        compiled.__class__ = InTurn
    return compiled


# The number of threads. Numba keeps it for each Python thread, and starts from all cores in a new one.

_chosen = 0  # by `use_threads`; 0: not yet


def use_threads(threads=0):
    """Set the number of threads of this process; 0 means one per core. Returns the number.

    Cores are those of `available_cores`. Raises UserError if it exceeds Numba's own number, NUMBA_NUM_THREADS.
    """
    global _chosen
    most = numba.config.NUMBA_NUM_THREADS
    if threads > most:
        raise UserError(
            f"--threads {threads} exceeds the {most} cores that this process may use; "
            f"give at most {most}, or set NUMBA_NUM_THREADS"
        )
    _chosen = threads or min(most, available_cores())
    numba.set_num_threads(_chosen)
    return _chosen


def enter_thread():
    """Prepare the calling Python thread for kernels: give it the number of threads of this process.

    Raises UserError in a forked process whose parent's threads it cannot do without.
    """
    if _stale:
        raise UserError(
            "kernels ran before this process was forked, and this system's OpenMP cannot start again after that; start "
            'processes with multiprocessing.get_context("spawn")'
        )
    wanted = _chosen or min(numba.get_num_threads(), available_cores())
    if wanted != numba.get_num_threads():
        numba.set_num_threads(wanted)


def thread_count():
    """The number of threads that kernels use."""
    return numba.get_num_threads()


# Fork. Only the forking thread lives on in the child. TBB and the workqueue start new threads there. GNU's OpenMP waits
# for the old ones for ever, which is why Numba ends such a child. But it can end its threads before the fork. Then
# parent and child both start new ones, in 0.1 ms.

_paused = True  # whether OpenMP's threads ended before the last fork
_stale = False  # in a forked child: whether they did not
PAUSE_HARD = 2  # omp_pause_hard of OpenMP 5.0


def _gnu_openmp():
    """Numba's layer if loops of this process run on GNU's OpenMP, else None."""
    layer = sys.modules.get("numba.np.ufunc.omppool")
    running = parallel._is_initialized and numba.threading_layer() == "omp"
    return layer if running and layer.openmp_vendor == "GNU" else None


def _pauses(layer):
    """The functions that end OpenMP's threads; none before OpenMP 5.0.

    They are those of the library that the layer is linked with, and of the one that it is bound to if another library
    was loaded before.
    """
    libraries = ctypes.CDLL(layer.__file__), ctypes.CDLL(None)
    return [library.omp_pause_resource_all for library in libraries if hasattr(library, "omp_pause_resource_all")]


def _before_fork():
    global _paused
    layer, _paused = _gnu_openmp(), True
    if layer is not None:
        results = [pause(PAUSE_HARD) for pause in _pauses(layer)]
        _paused = bool(results) and not any(results)


def _after_fork_in_child():
    global TURN, _stale
    TURN = threading.RLock()  # another thread of the parent may have held it
    layer = _gnu_openmp()
    if layer is None:
        return
    _stale = not _paused
    if _paused:
        # Numba's layer remembers the process that launched it, and ends any other one.
        threads = ctypes.CDLL(layer.__file__).omp_get_max_threads()
        ctypes.CFUNCTYPE(None, ctypes.c_int)(layer.launch_threads)(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def matmul_name():
    """What computes float32 matmuls, such as 'AVX2 register tiles'."""
    if ON_APPLE:
        return "Accelerate"
    known = {"avx512f": "AVX-512 ", "avx2": "AVX2 ", "neon": "NEON "}
    return next((name for feature, name in known.items() if FEATURES.get(feature)), "") + "register tiles"

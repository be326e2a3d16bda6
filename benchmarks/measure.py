"""Timing side by side, and the machine's peak rates that results are compared with."""

import contextlib
import functools
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import checkout  # noqa: F401

from slm_np.errors import UserError


def import_torch():
    """Import PyTorch, if it is installed, before numba's threads start: for scripts in which one engine runs at a time.

    Imported afterwards, it shares numba's OpenMP runtime, and its training takes four times as long. Where engines take
    turns every few milliseconds, two runtimes would disturb each other instead, as products.py showed.
    """
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401


def check_plot(path):
    """UserError if a `path` to draw is given and matplotlib is missing."""
    if path and importlib.util.find_spec("matplotlib") is None:
        raise UserError('--plot needs matplotlib: pip install "slm_np[plot]"')


def clock(function, count=1):
    """Seconds per call, the mean of `count` calls."""
    started = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - started) / count


def median_seconds(function, seconds=0.5, least=5):
    """The median time of a call in seconds, after one warmup call: of `least` calls, or as many as `seconds` take."""
    function()
    times = []
    while len(times) < least or (sum(times) < seconds and len(times) < 1000):
        times.append(clock(function))
    return statistics.median(times)


def alternate(functions, rounds=7, seconds=0.15, contexts={}):
    """{name: median seconds} of several functions, which take turns so that a drift of the machine affects them all.

    contexts: {name: function that makes a context manager}, entered untimed around each turn of that function
    """
    counts, times = {}, {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            with contexts.get(name, contextlib.nullcontext)():
                # An untimed call wakes this function's threads and fills the caches, while the threads of the function
                # before go to sleep. One long call does so by itself.
                if turn == 0 or counts[name] > 1:
                    function()
                if turn == 0:
                    counts[name] = max(1, int(seconds / max(1e-9, clock(function))))
                else:
                    times[name].append(clock(function, counts[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def large_copy():
    """(function, bytes that it moves): a copy of 128 MiB on all threads. Bytes read and bytes written both count."""
    import numpy as np

    x, out, copy = np.ones(1 << 25, np.float32), np.zeros(1 << 25, np.float32), copy_kernel()
    return lambda: copy(x.size >> 16, out, x), 2 * x.nbytes


@functools.cache
def copy_kernel():
    """A kernel that copies one block of 65,536 elements per task."""
    from slm_np.kernels.cpu.jit import kernel

    def copy(block, out, x):
        target, source = out[block * 65536 : block * 65536 + 65536], x[block * 65536 : block * 65536 + 65536]
        for i in range(target.size):
            target[i] = source[i]

    return kernel(copy)


def square_matmul(size, dtype="fp32"):
    """(function, operations): a square matmul on all threads. dtype of its inputs: fp32, or bf16 for bfloat16."""
    import numpy as np

    from slm_np import ops
    from slm_np.ops.device import CPU

    x, w, out = (np.ones((size, size), np.float32) for _ in range(3))
    if dtype == "bf16":
        w = CPU.kernels.cast_copy(w)
        CPU.kernels.update_cast_copy(w)
        x = np.full((size, size), 0x3F80, np.uint16)  # ones
    return lambda: ops.linear_forward(out, x, w, None, None), 2 * size**3


def bandwidth():
    """Bytes per second of `large_copy`."""
    copy, moved = large_copy()
    return moved / median_seconds(copy)


def matmul_rate(size=2048, dtype="fp32"):
    """Operations per second of `square_matmul`."""
    matmul, operations = square_matmul(size, dtype)
    return operations / median_seconds(matmul)


def peak_rss_mb():
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    if sys.platform == "win32":
        return _windows_peak() / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _windows_peak():
    """The largest working set of this process in bytes. Windows has no `resource` module."""
    import ctypes

    sizes = (
        "peak_working_set",
        "working_set",
        "peak_paged",
        "paged",
        "peak_nonpaged",
        "nonpaged",
        "pagefile",
        "peak_pagefile",
    )

    class Counters(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("page_faults", ctypes.c_ulong)] + [
            (name, ctypes.c_size_t) for name in sizes
        ]

    system, counters = ctypes.WinDLL("kernel32", use_last_error=True), Counters(length=ctypes.sizeof(Counters))
    system.GetCurrentProcess.restype = ctypes.c_void_p
    system.K32GetProcessMemoryInfo.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong
    if not system.K32GetProcessMemoryInfo(system.GetCurrentProcess(), ctypes.byref(counters), counters.length):
        raise ctypes.WinError(ctypes.get_last_error())
    return counters.peak_working_set


def write_json(path, rows):
    """Write rows to the file of --json. UserError if that fails."""
    try:
        Path(path).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write --json {path}: {error.strerror.lower()}; choose another file") from None

"""Timing side by side, and the machine's ceilings that results are held against."""
import statistics
import sys
import time


def median_seconds(function, seconds=0.5, least=5):
    """Median time of function() in seconds, after one warm-up call."""
    function()
    times = []
    while len(times) < least or (sum(times) < seconds and len(times) < 1000):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def alternate(functions, rounds=7, seconds=0.15):
    """{name: median seconds} of several functions, run in turns so that a drift of the machine meets them all."""
    counts, times = {}, {name: [] for name in functions}
    for name, function in functions.items():
        function()
        begun = time.perf_counter()
        function()
        counts[name] = max(1, int(seconds / max(1e-9, time.perf_counter() - begun)))
    for _ in range(rounds):
        for name, function in functions.items():
            begun = time.perf_counter()
            for _ in range(counts[name]):
                function()
            times[name].append((time.perf_counter() - begun) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def bandwidth():
    """Bytes per second that a copy of 256 MiB by all threads moves, read and written bytes counted."""
    import numpy as np
    from slm_np.kernels.cpu.jit import kernel
    from numba import prange

    def copy(out, x):
        for block in prange((x.size + 65535) // 65536):
            out[block * 65536:block * 65536 + 65536] = x[block * 65536:block * 65536 + 65536]
    copy = kernel(copy)
    x, out = np.ones(1 << 25, np.float32), np.zeros(1 << 25, np.float32)
    return 2 * x.nbytes / median_seconds(lambda: copy(out, x))


def product_rate(size=2048):
    """Operations per second of a square float32 product on the project's own pool of threads."""
    import numpy as np
    from slm_np import ops
    x, w, out = (np.ones((size, size), np.float32) for _ in range(3))
    return 2 * size ** 3 / median_seconds(lambda: ops.linear_forward(out, x, w, None, None))


def peak_rss_mb():
    """Largest resident memory of this process so far, in MB."""
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

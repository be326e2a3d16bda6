"""What this machine has: memory, threads, BLAS, a GPU."""

import os
import sys
from pathlib import Path

from slm_np.errors import UserError


def available_bytes():
    """Memory that can be had without swapping, in bytes, within the limit of the container if there is one; None where the system does not say."""
    known = []
    for source in SOURCES.get(sys.platform, (_installed,)):
        try:
            known.append(source())
        except (OSError, ValueError, AttributeError, LookupError):
            pass
    return min(known, default=None)


def _linux_available():
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _container_available(root=Path("/sys/fs/cgroup")):
    """What a control group leaves, version 2 or 1: its limit less what is in use and cannot be dropped. ValueError if it has no limit."""
    limit, used, group = (
        ("memory.max", "memory.current", root)
        if (root / "memory.max").exists()
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", root / "memory")
    )
    stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    reclaimable = int(stat.get("total_inactive_file") or stat["inactive_file"])
    return (
        int((group / limit).read_text(encoding="utf-8")) - int((group / used).read_text(encoding="utf-8")) + reclaimable
    )


def _installed():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS tells the whole memory only


def _windows_available():
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in (
                "total",
                "available",
                "total_page",
                "available_page",
                "total_virtual",
                "available_virtual",
                "extended",
            )
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError()
    return status.available


SOURCES = {"linux": (_linux_available, _container_available), "win32": (_windows_available,)}


def check_memory(needed, what, mend="choose a smaller --batch-size, --block-size, --n-layer or --n-embd", arrays=None):
    """UserError if `needed` bytes are more than is left for arrays of a module: of the machine's memory or, for CuPy's, of the GPU's."""
    if arrays is not None and arrays.__name__ != "numpy":
        from slm_np.kernels.gpu.device import free_bytes

        available, memory = free_bytes(), "the GPU's memory"
    else:
        available, memory = available_bytes(), "memory"
    if available is not None and needed > available:
        raise UserError(
            f"{what} needs {needed / 2**30:,.1f} GiB of {memory} and {available / 2**30:,.1f} GiB are free; {mend}"
        )


def gpu():
    """The `Device` that `--device cuda` is. UserError that says what is missing for it."""
    from slm_np.kernels.gpu.device import use_device

    return use_device()


def use(device, threads=0):
    """Make "cpu" or "cuda" ready: the threads of all kernels set, as by `use_threads`, or a GPU found. Returns the module that makes its arrays."""
    from slm_np.ops.device import arrays_for

    if device == "cpu":
        use_threads(threads)
    return arrays_for(device)


def use_threads(threads):
    """Set the number of threads of all kernels, 0 for one per core; returns it. UserError if there are not so many cores."""
    import numba

    from slm_np.ops.device import cpu_kernels

    cpu_kernels()  # it says how waiting threads wait, before Numba starts them
    cores = numba.config.NUMBA_NUM_THREADS
    if threads > cores:
        raise UserError(
            f"--threads {threads} is more than the {cores} cores this process may use; give at most {cores}, or set NUMBA_NUM_THREADS"
        )
    numba.set_num_threads(threads or cores)
    return threads or cores


def blas_name():
    """The BLAS behind the products, such as 'OpenBLAS 0.3.30 (SkylakeX)'."""
    import scipy.linalg.cython_blas  # noqa: F401  loads it
    from threadpoolctl import threadpool_info

    known = [info for info in threadpool_info() if info["user_api"] == "blas"]
    ours = [
        info
        for info in known
        if "scipy.libs" in info["filepath"] or "scipy" in info["filepath"].replace("\\", "/").split("/")[-3:]
    ] or known
    if not ours:
        return "the system's BLAS"
    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}
    info = ours[0]
    return f"{names.get(info['internal_api'], info['internal_api'])} {info.get('version') or ''} ({info.get('architecture', 'unknown')})"

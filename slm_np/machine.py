"""What this machine has: memory, threads, BLAS."""
import functools
import os
import sys

from slm_np.errors import UserError


def available_bytes():
    """Memory that can be had without swapping, in bytes; None where the system does not say."""
    try:
        if sys.platform.startswith("linux"):
            with open("/proc/meminfo", encoding="utf-8") as file:
                for line in file:
                    if line.startswith("MemAvailable:"):
                        return int(line.split()[1]) * 1024
        if sys.platform == "win32":
            return _windows_available()
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS tells the whole memory only
    except (OSError, ValueError, AttributeError):
        return None


def _windows_available():
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [(name, ctypes.c_ulonglong) for name in (
            "total", "available", "total_page", "available_page", "total_virtual", "available_virtual", "extended")]
    status = Status(length=ctypes.sizeof(Status))
    return status.available if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def check_memory(needed, what):
    """UserError if `needed` bytes are more than the machine has left."""
    available = available_bytes()
    if available is not None and needed > available:
        raise UserError(f"{what} needs {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free; "
                        "choose a smaller --batch-size, --block-size, --n-layer or --n-embd")


def use_threads(threads):
    """Set the number of threads of all kernels, 0 for one per core; returns it. UserError if there are not so many cores."""
    import numba
    from slm_np.ops.device import cpu_kernels
    cpu_kernels()  # it says how waiting threads wait, before Numba starts them
    cores = numba.config.NUMBA_NUM_THREADS
    if threads > cores:
        raise UserError(f"--threads {threads} is more than the {cores} cores this process may use; give at most {cores}, or set NUMBA_NUM_THREADS")
    numba.set_num_threads(threads or cores)
    return threads or cores


@functools.cache
def announce_compilation():
    """From now on say once, on stderr, when a kernel is compiled: the first run on a processor waits for it, later ones load them."""
    from numba.core import event

    class Announcement(event.Listener):
        said = False

        def on_start(self, _):
            if not self.said:
                print("compiling kernels for this processor, once ...", file=sys.stderr, flush=True)
            self.said = True

        def on_end(self, _):
            pass
    event.register("numba:compile", Announcement())


def blas_name():
    """The BLAS behind the products, such as 'OpenBLAS 0.3.30 (SkylakeX)'."""
    import scipy.linalg.cython_blas  # noqa: F401  loads it
    from threadpoolctl import threadpool_info
    known = [info for info in threadpool_info() if info["user_api"] == "blas"]
    ours = [info for info in known if "scipy.libs" in info["filepath"] or "scipy" in info["filepath"].replace("\\", "/").split("/")[-3:]] or known
    if not ours:
        return "the system's BLAS"
    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}
    info = ours[0]
    return f"{names.get(info['internal_api'], info['internal_api'])} {info.get('version') or ''} ({info.get('architecture', 'unknown')})"

"""Devices: where arrays live, which kernel set computes on them, and what differs between a CPU and a GPU.

A model is made of the arrays of one device and its code is the same for both. Ops ask `kernels_of(array)` for the
kernel set.
"""

import functools
import math
import os
import sys
import threading

import numpy as np

from slm_np.config import KERNEL_SETS
from slm_np.errors import UserError, near
from slm_np.machine import available_bytes
from slm_np.words import counted

LINE = 64  # elements of two bytes in 128 bytes of memory, the widest unit that a device reads at once
DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16"}
SMALLER = "choose a smaller --batch-size, --block-size, --n-layer or --n-embd"


class Device:
    """One device of this process: `CPU`, or the GPU that `device("cuda")` returns.

    name     "cpu" or "cuda"
    arrays   the array module: NumPy or CuPy
    kernels  the kernel set, see kernels/README.md
    """

    name = ""
    memory_name = ""

    def __reduce__(self):  # a process has one object per device
        return device, (self.name,)

    def chunk_rows(self, rows, cached, most=math.inf):
        """Rows that one pass of a loop takes: `cached` on a CPU (its scratch stays in the cache), `most` on a GPU."""
        raise NotImplementedError

    def row_length(self, columns):
        """Elements from row to row of a float32 matmul result with so many columns."""
        raise NotImplementedError

    def split_columns(self, x, scratch, filled=True):
        """The first columns of x (N, .) as a matmul takes them, as many as `scratch` (N, C) has.

        A GPU reads them where they are. A CPU needs contiguous rows: it copies them to `scratch` if x is `filled`, and
        otherwise returns `scratch` for the matmul to write.
        """
        raise NotImplementedError

    def scratch(self, shape, dtype):
        """An uninitialized array, an input of the next op. On a GPU it is valid until another op takes scratch."""
        raise NotImplementedError

    def free_bytes(self):
        """Memory that is left on the device, in bytes, or None if the system does not tell."""
        raise NotImplementedError

    def check_memory(self, needed, what, fix=SMALLER):
        """Raise UserError if `needed` bytes are more than what is left. what: the subject of the message."""
        free = self.free_bytes()
        if free is not None and needed > free:
            raise UserError(
                f"{what} needs {needed / 2**30:,.1f} GiB of {self.memory_name}, "
                f"and {free / 2**30:,.1f} GiB are free; {fix}"
            )


class Entered(threading.local):
    """Whether a Python thread has been prepared for the kernels: the settings that it was prepared for."""

    settings = None


def without_numba():
    """Why Numba cannot compile, as a clause, or "" if it can. Raises UserError for a bad NUMBA_NUM_THREADS."""
    threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not threads.strip().isdecimal() or int(threads) < 1:
        raise UserError(f"NUMBA_NUM_THREADS={threads!r} is not a positive whole number; correct it, or unset it")
    try:
        import numba
    except ImportError as error:
        return f"Numba cannot be imported ({error})"
    return "NUMBA_DISABLE_JIT switches its compiler off" if numba.config.DISABLE_JIT else ""


class CpuDevice(Device):
    """The processor, with the kernel set "numba" (compiled, the default) or "numpy" (readable, compiles nothing)."""

    name, arrays, memory_name = "cpu", np, "memory"
    cast_copies = 2  # copies of a weight in the compute dtype: one for x W and one for dout W^T

    def __init__(self):
        self._kernels, self._kernel_set, self._prepared = None, "", set()
        self._settings = object()  # a new one for each choice of kernels or threads, and in a forked process
        self._entered = Entered()
        self._after_fork()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _changed(self):
        self._settings = object()

    def _after_fork(self):
        # Python threads choose and prepare kernels in turn. One that did so in the parent is not in a forked process.
        self._turn = threading.RLock()
        self._changed()

    @property
    def kernels(self):
        """The kernel set. The Python thread that asks for it is prepared for it, since Numba's threads are its own."""
        settings = self._settings
        if self._entered.settings is not settings:
            if self._kernels is None:
                self._choose()
                settings = self._settings
            self._kernels.enter_thread()
            self._entered.settings = settings
        return self._kernels

    def use_kernels(self, name="auto"):
        """Choose the kernel set of this process: "numba", "numpy", or "auto" for $SLM_NP_KERNELS, else "numba".

        Where Numba cannot compile, "auto" is "numpy", and a line on stderr says so. Raises UserError if the name is
        unknown, or if Numba cannot run as its settings say.
        """
        given, name = name, (os.environ.get("SLM_NP_KERNELS") or "auto") if name == "auto" else name
        if name not in KERNEL_SETS:
            known = [known for known in KERNEL_SETS if known != "auto"]
            what = f"SLM_NP_KERNELS={name}" if given == "auto" else f"the kernel set {name!r}"
            raise UserError(f"{what} is unknown; {near(name, known)}")
        reason = "" if name == "numpy" else without_numba()
        if reason and name == "numba":
            raise UserError(f"the Numba kernels cannot run, since {reason}; use --kernels numpy")
        if reason and self._kernel_set != "numpy":
            print(f"slm_np: using the NumPy kernels, which are slower, since {reason}", file=sys.stderr)
        if name == "numpy" or reason:
            from slm_np.kernels import numpy as kernels
        else:
            from slm_np.kernels import cpu as kernels
        self._kernels, self._kernel_set = kernels, "numpy" if name == "numpy" or reason else "numba"
        self._changed()

    @property
    def kernel_set(self):
        """ "numba" or "numpy"."""
        if not self._kernel_set:
            self._choose()
        return self._kernel_set

    def _choose(self):
        """Choose the kernel set, unless another Python thread does it meanwhile."""
        with self._turn:
            if not self._kernel_set:
                self.use_kernels()

    def prepare(self, key, run):
        """Compile the kernels that run() calls, unless the cache holds them. `run` is told from others by its key.

        Kernels are not executed meanwhile, so `run` must not depend on their results. Each process asks once per key.
        Returns how many kernels the cache did not hold.
        """
        if self.kernel_set == "numpy" or key in self._prepared:
            return 0
        with self._turn:  # another Python thread that needs the same kernels waits for them
            missing = self.kernels.prepare(run) if key not in self._prepared else 0
            self._prepared.add(key)
        return missing

    def use_threads(self, threads=0):
        """Set the number of kernel threads (0: one per core) and return it. Raises UserError above the cores."""
        count = self.kernels.use_threads(threads)
        self._changed()
        return count

    def allocate(self, size, align):
        """`size` bytes whose address is a multiple of `align`, uninitialized."""
        block = np.empty(size + align, np.uint8)
        return block[-block.ctypes.data % align :]

    def chunk_rows(self, rows, cached, most=math.inf):
        return min(rows, cached)

    def row_length(self, columns):
        return columns

    def split_columns(self, x, scratch, filled=True):
        if filled:
            scratch[...] = x[:, : scratch.shape[1]]
        return scratch

    def scratch(self, shape, dtype):
        return np.empty(shape, dtype)

    def free_bytes(self):
        return available_bytes()

    def resolve_dtype(self, dtype):
        """Resolve `--dtype auto` to bf16 where the processor multiplies it faster, else to fp32.

        Raises UserError for a dtype that is not supported.
        """
        if dtype == "fp16":
            raise UserError("--dtype fp16 is not supported on a CPU; use --dtype bf16, which needs no gradient scaling")
        if self.kernel_set == "numpy":
            if dtype == "bf16":
                raise UserError(
                    "--dtype bf16 is not supported by --kernels numpy; use --dtype fp32, or --kernels numba"
                )
            return "fp32"
        if dtype != "auto":
            return dtype
        return "bf16" if self.kernels.bfloat16_unit().fast else "fp32"

    def describe_dtype(self, dtype):
        """What matmuls compute in, and why."""
        name = self.kernels.matmul_name()
        if self.kernel_set == "numpy":
            return f"fp32 by {name}, the readable kernels"
        unit = self.kernels.bfloat16_unit()
        if dtype == "bf16":
            return f"bf16: bfloat16 matmuls with float32 accumulation ({unit.reason})"
        return f"fp32 by {name} ({'bf16 would be faster: ' if unit.fast else ''}{unit.reason})"

    def __str__(self):
        threads = self.kernels.thread_count()
        return f"the CPU, {counted(threads, 'thread')}"


class CudaDevice(Device):
    """An NVIDIA GPU, through CuPy. All work is submitted to one stream, since kernels share scratch."""

    name, memory_name, kernel_set = "cuda", "the GPU's memory", "cuda"
    cast_copies = 1  # cuBLAS reads one layout either way

    def __init__(self):
        import cupy

        from slm_np.kernels import gpu

        self.arrays, self.kernels, self.stream = cupy, gpu, cupy.cuda.Stream()

    def prepare(self, key, run):
        """Nothing: a CUDA kernel is compiled when it is first launched."""

    def use_threads(self, threads=0):
        return threads

    def allocate(self, size, align):
        return self.arrays.empty(size, np.uint8)  # CUDA aligns blocks to 256 bytes

    def chunk_rows(self, rows, cached, most=math.inf):
        return min(rows, most)  # few long kernels are faster than many short ones

    def row_length(self, columns):
        return whole_lines(columns)

    def split_columns(self, x, scratch, filled=True):
        return x[:, : scratch.shape[1]]

    def scratch(self, shape, dtype):
        from slm_np.kernels.gpu.scratch import scratch

        return scratch((math.prod(shape), np.dtype(dtype)))[0].reshape(shape)

    def free_bytes(self):
        from slm_np.kernels.gpu.device import free_bytes

        return free_bytes()

    def info(self):
        """The GPU's properties."""
        from slm_np.kernels.gpu.device import use_device

        return use_device()

    def resolve_dtype(self, dtype):
        """Resolve `--dtype auto` to bf16 where tensor cores have it, else to fp16.

        Raises UserError for a dtype that is not supported.
        """
        if dtype in ("fp32", "fp16"):
            return dtype
        gpu = self.info()
        if dtype == "bf16" and not gpu.bfloat16:
            raise UserError(f"--dtype bf16 is not supported on {gpu}; use --dtype fp16")
        return "bf16" if gpu.bfloat16 else "fp16"

    def describe_dtype(self, dtype):
        """What matmuls compute in."""
        if dtype in DTYPE_NAMES:
            return f"{dtype}: {DTYPE_NAMES[dtype]} matmuls with float32 accumulation"
        return "fp32 by cuBLAS (bf16 or fp16 would be faster)"

    def __str__(self):
        return str(self.info())


CPU = CpuDevice()


@functools.cache
def _cuda(cupy):
    return CudaDevice()


def device(name="cpu"):
    """The Device called "cpu" or "cuda", ready for this thread. Raises UserError that names what is missing."""
    if name == "cpu":
        return CPU
    from slm_np.kernels.gpu.device import use_device

    use_device()
    import cupy

    found = _cuda(cupy)
    found.stream.use()
    return found


def device_of(array):
    """The device that `array` lives on. Raises TypeError for an array of no known module."""
    if isinstance(array, np.ndarray):
        return CPU
    cupy = sys.modules.get("cupy")  # an array of CuPy's exists only if it is loaded
    if cupy is not None and isinstance(array, cupy.ndarray):
        return _cuda(cupy)
    raise TypeError(f"no kernels for {type(array).__name__}: ops take NumPy or CuPy arrays")


def kernels_of(array):
    """The kernel set of the device that `array` lives on. Raises TypeError as `device_of`."""
    return device_of(array).kernels


def host(array):
    """The elements as a NumPy array: the array itself, or a copy for which the host synchronizes with the GPU."""
    return array if isinstance(array, np.ndarray) else array.get()


def put(target, source):
    """target[...] = source, from host memory to a whole array of any device. `source` may change afterwards."""
    if isinstance(target, np.ndarray):
        target[...] = source
    else:
        target.set(np.ascontiguousarray(np.broadcast_to(source, target.shape), target.dtype))


def number(x):
    """A scalar, or the only element of an array, as a Python float. The host synchronizes if it is on a GPU."""
    return float(x) if isinstance(x, (int, float)) else float(host(x).item())


def whole_lines(columns):
    """Row stride, in elements, at which every row starts a memory line: 16-bit matmuls read such rows in place."""
    return -(-columns // LINE) * LINE

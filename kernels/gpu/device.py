"""The GPU of a run: found, named, measured. Where there is none, one sentence says what is missing: CuPy, the driver, a device, CUDA's libraries."""

import os
from typing import NamedTuple, Tuple

from slm_np.errors import UserError

LEAST = (7, 5)  # compute capability of the oldest GPUs that kernels are compiled for
BFLOAT16 = (8, 0)  # of the oldest whose tensor cores know bfloat16
NO_DRIVER, NO_DEVICE = 35, 100  # CUDA's words for: no driver, or too old a one; no device
EXTRAS = "pip install 'slm_np[gpu-cuda12]', or 'slm_np[gpu-cuda13]' under a driver for CUDA 13"


class Device(NamedTuple):
    """A GPU. number: CUDA's, from 0.   capability: (major, minor)   processors: multiprocessors   bytes: all of its memory"""

    number: int
    name: str
    capability: Tuple[int, int]
    processors: int
    bytes: int

    @property
    def bfloat16(self):
        """Whether it multiplies bfloat16 as fast as float16."""
        return self.capability >= BFLOAT16

    def __str__(self):
        return f"{self.name} (cuda:{self.number}, compute capability {'.'.join(map(str, self.capability))}, {self.processors} multiprocessors, {self.bytes / 2**30:.1f} GiB)"


def use_device(number=0):
    """Make GPU `number` the one that this thread's arrays and kernels are on; returns its `Device`.

    UserError where CuPy, NVIDIA's driver, a device of that number or CUDA's libraries are missing, or the device does not do.
    """
    cupy = _cupy()
    count = _count(cupy.cuda.runtime)
    if not 0 <= number < count:
        raise UserError(
            f"there is no GPU cuda:{number}; choose {'cuda:0' if count == 1 else f'one of cuda:0 to cuda:{count - 1}'}"
        )
    _libraries(cupy)
    device = described(number)
    if device.capability < LEAST:
        raise UserError(
            f"{device} is older than compute capability {'.'.join(map(str, LEAST))}, the least that kernels are written for; choose another device"
        )
    try:
        cupy.cuda.Device(number).use()
        cupy.cuda.runtime.memGetInfo()  # the first call that needs the device itself
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(
            f"{device} cannot be used ({error}); see in nvidia-smi who holds it, or choose another device"
        ) from None
    return device


def described(number):
    """The `Device` of a number."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(number)
    name = found["name"]
    return Device(
        number,
        name.decode() if isinstance(name, bytes) else name,
        (found["major"], found["minor"]),
        found["multiProcessorCount"],
        found["totalGlobalMem"],
    )


def free_bytes():
    """Memory of the current device that arrays can still be made of: what is free, and what CuPy keeps of arrays that are gone."""
    import cupy

    return cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes()


def _cupy():
    """The module. UserError where it is not installed or does not load."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise UserError(
                f"CuPy, which GPUs need, lacks the package {error.name}; install it anew: {EXTRAS}"
            ) from None
        raise UserError(f"CuPy, which GPUs need, is not installed; {EXTRAS}") from None
    except ImportError as error:
        raise UserError(
            f"CuPy, which GPUs need, is installed but does not load ({_line(error.__cause__ or error)}); install it anew: {EXTRAS}"
        ) from None
    return cupy


def _count(runtime):
    """How many GPUs there are. UserError where there is no driver, too old a one, or no GPU."""
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status == NO_DRIVER:
            has, needs = runtime.driverGetVersion() // 1000, runtime.runtimeGetVersion() // 1000
            if not has:
                raise UserError(
                    "NVIDIA's driver, which GPUs need, is missing here; install it, or let the container see it"
                ) from None
            raise UserError(
                f"NVIDIA's driver here is for CUDA {has} and this CuPy needs one for CUDA {needs}; update the driver, or "
                f"uninstall CuPy and {EXTRAS}"
            ) from None
        if error.status != NO_DEVICE:
            raise UserError(f"NVIDIA's driver fails ({_line(error)}); see whether nvidia-smi runs") from None
        count = 0
    if not count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise UserError(
            "NVIDIA's driver finds no GPU here"
            + ("; see what nvidia-smi shows" if visible is None else f"; CUDA_VISIBLE_DEVICES={visible} may hide it")
        )
    return count


def _libraries(cupy):
    """UserError where CUDA's libraries, which CuPy finds in packages of their own or in a toolkit, are not all there."""
    for name, touch in (("cuBLAS", lambda: cupy.cuda.cublas), ("NVRTC", lambda: cupy.cuda.nvrtc.getVersion())):
        try:
            touch()
        except (ImportError, RuntimeError) as error:
            raise UserError(f"CuPy finds no {name} of CUDA's ({_line(error)}); {EXTRAS}") from None


def _line(error):
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

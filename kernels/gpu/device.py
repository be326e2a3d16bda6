"""The GPU of a run: select it, describe it, or say in one sentence what is missing."""

import os
from typing import NamedTuple, Tuple

from slm_np.errors import UserError

MIN_CAPABILITY = (7, 5)  # compute capability of the oldest GPUs that the kernels are compiled for
BFLOAT16_CAPABILITY = (8, 0)  # of the oldest GPUs whose tensor cores support bfloat16
NO_DRIVER, NO_DEVICE = 35, 100  # cudaErrorInsufficientDriver (no driver, or one that is too old), cudaErrorNoDevice
INSTALL = 'pip install "slm_np[gpu-cuda12]", or "slm_np[gpu-cuda13]" with a driver for CUDA 13'


class GpuInfo(NamedTuple):
    """A GPU's properties."""

    number: int  # CUDA's device number, from 0
    name: str
    capability: Tuple[int, int]  # compute capability, (major, minor)
    multiprocessors: int
    bytes: int  # total memory

    @property
    def bfloat16(self):
        """Whether its matmuls in bfloat16 are as fast as in float16."""
        return self.capability >= BFLOAT16_CAPABILITY

    def __str__(self):
        return (
            f"{self.name} (cuda:{self.number}, compute capability {'.'.join(map(str, self.capability))}, "
            f"{self.multiprocessors} multiprocessors, {self.bytes / 2**30:.1f} GiB)"
        )


def use_device(number=0):
    """Make GPU `number` the current device of this thread. Returns its `GpuInfo`.

    Raises UserError if CuPy, NVIDIA's driver, the device or CUDA's libraries are missing, or if the device is too old
    or unusable.
    """
    cupy = _import_cupy()
    count = _device_count(cupy.cuda.runtime)
    if not 0 <= number < count:
        raise UserError(
            f"there is no GPU cuda:{number}; choose {'cuda:0' if count == 1 else f'one of cuda:0 to cuda:{count - 1}'}"
        )
    _check_libraries(cupy)
    info = gpu_info(number)
    if info.capability < MIN_CAPABILITY:
        raise UserError(
            f"{info} is older than compute capability {'.'.join(map(str, MIN_CAPABILITY))}, the oldest supported one; "
            "choose another device"
        )
    try:
        cupy.cuda.Device(number).use()
        cupy.cuda.runtime.memGetInfo()  # the first call that needs the device itself
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(
            f"{info} cannot be used ({error}); check with nvidia-smi which process uses it, or choose another device"
        ) from None
    return info


def gpu_info(number):
    """The `GpuInfo` of a device number."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(number)
    name = properties["name"]
    return GpuInfo(
        number,
        name.decode() if isinstance(name, bytes) else name,
        (properties["major"], properties["minor"]),
        properties["multiProcessorCount"],
        properties["totalGlobalMem"],
    )


def free_bytes():
    """Memory available for arrays on the current device: free memory and what CuPy's pool keeps of freed arrays."""
    import cupy

    return cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes()


def _import_cupy():
    """The module. Raises UserError if it is not installed or does not load."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise UserError(f"CuPy lacks the package {error.name}; reinstall it: {INSTALL}") from None
        raise UserError(f"GPUs need CuPy, which is not installed; {INSTALL}") from None
    except ImportError as error:
        raise UserError(
            f"GPUs need CuPy, which is installed but does not load ({_first_line(error.__cause__ or error)}); "
            f"reinstall it: {INSTALL}"
        ) from None
    return cupy


def _device_count(runtime):
    """The number of GPUs. Raises UserError if the driver is missing or too old, or if there is no GPU."""
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status == NO_DRIVER:
            supported, required = runtime.driverGetVersion() // 1000, runtime.runtimeGetVersion() // 1000
            if not supported:
                raise UserError(
                    "GPUs need NVIDIA's driver, which is missing; install it, or make it visible in the container"
                ) from None
            raise UserError(
                f"NVIDIA's driver supports CUDA {supported}, but this CuPy needs CUDA {required}; "
                f"update the driver, or uninstall CuPy and {INSTALL}"
            ) from None
        if error.status != NO_DEVICE:
            raise UserError(f"NVIDIA's driver fails ({_first_line(error)}); check whether nvidia-smi runs") from None
        count = 0
    if not count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise UserError(
            "NVIDIA's driver finds no GPU"
            + ("; check nvidia-smi" if visible is None else f"; CUDA_VISIBLE_DEVICES={visible} may hide it")
        )
    return count


def _check_libraries(cupy):
    """Raise UserError if CuPy cannot load CUDA's libraries, from their own packages or a CUDA toolkit."""
    for name, load in (("cuBLAS", lambda: cupy.cuda.cublas), ("NVRTC", lambda: cupy.cuda.nvrtc.getVersion())):
        try:
            load()
        except (ImportError, RuntimeError) as error:
            raise UserError(f"CuPy cannot load CUDA's {name} ({_first_line(error)}); {INSTALL}") from None


def _first_line(error):
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

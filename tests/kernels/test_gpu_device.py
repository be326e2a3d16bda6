"""Selecting a GPU: its description, and one sentence for everything that may be missing."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from slm_np.errors import UserError
from slm_np.kernels.gpu import device


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, text="cudaErrorUnknown: unknown error"):
        super().__init__(text)
        self.status = status


def install_fake(monkeypatch, count=2, driver=13000, runtime=12090, error=None, capability=(9, 0), missing=None):
    """Install a module `cupy` with so many devices, or one that fails as CuPy does. Returns a list of devices used."""

    def getDeviceCount():
        if error:
            raise error
        return count

    def getVersion():
        if missing == "nvrtc":
            raise RuntimeError('Failure finding "libnvrtc.so.12"\nNo such file')
        return 12, 9

    used, cupy = [], ModuleType("cupy")
    properties = dict(
        name=b"NVIDIA H200",
        major=capability[0],
        minor=capability[1],
        multiProcessorCount=132,
        totalGlobalMem=140 << 30,
    )

    class Cuda:
        nvrtc = SimpleNamespace(getVersion=getVersion)
        Device = staticmethod(lambda number: SimpleNamespace(use=lambda: used.append(number)))

        @property
        def cublas(self):
            if missing == "cublas":
                raise ImportError('Failure finding "libcublas.so.12"\nNo such file')

    Cuda.runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=getDeviceCount,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: runtime,
        getDeviceProperties=lambda number: properties,
        memGetInfo=lambda: (100 << 30, 140 << 30),
    )
    cupy.cuda, cupy.get_default_memory_pool = Cuda(), lambda: SimpleNamespace(free_bytes=lambda: 5 << 30)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return used


def test_use_device_returns_the_gpus_properties(monkeypatch):
    used = install_fake(monkeypatch)
    info = device.use_device(1)
    assert used == [1] and str(info) == "NVIDIA H200 (cuda:1, compute capability 9.0, 132 multiprocessors, 140.0 GiB)"
    assert info.bytes == 140 << 30 and info.bfloat16 and not info._replace(capability=(7, 5)).bfloat16
    assert device.free_bytes() == 105 << 30


@pytest.mark.parametrize(
    "message, number, what",
    [
        ("GPUs need NVIDIA's driver, which is missing; install it", 0, dict(driver=0, error=CUDARuntimeError(35))),
        (
            "NVIDIA's driver supports CUDA 12, but this CuPy needs CUDA 13; update the driver",
            0,
            dict(driver=12080, runtime=13000, error=CUDARuntimeError(35)),
        ),
        ("NVIDIA's driver finds no GPU; CUDA_VISIBLE_DEVICES=7 may hide it", 0, dict(error=CUDARuntimeError(100))),
        ("NVIDIA's driver finds no GPU", 0, dict(count=0)),
        ("NVIDIA's driver fails (cudaErrorUnknown: unknown error)", 0, dict(error=CUDARuntimeError(999))),
        ("there is no GPU cuda:2; choose one of cuda:0 to cuda:1", 2, {}),
        ("there is no GPU cuda:1; choose cuda:0", 1, dict(count=1)),
        ("older than compute capability 7.5", 0, dict(capability=(6, 1))),
        ('CuPy cannot load CUDA\'s cuBLAS (Failure finding "libcublas.so.12"); pip install', 0, dict(missing="cublas")),
        ('CuPy cannot load CUDA\'s NVRTC (Failure finding "libnvrtc.so.12"); pip install', 0, dict(missing="nvrtc")),
    ],
)
def test_one_sentence_says_what_is_missing(monkeypatch, message, number, what):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    install_fake(monkeypatch, **what)
    with pytest.raises(UserError) as error:
        device.use_device(number)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_broken_cupy_is_reported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes the import fail
    with pytest.raises(UserError, match="CuPy, which is not installed.*gpu-cuda12.*gpu-cuda13"):
        device.use_device()
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "path", [os.fspath(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for text, message in (
        (
            "raise ImportError('\\n=====\\n banner') from ImportError('libcudart.so: none')",
            r"does not load \(libcudart.so: none\)",
        ),
        ("import no_such_package_at_all", "lacks the package no_such_package_at_all"),
    ):
        (tmp_path / "cupy.py").write_text(text + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=message):
            device.use_device()

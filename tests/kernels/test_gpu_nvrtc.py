"""NVIDIA's compiler accepts every variant of every kernel for three generations of GPUs. It needs no GPU."""

import importlib
import pkgutil

import nvrtc
import pytest
from gpu_kernels import copy_kernel, local_kernel, reduce_kernel, scale_kernel

import slm_np.kernels.gpu
from slm_np.kernels.gpu.source import ARCHITECTURES, OPTIONS, Kernel

pytestmark = pytest.mark.skipif(nvrtc.library() is None, reason="the package nvidia-cuda-nvrtc-cu12 is not installed")
TYPES = ("float", "double", "bfloat16", "half")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(architecture):
    for module in pkgutil.iter_modules(slm_np.kernels.gpu.__path__):
        importlib.import_module(f"slm_np.kernels.gpu.{module.name}")
    for kernel in Kernel.KERNELS:
        for types in kernel.variants:
            nvrtc.check(kernel, types, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prelude_compiles(architecture):
    for target in TYPES:
        for source in TYPES:
            nvrtc.check(copy_kernel, dict(To=target, From=source), architecture)
    nvrtc.check(scale_kernel, {}, architecture)
    for element in ("float", "double", "int"):
        nvrtc.check(reduce_kernel, dict(Element=element), architecture)


def test_an_invalid_source_is_refused():
    code = copy_kernel.code(To="float", From="float").replace("load(x[i])", "unknown(x[i])")
    with pytest.raises(ValueError, match='identifier "unknown" is undefined'):
        nvrtc.compile(code, ARCHITECTURES[0], OPTIONS)


def test_a_block_that_needs_too_many_registers_is_refused():
    hungry = local_kernel(
        "hungry",
        r"""
    extern "C" __global__ void hungry(float* x) {
        float values[100];
        #pragma unroll
        for (int i = 0; i < 100; ++i) values[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 100; ++i) x[(99 - i) * 1024 + threadIdx.x] = values[i];
    }""",
        threads=1024,
    )
    with pytest.raises(ValueError, match="1024 threads of .* registers do not fit"):
        nvrtc.check(hungry, {}, ARCHITECTURES[0])

"""The precision of a run: float32, or operands of 16 bits with float32 sums where the device multiplies these faster."""

import dataclasses

from slm_np.errors import UserError

DTYPES = ("auto", "fp32", "bf16", "fp16")
NAMES = {"bf16": "bfloat16", "fp16": "float16"}


def resolved(run):
    """`run` (RunConfig) with `--dtype auto` replaced by what its device is good at. UserError for a type that the device has not."""
    dtype = (of_gpu if run.train.device == "cuda" else of_cpu)(run.train.dtype)
    return (
        run if dtype == run.train.dtype else dataclasses.replace(run, train=dataclasses.replace(run.train, dtype=dtype))
    )


def of_cpu(dtype):
    """The type that `dtype` is on this machine's processor."""
    if dtype == "fp16":
        raise UserError(
            "--dtype fp16 is for GPUs; on a CPU choose bf16, which is as short and needs no scaling of gradients"
        )
    if dtype != "auto":
        return dtype
    from slm_np.ops.device import cpu_kernels

    return "bf16" if cpu_kernels().bfloat16_unit().fast else "fp32"


def of_gpu(dtype):
    """The type that `dtype` is on this machine's GPU: those without tensor cores of bfloat16 have them of float16."""
    from slm_np.machine import gpu

    if dtype in ("fp32", "fp16"):
        return dtype
    device = gpu()
    if dtype == "bf16" and not device.bfloat16:
        raise UserError(f"--dtype bf16 is not what {device} multiplies; choose fp16")
    return "bf16" if device.bfloat16 else "fp16"


def operand(run):
    """Type of what feeds products in a resolved run, as `Model` takes it: None for that of the numbers."""
    import numpy as np

    from slm_np.dtypes import BF16

    return {"bf16": BF16, "fp16": np.dtype(np.float16)}.get(run.train.dtype)


def described(run):
    """What the products of a resolved run are made of, and why."""
    dtype = run.train.dtype
    if run.train.device == "cuda":
        return (
            f"{dtype}: {NAMES[dtype]} products with float32 sums"
            if dtype in NAMES
            else "fp32 by cuBLAS (bf16 or fp16 would be faster)"
        )
    from slm_np.machine import blas_name
    from slm_np.ops.device import cpu_kernels

    unit = cpu_kernels().bfloat16_unit()
    if dtype == "bf16":
        return f"bf16: bfloat16 products with float32 sums ({unit.reason})"
    return f"fp32 by {blas_name()} ({'bf16 would be faster: ' if unit.fast else ''}{unit.reason})"

"""The precision of a run: float32, or bfloat16 operands with float32 sums where the processor multiplies these faster."""
import dataclasses

from slm_np.errors import UserError

DTYPES = ("auto", "fp32", "bf16", "fp16")


def resolved(run):
    """`run` (RunConfig) with `--dtype auto` replaced by what this machine is good at. UserError for fp16, which is for GPUs."""
    if run.train.dtype == "fp16":
        raise UserError("--dtype fp16 is for GPUs; on a CPU choose bf16, which is as short and needs no scaling of gradients")
    if run.train.dtype != "auto":
        return run
    from slm_np.ops.device import cpu_kernels
    return dataclasses.replace(run, train=dataclasses.replace(run.train, dtype="bf16" if cpu_kernels().bfloat16_unit().fast else "fp32"))


def operand(run):
    """Type of what feeds products in a resolved run, as `Model` takes it: None for that of the numbers."""
    from slm_np.workspace import BF16
    return BF16 if run.train.dtype == "bf16" else None


def described(run):
    """What the products of a resolved run are made of, and why."""
    from slm_np.machine import blas_name
    from slm_np.ops.device import cpu_kernels
    unit = cpu_kernels().bfloat16_unit()
    if run.train.dtype == "bf16":
        return f"bf16: bfloat16 products with float32 sums ({unit.reason})"
    return f"fp32 by {blas_name()} ({'bf16 would be faster: ' if unit.fast else ''}{unit.reason})"

"""The precision of a run: float32, or 16-bit matmul inputs with float32 accumulation where that is faster."""

import dataclasses

import numpy as np

from slm_np.dtypes import BF16
from slm_np.ops.device import device


def resolved(run):
    """`run` (RunConfig) with `--dtype auto` replaced by the fastest on its device. Raises UserError if unsupported."""
    dtype = device(run.train.device).resolve_dtype(run.train.dtype)
    return dataclasses.replace(run, train=dataclasses.replace(run.train, dtype=dtype))


def compute_dtype(run):
    """The dtype of matmul inputs in a resolved run, as `Model` takes it: None for the model's own dtype."""
    return {"bf16": BF16, "fp16": np.dtype(np.float16)}.get(run.train.dtype)

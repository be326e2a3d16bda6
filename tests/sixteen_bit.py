"""Arrays in storage types of 16 bits: conversion from and to float64, and the error of rounding to them."""

import numpy as np

from slm_np.dtypes import BF16

F16 = np.dtype(np.float16)
HALF_ULP = {BF16: 2.0**-8, F16: 2.0**-11}  # largest relative error of rounding
SMALLEST = {BF16: 2.0**-126, F16: 2.0**-25}  # largest absolute error of rounding near zero


def stored(x, dtype):
    """x rounded to a storage type, to nearest even. NaN stays NaN."""
    if dtype != BF16:
        return np.asarray(x).astype(dtype)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(x), 0x7FFF, bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(BF16)


def exact(x):
    """The stored values as float64."""
    return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == BF16 else x).astype(np.float64)

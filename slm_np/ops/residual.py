"""The residual stream's gradient."""

from slm_np.ops.device import kernels_of


def accumulate(total, x):
    """total += x        both (N, D): two branches of the stream meet, their gradients add"""
    kernels_of(total).accumulate(total, x)

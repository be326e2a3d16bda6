"""Rotary position embedding (Su et al. 2021). Sizes: T steps, N = B T, w head width, r <= w rotated columns."""

import numpy as np

from slm_np.ops.device import kernels_of, put


def rotary_forward(x, cos, sin, heads, width):
    """Rotate each pair (x_i, x_(i+r/2)) by its position's angle: x_i cos - x_(i+r/2) sin,   x_(i+r/2) cos + x_i sin

    x         (N, heads w or more), in place: only the first `heads` heads of a row, queries and then keys
    cos, sin  (T, r/2): the first r columns of a head are rotated, the others do not change
    width     w
    """
    kernels_of(x).rotary_forward(x, cos, sin, heads, width)


def rotary_backward(dx, cos, sin, heads, width):
    """Rotate dx by the opposite angles, in place: the transpose of a rotation is its inverse."""
    kernels_of(dx).rotary_backward(dx, cos, sin, heads, width)


def rotary_table(cos, sin, theta, start=0, scaling=None):
    """cos, sin (T, r/2) of the angles (start + t) f_i with the frequencies f_i = theta^(-2i/r)

    The angles are computed in float64, so that late positions stay exact.
    scaling: None, or (factor, low, high, context), see `scaled_frequencies`
    """
    steps, half = cos.shape
    frequencies = theta ** (-np.arange(half) / half)  # (r / 2,)
    if scaling is not None:
        frequencies = scaled_frequencies(frequencies, *scaling)
    angle = np.arange(start, start + steps)[:, None] * frequencies  # (T, r / 2)
    put(cos, np.cos(angle))
    put(sin, np.sin(angle))


def scaled_frequencies(frequencies, factor, low, high, context):
    """(1 - s) f / factor + s f   with s = (context f / (2 pi) - low) / (high - low), clipped to 0 ... 1

    context f / (2 pi) is how often a pair turns within the context of pretraining. Pairs that turn more than `high`
    times keep their frequency. Those that turn less than `low` times are interpolated to a context `factor` times as
    long.

    Source: Llama 3.1 (rope_type "llama3"), github.com/meta-llama/llama-models, models/llama3/model.py: apply_scaling.
    """
    kept = np.clip((context * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies

"""Token embedding and positions. Sizes: B batch, T steps, N = B T, V vocabulary, D width."""

import numpy as np

from slm_np.ops.device import kernels_of, put


def embedding_forward(out, tokens, weight, positions):
    """out[b, t] = weight[tokens[b, t]] + positions[t]

    out (N, D)   tokens (B, T) integers below V   weight (V, D)   positions (T, D) or None
    """
    kernels_of(out).embedding_forward(out, tokens, weight, positions)


def embedding_backward(dweight, dpositions, dout, tokens):
    """dweight[v] += sum of dout[b, t] over tokens[b, t] = v,   dpositions[t] += sum_b dout[b, t]

    dpositions is None if positions are not learned. The order of the sums is fixed: every run gives the same bits.
    """
    kernels_of(dout).embedding_backward(dweight, dpositions, dout, tokens)


def sinusoidal_table(table, start=0):
    """table[t, 2i] = sin((start + t) / 10000^(2i/D)),   table[t, 2i+1] = cos(the same)

    (T, D)   (Vaswani et al. 2017)
    """
    steps, width = table.shape
    angle = np.arange(start, start + steps)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)  # (T, D / 2)
    values = np.empty(table.shape)
    values[:, 0::2], values[:, 1::2] = np.sin(angle), np.cos(angle[:, : width // 2])
    put(table, values)

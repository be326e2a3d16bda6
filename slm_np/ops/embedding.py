"""Token embedding and positions. Sizes: B batch, T steps, N = B T tokens, V pieces, D width."""

import numpy as np

from slm_np.ops.device import kernels_of, put


def embedding_forward(out, tokens, weight, positions):
    """out[b, t] = weight[tokens[b, t]] + positions[t]        out (N, D)   tokens (B, T) integers   weight (V, D)   positions (T, D) or None"""
    kernels_of(out).embedding_forward(out, tokens, weight, positions)


def embedding_backward(dweight, dpositions, dout, tokens):
    """dweight[v] += sum of dout over the places holding v,   dpositions[t] += sum_b dout[b, t]

    `dpositions` is None where positions are not learned. The order of the sum is fixed: the same bits on every run.
    """
    kernels_of(dout).embedding_backward(dweight, dpositions, dout, tokens)


def sinusoidal_table(table, first=0):
    """table[t, 2i] = sin((first + t) / 10000^(2i/D)),   table[t, 2i+1] = cos(the same)        table (T, D)   (Vaswani et al. 2017)"""
    steps, width = table.shape
    angle = np.arange(first, first + steps)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    made = np.empty(table.shape)
    made[:, 0::2], made[:, 1::2] = np.sin(angle), np.cos(angle[:, : width // 2])
    put(table, made)

"""Token embedding and positions. Sizes: B batch, T steps, V tokens of the vocabulary, D width."""

import numpy as np


def embedding_forward(out, tokens, weight, positions):
    rows = weight[tokens]  # (B, T, D)
    out[...] = (rows if positions is None else rows + positions).reshape(out.shape)


def embedding_backward(dweight, dpositions, dout, tokens):
    np.add.at(dweight, tokens.reshape(-1), dout)  # a token that occurs twice receives both gradients
    if dpositions is not None:
        dpositions += dout.reshape(-1, *dpositions.shape).sum(0)

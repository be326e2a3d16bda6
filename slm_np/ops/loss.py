"""Softmax cross-entropy, alone and fused with a vocabulary head. Sizes: N tokens, D width, V pieces, C rows of a chunk.

A target of -1 is not counted: its loss and its row of the gradient are 0, whatever its logits are.
"""

from slm_np.ops.device import kernels_of
from slm_np.ops.linear import linear_transposed_backward, linear_transposed_forward


def softmax_cross_entropy_forward(losses, logits, targets):
    """losses[n] = log sum_v e^logits[n, v] - logits[n, targets[n]]        losses (N,) nats   logits (N, V)   targets (N,) integers"""
    kernels_of(logits).softmax_cross_entropy_forward(losses, logits, targets)


def softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale):
    """losses as in forward;   dlogits = scale * (softmax(logits) - onehot(targets)),   scale = 1 / counted targets for the mean

    dlogits is logits itself, which become their gradient in place, or (N, V or more) of a shorter type; the logits are used up. Columns beyond V are
    the kernels' own: `linear_transposed_backward` takes rows as long as these, and counts V.
    """
    kernels_of(logits).softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale)


def head_cross_entropy_forward(losses, logits, x, weight, targets):
    """Cross-entropy of the logits x W^T, C rows at a time: the (N, V) logits never exist whole.

    losses, targets (N,)   logits (C, V): room for one chunk   x (N, D)   weight (V, D)
    """
    for start in range(0, len(x), len(logits)):
        rows = slice(start, min(len(x), start + len(logits)))
        chunk = logits[: rows.stop - start]
        linear_transposed_forward(chunk, x[rows], weight)
        softmax_cross_entropy_forward(losses[rows], chunk, targets[rows])


def head_cross_entropy_backward(dx, dweight, losses, logits, dlogits, x, weight, targets, scale):
    """losses and gradients in one pass:   dz = scale * (softmax(x W^T) - onehot),   dx = dz W,   dweight += dz^T x

    A chunk's logits become its gradient, in `dlogits` (see above), which is used up before the next chunk, so forward need not have run.
    """
    for start in range(0, len(x), len(logits)):
        rows = slice(start, min(len(x), start + len(logits)))
        chunk = logits[: rows.stop - start]
        linear_transposed_forward(chunk, x[rows], weight)
        dchunk = dlogits[: rows.stop - start]
        softmax_cross_entropy_backward(dchunk, losses[rows], chunk, targets[rows], scale)
        linear_transposed_backward(dx[rows], dweight, dchunk, x[rows], weight)

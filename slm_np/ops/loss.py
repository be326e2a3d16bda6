"""Softmax cross-entropy, alone and fused with the vocabulary head.

Sizes: N tokens, D width, V vocabulary, C rows of a chunk. A target of -1 is masked: its loss and its row of the
gradient are 0, whatever its logits are.
"""

from slm_np.ops.device import kernels_of
from slm_np.ops.linear import linear_transposed_backward, linear_transposed_forward


def softmax_cross_entropy_forward(losses, logits, targets):
    """losses[n] = log sum_v e^logits[n, v] - logits[n, targets[n]]

    losses (N,) nats   logits (N, V)   targets (N,)
    """
    kernels_of(logits).softmax_cross_entropy_forward(losses, logits, targets)


def softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale):
    """losses as in forward;   dlogits = scale * (softmax(logits) - onehot(targets))

    The gradient of log sum_v e^z_v with respect to z is softmax(z), and that of -z_target is -onehot.
    scale is 1 / (number of unmasked targets) for a mean.
    dlogits is logits itself, which become their gradient, or (N, V or more) of a 16-bit type; the logits are used up.
    Columns beyond V are padding, which `linear_transposed_backward` skips.
    """
    kernels_of(logits).softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale)


def head_cross_entropy_forward(losses, logits, x, weight, targets):
    """Cross-entropy of the logits x W^T, C rows at a time: the (N, V) logits never exist as a whole.

    losses, targets (N,)   logits (C, V): scratch for one chunk   x (N, D)   weight (V, D)
    """
    for start in range(0, len(x), len(logits)):
        rows = slice(start, min(len(x), start + len(logits)))
        chunk = logits[: rows.stop - start]  # (C, V)
        linear_transposed_forward(chunk, x[rows], weight)
        softmax_cross_entropy_forward(losses[rows], chunk, targets[rows])


def head_cross_entropy_backward(dx, dweight, losses, logits, dlogits, x, weight, targets, scale):
    """losses and gradients in one pass:   dz = scale * (softmax(x W^T) - onehot),   dx = dz W,   dweight += dz^T x

    A chunk's logits become their gradient in `dlogits` (see above) and are used before the next chunk, so forward need
    not have run. dweight None: the weight is frozen.
    """
    for start in range(0, len(x), len(logits)):
        rows = slice(start, min(len(x), start + len(logits)))
        chunk, dchunk = logits[: rows.stop - start], dlogits[: rows.stop - start]
        linear_transposed_forward(chunk, x[rows], weight)
        softmax_cross_entropy_backward(dchunk, losses[rows], chunk, targets[rows], scale)
        linear_transposed_backward(dx[rows], dweight, dchunk, x[rows], weight)

"""Losses on a few fixed batches of each split, between updates. `slm_np.evaluate` measures a whole split instead."""

import math

from slm_np.nn.model import unmasked


def mean_loss(model, batches, tokens, targets, n_batches, between):
    """Mean cross-entropy of the unmasked targets in the first `n_batches` of `batches`, in nats, without dropout.

    tokens, targets: (B, T) int32, overwritten.   between: called before each batch; what it raises ends the evaluation
    """
    total, count = 0.0, 0
    for index in range(n_batches):
        between()
        batches.fill(tokens, targets, index)
        n = unmasked(targets)
        total, count = total + n * model.loss(tokens, targets), count + n
    return total / max(1, count)


def bits_per_byte(nats_per_token, split):
    """A loss per unmasked target in bits per byte of the text of these targets.

    NaN if its length is unknown, or if the tokenizer loses part of it.
    """
    if split.lossy or not split.n_bytes or not split.n_targets:
        return math.nan
    return nats_per_token / math.log(2) * split.n_targets / split.n_bytes

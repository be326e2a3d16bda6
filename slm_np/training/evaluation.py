"""Losses on a few fixed batches of each split, between updates. `slm_np.evaluate` measures a whole split instead."""

import math

import numpy as np

from slm_np.nn.model import unmasked
from slm_np.ranks.world import ALONE


def mean_loss(model, batches, tokens, targets, n_batches, between, world=ALONE):
    """Mean cross-entropy of the unmasked targets in the first `n_batches` of `batches`, in nats, without dropout.

    tokens, targets: (B, T) int32, overwritten.   between: called before each batch; what it raises ends the evaluation
    world: World. Each rank computes every N-th batch, and the result has the same bits for any N.
    """
    found = np.zeros((n_batches, 2))  # (targets, their loss together) of each batch
    for index in range(world.rank, n_batches, world.size):
        between()
        batches.fill(tokens, targets, index)
        n = unmasked(targets)
        found[index] = n, n * model.loss(tokens, targets)
    world.all_reduce(found)
    total, count = 0.0, 0.0
    for n, loss in found.tolist():  # in this order, which sum() does not promise
        total, count = total + loss, count + n
    return total / max(1.0, count)


def bits_per_byte(nats_per_token, split):
    """A loss per unmasked target in bits per byte of the text of these targets.

    NaN if its length is unknown, or if the tokenizer loses part of it.
    """
    if split.lossy or not split.n_bytes or not split.n_targets:
        return math.nan
    return nats_per_token / math.log(2) * split.n_targets / split.n_bytes

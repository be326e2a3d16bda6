"""Softmax cross-entropy. Sizes: N rows, V tokens of the vocabulary. A row whose target is -1 does not count."""

import numpy as np


def softmax_cross_entropy_forward(losses, logits, targets):
    largest = logits.max(1)  # (N,): e^logits may overflow, e^(logits - largest) cannot
    total = np.exp(logits - largest[:, None]).sum(1)
    at_target = logits[np.arange(len(logits)), targets]
    losses[...] = np.where(targets < 0, 0, np.log(total) + (largest - at_target))


def softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale):
    softmax_cross_entropy_forward(losses, logits, targets)
    e = np.exp(logits - logits.max(1, keepdims=True))  # (N, V)
    gradient = e / e.sum(1, keepdims=True) * scale  # scale (softmax(logits) - onehot(targets))
    gradient[np.arange(len(logits)), targets] -= scale
    gradient[targets < 0] = 0
    dlogits[:, : logits.shape[1]] = gradient
    dlogits[:, logits.shape[1] :] = 0

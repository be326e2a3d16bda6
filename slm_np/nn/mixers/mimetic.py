"""Initial weights of attention that already copy: `--init mimetic`, after Trockman and Kolter 2023 (arXiv 2305.09828).

The product W_v W_o of values and output starts near the identity. So a head writes some of each token that it attends
to, and the tokens of the context are more likely before the first update. From that, a model learns what to attend to.
The authors add multiples of the identity to W_q W_k^T, too, which made no difference here.

Sizes: D width of the model, H query heads, K key-value heads, w head width.
"""

import functools

import numpy as np


def copying(config, qkv, output):
    """The Tensors `qkv`, W_qkv (D, (H + 2 K) w), and `output`, W_o (H w, D), with initial values that copy."""
    return [
        weight._replace(init=functools.partial(values, config, weight.scale, added))
        for weight, added in ((qkv, added_to_qkv), (output, added_to_output))
    ]


def values(config, scale, added, draw, shape):
    """N(0, scale^2) of the generator `draw` plus `added`."""
    return draw.normal(0.0, scale, shape) + added(config, shape)


def slices(config, width):
    """(width, K, w): column j of head k is channel k w + j of `width` channels, as far as there are so many."""
    identity = np.eye(width, config.n_kv_head * config.head_dim)
    return identity.reshape(width, config.n_kv_head, config.head_dim)


def added_to_qkv(config, shape):
    """(D, (H + 2 K) w): the slices in the columns of values, else 0."""
    others = np.zeros((shape[0], config.n_head + config.n_kv_head, config.head_dim))
    return np.concatenate([others, slices(config, shape[0])], axis=1).reshape(shape)


def added_to_output(config, shape):
    """(H w, D): K / H of the transposed slices, so that the query heads of a value together write it once."""
    group = config.n_head // config.n_kv_head
    return np.repeat(slices(config, shape[1]) / group, group, axis=1).reshape(shape[::-1]).T

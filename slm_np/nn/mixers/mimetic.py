"""Initial weights of attention that already copy: `--init mimetic`, after Trockman and Kolter 2023 (arXiv 2305.09828).

They start the product W_v W_o of values and output near the identity. So a head writes some of each token that it
attends to, and the tokens of the context become more likely from the first update on. What to attend to can be learned
from that. The authors add multiples of the identity to W_q W_k^T, too, which made no difference here.

Sizes: D width of the model, H query heads, K key-value heads, w head width.
"""

import functools

import numpy as np


def mimetic(config, weight, added):
    """The Tensor `weight`, to whose normal initial values `added`, `qkv` or `output`, is added."""
    return weight._replace(init=functools.partial(values, config, weight.scale, added))


def values(config, scale, added, draw, shape):
    return draw.normal(0.0, scale, shape) + added(config, shape)


def slices(config, width):
    """(width, K, w): column j of head k is channel k w + j of `width` channels, as far as there are so many."""
    identity = np.eye(width, config.n_kv_head * config.head_dim)
    return identity.reshape(width, config.n_kv_head, config.head_dim)


def qkv(config, shape):
    """What W_qkv (D, (H + 2 K) w) gets: the slices in its columns for values."""
    others = np.zeros((shape[0], config.n_head + config.n_kv_head, config.head_dim))
    return np.concatenate([others, slices(config, shape[0])], axis=1).reshape(shape)


def output(config, shape):
    """What W_output (H w, D) gets: K / H of the transposed slices, so that all heads together write a mean."""
    group = config.n_head // config.n_kv_head
    return np.repeat(slices(config, shape[1]) / group, group, axis=1).reshape(shape[::-1]).T

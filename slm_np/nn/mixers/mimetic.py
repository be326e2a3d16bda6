"""Initial weights of attention that already copy: `--init mimetic`, after Trockman and Kolter 2023 (arXiv 2305.09828).

They start W_v W_o and W_q W_k^T near multiples of the identity. A head then writes some of each token that it attends
to, so words of the context become more likely from the first update on, and what to attend to can be learned from that.

Sizes: D width of the model, H query heads, K key-value heads, w head width.
"""

import functools

import numpy as np

SIMILAR = 0.3  # of the identity in W_q and W_k


def mimetic(config, weight, added):
    """The Tensor `weight`, to whose normal initial values `added`, `qkv` or `output`, is added."""
    return weight._replace(init=functools.partial(values, config, weight.scale, added))


def values(config, scale, added, draw, shape):
    return draw.normal(0.0, scale, shape) + added(config)


def kv_slices(config):
    """(D, K, w): head k reads and writes column j of its slice at channel k w + j of the model."""
    identity = np.eye(config.n_embd, config.n_kv_head * config.head_dim)
    return identity.reshape(config.n_embd, config.n_kv_head, config.head_dim)


def query_slices(config):
    """(D, H, w): `kv_slices` of each query head."""
    return np.repeat(kv_slices(config), config.n_head // config.n_kv_head, axis=1)


def qkv(config):
    """What W_qkv (D, (H + 2 K) w) gets: SIMILAR times the slices in queries and keys, the slices in values."""
    slices = SIMILAR * query_slices(config), SIMILAR * kv_slices(config), kv_slices(config)
    return np.concatenate(slices, axis=1).reshape(config.n_embd, -1)


def output(config):
    """What W_output (H w, columns) gets: K / H of the transposed slices, so that all heads together write a mean."""
    slices = query_slices(config) * (config.n_kv_head / config.n_head)
    return slices.reshape(config.n_embd, -1).T

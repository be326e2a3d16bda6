"""A constructed model whose output is known: each byte is followed by another one with a given probability."""

import numpy as np

from slm_np.config import ModelConfig
from slm_np.nn.model import Model


def chain(follows, size=256, block_size=32):
    """A model of bytes, or of `size` ids: after the byte a, `follows[a] = (b, p)` makes b the next with probability p.

    After any other byte all ids are equally likely. Attention and feed-forward add nothing, so only the last token
    matters.
    """
    config = ModelConfig(
        vocab_size=size,
        block_size=block_size,
        n_layer=1,
        n_head=1,
        head_dim=2,
        n_embd=size,
        n_hidden=1,
        norm="none",
        positions="none",
        head="linear",
    )
    model = Model(config, seed=3)
    weight = model.parameters.weight
    model.parameters.weights[:] = 0
    weight["embedding.weight"][:] = np.eye(size)
    for a, (b, p) in follows.items():
        weight["head.weight"][:, ord(a)] = np.log((1 - p) / (size - 1))
        weight["head.weight"][ord(b), ord(a)] = np.log(p)
    return model


def word_chain(words, p=1 - 1e-6, **likelihoods):
    """`follows` for `chain`: the letters of each word in turn, with probability p, or likelihoods[letter] after one."""
    return {a: (b, likelihoods.get(a, p)) for word in words for a, b in zip(word, word[1:])}

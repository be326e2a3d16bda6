"""Where a model drops elements:

after the embedding, on attention's probabilities, and on both residual branches of a block.
"""

from typing import NamedTuple

from slm_np.ops import Dropout, dropout_key


class MixerDropout(NamedTuple):
    """Inside a mixer (attention's probabilities) and on its residual branch."""

    inner: Dropout | None = None
    branch: Dropout | None = None


class BlockDropout(NamedTuple):
    """Of one block's mixer, and on the branch of its feed-forward."""

    mixer: MixerDropout = MixerDropout()
    feed_forward: Dropout | None = None


class ModelDropout(NamedTuple):
    """Of the embedding and of every block. Logits are not dropped."""

    embedding: Dropout | None
    blocks: tuple


NO_DROPOUT = MixerDropout()


def model_dropout(config, key=None):
    """The ModelDropout of one micro-batch. key: integers such as (seed, step, micro-batch), None for no dropout."""
    if key is None or not config.dropout:
        return ModelDropout(None, (BlockDropout(),) * config.n_layer)

    def mask(*place):
        return Dropout(config.dropout, dropout_key(*key, *place))

    blocks = []
    for layer in range(1, config.n_layer + 1):
        blocks.append(BlockDropout(MixerDropout(mask(layer, 0), mask(layer, 1)), mask(layer, 2)))
    if config.head == "none":  # the last mixer gives the logits
        blocks[-1] = BlockDropout(MixerDropout(blocks[-1].mixer.inner))
    return ModelDropout(mask(0), tuple(blocks))


def keys_of(dropout):
    """The keys of a ModelDropout, a flat list."""
    found = []
    map_keys(dropout, lambda key: found.append(key) or key)
    return found


def map_keys(dropout, function):
    """The same ModelDropout with function(key) for every key, in the order of `keys_of`."""
    if dropout is None:
        return None
    if isinstance(dropout, Dropout):
        return dropout._replace(key=function(dropout.key))
    parts = [map_keys(part, function) for part in dropout]
    return tuple(parts) if type(dropout) is tuple else type(dropout)(*parts)

"""Where a model drops elements: the embedding, attention's probabilities, and both residual branches of a block."""

from typing import NamedTuple

from slm_np.ops import Dropout, dropout_key


class MixerDropout(NamedTuple):
    """Dropout inside a mixer (attention's probabilities) and on its residual branch."""

    inner: Dropout | None = None
    branch: Dropout | None = None


class BlockDropout(NamedTuple):
    """Dropout of one block: of its mixer, and on the branch of its feed-forward."""

    mixer: MixerDropout = MixerDropout()
    feed_forward: Dropout | None = None


class ModelDropout(NamedTuple):
    """Dropout of the embedding and of each block. Logits have none."""

    embedding: Dropout | None
    blocks: tuple


NO_DROPOUT = MixerDropout()


def model_dropout(config, key=None):
    """The ModelDropout of one micro-batch. key: integers such as (seed, step, micro-batch), None for no dropout."""
    if key is None or not config.dropout:
        return ModelDropout(None, (BlockDropout(),) * config.n_layer)

    def mask(*position):
        return Dropout(config.dropout, dropout_key(*key, *position))

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

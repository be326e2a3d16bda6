"""Where a model applies dropout: embedding, attention probabilities, residual branches, and inputs of adapters."""

from typing import NamedTuple

from slm_np.ops import Dropout, dropout_key


class MixerDropout(NamedTuple):
    """Dropout inside a mixer (attention's probabilities) and on its residual branch."""

    inner: Dropout | None = None
    branch: Dropout | None = None


class BlockDropout(NamedTuple):
    """Dropout of one block: in its mixer, on the branch of its feed-forward, and on the input of each adapter."""

    mixer: MixerDropout = MixerDropout()
    feed_forward: Dropout | None = None
    adapters: tuple = ()


class ModelDropout(NamedTuple):
    """Dropout of the embedding and of each block. Logits have none."""

    embedding: Dropout | None
    blocks: tuple


NO_DROPOUT = MixerDropout()


def model_dropout(config, key=None, adapters=()):
    """The ModelDropout of one micro-batch. key: integers such as (seed, step, micro-batch), None for no dropout.

    adapters: [(Adapter, ...) of each layer], see lora.py
    """
    if key is None:
        return ModelDropout(None, (BlockDropout(),) * config.n_layer)

    def mask(*position, rate=config.dropout):
        return Dropout(rate, dropout_key(*key, *position)) if rate else None

    blocks = []
    for layer in range(1, config.n_layer + 1):
        own = adapters[layer - 1] if adapters else ()
        dropped = tuple(mask(layer, 3, adapter.index, rate=adapter.dropout) for adapter in own if adapter.dropout)
        blocks.append(BlockDropout(MixerDropout(mask(layer, 0), mask(layer, 1)), mask(layer, 2), dropped))
    if config.head == "none":  # the last mixer gives the logits
        blocks[-1] = blocks[-1]._replace(mixer=MixerDropout(blocks[-1].mixer.inner), feed_forward=None)
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

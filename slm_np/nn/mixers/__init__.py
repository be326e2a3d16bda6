"""The mixers by their letters in the pattern. Each is a module, or an object, with these names:

    parameters(config, columns)         its tensors
    plan(config, B, T, device)          its activations
    forward(config, w, a, out, x, residual, dropout, state=None)
    backward(config, w, g, a, dx, dout, x, dropout)
    step(config, w, a, out, x, residual, state, position)      forward of one new token per sequence
    state_elements(config, B)           elements of a State
    State(config, B, memory)            what it keeps of the past, in views of `memory`; `clear()` starts new sequences

The output has `columns` columns: D, or V for a last mixer that gives the logits. `residual` is added to it, or None.
`dropout` is a MixerDropout. With a `state`, forward continues from it and leaves there what the next window needs;
attention only fills its cache, for `step`.
"""

from slm_np.nn.mixers import mamba, recurrence
from slm_np.nn.mixers.attention import Attention

MIXERS = {
    "A": Attention(),
    "L": Attention(local=True),
    "N": Attention(rotates=False),
    "M": mamba,
    "S": recurrence,
}


def mixer_of(config, layer):
    """The mixer of layer `layer`."""
    return MIXERS[config.letters[layer]]


def columns_of(config, layer):
    """Columns of the mixer's output in layer `layer`: V if it is the last one and gives the logits, else D."""
    return config.vocab_size if config.head == "none" and layer == config.n_layer - 1 else config.n_embd

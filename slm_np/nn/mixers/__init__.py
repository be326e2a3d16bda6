"""What fills a block's mixing slot, by its letter in the pattern. Each mixer is a module of the same names:

parameters(config, columns)    plan(config, B, T, arrays)    forward(config, w, a, out, x, residual, key, join_key, state)    backward(config, w, g, a, dx, dout, x, key, join_key)
NAME     what its tensors and arrays begin with
TENSORS  its tensors, without NAME, in the order in which the compiled decode step finds their places
state_elements(config, B)   numbers that a State holds
State(config, B, memory)   what is kept of the past, in so many numbers of `memory`; `clear()` begins new texts

Its output has `columns` columns: those of the stream, but for a last mixer that gives the logits. `residual` is added to it, or None.
With a `state`, forward goes on where it was left and leaves it where the window ends; attention begins anew.
"""

from slm_np.nn.mixers import attention, mamba, recurrence

MIXERS = {"A": attention, "M": mamba, "S": recurrence}


def mixer_of(config, layer):
    """The mixer of layer `layer`."""
    return MIXERS[config.letters[layer]]


def columns_of(config, layer):
    """Columns that the mixer of layer `layer` gives: V if it is the last and gives the logits, else D."""
    return config.vocab_size if config.head == "none" and layer == config.n_layer - 1 else config.n_embd

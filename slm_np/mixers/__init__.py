"""What fills a block's mixing slot, by its letter in the pattern. Each mixer is a module of the same functions:

parameters(config)  plan(config, B, T)  forward(...)  backward(...)  state_size(config, B)  State(config, B, memory), what decoding keeps of the past, so many numbers of `memory`
"""
from slm_np.mixers import attention

MIXERS = {"A": attention}


def mixer_of(config, layer):
    """The mixer of layer `layer`: the pattern repeats over the layers."""
    return MIXERS[config.pattern[layer % len(config.pattern)]]

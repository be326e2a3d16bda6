"""Tiny models that together call every kernel of the compiled step, for compiling kernels ahead of their first use."""

import numpy as np

from slm_np.config import ModelConfig
from slm_np.nn.model import Model

PATTERNS = {"attention": "A", "any": "MSA"}  # the step is compiled for attention alone, and for any mixers


def run(step_class, name):
    """A step and a head of the tiny model called `name`."""
    pattern = PATTERNS[name]
    model = Model(ModelConfig(pattern=pattern, vocab_size=5, block_size=4, n_layer=len(pattern), n_embd=4, n_head=2))
    step = step_class(model, 1)
    step.step(np.zeros(1, np.int32), 0)
    step.head(np.zeros((1, 4), np.float32))

"""Compiles the kernels of the compiled step: `python -m slm_np.inference.warmup attention|any`, on a cold cache.

The step is compiled for models that have attention alone, and for models with any mixers.
"""

import sys

import numpy as np

from slm_np.config import ModelConfig
from slm_np.nn.model import Model

PATTERNS = {"attention": "A", "any": "MSA"}
COMMANDS = {name: [[sys.executable, "-m", "slm_np.inference.warmup", name]] for name in PATTERNS}


def compile_kernels(device, attention_only):
    """Compile the kernels of a step, unless the cache holds them or the device does not need it."""
    name = "attention" if attention_only else "any"
    device.compile_ahead(f"decoding-{name}", COMMANDS[name])


def run(name):
    """A step and a head of a tiny model, which together call every kernel."""
    from slm_np.inference.compiled_step import CompiledStep

    pattern = PATTERNS[name]
    model = Model(ModelConfig(pattern=pattern, vocab_size=5, block_size=4, n_layer=len(pattern), n_embd=4, n_head=2))
    step = CompiledStep(model, 1)
    step.step(np.zeros(1, np.int32), 0)
    step.head(np.zeros((1, 4), np.float32))


if __name__ == "__main__":
    run(sys.argv[1])

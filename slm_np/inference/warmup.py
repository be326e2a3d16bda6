"""Compiles the kernels of the compiled decode step: `python -m slm_np.inference.warmup attention|any`, on a cold cache.

A step is compiled for models that have attention alone, and for any mixers. The child process runs it once.
"""

import sys

import numpy as np

from slm_np.config import ModelConfig

PATTERNS = {"attention": "A", "any": "MSA"}
COMMANDS = {name: [[sys.executable, "-m", "slm_np.inference.warmup", name]] for name in PATTERNS}


def compile_kernels(device, attention_only):
    """Compile the kernels of a step, unless the cache holds them."""
    name = "attention" if attention_only else "any"
    device.compile_ahead(f"decoding-{name}", COMMANDS[name])


def run(name):
    """A prompt and a step of a tiny model with every mixer of the pattern."""
    from slm_np.inference.decoder import Decoder
    from slm_np.nn.model import Model

    sizes = dict(vocab_size=5, block_size=4, n_layer=len(PATTERNS[name]), n_embd=4, n_head=2)
    decoder = Decoder(Model(ModelConfig(pattern=PATTERNS[name], **sizes)))
    decoder.read(np.zeros((1, 2), np.int32))
    decoder.step(np.zeros(1, np.int32))


if __name__ == "__main__":
    run(sys.argv[1])

"""Compile every kernel once, in processes of their own, so that training only ever runs what it loads from the cache.

Numba optimises a loop that it has just compiled and the same loop from its cache in different rounds, so their sums may differ in the
last bit: a run begun on a cold cache would not resume with the same bits.
"""
import os
import subprocess
import sys

import numpy as np

from slm_np.config import ModelConfig
from slm_np.presets import GPT2, LLAMA

# Together these meet every kernel that training and decoding call.
MODELS = (dict(GPT2, bias=True, dropout=0.1), LLAMA, dict(positions="sinusoidal", norm="none", feed_forward="swish", head="mlp"), dict(feed_forward="gelu-tanh"))
CHILD = "SLM_NP_COMPILING"


def compile_kernels():
    """Fill the kernel cache if it is not complete, with a line on stderr. Called before kernels are first used."""
    from slm_np.kernels.cpu.jit import CACHE
    complete = CACHE / "complete"
    if os.environ.get(CHILD) or complete.exists():
        return
    print("compiling kernels for this processor, once (half a minute at most) ...", file=sys.stderr, flush=True)
    environment = {**os.environ, CHILD: "1", "SLM_NP_CACHE": str(CACHE.parent.parent), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    halves = [subprocess.Popen([sys.executable, "-c", f"from slm_np.compile import run; run({half})"], env=environment, stdin=subprocess.DEVNULL) for half in range(2)]
    if not any([half.wait() for half in halves]):  # else kernels are compiled where they are used: slower to start, but right
        complete.touch()


def run(half):
    """A step, an evaluation and a decoding step of every other small model."""
    from slm_np.decode import Decoder
    from slm_np.model import Model
    from slm_np.optim import AdamW
    tokens = np.zeros((2, 4), np.int32)
    for settings in MODELS[half::2]:
        model = Model(ModelConfig(**settings, vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=4))
        optimizer = AdamW(model.parameters)
        model.loss_and_gradient(tokens, tokens, key=(1,))
        optimizer.step()
        model.loss(tokens, tokens)
        decoder = Decoder(model, 2)
        decoder.read(tokens[:, :1])
        decoder.step(tokens[:, 0])

"""Every kernel run once, so that it is compiled: what `kernels.cpu.jit.compile_kernels` starts on a cold cache, in processes of their own."""

import numpy as np

from slm_np.config import ModelConfig
from slm_np.presets import BYTE_SSM, GPT2, LLAMA, MAMBA

# Together these meet every kernel that training and decoding call.
MODELS = (
    dict(GPT2, bias=True, dropout=0.1),
    LLAMA,
    dict(positions="sinusoidal", norm="none", feed_forward="silu", head="mlp"),
    dict(feed_forward="gelu-tanh"),
    dict(MAMBA, bias=True),
    dict(BYTE_SSM),
)


def run(half):
    """A step and an evaluation of every small model: half 0 in float32, those that attend with a decoding step, half 1 in bfloat16. They begin at opposite ends,
    so that one mostly finds in the cache what the other has compiled of what they share."""
    from slm_np.dtypes import BF16
    from slm_np.inference.decoder import Decoder
    from slm_np.nn.model import Model
    from slm_np.training.optimizer import AdamW

    tokens = np.zeros((8, 4), np.int32)  # rows enough for products of tiles; two windows are few enough for BLAS
    for settings in MODELS[:: 1 if half else -1]:
        model = Model(
            ModelConfig(**settings, vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=4),
            operand=BF16 if half else None,
        )
        optimizer = AdamW(model.parameters)
        model.loss_and_gradient(tokens, tokens, key=(1,))
        optimizer.step()
        model.loss(tokens[:2], tokens[:2])
        if (
            not half and model.config.has_attention
        ):  # a step of states takes a compiler longest: whoever writes by them waits for it then
            decoder = Decoder(model, 2)
            decoder.read(tokens[:2, :2])
            decoder.step(tokens[:2, 0])

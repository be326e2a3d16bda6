"""Every kernel run once, so that it is compiled: what `kernels.cpu.jit.compile_kernels` starts on a cold cache, in processes of their own."""
import numpy as np

from slm_np.config import ModelConfig
from slm_np.presets import BYTE_SSM, GPT2, LLAMA, MAMBA

# Together these meet every kernel that training and decoding call.
MODELS = (dict(GPT2, bias=True, dropout=0.1), LLAMA, dict(positions="sinusoidal", norm="none", feed_forward="swish", head="mlp"), dict(feed_forward="gelu-tanh"),
          dict(MAMBA, bias=True), dict(BYTE_SSM))


def run(half):
    """A step, an evaluation and a decoding step of every other small model, in both precisions."""
    from slm_np.decode import Decoder
    from slm_np.model import Model
    from slm_np.optim import AdamW
    from slm_np.workspace import BF16
    tokens = np.zeros((8, 4), np.int32)  # rows enough for products of tiles; two windows are few enough for BLAS
    for settings in MODELS[half::2]:
        for operand in (BF16, None):
            model = Model(ModelConfig(**settings, vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=4), operand=operand)
            optimizer = AdamW(model.parameters)
            model.loss_and_gradient(tokens, tokens, key=(1,))
            optimizer.step()
            model.loss(tokens[:2], tokens[:2])
        decoder = Decoder(model, 2)
        decoder.read(tokens[:2, :2])
        decoder.step(tokens[:2, 0])

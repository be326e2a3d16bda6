"""Every kernel of a training step run once, so that it is compiled: `python -m slm_np.nn.warmup fp32|bf16`.

The two halves start at opposite ends of the list, so that one mostly finds in the cache what the other has compiled.
"""

import sys

import numpy as np

from slm_np.config import ModelConfig
from slm_np.dtypes import BF16
from slm_np.presets import BYTE_SSM, GPT2, LLAMA, MAMBA

# Together these call every kernel that training calls.
MODELS = (
    dict(GPT2, bias=True, dropout=0.1),
    LLAMA,
    dict(positions="sinusoidal", norm="none", feed_forward="silu", head="mlp"),
    dict(feed_forward="gelu-tanh"),
    dict(MAMBA, bias=True),
    dict(BYTE_SSM),
)
COMMANDS = [[sys.executable, "-m", "slm_np.nn.warmup", dtype] for dtype in ("fp32", "bf16")]


def compile_kernels(device):
    """Compile the kernels of training, unless the cache holds them or the device does not need it."""
    device.compile_ahead("training", COMMANDS)


def tiny_model(settings, compute_dtype=None):
    """A model of one layer that calls the kernels of `settings`."""
    from slm_np.nn.model import Model

    sizes = dict(vocab_size=5, block_size=4, n_layer=1, n_embd=4)
    if "A" in settings.get("pattern", "A"):
        sizes["n_head"] = 2
    return Model(ModelConfig(**settings, **sizes), compute_dtype=compute_dtype)


def run(dtype):
    """A step and an evaluation of every tiny model in fp32 or bf16."""
    tokens = np.zeros((8, 4), np.int32)  # enough rows for the tiled matmuls; two windows are few enough for BLAS
    for settings in MODELS[:: 1 if dtype == "bf16" else -1]:
        model = tiny_model(settings, BF16 if dtype == "bf16" else None)
        model.loss_and_gradient(tokens, tokens, key=(1,))
        compile_optimizer(model)
        model.loss(tokens[:2], tokens[:2])


def compile_optimizer(model):
    """The kernels of AdamW, on the model's buffers."""
    kernels, weights = model.device.kernels, model.parameters.weights
    moments = [np.zeros_like(weights) for _ in range(2)]
    partial = np.zeros(kernels.square_sum_blocks(weights.size))
    kernels.square_sum(partial, model.parameters.gradients)
    n_decayed = model.parameters.n_decayed
    kernels.adamw(weights, model.parameters.gradients, *moments, n_decayed, 1.0, 0.0, 0.1, 0.9, 0.95, 0.1, 0.05, 1e-8)
    model.parameters.update_cast_copies()


if __name__ == "__main__":
    run(sys.argv[1])

"""Tiny models that together call every kernel of a training step, for compiling kernels ahead of their first use."""

import numpy as np

from slm_np.config import ModelConfig
from slm_np.dtypes import BF16
from slm_np.presets import BYTE_SSM, GPT2, LLAMA, MAMBA

MODELS = (
    dict(GPT2, bias=True, dropout=0.1),
    LLAMA,
    dict(positions="sinusoidal", norm="none", feed_forward="silu", head="mlp"),
    dict(feed_forward="gelu-tanh"),
    dict(MAMBA, bias=True),
    dict(BYTE_SSM),
)


def tiny_config(settings):
    """The smallest ModelConfig that calls the kernels of `settings`."""
    sizes = dict(vocab_size=5, block_size=4, n_layer=1, n_embd=4)
    if "A" in settings.get("pattern", "A"):
        sizes["n_head"] = 2
    return ModelConfig(**settings, **sizes)


def run(model_class, dtype):
    """A step and an evaluation of every tiny model in "fp32" or "bf16".

    The two start at opposite ends of the list, so that one process finds in the cache what the other has compiled.
    """
    tokens = np.zeros((8, 4), np.int32)
    for settings in MODELS[:: 1 if dtype == "bf16" else -1]:
        model = model_class(tiny_config(settings), compute_dtype=BF16 if dtype == "bf16" else None)
        model.loss_and_gradient(tokens, tokens, key=(1,))
        run_optimizer(model)
        model.loss(tokens[:2], tokens[:2])


def run_optimizer(model):
    """The kernels of AdamW, on the model's buffers."""
    kernels, parameters = model.device.kernels, model.parameters
    partial = np.zeros(kernels.square_sum_blocks(parameters.weights.size))
    kernels.square_sum(partial, parameters.gradients)
    kernels.adamw(
        parameters.weights,
        parameters.gradients,
        np.zeros_like(parameters.weights),
        np.zeros_like(parameters.weights),
        parameters.n_decayed,
        1.0,
        1e-3,
        0.1,
        0.9,
        0.95,
        0.1,
        0.05,
        1e-8,
    )
    parameters.update_cast_copies()

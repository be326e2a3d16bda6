"""Which kernels a model needs: those that a tiny model of the same parts calls.

Before its first step a model lets its device prepare them. The kernels of Numba are compiled ahead, on all cores, and
only those that this model needs.
"""

import dataclasses

import numpy as np

from slm_np.config import ModelConfig


def prepare(model, *runs):
    """Prepare the kernels that each run(twin) calls, where `twin` is a tiny model of the same parts as `model`.

    A run is a function of this file, or one like them. What is prepared already costs nothing.
    """
    new = [run for run in runs if run not in model.prepared]
    if new:
        model.prepared.update(new)
        lora = model.lora and dataclasses.replace(model.lora, lora_rank=2)
        key = twin_config(model.config), model.dtype, model.compute_dtype, lora, *new
        model.device.prepare(key, lambda: _run(model, lora, new))


def _run(model, lora, runs):
    twin = type(model)(
        twin_config(model.config), dtype=model.dtype, compute_dtype=model.compute_dtype, device=model.device, lora=lora
    )
    for run in runs:
        run(twin)


def twin_config(config):
    """The smallest ModelConfig with the parts of another one: every mixer once."""
    pattern = "".join(dict.fromkeys(config.letters))
    return ModelConfig(
        pattern=pattern,
        n_layer=len(pattern),
        vocab_size=5,
        block_size=4,
        n_embd=4,
        n_head=2 if config.has_attention else ModelConfig.n_head,
        head_dim=4 if config.rotary_dim else 0,
        rotary_dim=2 if config.rotary_dim else 0,  # a part of the head has kernels of its own
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        positions=config.positions,
        norm=config.norm,
        feed_forward=config.feed_forward,
        residual=config.residual,
        head=config.head,
        bias=config.bias,
        dropout=0.1 if config.dropout else 0.0,
    )


def evaluation(twin):
    """The losses and the logits of a batch."""
    tokens = np.zeros((8, 4), np.int32)
    twin.loss(tokens, tokens)
    twin.logits(tokens)


def training(twin):
    """An update, its model in the state that a sequence leaves, and an evaluation."""
    tokens = np.zeros((8, 4), np.int32)
    twin.loss_and_gradient(tokens, tokens, key=(1,))
    if not twin.config.has_attention:
        twin.loss_and_gradient(tokens, tokens, key=(1,), states=twin.states(8))
    update(twin)
    evaluation(twin)
    evaluation(twin.full_precision())  # at the end of a run


def update(twin):
    """The kernels of AdamW, on the model's buffers."""
    kernels, parameters = twin.device.kernels, twin.parameters
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


def muon(twin):
    """The kernel that Muon has beside those of AdamW."""
    parameters = twin.parameters
    twin.device.kernels.orthogonal_update(
        parameters.weights,
        parameters.gradients,
        np.zeros_like(parameters.weights),
        np.zeros((1, 5), np.int64),
        1.0,
        1e-3,
        0.1,
        0.95,
        0.2,
        1.01,
        np.zeros((3, 3)),
    )

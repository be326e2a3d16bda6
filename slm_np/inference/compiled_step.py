"""The decode step of the Numba kernels: all layers in one compiled call, see kernels/cpu/decode.py.

`layout` finds tensors by the names in decode.py, so a mixer's tensors are named only there; `buffer_shapes` knows the
sizes of each mixer's buffers.
"""

import math

import numpy as np

from slm_np.config import ATTENTION, ROTATED
from slm_np.inference.generic_step import check_memory
from slm_np.inference.positions import PositionTables
from slm_np.kernels.cpu import decode
from slm_np.kernels.cpu.attention import scale_of
from slm_np.nn.feed_forward import hidden_columns
from slm_np.nn.mixers import columns_of
from slm_np.nn.mixers.attention import widths
from slm_np.nn.model import States
from slm_np.nn.parameters import within

SPLIT_COLUMNS, MAX_SPLITS = 64, 16  # columns of a split, at least


def supports(model):
    """Whether the compiled step knows every part of a model; otherwise the generic step decodes it.

    A part is known by its parameters. A setting that changes the model without a parameter has to be named here.
    """
    config, around = model.config, (name for name in model.parameters.weight if not name.startswith("layers."))
    return (
        set(around) <= set(decode.MODEL_TENSORS)
        and all(set(views) <= set(decode.LAYER_TENSORS) for views in model.layer_weights)
        and all(set(views) & set(decode.MIXER_TENSORS) for views in model.layer_weights)
        and set(config.letters) <= set(decode.LETTERS)
        and config.norm in decode.NORMS
        and config.feed_forward in decode.ACTIVATIONS
        and config.positions in ("none", "learned", "sinusoidal", "rotary")
        and config.head in ("tied", "linear", "mlp", "none")
    )


def attention_only(config):
    """Whether all mixers are attention. Such models have a compiled step of their own."""
    return set(config.letters) <= set(ATTENTION)


def splits(columns):
    """Number of splits of so many columns. Only the model decides it, since splits change how sums are rounded."""
    return max(1, min(MAX_SPLITS, columns // SPLIT_COLUMNS))


def layout(model, batch):
    """(Tensors, layers (L,) of LAYER): where each tensor and each layer's state start in their flat memory."""
    config, starts, start, state = model.config, {}, 0, 0
    for name, view in model.parameters.weight.items():
        starts[name], start = start, start + view.size
    if config.head == "tied":
        starts["head.weight"] = starts["embedding.weight"]
    layers = np.zeros(config.n_layer, decode.LAYER)
    for i, mixer in enumerate(model.mixers):
        own, letter = within(starts, f"layers.{i}"), config.letters[i]
        rotates = config.has_rotation and letter in ROTATED
        window = min(config.window, config.block_size) if letter == "L" else config.block_size
        layers[i] = (state, rotates, window, *(own.get(name, decode.ABSENT) for name in decode.LAYER_TENSORS))
        state += mixer.state_elements(config, batch)
    return decode.Tensors(*(starts.get(name, decode.ABSENT) for name in decode.MODEL_TENSORS)), layers


def sizes_of(config):
    """`decode.Sizes` for a ModelConfig."""
    return decode.Sizes(
        vocab_size=config.vocab_size,
        block_size=config.block_size,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        ssm_state_size=config.ssm_state_size,
        time_step_rank=config.time_step_rank,
        conv_kernel=config.conv_kernel,
        norm=decode.NORMS.index(config.norm),
        activation=decode.ACTIVATIONS.index(config.feed_forward),
        residual=int(config.residual),
        parallel=int(config.parallel),
        head=int(config.head != "none"),
        hidden_splits=splits(config.n_hidden),
        channel_splits=splits(config.n_inner),
        state_splits=splits(config.recurrence_size),
    )


def buffer_shapes(config, batch):
    """{field of Buffers: shape}. The buffers of parts that the model does not have are empty."""
    heads, qkv = widths(config) if config.has_attention else (0, 0)
    ssm_parameters = config.time_step_rank + 2 * config.ssm_state_size if config.n_inner else 0
    columns = max(config.n_embd, columns_of(config, config.n_layer - 1))
    partials = (
        config.n_kv_head * columns if config.has_attention else 0,
        splits(config.n_hidden) * columns if config.n_hidden else 0,
        splits(config.n_inner) * max(columns, ssm_parameters) if config.n_inner else 0,
        splits(config.recurrence_size) * columns if config.recurrence_size else 0,
    )
    return dict(
        x=(batch, config.n_embd),
        normed=(batch, config.n_embd),
        parallel_normed=(batch, config.n_embd if config.parallel else 0),
        partials=(batch * max(partials),),
        qkv=(batch, qkv),
        heads=(batch, heads),
        scores=(config.n_kv_head, config.block_size) if config.has_attention else (0, 0),
        projected=(batch, 2 * config.n_inner),
        channels=(batch, config.n_inner),
        ssm_parameters=(batch, ssm_parameters),
        delta=(batch, config.n_inner),
        time_steps=(batch, config.n_inner),
        scan_inputs=(batch, config.n_inner),
        scan_out=(batch, config.n_inner),
        states=(batch, config.recurrence_size),
        states_active=(batch, config.recurrence_size),
        hidden=(batch, hidden_columns(config)),
        active=(batch, config.n_hidden),
        head_hidden=(batch, config.head_hidden),
        head_active=(batch, config.head_hidden),
    )


class CompiledStep:
    """Same interface as GenericStep; sums in another order. The number of threads does not affect the results."""

    def __init__(self, model, batch):
        config, dtype, shapes = model.config, model.dtype, buffer_shapes(model.config, batch)
        check_memory(model, batch, dtype.itemsize * sum(map(math.prod, shapes.values())))
        self.model, self.tables, self.states = model, PositionTables(model), States(model, batch)
        self.tensors, self.layers = layout(model, batch)
        self.sizes = sizes_of(config)
        self.scale = scale_of(config.head_dim, config.score_scale or None) if config.has_attention else 0.0
        self.buffers = decode.Buffers(**{name: np.zeros(shape, dtype) for name, shape in shapes.items()})
        self.logits = np.zeros((batch, config.vocab_size), dtype)
        self.decode_step = decode.decode_attention_only if attention_only(config) else decode.decode_any_mixer

    def step(self, tokens, position):
        """Same as `GenericStep.step`; sums in another order."""
        self.tables.fill(position)
        self.decode_step(
            self.logits,
            self.states.memory,
            self.buffers,
            self.model.parameters.weights,
            self.tensors,
            self.layers,
            self.sizes,
            tokens,
            position,
            self.tables.positions,
            self.tables.cos,
            self.tables.sin,
            self.model.config.norm_eps,
            self.scale,
            self.model.device.kernels.thread_count(),
        )

    def head(self, x):
        """Same as `GenericStep.head`; sums in another order."""
        if self.model.config.head == "none":
            self.logits[...] = x
            return
        self.buffers.normed[...] = x
        weights, threads = self.model.parameters.weights, self.model.device.kernels.thread_count()
        decode.decode_head(self.logits, self.buffers.normed, weights, self.tensors, self.buffers, threads)

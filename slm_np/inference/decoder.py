"""Decoding: a prompt goes through the trunk as in training, then each token through all layers in one call, compiled or, on a GPU, captured.

Every mixer keeps what it needs of the past: attention keys and values, the others a state, so that a step takes the same time and memory
however long the text is. With rotary or no positions the context slides: keys keep the angle of their own place and the oldest slot is
written over. Learned and sinusoidal positions end at T, so beyond it the last T tokens are read again. Without attention and such
positions nothing is forgotten but by the state itself: a prompt of any length is read, T tokens at a time.
"""

import math

import numba
import numpy as np

from slm_np import ops
from slm_np.errors import UserError
from slm_np.nn.arena import planned_bytes
from slm_np.nn.dropout import model_dropout
from slm_np.nn.feed_forward import hidden_columns
from slm_np.nn.mixers import columns_of
from slm_np.nn.mixers.attention import widths
from slm_np.nn.model import Activations, States, plan
from slm_np.ops.device import host, kernels_of

ROWS = 256  # places whose angles are kept at a time
SHARE, MOST = 64, 16  # hidden columns of a feed-forward's share, at least, and the largest number of shares


NAMES = {"A": "attention", "M": "mamba", "S": "recurrence"}
TENSORS = {
    "A": ("qkv.weight", "qkv.bias", "output.weight", "output.bias"),
    "M": (
        "in_proj.weight",
        "in_proj.bias",
        "conv1d.weight",
        "conv1d.bias",
        "x_proj.weight",
        "dt_proj.weight",
        "dt_proj.bias",
        "A_log",
        "D",
        "out_proj.weight",
        "out_proj.bias",
    ),
    "S": ("input.weight", "state.weight", "output.weight", "skip.weight"),
}


def shares(columns):
    """Into how many shares so many columns are cut: by their number alone, as sums over shares are part of the result."""
    return max(1, min(MOST, columns // SHARE))


def layout(model, batch):
    """(layers, ends, sizes, numbers of the states): what the compiled step has to know of a model, see kernels/cpu/decode.py.

    layers (L, LINE): which mixer each is, where its state starts among the states, the columns it gives, where its tensors start in the flat weights.
    """
    config, kernels, at, starts = model.config, kernels_of(model.parameters.weights).decode, 0, {}
    for name, view in model.parameters.weight.items():
        starts[name], at = at, at + view.size

    def offset(name):
        return starts.get(name, kernels.ABSENT)

    lines, size = np.full((config.n_layer, kernels.LINE), kernels.ABSENT), 0
    for layer, (mixer, line) in enumerate(zip(model.mixers, lines)):
        names = [
            f"{part}.{kind}"
            for part in ("mixer_norm", "feed_forward_norm", "feed_forward.input", "feed_forward.output")
            for kind in ("weight", "bias")
        ]
        names += [f"{NAMES[config.letters[layer]]}.{name}" for name in TENSORS[config.letters[layer]]]
        numbers = [
            kernels.MIXERS.index(NAMES[config.letters[layer]]),
            size,
            columns_of(config, layer),
            *(offset(f"layers.{layer}.{name}") for name in names),
        ]
        line[: len(numbers)] = numbers
        size += mixer.state_elements(config, batch)
    ends = kernels.Ends(
        offset("embedding.weight"),
        offset("norm.weight"),
        offset("norm.bias"),
        offset("head.input.weight"),
        offset("head.input.bias"),
        offset("embedding.weight" if config.head == "tied" else "head.weight"),
    )
    sizes = kernels.Sizes(
        config.vocab_size,
        config.block_size,
        config.n_head,
        config.n_kv_head,
        shares(config.n_hidden),
        kernels.NORMS.index(config.norm),
        kernels.ACTIVATIONS.index(config.feed_forward),
        int(config.positions == "rotary"),
        int(config.residual),
        int(config.head == "none"),
        shares(config.n_inner),
        shares(config.recurrence_size),
        config.ssm_state_size,
        config.time_step_rank,
        config.conv_kernel,
    )
    return lines, ends, sizes, size


def scratch(config, batch):
    """Shapes of the step's arrays, by name; those of mixers that the model does not have hold nothing."""
    attended, qkv = widths(config) if config.has_attention else (0, 0)
    hidden, inner = (config.n_hidden, hidden_columns(config)) if config.feed_forward != "none" else (0, 0)
    head_hidden = config.head_hidden if config.head == "mlp" else 0
    channels, states = (
        size if letter in config.letters else 0
        for letter, size in (("M", config.n_inner), ("S", config.recurrence_size))
    )
    selected = config.time_step_rank + 2 * config.ssm_state_size if channels else 0
    stream, widest = (batch, config.n_embd), max(columns_of(config, config.n_layer - 1), config.n_embd)
    most = [(config.n_kv_head, widest)] * config.has_attention + [(shares(config.n_hidden), widest)] * (hidden > 0)
    most += [(shares(channels), max(widest, selected))] * (channels > 0) + [(shares(states), widest)] * (states > 0)
    return dict(
        x=stream,
        normed=stream,
        qkv=(batch, qkv),
        attended=(batch, attended),
        hidden=(batch, inner),
        active=(batch, hidden),
        given=(max(batch * count * columns for count, columns in most),),
        scores=(config.n_kv_head, config.block_size) if config.has_attention else (0, 0),
        projected=(batch, 2 * channels),
        selected=(batch, selected),
        **{name: (batch, channels) for name in ("inner", "delta", "steps", "inputs", "readout")},
        entered=(batch, states),
        entered_active=(batch, states),
        head_hidden=(batch, head_hidden),
        head_active=(batch, head_hidden),
    )


class Compiled:
    """The step of `Decoder` on the CPU: all layers in one call. states: what mixers keep.   logits (B, V): what `step` and `head` fill.   buffers: scratch"""

    def __init__(self, model, batch, positions, cos, sin):
        config, dtype = model.config, model.dtype
        self.model, self.positions, self.cos, self.sin = model, positions, cos, sin
        self.kernels = kernels_of(model.parameters.weights)
        self.layers, self.ends, self.sizes, size = layout(model, batch)
        shapes = scratch(config, batch)
        model.device.check_memory(
            dtype.itemsize * (size + batch * config.vocab_size + sum(map(math.prod, shapes.values()))),
            f"making {batch} texts at once",
            "ask for fewer",
        )
        self.states = States(model, batch)
        self.buffers = self.kernels.decode.Buffers(**{name: np.zeros(shape, dtype) for name, shape in shapes.items()})
        self.logits = np.zeros((batch, config.vocab_size), dtype)

    def step(self, tokens, place):
        """One more token of each text, (B,), at `place`."""
        self.kernels.decode_step(
            self.logits,
            self.states.memory,
            self.buffers,
            self.model.parameters.weights,
            self.layers,
            self.ends,
            self.sizes,
            tokens,
            place,
            self.positions,
            self.cos,
            self.sin,
            self.model.config.norm_eps,
            numba.get_num_threads(),
        )

    def head(self, last):
        """What the trunk gives of each text's last token, (B, D) or the logits."""
        if self.model.config.head == "none":
            self.logits[...] = last
            return
        self.buffers.normed[...] = last
        self.kernels.decode_head(
            self.logits,
            self.buffers.normed,
            self.model.parameters.weights,
            self.ends,
            self.buffers,
            numba.get_num_threads(),
        )


class Decoder:
    """One text per row, all of one length. `read(tokens)` starts a text, `step(tokens)` adds a token to each; both return the next logits (B, V).

    What they return is overwritten by the next call. UserError if there is not the memory for so many texts at once.
    """

    def __init__(self, model, batch=1):
        self.model, self.batch = model, batch
        config, arrays, dtype = model.config, model.device.arrays, model.dtype
        rows, half = min(ROWS, config.block_size), config.head_dim // 2 if config.positions == "rotary" else 0
        self.cos, self.sin = arrays.zeros((rows, half), dtype), arrays.zeros((rows, half), dtype)
        positions = model.parameters.weight.get("positions.weight")
        self.positions = (
            arrays.zeros((rows if config.positions == "sinusoidal" else 0, config.n_embd), dtype)
            if positions is None
            else positions
        )
        if arrays is np:
            step = Compiled
        else:
            from slm_np.inference.generic_step import Launched as step
        self.stepper = step(model, batch, self.positions, self.cos, self.sin)
        self.states, self.memory, self.logits, self.buffers = (
            self.stepper.states,
            self.stepper.states.memory,
            self.stepper.logits,
            self.stepper.buffers,
        )
        self.slides = config.positions in ("rotary", "none")
        self.whole, self.keys = None, model_dropout(config)
        self.text = np.zeros((batch, 0), np.int32)  # the last T tokens, where they may have to be read again
        self.place = self.tabled = 0  # tabled: up to which place cos, sin and positions are filled

    def read(self, tokens):
        """Logits after a prompt (B, n), n >= 1, of which the last T tokens count, all of them where nothing attends. Forgets the text before.
        UserError for ids outside the vocabulary."""
        tokens, limit = self.checked(tokens), self.model.config.block_size
        if tokens.shape[0] != self.batch or tokens.shape[1] == 0:
            raise UserError(
                f"a prompt of shape {tokens.shape} cannot start {self.batch} texts; give at least one token for each"
            )
        self.states.clear()
        if not self.model.config.unlimited_context:
            tokens = tokens[:, -limit:]
        self.text, self.place, self.tabled = tokens[:, :0], 0, 0
        if tokens.shape[1] == 1:
            return self.step(tokens[:, 0])
        first = tokens.shape[1] % limit  # the shorter window, if there is one, comes first
        for start in ([0] if first else []) + list(range(first, tokens.shape[1], limit)):
            window = tokens[:, start : first if start < first else start + limit]
            normed = self.model.forward(
                self.arena(window.shape), self.model.device.arrays.asarray(window), self.keys, self.states.layers
            )
        self.place = tokens.shape[1]
        if not self.slides:
            self.text = tokens
        self.stepper.head(normed.reshape(*window.shape, -1)[:, -1])
        return host(self.logits)

    def arena(self, shape):
        """Activations for windows (B, n)."""
        if self.whole is None or self.whole.steps != shape[1]:
            self.whole = None  # let go of the old arena before the new one is laid out
            self.model.device.check_memory(
                planned_bytes(plan(self.model.config, *shape, self.model.device), self.model.dtype),
                f"reading a prompt for {self.batch} texts at once",
                "ask for fewer",
            )
            self.whole = Activations(self.model.config, *shape, self.model.dtype, device=self.model.device)
        return self.whole

    def step(self, tokens):
        """Logits after one more token per text, (B,). UserError for ids outside the vocabulary."""
        config, tokens = self.model.config, self.checked(tokens).reshape(self.batch)
        if not self.slides:
            text = np.concatenate([self.text, tokens[:, None]], axis=1)
            if text.shape[1] > config.block_size:
                return self.read(text)
            self.text = text
        if self.place >= self.tabled:
            self.table()
        self.stepper.step(tokens, self.place)
        self.place += 1
        return host(self.logits)

    def table(self):
        """Fill the tables of positions that are not learned for the rows around this place."""
        config, first = self.model.config, self.place - self.place % len(self.cos)
        if config.positions == "sinusoidal":
            ops.sinusoidal_table(self.positions, first)
        elif config.positions == "rotary":
            ops.rotary_table(self.cos, self.sin, config.rope_theta, first)
        self.tabled = first + len(self.cos)

    def checked(self, tokens):
        tokens = np.ascontiguousarray(tokens, np.int32)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.model.config.vocab_size:
            raise UserError(
                f"token ids from {tokens.min()} to {tokens.max()} are not all in the vocabulary of {self.model.config.vocab_size}; encode the text with the model's own tokenizer"
            )
        return tokens

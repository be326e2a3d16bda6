"""The trunk: embedding, blocks of norm -> mixer -> residual -> norm -> feed-forward -> residual, norm, head; forward and backward mirrored.

Without a residual, what a mixer or feed-forward gives is the stream. With head "none" the last mixer gives the logits, and no norm follows.
Sizes: B batch, T steps, N = B T tokens, V vocabulary, D width, L layers.
"""

import copy

import numpy as np

from slm_np import ops
from slm_np.errors import UserError
from slm_np.nn import feed_forward, head, norm
from slm_np.nn import residual as branch
from slm_np.nn.arena import Request, Workspace
from slm_np.nn.mixers import columns_of, mixer_of
from slm_np.nn.parameters import Parameters, count, weight, within
from slm_np.ops.device import host, number


def block_parameters(config, layer):
    yield from norm.parameters(config, "mixer_norm")
    yield from mixer_of(config, layer).parameters(config, columns_of(config, layer))
    if config.feed_forward != "none":
        yield from norm.parameters(config, "feed_forward_norm")
        yield from feed_forward.parameters(config)


def parameters(config):
    """All tensors of a model, in the order data meets them."""
    yield weight(config, "embedding.weight", (config.vocab_size, config.n_embd), config.n_embd)._replace(
        multiplies=config.head == "tied"
    )
    if config.positions == "learned":
        yield weight(config, "positions.weight", (config.block_size, config.n_embd), config.n_embd)._replace(
            multiplies=False
        )
    for layer in range(config.n_layer):
        for tensor in block_parameters(config, layer):
            yield tensor._replace(name=f"layers.{layer}.{tensor.name}")
    if config.head != "none":
        yield from norm.parameters(config, "norm")
    yield from head.parameters(config)


def parameter_count(config):
    """Number of parameters of a configuration; a tied head counts once."""
    return count(parameters(config))


def block_plan(config, layer, batch, steps, arrays):
    n = batch * steps
    yield Request("x", (n, config.n_embd), "saved")
    yield from norm.plan(config, "mixer_norm", n)
    yield from mixer_of(config, layer).plan(config, batch, steps, arrays)
    if config.feed_forward != "none":
        yield Request("middle", (n, config.n_embd), "saved")
        yield from norm.plan(config, "feed_forward_norm", n)
        yield from feed_forward.plan(config, n, arrays)
    if config.head == "none" and layer == config.n_layer - 1:
        yield Request("branch", (n, columns_of(config, layer)), "saved", "rounded")  # as wide as the logits' gradient


def plan(config, batch, steps, arrays=np):
    """All activations of a model for a batch of (B, T) tokens. The arrays a layer saves carry its number, the others are shared.

    arrays: the module that will make them, as devices differ in the scratch they want.
    """
    n = batch * steps
    for layer in range(config.n_layer):
        for request in block_plan(config, layer, batch, steps, arrays):
            yield request._replace(name=f"layers.{layer}.{request.name}") if request.lifetime == "saved" else request
    yield Request("x", (n, columns_of(config, config.n_layer - 1)), "saved")
    yield from norm.plan(config, "norm", n)
    yield from head.plan(config, n, arrays)
    yield Request("dx", (n, config.n_embd), "stream")
    yield Request("dnormed", (n, config.n_embd), "scratch")
    yield from branch.plan(config, n)
    if config.positions == "sinusoidal":
        yield Request("positions", (steps, config.n_embd), "saved")
    if config.positions == "rotary":
        yield Request("rotary.cos", (steps, config.head_dim // 2), "saved")
        yield Request("rotary.sin", (steps, config.head_dim // 2), "saved")


def block_forward(config, mixer, w, a, out, keys, state=None):
    """middle = x + mixer(norm(x)),   out = middle + feed_forward(norm(middle)),   both without the sum where there is no residual"""
    x, middle = a["x"], a["middle"] if config.feed_forward != "none" else out
    mixer.forward(
        config,
        w,
        a,
        middle,
        norm.forward(config, w, a, "mixer_norm", x),
        x if config.residual else None,
        keys[0],
        keys[1],
        state,
    )
    if config.feed_forward != "none":
        feed_forward.forward(
            config,
            w,
            a,
            out,
            norm.forward(config, w, a, "feed_forward_norm", middle),
            middle if config.residual else None,
            keys[2],
        )


def block_backward(config, mixer, w, g, a, dx, dout, keys):
    """dx = the gradient of x. dout, the gradient of out, is the same array, to which each branch adds through its norm; only of logits it is another."""
    dnormed = a["dnormed"]
    if config.feed_forward != "none":
        feed_forward.backward(
            config, w, g, a, dnormed, dx, norm.forward(config, w, a, "feed_forward_norm", a["middle"]), keys[2]
        )
        stream_backward(config, w, g, a, "feed_forward_norm", dx, dnormed, a["middle"])
    mixer.backward(config, w, g, a, dnormed, dout, norm.forward(config, w, a, "mixer_norm", a["x"]), keys[0], keys[1])
    stream_backward(config, w, g, a, "mixer_norm", dx, dnormed, a["x"])


def stream_backward(config, w, g, a, name, dx, dnormed, x):
    """The gradient of the stream x that a branch read through its norm: it adds to that of the sum, or is all there is."""
    if not config.residual:
        dx.fill(0)
    norm.backward(config, w, g, a, name, dx, dnormed, x)


class States:
    """What the mixers of all layers keep of B texts, in one block of `memory`, from which later windows go on."""

    def __init__(self, model, batch):
        sizes = [mixer.state_elements(model.config, batch) for mixer in model.mixers]
        self.memory = model.arrays.zeros(sum(sizes), model.dtype)
        ends = np.cumsum(sizes).tolist()
        self.layers = [
            mixer.State(model.config, batch, self.memory[end - size : end])
            for mixer, size, end in zip(model.mixers, sizes, ends)
        ]

    def clear(self):
        """Begin new texts."""
        for state in self.layers:
            state.clear()


def counted(targets):
    """How many targets are counted: those that are not -1."""
    return int(np.count_nonzero(host(targets) >= 0))


class Activations:
    """The arena of one (B, T), with the arrays of each layer by their short names. Its operands are of type `operand`, if that is given."""

    def __init__(self, config, batch, steps, dtype, operand=None, arrays=np):
        self.batch, self.steps = batch, steps
        self.workspace = Workspace(plan(config, batch, steps, arrays), dtype, operand, arrays)
        self.shared = {name: array for name, array in self.workspace.arrays.items() if not name.startswith("layers.")}
        self.layers = [
            {**self.shared, **within(self.workspace.arrays, f"layers.{layer}")} for layer in range(config.n_layer)
        ]
        self.set_place(config, 0)

    def set_place(self, config, first):
        """Fill the tables of positions for tokens at first, first + 1, ..."""
        a = self.shared
        if config.positions == "sinusoidal":
            ops.sinusoidal_table(a["positions"], first)
        elif config.positions == "rotary":
            ops.rotary_table(a["rotary.cos"], a["rotary.sin"], config.rope_theta, first)


class Model:
    """A model: its configuration, its parameters and, once planned, its activations.

    config: ModelConfig.   seed: of the initial weights, None for weights of 0 that are to be filled.   decay: which tensors weight decay
    applies to.   dtype: float32, or float64 for the gradient check.   operand: None, or BF16 for products of bfloat16, or, on a GPU, float16.
    arrays: the module that makes its arrays: NumPy or, for a model on the GPU, CuPy. Tokens and targets may then be arrays of either.
    """

    def __init__(self, config, seed=0, decay="matrices", dtype=np.float32, operand=None, arrays=np):
        self.config, self.dtype, self.operand, self.arrays = config, np.dtype(dtype), np.dtype(operand or dtype), arrays
        self.parameters = Parameters(parameters(config), decay, dtype, self.operand, arrays)
        if seed is not None:
            self.parameters.initialise(seed)
        self.mixers = [mixer_of(config, layer) for layer in range(config.n_layer)]
        self.layer_weights, self.layer_operands, self.layer_gradients = (
            [within(views, f"layers.{layer}") for layer in range(config.n_layer)]
            for views in (self.parameters.weight, self.parameters.operand, self.parameters.gradient)
        )
        self.activations = None

    def exact(self):
        """The same weights in a model that multiplies them as they are, without rounding; `activations` are its own."""
        model = copy.copy(self)
        model.operand, model.activations, model.layer_operands = self.dtype, None, self.layer_weights
        model.parameters = copy.copy(self.parameters)
        model.parameters.operand, model.parameters.packed = self.parameters.weight, []
        return model

    def plan(self, batch, steps):
        """Lay out the arena for (B, T) tokens, once; later calls of the same size keep it. Returns it."""
        if steps > self.config.block_size:
            raise UserError(
                f"{steps} tokens are longer than the model's context of {self.config.block_size}; shorten the window"
            )
        if self.activations is None or (self.activations.batch, self.activations.steps) != (batch, steps):
            self.activations = None  # let go of the old arena before the new one is laid out
            self.activations = Activations(self.config, batch, steps, self.dtype, self.operand, self.arrays)
        return self.activations

    def keys(self, key):
        """Dropout keys: [embedding, layer 0, layer 1, ...], a layer's being (attention, after the mixer, after the feed-forward). Logits are not dropped."""
        if key is None or not self.config.dropout:
            return [None] + [(None, None, None)] * self.config.n_layer
        keys = [ops.dropout_key(*key, 0)] + [
            tuple(ops.dropout_key(*key, 1 + layer, place) for place in range(3)) for layer in range(self.config.n_layer)
        ]
        return keys if self.config.head != "none" else [*keys[:-1], (keys[-1][0], None, None)]

    def forward(self, activations, tokens, keys, states=None):
        """The stream after the last block, normed, (N, D); where the last mixer gives the logits, those, (N, V).

        states: of every layer what its mixer keeps of the past, from which it goes on, see mixers/__init__; None begins new texts.
        """
        config, w, a, layers = self.config, self.parameters.weight, activations.shared, activations.layers
        layer_weights = (
            self.layer_operands if activations.workspace.types.operand == self.operand else self.layer_weights
        )
        positions = w.get("positions.weight") if config.positions == "learned" else a.get("positions")
        if config.positions == "learned":
            positions = positions[: activations.steps]
        if keys[0] is None:
            ops.embedding_forward(layers[0]["x"], tokens, w["embedding.weight"], positions)
        else:
            ops.embedding_forward(a["dnormed"], tokens, w["embedding.weight"], positions)
            ops.dropout_forward(layers[0]["x"], a["dnormed"], None, (config.dropout, keys[0]))
        for i, mixer in enumerate(self.mixers):
            out = layers[i + 1]["x"] if i + 1 < len(layers) else a["x"]
            block_forward(config, mixer, layer_weights[i], layers[i], out, keys[1 + i], states[i] if states else None)
        return norm.forward(config, w, a, "norm", a["x"]) if config.head != "none" else a["x"]

    def backward(self, activations, tokens, targets, normed, scale, keys):
        """Losses and, added to the gradients, the derivative of scale * sum of losses. Mirrors `forward`."""
        config, w, g, a = self.config, self.parameters.operand, self.parameters.gradient, activations.shared
        dx = dout = a["dx"]
        head.backward(config, w, g, a, a["dnormed"], normed, targets, scale)
        if config.head == "none":
            dout = normed  # the logits, which are their gradient by now
        else:
            dx.fill(0)
            norm.backward(config, w, g, a, "norm", dx, a["dnormed"], a["x"])
        for i in reversed(range(config.n_layer)):
            block_backward(
                config,
                self.mixers[i],
                self.layer_operands[i],
                self.layer_gradients[i],
                activations.layers[i],
                dx,
                dout,
                keys[1 + i],
            )
            dout = dx
        if keys[0] is not None:
            ops.dropout_backward(a["dnormed"], dx, (config.dropout, keys[0]))
            dx = a["dnormed"]
        dpositions = g["positions.weight"][: activations.steps] if config.positions == "learned" else None
        ops.embedding_backward(g["embedding.weight"], dpositions, dx, tokens)

    def losses(self, tokens, targets):
        """Cross-entropy of every token in nats, (B, T), dropout off. tokens, targets: (B, T) integers below V, a target of -1 is not counted
        and has loss 0. A view that the next call overwrites."""
        activations, tokens, targets = (
            self.plan(*tokens.shape),
            self.arrays.asarray(tokens),
            self.arrays.asarray(targets),
        )
        normed = self.forward(activations, tokens, self.keys(None))
        head.forward(self.config, self.parameters.operand, activations.shared, normed, targets.reshape(-1))
        return activations.shared["head.losses"].reshape(tokens.shape)

    def loss(self, tokens, targets):
        """Mean cross-entropy of the counted targets in nats, dropout off; 0 if none is counted."""
        return number(self.losses(tokens, targets).sum(dtype=np.float64)) / max(1, counted(targets))

    def loss_and_gradient(self, tokens, targets, count=None, key=None, states=None):
        """Sum of the counted targets' cross-entropy over `count`, in nats; its gradient is added to `parameters.gradients`.

        count: the counted targets of all batches whose gradients make one update, so that it is that of their joint mean; None: of this one.
        key: integers (seed, step, micro-batch) from which dropout's masks are drawn; None leaves dropout off.
        states: the layers of `States`, from which the windows go on and where they leave what they carry; gradients stop at the window's edge.
        """
        count = max(1, counted(targets) if count is None else count)
        activations, tokens, targets = (
            self.plan(*tokens.shape),
            self.arrays.asarray(tokens),
            self.arrays.asarray(targets),
        )
        keys = self.keys(key)
        normed = self.forward(activations, tokens, keys, states)
        self.backward(activations, tokens, targets.reshape(-1), normed, 1 / count, keys)
        return number(activations.shared["head.losses"].sum(dtype=np.float64)) / count

    def logits(self, tokens):
        """Logits of every token, (B, T, V), dropout off. tokens: (B, T) integers below V."""
        activations = self.plan(*tokens.shape)
        normed = self.forward(activations, self.arrays.asarray(tokens), self.keys(None))
        out = self.arrays.empty((tokens.size, self.config.vocab_size), self.dtype)
        head.logits_forward(self.config, self.parameters.operand, activations.shared, out, normed)
        return out.reshape(*tokens.shape, -1)

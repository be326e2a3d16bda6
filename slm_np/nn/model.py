"""The model: embedding, blocks of norm -> mixer -> residual -> norm -> feed-forward -> residual, norm, head.

Forward and backward mirror each other, line by line. Without residual connections a part's output replaces the hidden
state. With head "none" the last mixer gives the logits, and no norm follows. Sizes: B batch, T steps, N = B T tokens, V
vocabulary, D width, L layers.
"""

import copy

import numpy as np

from slm_np import ops
from slm_np.errors import UserError
from slm_np.nn import feed_forward, head, norm, residual, warmup
from slm_np.nn.arena import Arena, Request
from slm_np.nn.dropout import model_dropout
from slm_np.nn.mixers import columns_of, mixer_of
from slm_np.nn.parameters import Parameters, count, matmul_weight, within
from slm_np.ops.device import CPU, host, number


def block_parameters(config, layer):
    yield from norm.parameters(config, "mixer_norm")
    yield from mixer_of(config, layer).parameters(config, columns_of(config, layer))
    if config.feed_forward != "none":
        yield from norm.parameters(config, "feed_forward_norm")
        yield from feed_forward.parameters(config)


def parameters(config):
    """All tensors of a model, in the order of the data flow."""
    embedding = matmul_weight(config, "embedding.weight", (config.vocab_size, config.n_embd), config.n_embd)
    yield embedding._replace(matmul=config.head == "tied")
    if config.positions == "learned":
        positions = matmul_weight(config, "positions.weight", (config.block_size, config.n_embd), config.n_embd)
        yield positions._replace(matmul=False)
    for layer in range(config.n_layer):
        for tensor in block_parameters(config, layer):
            yield tensor._replace(name=f"layers.{layer}.{tensor.name}")
    if config.head != "none":
        yield from norm.parameters(config, "norm")
    yield from head.parameters(config)


def parameter_count(config):
    """Number of parameters of a configuration; a tied head counts once."""
    return count(parameters(config))


def block_plan(config, layer, batch, steps, device):
    n = batch * steps
    yield Request("x", (n, config.n_embd), "saved")
    yield from norm.plan(config, "mixer_norm", n)
    yield from mixer_of(config, layer).plan(config, batch, steps, device)
    if config.feed_forward != "none":
        yield Request("middle", (n, config.n_embd), "saved")
        yield from norm.plan(config, "feed_forward_norm", n)
        yield from feed_forward.plan(config, n, device)
    if config.head == "none" and layer == config.n_layer - 1:
        yield Request("branch", (n, columns_of(config, layer)), "saved", "cast")  # as wide as the logits' gradient


def plan(config, batch, steps, device=CPU):
    """All activations of a model for (B, T) tokens.

    What a layer saves carries its number, the rest is shared by all layers.
    """
    n = batch * steps
    for layer in range(config.n_layer):
        for request in block_plan(config, layer, batch, steps, device):
            saved = request.lifetime == "saved"
            yield request._replace(name=f"layers.{layer}.{request.name}") if saved else request
    yield Request("x", (n, columns_of(config, config.n_layer - 1)), "saved")
    yield from norm.plan(config, "norm", n)
    yield from head.plan(config, n, device)
    yield Request("dx", (n, config.n_embd), "residual")
    yield Request("dnormed", (n, config.n_embd), "scratch")
    yield from residual.plan(config, n)
    if config.positions == "sinusoidal":
        yield Request("positions", (steps, config.n_embd), "saved")
    if config.positions == "rotary":
        yield Request("rotary.cos", (steps, config.head_dim // 2), "saved")
        yield Request("rotary.sin", (steps, config.head_dim // 2), "saved")


def block_forward(config, mixer, w, a, out, dropout, state=None, position=None):
    """middle = x + mixer(norm(x)),   out = middle + feed_forward(norm(middle))        without residuals, neither sum

    position: where the one new token of each sequence stands, when decoding; None for whole windows.
    """
    x, middle = a["x"], a["middle"] if config.feed_forward != "none" else out
    normed = norm.forward(config, w, a, "mixer_norm", x)
    if position is None:
        mixer.forward(config, w, a, middle, normed, x if config.residual else None, dropout.mixer, state)
    else:
        mixer.step(config, w, a, middle, normed, x if config.residual else None, state, position)
    if config.feed_forward != "none":
        normed = norm.forward(config, w, a, "feed_forward_norm", middle)
        feed_forward.forward(config, w, a, out, normed, middle if config.residual else None, dropout.feed_forward)


def block_backward(config, mixer, w, g, a, dx, dout, dropout):
    """dx = the gradient of x

    dout, the gradient of out, is the same array, into which each branch accumulates through its norm. It is another
    array only where it is the gradient of the logits.
    """
    dnormed = a["dnormed"]
    if config.feed_forward != "none":
        normed = norm.forward(config, w, a, "feed_forward_norm", a["middle"])
        feed_forward.backward(config, w, g, a, dnormed, dx, normed, dropout.feed_forward)
        branch_backward(config, w, g, a, "feed_forward_norm", dx, dnormed, a["middle"])
    normed = norm.forward(config, w, a, "mixer_norm", a["x"])
    mixer.backward(config, w, g, a, dnormed, dout, normed, dropout.mixer)
    branch_backward(config, w, g, a, "mixer_norm", dx, dnormed, a["x"])


def branch_backward(config, w, g, a, name, dx, dnormed, x):
    """Accumulate the gradient of x through a branch's norm. Without a residual connection it is the whole gradient."""
    if not config.residual:
        dx.fill(0)
    norm.backward(config, w, g, a, name, dx, dnormed, x)


class States:
    """What the mixers keep of B sequences, in one block of memory, from which later windows continue."""

    def __init__(self, model, batch):
        sizes = [mixer.state_elements(model.config, batch) for mixer in model.mixers]
        self.memory = model.device.arrays.zeros(sum(sizes), model.dtype)
        stops = np.cumsum(sizes).tolist()
        self.layers = [
            mixer.State(model.config, batch, self.memory[stop - size : stop])
            for mixer, size, stop in zip(model.mixers, sizes, stops)
        ]

    def clear(self):
        """Start new sequences."""
        for state in self.layers:
            state.clear()


def unmasked(targets):
    """How many targets are not masked, that is not -1."""
    return int(np.count_nonzero(host(targets) >= 0))


class Activations:
    """The arena of one (B, T), with the arrays of each layer by their short names."""

    def __init__(self, config, batch, steps, dtype, compute_dtype=None, device=CPU):
        self.batch, self.steps = batch, steps
        self.arena = Arena(plan(config, batch, steps, device), dtype, compute_dtype, device)
        self.shared = {name: array for name, array in self.arena.arrays.items() if not name.startswith("layers.")}
        self.layers = [{**self.shared, **within(self.arena.arrays, f"layers.{i}")} for i in range(config.n_layer)]
        self.set_positions(config, 0)

    def set_positions(self, config, start):
        """Fill the positional tables for tokens at start, start + 1, ..."""
        self.start = start
        if config.positions == "sinusoidal":
            ops.sinusoidal_table(self.shared["positions"], start)
        elif config.positions == "rotary":
            ops.rotary_table(self.shared["rotary.cos"], self.shared["rotary.sin"], config.rope_theta, start)


class Model:
    """A model: its configuration, its parameters and, once planned, its activations.

    config         ModelConfig
    seed           of the initial weights; None leaves them 0, to be filled
    decay          which tensors weight decay applies to: "matrices" or "all"
    dtype          float32, or float64 for the gradient check
    compute_dtype  of the matmuls' inputs: None for dtype, BF16, or float16 on a GPU
    device         where it lives, see slm_np.ops.device
    Tokens and targets may be NumPy arrays or arrays of the device.
    """

    def __init__(self, config, seed=0, decay="matrices", dtype=np.float32, compute_dtype=None, device=CPU):
        self.config, self.dtype, self.device = config, np.dtype(dtype), device
        self.compute_dtype = np.dtype(compute_dtype or dtype)
        self.parameters = Parameters(parameters(config), decay, dtype, self.compute_dtype, device)
        if seed is not None:
            self.parameters.initialize(seed)
        self.mixers = [mixer_of(config, layer) for layer in range(config.n_layer)]
        self.layer_weights, self.layer_matmul_weights, self.layer_gradients = (
            [within(views, f"layers.{layer}") for layer in range(config.n_layer)]
            for views in (self.parameters.weight, self.parameters.matmul_weight, self.parameters.gradient)
        )
        self.activations = None
        self.prepared = set()  # what warmup.py has prepared the kernels for

    def full_precision(self):
        """A model with the same weights that multiplies them without casting; its activations are its own."""
        model = copy.copy(self)
        model.compute_dtype, model.activations, model.layer_matmul_weights = self.dtype, None, self.layer_weights
        model.prepared = set()
        model.parameters = copy.copy(self.parameters)
        model.parameters.matmul_weight, model.parameters.cast_copies = self.parameters.weight, []
        return model

    def states(self, batch):
        """What the mixers keep of `batch` new sequences."""
        return States(self, batch)

    def plan(self, batch, steps):
        """Lay out the arena for (B, T) tokens; later calls of the same size reuse it. Returns the Activations.

        Raises UserError if T exceeds the context.
        """
        if steps > self.config.block_size:
            raise UserError(
                f"{steps} tokens exceed the model's context of {self.config.block_size}; use shorter windows"
            )
        if self.activations is None or (self.activations.batch, self.activations.steps) != (batch, steps):
            self.activations = None  # free the old arena before the new one is laid out
            self.activations = Activations(self.config, batch, steps, self.dtype, self.compute_dtype, self.device)
        return self.activations

    def forward(self, activations, tokens, dropout, states=None, position=None):
        """The normed hidden state after the last block, (N, D); with head "none" the logits, (N, V).

        dropout   ModelDropout
        states    per layer what its mixer keeps of the past, from which it continues; None starts new sequences
        position  as of `block_forward`
        """
        config, w, a, layers = self.config, self.parameters.weight, activations.shared, activations.layers
        mixed = activations.arena.dtypes.compute == self.compute_dtype
        layer_weights = self.layer_matmul_weights if mixed else self.layer_weights
        positions = a.get("positions")
        if config.positions == "learned":
            positions = w["positions.weight"][activations.start : activations.start + activations.steps]
        if dropout.embedding is None:
            ops.embedding_forward(layers[0]["x"], tokens, w["embedding.weight"], positions)
        else:
            ops.embedding_forward(a["dnormed"], tokens, w["embedding.weight"], positions)
            ops.dropout_forward(layers[0]["x"], a["dnormed"], None, dropout.embedding)
        for i, mixer in enumerate(self.mixers):
            out = layers[i + 1]["x"] if i + 1 < len(layers) else a["x"]
            state = states[i] if states else None
            block_forward(config, mixer, layer_weights[i], layers[i], out, dropout.blocks[i], state, position)
        return norm.forward(config, w, a, "norm", a["x"]) if config.head != "none" else a["x"]

    def backward(self, activations, tokens, targets, normed, scale, dropout):
        """The losses and, accumulated into the gradients, the derivative of scale * sum of losses.

        Mirrors `forward`.
        """
        config, w, g, a = self.config, self.parameters.matmul_weight, self.parameters.gradient, activations.shared
        dx = dout = a["dx"]
        head.backward(config, w, g, a, a["dnormed"], normed, targets, scale)
        if config.head == "none":
            dout = normed  # the logits, which are their gradient by now
        else:
            dx.fill(0)
            norm.backward(config, w, g, a, "norm", dx, a["dnormed"], a["x"])
        for i in reversed(range(config.n_layer)):
            layer_w, layer_g, layer_a = self.layer_matmul_weights[i], self.layer_gradients[i], activations.layers[i]
            block_backward(config, self.mixers[i], layer_w, layer_g, layer_a, dx, dout, dropout.blocks[i])
            dout = dx
        if dropout.embedding is not None:
            ops.dropout_backward(a["dnormed"], dx, dropout.embedding)
            dx = a["dnormed"]
        dpositions = g["positions.weight"][: activations.steps] if config.positions == "learned" else None
        ops.embedding_backward(g["embedding.weight"], dpositions, dx, tokens)

    def losses(self, tokens, targets):
        """Cross-entropy of every token in nats, (B, T), without dropout. The next call overwrites the result.

        tokens, targets: (B, T) integers below V; a target of -1 is masked and has loss 0.
        """
        warmup.prepare(self, warmup.evaluation)
        activations = self.plan(*tokens.shape)
        tokens, targets = self.device.arrays.asarray(tokens), self.device.arrays.asarray(targets)
        normed = self.forward(activations, tokens, model_dropout(self.config))
        head.forward(self.config, self.parameters.matmul_weight, activations.shared, normed, targets.reshape(-1))
        return activations.shared["head.losses"].reshape(tokens.shape)

    def loss(self, tokens, targets):
        """Mean cross-entropy of the unmasked targets in nats, without dropout; 0 if all are masked."""
        return number(self.losses(tokens, targets).sum(dtype=np.float64)) / max(1, unmasked(targets))

    def loss_and_gradient(self, tokens, targets, count=None, key=None, states=None):
        """Sum of the unmasked targets' cross-entropy over `count`, in nats; accumulates its gradient.

        The gradient is added to `parameters.gradients`.

        count   unmasked targets of all micro-batches of one update, whose joint mean is the loss; None: of this one
        key     integers (seed, step, micro-batch) from which dropout's masks are drawn; None: no dropout
        states  the layers of `States`, from which the windows continue; gradients stop at the window's edge
        """
        warmup.prepare(self, warmup.training)
        count = max(1, unmasked(targets) if count is None else count)
        activations, dropout = self.plan(*tokens.shape), model_dropout(self.config, key)
        tokens, targets = self.device.arrays.asarray(tokens), self.device.arrays.asarray(targets)
        normed = self.forward(activations, tokens, dropout, states)
        self.backward(activations, tokens, targets.reshape(-1), normed, 1 / count, dropout)
        return number(activations.shared["head.losses"].sum(dtype=np.float64)) / count

    def logits(self, tokens):
        """Logits of every token, (B, T, V), without dropout. tokens: (B, T) integers below V."""
        warmup.prepare(self, warmup.evaluation)
        activations = self.plan(*tokens.shape)
        normed = self.forward(activations, self.device.arrays.asarray(tokens), model_dropout(self.config))
        out = self.device.arrays.empty((tokens.size, self.config.vocab_size), self.dtype)
        head.logits_forward(self.config, self.parameters.matmul_weight, activations.shared, out, normed)
        return out.reshape(*tokens.shape, -1)

"""The model: embedding, blocks of norm -> mixer -> residual -> norm -> feed-forward -> residual, norm, head.

Forward and backward mirror each other, line by line. In a parallel block both norms read the block's input, and both
branches are added to it. Without residual connections a part's output replaces the hidden state. With head "none" the
last mixer gives the logits, and no norm follows. Sizes: B batch, T steps, N = B T tokens, V vocabulary, D width, L
layers.
"""

import copy
import copyreg
import functools
from typing import Any, NamedTuple

import numpy as np

from slm_np import arguments, ops
from slm_np.config import LoraConfig, ModelConfig
from slm_np.dtypes import BF16, CastCopy
from slm_np.errors import UserError
from slm_np.nn import feed_forward, head, lora, norm, residual, warmup
from slm_np.nn.arena import Arena, Request, planned_bytes
from slm_np.nn.dropout import ModelDropout, model_dropout
from slm_np.nn.mixers import columns_of, mixer_of
from slm_np.nn.parameters import SMALLER_MODEL, Parameters, count, frozen_bytes, matmul_weight, within
from slm_np.ops.device import CPU, Device, host, number, put
from slm_np.words import counted

LARGEST = 1 << 40  # of a batch or a window: no memory holds more
KEPT = ("x", "branch")  # what a block saves even if backward recomputes the rest


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


def model_tensors(config, settings=None):
    """(tensors, [(Adapter, ...) of each layer]) of a model with the adapters of a LoraConfig. None: no adapters.

    With adapters, all other tensors are frozen.
    """
    tensors = list(parameters(config))
    if settings is None:
        return tensors, [()] * config.n_layer
    layers = lora.adapters(config, settings, tensors)
    return [t._replace(trained=False) for t in tensors] + list(lora.parameters(layers)), layers


def parameter_count(config):
    """Number of parameters of a configuration; a tied head counts once."""
    return count(parameters(arguments.instance("config", config, ModelConfig)))


def block_plan(config, layer, batch, steps, device):
    n = batch * steps
    yield Request("x", (n, config.n_embd), "saved")
    yield from norm.plan(config, "mixer_norm", n)
    yield from mixer_of(config, layer).plan(config, batch, steps, device)
    if config.feed_forward != "none":
        if not config.parallel:
            yield Request("middle", (n, config.n_embd), "saved")
        yield from norm.plan(config, "feed_forward_norm", n)
        yield from feed_forward.plan(config, n, device)
    if config.head == "none" and layer == config.n_layer - 1:
        yield Request("branch", (n, columns_of(config, layer)), "saved", "cast")  # as wide as the logits' gradient


def plan(config, batch, steps, device=CPU, recompute=False, adapters=()):
    """All activations of a model for (B, T) tokens.

    The names of saved activations start with the layer's number. All layers share the others. With `recompute` a layer
    saves its input only: for a backward that recomputes the rest, or for a pass without backward.
    adapters: [(Adapter, ...) of each layer], see lora.py
    """
    n = batch * steps
    yield from lora.plan(adapters, n)
    for layer in range(config.n_layer):
        saved = lora.block_plan(adapters[layer], n) if adapters else ()
        for request in (*block_plan(config, layer, batch, steps, device), *saved):
            if request.lifetime != "saved":
                yield request
            elif recompute and request.name not in KEPT:
                yield request._replace(lifetime="block")
            else:
                yield request._replace(name=f"layers.{layer}.{request.name}")
    yield Request("x", (n, columns_of(config, config.n_layer - 1)), "saved")
    yield from norm.plan(config, "norm", n)
    yield from head.plan(config, n, device)
    yield Request("dx", (n, config.n_embd), "residual")
    yield Request("dnormed", (n, config.n_embd), "scratch")
    if config.parallel:
        yield Request("dnormed_feed_forward", (n, config.n_embd), "scratch")
    yield from residual.plan(config, n)
    if config.positions == "sinusoidal":
        yield Request("positions", (steps, config.n_embd), "saved")
    if config.positions == "rotary":
        yield Request("rotary.cos", (steps, config.rotary_width // 2), "saved")
        yield Request("rotary.sin", (steps, config.rotary_width // 2), "saved")


def block_forward(config, mixer, w, a, out, dropout, state=None, position=None):
    """middle = x + mixer(norm(x)),   out = middle + feed_forward(norm(middle))        without residuals, neither sum

    A parallel block has feed_forward(norm(x)) instead. `middle` is then a partial sum in `out`, which backward does not
    read.
    position: of the one new token of each sequence, when decoding; None for whole windows
    out: None to recompute only what backward reads. Requires that `middle` is an array of its own
    """
    a["lora_dropout"] = dropout.adapters
    x = a["x"]
    middle = a["middle"] if config.feed_forward != "none" and not config.parallel else out
    normed = norm.forward(config, w, a, "mixer_norm", x)
    if position is None:
        mixer.forward(config, w, a, middle, normed, x if config.residual else None, dropout.mixer, state)
    else:
        mixer.step(config, w, a, middle, normed, x if config.residual else None, state, position)
    if config.feed_forward != "none":
        normed = norm.forward(config, w, a, "feed_forward_norm", x if config.parallel else middle)
        feed_forward.forward(config, w, a, out, normed, middle if config.residual else None, dropout.feed_forward)


def block_backward(config, mixer, w, g, a, dx, dout, dropout):
    """dx = the gradient of x

    dout, the gradient of out, is the same array, into which each branch accumulates through its norm. Only the gradient
    of the logits is another array. In a parallel block both branches read dout before either accumulates, so each needs
    an array for its gradient.
    """
    a["lora_dropout"] = dropout.adapters
    dnormed = dfeed_forward = a["dnormed"]
    if config.feed_forward != "none":
        middle = a["x" if config.parallel else "middle"]
        normed = norm.forward(config, w, a, "feed_forward_norm", middle)
        if config.parallel:
            dfeed_forward = a["dnormed_feed_forward"]
        feed_forward.backward(config, w, g, a, dfeed_forward, dx, normed, dropout.feed_forward)
        if not config.parallel:
            branch_backward(config, w, g, a, "feed_forward_norm", dx, dfeed_forward, middle)
    normed = norm.forward(config, w, a, "mixer_norm", a["x"])
    mixer.backward(config, w, g, a, dnormed, dout, normed, dropout.mixer)
    if config.parallel:
        branch_backward(config, w, g, a, "feed_forward_norm", dx, dfeed_forward, a["x"])
    branch_backward(config, w, g, a, "mixer_norm", dx, dnormed, a["x"])


def branch_backward(config, w, g, a, name, dx, dnormed, x):
    """Accumulate the gradient of x through a branch's norm. Without a residual connection it is the whole gradient."""
    if not config.residual:
        dx.fill(0)
    norm.backward(config, w, g, a, name, dx, dnormed, x)


class States(arguments.Fixed):
    """What the mixers keep of B sequences, in one block of memory, from which later windows continue.

    states[i] is the state of layer i. A copy, also by pickle, continues on its own.
    """

    FIXED = ("model", "batch", "memory")

    def __init__(self, model, batch):
        sizes = [mixer.state_elements(model.config, batch) for mixer in model.mixers]
        stops, copies = np.cumsum(sizes).tolist(), 1 + model.recompute
        model.device.check_memory(
            copies * sum(sizes) * model.dtype.itemsize, f"the state of {counted(batch, 'sequence')}", "use fewer"
        )
        self.model, self.batch = model, batch
        self.memory, *initial = model.device.arrays.zeros((copies, sum(sizes)), model.dtype)
        self._layers, *self._initial = (
            [
                mixer.State(model.config, batch, memory[stop - size : stop])
                for mixer, size, stop in zip(model.mixers, sizes, stops)
            ]
            for memory in (self.memory, *initial)
        )
        self._initial_memory = initial

    def __len__(self):
        return len(self._layers)

    def __getitem__(self, layer):
        return self._layers[layer]

    def __copy__(self):
        return copy.deepcopy(self)

    def __getstate__(self):
        return self.model, self.batch, host(self.memory)

    def __setstate__(self, state):
        model, batch, memory = state
        self.__init__(model, batch)
        put(self.memory, memory)

    def clear(self):
        """Start new sequences."""
        for state in self:
            state.clear()

    def kept(self):
        """A copy of each layer's state, from which backward recomputes the next window. None without recomputation."""
        for memory in self._initial_memory:
            memory[...] = self.memory
        return self._initial[0] if self._initial else None


def unmasked(targets):
    """How many targets are not masked, that is not -1."""
    return int(np.count_nonzero(host(targets) >= 0))


class Pass(NamedTuple):
    """What `Model.forward` read and returned: arrays of the device, and the dropout."""

    tokens: Any
    normed: Any
    dropout: ModelDropout


class Activations:
    """The arena of one (B, T), with the arrays of each layer by their short names. recompute: see `plan`"""

    def __init__(self, config, batch, steps, dtype, compute_dtype=None, device=CPU, recompute=False, adapters=()):
        self.config, self.batch, self.steps, self.device, self.recompute = config, batch, steps, device, recompute
        self.pending = None  # the Pass that `Model.backward` may follow
        self.initial_states = None  # of each layer, from which backward recomputes the window
        self.arena = Arena(plan(config, batch, steps, device, recompute, adapters), dtype, compute_dtype, device)
        self.shared = {name: array for name, array in self.arena.arrays.items() if not name.startswith("layers.")}
        self.layers = [{**self.shared, **within(self.arena.arrays, f"layers.{i}")} for i in range(config.n_layer)]
        self.set_positions(config, 0)

    def set_positions(self, config, start):
        """Fill the positional tables for tokens at start, start + 1, ..."""
        self.start = start
        if config.positions == "sinusoidal":
            ops.sinusoidal_table(self.shared["positions"], start)
        elif config.positions == "rotary":
            cos, sin = self.shared["rotary.cos"], self.shared["rotary.sin"]
            ops.rotary_table(cos, sin, config.rope_theta, start, config.rotary_frequencies)


def model_forward(model, activations, tokens, dropout, states=None, position=None):
    """The normed hidden state after the last block, (N, D); with head "none" the logits, (N, V).

    tokens    (B, T) int32 below V, of the model's device. This is not checked, see `Model.forward`
    dropout   ModelDropout
    states    what the mixers keep of the past, from which they continue; None starts new sequences
    position  see `block_forward`
    """
    config, w, a, layers = model.config, model.parameters.weight, activations.shared, activations.layers
    activations.pending = None
    activations.initial_states = states.kept() if states else None
    mixed = activations.arena.dtypes.compute == model.compute_dtype
    layer_weights = model.layer_matmul_weights if mixed else model.layer_weights
    positions = a.get("positions")
    if config.positions == "learned":
        positions = w["positions.weight"][activations.start : activations.start + activations.steps]
    if dropout.embedding is None:
        embed(model, layers[0]["x"], tokens, w["embedding.weight"], positions)
    else:
        embed(model, a["dnormed"], tokens, w["embedding.weight"], positions)
        ops.dropout_forward(layers[0]["x"], a["dnormed"], None, dropout.embedding)
    for i, mixer in enumerate(model.mixers):
        out = layers[i + 1]["x"] if i + 1 < len(layers) else a["x"]
        state = states[i] if states else None
        block_forward(config, mixer, layer_weights[i], layers[i], out, dropout.blocks[i], state, position)
    return norm.forward(config, w, a, "norm", a["x"]) if config.head != "none" else a["x"]


def embed(model, out, tokens, weight, positions):
    """`ops.embedding_forward`, also for a weight that exists only as a CastCopy."""
    if not isinstance(weight, CastCopy):
        ops.embedding_forward(out, tokens, weight, positions)
        return
    ops.convert(out, model.device.kernels.cast_copy_rows(weight, tokens.reshape(-1), out.shape[1]))
    if positions is not None:
        out.reshape(*tokens.shape, -1)[...] += positions


def model_backward(model, activations, tokens, targets, normed, scale, dropout):
    """The losses and, accumulated into the gradients, the derivative of scale * sum of losses.

    Mirrors `model_forward`, which it follows. targets: (N,) int32, of the device
    """
    config, w, g, a = model.config, model.parameters.matmul_weight, model.parameters.gradient, activations.shared
    activations.pending = None
    dx = dout = a["dx"]
    head.backward(config, w, g, a, a["dnormed"], normed, targets, scale)
    if config.head == "none":
        dout = normed  # the logits, which are their gradient by now
    else:
        dx.fill(0)
        norm.backward(config, w, g, a, "norm", dx, a["dnormed"], a["x"])
    for i in reversed(range(config.n_layer)):
        layer_w, layer_g, layer_a = model.layer_matmul_weights[i], model.layer_gradients[i], activations.layers[i]
        if activations.recompute and i + 1 < config.n_layer:  # the activations of the last block still exist
            out = None if "middle" in layer_a else activations.layers[i + 1]["x"]
            state = activations.initial_states[i] if activations.initial_states else None
            block_forward(config, model.mixers[i], layer_w, layer_a, out, dropout.blocks[i], state)
        block_backward(config, model.mixers[i], layer_w, layer_g, layer_a, dx, dout, dropout.blocks[i])
        dout = dx
    if "embedding.weight" not in g:
        return
    if dropout.embedding is not None:
        ops.dropout_backward(a["dnormed"], dx, dropout.embedding)
        dx = a["dnormed"]
    dpositions = g["positions.weight"][: activations.steps] if config.positions == "learned" else None
    ops.embedding_backward(g["embedding.weight"], dpositions, dx, tokens)


def weight_bytes(tensors, dtype, compute_dtype, device):
    """Bytes of the weights, including cast copies."""
    mixed = compute_dtype not in (None, dtype)
    copies = device.cast_copies * np.dtype(compute_dtype).itemsize if mixed else 0
    trained, frozen = [t for t in tensors if t.trained], [t for t in tensors if not t.trained]
    total = count(trained) * np.dtype(dtype).itemsize + count(t for t in trained if t.matmul) * copies
    return total + frozen_bytes(frozen, dtype, compute_dtype, device)


def is_fused(name):
    """Whether a mixer computes the gradient of a tensor together with that of its input."""
    part, _, rest = name.partition(".")[2].partition(".")[2].partition(".")
    linear = f"{part}.{rest.partition('.')[0]}" in lora.TARGETS.values()
    return name.startswith("layers.") and part in ("attention", "mamba") and not linear


def dtypes_of(dtype, compute_dtype, device):
    """(dtype of weights, dtype of matmuls). Raises UserError if the kernels of the device do not compute in them."""
    dtype = arguments.dtype("dtype", dtype, (np.float32, np.float64))
    if compute_dtype is None:
        return dtype, dtype
    shorter = {"numpy": (), "numba": (BF16,), "cuda": (BF16, np.float16)}[device.kernel_set]
    return dtype, arguments.dtype(
        "compute_dtype", compute_dtype, (dtype, *shorter) if dtype == np.float32 else (dtype,)
    )


class Model(arguments.Fixed):
    """A model: its configuration, its parameters and, once planned, its activations.

    config         ModelConfig
    seed           of the initial weights; None leaves them 0, to be filled
    decay          which tensors weight decay applies to: "matrices" or "all"
    dtype          float32, or float64 for the gradient check
    compute_dtype  of the matmuls' inputs: None for dtype, BF16, or float16 on a GPU
    device         where it lives, see slm_np.ops.device
    recompute      backward computes each block again instead of reading what forward saved: the same gradient, to the
                   bit, in less memory
    lora           LoraConfig: adapters are trained, and all other weights are frozen. None: all weights are trained
    Tokens and targets may be arrays of any integer type, lists, or arrays of the device. Every method raises UserError
    for arguments of a wrong type or shape or out of range. A copy, also by pickle, has its own weights and gradients;
    its activations are planned anew.
    """

    FIXED = ("config", "device", "dtype", "compute_dtype", "recompute", "lora", "parameters")

    def __init__(
        self,
        config,
        seed=0,
        decay="matrices",
        dtype=np.float32,
        compute_dtype=None,
        device=CPU,
        recompute=False,
        lora=None,
    ):
        self.config = arguments.instance("config", config, ModelConfig)
        self.device = arguments.instance("device", device, Device)
        self.dtype, self.compute_dtype = dtypes_of(dtype, compute_dtype, device)
        self.recompute = arguments.truth("recompute", recompute)
        decay = arguments.choice("decay", decay, ("matrices", "all"))
        seed = None if seed is None else arguments.whole("seed", seed, 0, arguments.SEEDS)
        has_adapters = lora is not None and arguments.instance("lora", lora, LoraConfig).lora_rank
        self.lora = lora if has_adapters else None
        tensors, _ = model_tensors(self.config, self.lora)
        n, needed = count(tensors), weight_bytes(tensors, self.dtype, self.compute_dtype, device)
        device.check_memory(needed, f"a model of {n:,} parameters", SMALLER_MODEL)
        self.parameters = Parameters(tensors, decay, self.dtype, self.compute_dtype, device)
        if seed is not None:
            self.parameters.initialize(seed)
        self._bind()

    def _bind(self):
        """What follows from the configuration and the parameters."""
        self.mixers = [mixer_of(self.config, layer) for layer in range(self.config.n_layer)]
        _, self.adapters = model_tensors(self.config, self.lora)  # of each layer
        self.layer_weights, self.layer_matmul_weights = (
            [
                within(views, f"layers.{layer}") | {f"{adapter.name}.lora": adapter for adapter in own}
                for layer, own in enumerate(self.adapters)
            ]
            for views in (self.parameters.weight, self.parameters.matmul_weight)
        )
        self.__dict__.pop("layer_gradients", None)
        self.activations = None
        self.original = None  # the model that this one is the `full_precision` of
        self.prepared = set()  # what warmup.py has prepared the kernels for

    @functools.cached_property
    def layer_gradients(self):
        """The gradients of each layer: {name: array}.

        Some mixers compute the gradients of small frozen tensors together with the gradient of their input. These are
        discarded: they are written to memory that all layers share.
        """
        discarded = {}

        def own(name):
            kind = name.split(".", 2)[2]
            return discarded.setdefault(kind, self.device.arrays.zeros_like(self.parameters.weight[name]))

        unused = {t.name: own(t.name) for t in self.parameters.tensors if not t.trained and is_fused(t.name)}
        views = unused | self.parameters.gradient
        return [within(views, f"layers.{layer}") for layer in range(self.config.n_layer)]

    def __copy__(self):
        return copy.deepcopy(self)

    def __reduce__(self):
        if self.original is not None:  # it shares the weights of another model, and so does its copy
            return type(self).full_precision, (self.original,)
        state = {name: getattr(self, name) for name in self.FIXED}
        return copyreg.__newobj__, (type(self),), state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._bind()

    def full_precision(self):
        """A model with the same weights that multiplies them without casting; its activations are its own."""
        model = object.__new__(type(self))
        model.__dict__.update(self.__dict__, compute_dtype=self.dtype, parameters=self.parameters.full_precision())
        model._bind()
        model.original = self
        return model

    def states(self, batch):
        """What the mixers keep of `batch` new sequences."""
        return States(self, arguments.whole("batch", batch, 1, LARGEST))

    def plan(self, batch, steps):
        """Lay out the arena for (B, T) tokens; later calls of the same size reuse it. Returns the Activations.

        Raises UserError if T exceeds the context, or if there is too little memory.
        """
        return self._plan(batch, steps, self.recompute)

    def _plan(self, batch, steps, recompute):
        """`plan`. recompute: see the function `plan`. An arena that saves more is kept."""
        batch, steps = arguments.whole("batch", batch, 1, LARGEST), arguments.whole("steps", steps, 1, LARGEST)
        if steps > self.config.block_size:
            raise UserError(
                f"{steps} tokens exceed the model's context of {self.config.block_size}; use shorter windows"
            )
        a, dtypes = self.activations, (self.dtype, self.compute_dtype)
        if a is None or (a.batch, a.steps) != (batch, steps) or a.recompute and not recompute:
            self.activations = a = None  # free the old arena before the new one is laid out
            options = dict(adapters=self.adapters, recompute=recompute)
            needed = planned_bytes(plan(self.config, batch, steps, self.device, **options), *dtypes)
            self.device.check_memory(needed, f"a batch of {batch} x {steps} tokens", "use a smaller one")
            self.activations = Activations(self.config, batch, steps, *dtypes, self.device, **options)
        return self.activations

    def _ids(self, name, value, shape, masked=False, also=None):
        """Token ids as an int32 array of the device. Parameters of `arguments.ids`"""
        arrays = self.device.arrays
        return arrays.asarray(arguments.ids(name, value, self.config.vocab_size, shape, arrays, masked, also))

    def _batch(self, tokens, targets):
        """(tokens, targets), both (B, T) int32 arrays of the device."""
        tokens = self._ids("tokens", tokens, ("B", "T"))
        return tokens, self._ids("targets", targets, tokens.shape, masked=True)

    def _states(self, states, batch):
        """The states of `batch` sequences of this model, or None."""
        if states is None:
            return None
        made = arguments.instance("states", states, States)
        of = made.model
        if (made.batch, of.config, of.dtype, of.recompute) != (batch, self.config, self.dtype, self.recompute):
            raise UserError(
                f"states are of another model or of {counted(made.batch, 'sequence')}; use model.states({batch})"
            )
        if self.config.has_attention:
            raise UserError("states are given, but attention continues no windows; leave states out")
        return made

    def forward(self, activations, tokens, dropout, states=None):
        """The normed hidden state after the last block, (N, D); with head "none" the logits, (N, V).

        activations  of `plan`
        dropout      ModelDropout
        states       `States`, from which the windows continue; None starts new sequences
        """
        a = arguments.instance("activations", activations, Activations)
        planned_for = a.config, a.arena.dtypes.accumulation, a.device, a.recompute
        if planned_for != (self.config, self.dtype, self.device, self.recompute):
            raise UserError("activations are planned for another model; use those of this model's plan")
        self._dropout(dropout)
        tokens, states = self._ids("tokens", tokens, (a.batch, a.steps)), self._states(states, a.batch)
        normed = model_forward(self, a, tokens, dropout, states)
        a.pending = Pass(tokens.copy(), normed, dropout)
        return normed

    def dropout(self, key=None):
        """The ModelDropout of one micro-batch. key: see `loss_and_gradient`"""
        return model_dropout(self.config, None if key is None else arguments.wholes("key", key), self.adapters)

    def _dropout(self, dropout):
        """UserError if it is not the ModelDropout of such a model."""
        if len(arguments.instance("dropout", dropout, ModelDropout).blocks) != self.config.n_layer:
            raise UserError(
                f"dropout has {len(dropout.blocks)} blocks, but the model {self.config.n_layer} layers; "
                "make it by model_dropout(model.config, key)"
            )

    def backward(self, activations, tokens, targets, normed, scale, dropout):
        """The losses and, accumulated into the gradients, the derivative of scale * sum of losses.

        Follows one `forward` with the same activations, tokens and dropout; normed is what that returned.
        targets: (B, T) or (N,) integers below V; -1 is masked
        """
        a = arguments.instance("activations", activations, Activations)
        if a.pending is None or a.pending.normed is not normed or a.pending.dropout != dropout:
            raise UserError(
                "backward needs the activations, the dropout and the result of a forward right before it; "
                "call forward again"
            )
        tokens = self._ids("tokens", tokens, (a.batch, a.steps))
        if not bool((tokens == a.pending.tokens).all()):
            raise UserError("backward has other tokens than the forward before it; give the same")
        targets = self._ids("targets", targets, (a.batch * a.steps,), masked=True, also=(a.batch, a.steps))
        model_backward(self, a, tokens, targets, normed, arguments.real("scale", scale), dropout)

    def losses(self, tokens, targets):
        """Cross-entropy of every token in nats, (B, T), without dropout. The next call overwrites the result.

        tokens, targets: (B, T) integers below V; a target of -1 is masked and has loss 0.
        """
        return self._losses(*self._batch(tokens, targets))

    def _losses(self, tokens, targets):
        """`losses` of arrays that are checked."""
        warmup.prepare(self, warmup.evaluation)
        activations = self._plan(*tokens.shape, recompute=True)  # no backward follows
        normed = model_forward(self, activations, tokens, model_dropout(self.config))
        head.forward(self.config, self.parameters.matmul_weight, activations.shared, normed, targets.reshape(-1))
        return activations.shared["head.losses"].reshape(tokens.shape)

    def loss(self, tokens, targets):
        """Mean cross-entropy of the unmasked targets in nats, without dropout; 0 if all are masked."""
        tokens, targets = self._batch(tokens, targets)
        return number(self._losses(tokens, targets).sum(dtype=np.float64)) / max(1, unmasked(targets))

    def loss_and_gradient(self, tokens, targets, count=None, key=None, states=None):
        """Sum of the unmasked targets' cross-entropy over `count`, in nats; accumulates its gradient.

        The gradient is added to `parameters.gradients`.

        count   unmasked targets of all micro-batches of one update, whose joint mean is the loss; None: of this one.
                At least those of this one
        key     integers (seed, step, micro-batch) from which dropout's masks are drawn; None: no dropout
        states  `States`, from which the windows continue; gradients stop at the window's edge
        """
        tokens, targets = self._batch(tokens, targets)
        states, dropout = self._states(states, len(tokens)), self.dropout(key)
        warmup.prepare(self, warmup.training)
        count = max(
            1, unmasked(targets) if count is None else arguments.whole("count", count, unmasked(targets), LARGEST)
        )
        activations = self.plan(*tokens.shape)
        normed = model_forward(self, activations, tokens, dropout, states)
        model_backward(self, activations, tokens, targets.reshape(-1), normed, 1 / count, dropout)
        return number(activations.shared["head.losses"].sum(dtype=np.float64)) / count

    def logits(self, tokens):
        """Logits of every token, (B, T, V), without dropout. tokens: (B, T) integers below V."""
        tokens = self._ids("tokens", tokens, ("B", "T"))
        needed = tokens.size * self.config.vocab_size * self.dtype.itemsize
        self.device.check_memory(needed, f"the matrix of logits of {counted(tokens.size, 'token')}", "use fewer")
        warmup.prepare(self, warmup.evaluation)
        activations = self._plan(*tokens.shape, recompute=True)
        normed = model_forward(self, activations, tokens, model_dropout(self.config))
        out = self.device.arrays.empty((tokens.size, self.config.vocab_size), self.dtype)
        head.logits_forward(self.config, self.parameters.matmul_weight, activations.shared, out, normed)
        return out.reshape(*tokens.shape, -1)

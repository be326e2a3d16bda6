"""Low-rank adapters of linear layers (Hu et al. 2021): y = x W + b + s D(x) A B, with W and b frozen.

Sizes: N tokens, D inputs, E outputs, r rank. A (D, r) starts uniform, B (r, E) as zeros, so training starts from the
base. s = alpha / r or, with rslora, alpha / sqrt(r). D is dropout, which is linear and its own transpose.

With u = s D(x) A (N, r), the adapter adds u B to y. From the gradient dy of the loss,

    dB += u^T dy        du = s dy B^T        dA += D(x)^T du        dx = dy W^T + D(du A^T)

Derivation: u B is a matmul, so the gradients of its inputs are u^T dy and dy B^T. So is u = s D(x) A. The factor s is
part of du, and the gradient of D(x) passes through D again. Forward saves u, and backward writes du in its place.

One linear layer here may be several in other programs: queries | keys | values, gate | up. Then each of the P parts has
an adapter of its own. They read the same x, so two matmuls serve all parts: their A are the columns of one matrix
(D, P r), and their B are the blocks on the diagonal of one matrix (P r, E). Elements off the diagonal stay zero,
because their gradient is set to zero.
"""

import math
from typing import NamedTuple

from slm_np import ops
from slm_np.errors import UserError, near
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor

# {name in --lora-targets: linear layer of a block}
ATTENTION = {"q": "attention.qkv", "k": "attention.qkv", "v": "attention.qkv", "o": "attention.output"}
FEED_FORWARD = {"gate": "feed_forward.input", "up": "feed_forward.input", "down": "feed_forward.output"}
MAMBA = {name: f"mamba.{name}" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}
RECURRENCE = {f"recurrence.{name}": f"recurrence.{name}" for name in ("input", "output", "skip")}
TARGETS = {**ATTENTION, **FEED_FORWARD, **MAMBA, **RECURRENCE}
NAMED = ("dt_proj", "out_proj")  # adapted only if they are named: PEFT does not apply them, see formats/peft.py
GROUPS = {"all": tuple(name for name in TARGETS if name not in NAMED), "attention": tuple(ATTENTION)}
WHOLE = "qkv"  # queries, keys and values as one linear layer


class Part(NamedTuple):
    """The part of a linear layer that one adapter changes: its name, and its columns of the layer's output."""

    name: str
    start: int
    stop: int


class Adapter(NamedTuple):
    """The adapters of one linear layer.

    name     of the layer within its block, such as "attention.qkv"
    index    among the adapted layers of the block
    shape    (D, E) of the layer's weight
    parts    Part of each adapter
    scale    s
    dropout  rate of D
    matmul   whether the layer's input has the compute dtype
    """

    name: str
    index: int
    shape: tuple
    parts: tuple
    rank: int
    scale: float
    dropout: float
    matmul: bool

    @property
    def columns(self):
        """Columns of A: the rank of each part."""
        return self.rank * len(self.parts)


def scale_of(lora):
    """s of a LoraConfig."""
    return lora.lora_alpha / (math.sqrt(lora.lora_rank) if lora.rslora else lora.lora_rank)


def named_targets(lora):
    """[(word in --lora-targets, names that it stands for), ...]. Raises UserError for an unknown word."""
    found = []
    for word in map(str.strip, lora.lora_targets.split(",")):
        name = word if word in TARGETS else word.removesuffix("_proj")
        if name not in GROUPS and name not in TARGETS and name != WHOLE:
            raise UserError(f"--lora-targets {word!r} is unknown; {near(name, [*GROUPS, *TARGETS, WHOLE])}")
        found.append((word, GROUPS.get(name, (name,))))
    return found


def target_of(part):
    """The name in --lora-targets of the Part with the name `part`."""
    word, names = part.rpartition(".")[2], {layer: target for target, layer in TARGETS.items()}
    return word if word in TARGETS or word == WHOLE else names[part]


def has_whole_qkv(config):
    """Whether queries, keys and values are one linear layer in the programs that know the model: GPT-2 and GPT-NeoX."""
    return config.positions == "learned" and config.has_qkv_bias or config.parallel


def columns_of(config, linear):
    """{name in TARGETS: (first column, one behind the last)} of a linear layer that is several side by side, else {}.

    linear: its name and the shape of its weight
    """
    name, (_, columns) = linear
    if name == "attention.qkv":
        query, key = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        return {"q": (0, query), "k": (query, query + key), "v": (query + key, columns)}
    if name == "feed_forward.input" and config.feed_forward == "swiglu":
        return {"gate": (0, columns // 2), "up": (columns // 2, columns)}
    return {}


def parts_of(config, linear, targets):
    """The Parts of a linear layer that have adapters. linear: as of `columns_of`"""
    name, (_, columns) = linear
    if name == "attention.qkv" and (WHOLE in targets or has_whole_qkv(config) and set(targets) >= {"q", "k", "v"}):
        return (Part(name, 0, columns),)
    several, prefix = columns_of(config, linear), name.partition(".")[0]
    if several:
        return tuple(Part(f"{prefix}.{part}", *span) for part, span in several.items() if part in targets)
    wanted = "up" if name == "feed_forward.input" else next(t for t, layer in TARGETS.items() if layer == name)
    return (Part(name, 0, columns),) if wanted in targets else ()


def adapters(config, lora, tensors):
    """[(Adapter, ...) of each layer]. tensors: the model's, without adapters

    Raises UserError if a target is unknown or is not in the model.
    """
    found = [[] for _ in range(config.n_layer)]
    targets = [name for _, names in named_targets(lora) for name in names]
    linears = [(tensor, *linear_of(tensor)) for tensor in tensors if linear_of(tensor)]
    check_targets(config, lora, {(name, tensor.shape) for tensor, _, name in linears})
    for tensor, layer, name in linears:
        parts, own = parts_of(config, (name, tensor.shape), targets), found[layer]
        if parts:
            settings = lora.lora_rank, scale_of(lora), lora.lora_dropout, tensor.matmul
            own.append(Adapter(name, len(own), tensor.shape, parts, *settings))
    return [tuple(own) for own in found]


def linear_of(tensor):
    """(layer, name) of the linear layer whose weight a Tensor is; None if it is another tensor."""
    prefix, layer, name = (tensor.name.removesuffix(".weight").split(".", 2) + ["", ""])[:3]
    is_linear = prefix == "layers" and name in TARGETS.values() and tensor.name.endswith(".weight")
    return (int(layer), name) if is_linear else None


def check_targets(config, lora, linears):
    """Raise UserError if one of the --lora-targets is in none of a model's `linears`, {(name, shape), ...}."""
    for word, targets in named_targets(lora):
        if not any(parts_of(config, linear, targets) for linear in linears):
            raise UserError(
                f"--lora-targets {word} is not in this model, which has --pattern {config.pattern} and "
                f"--feed-forward {config.feed_forward}; leave it out, or use --lora-targets all"
            )


def parameters(layers):
    """The tensors of the adapters of all layers. The bound of A is that of PEFT: Kaiming's, with a = sqrt(5)."""
    for layer, own in enumerate(layers):
        for adapter in own:
            inputs, outputs = adapter.shape
            name, columns = f"layers.{layer}.{adapter.name}", adapter.columns
            yield Tensor(f"{name}.lora_A", (inputs, columns), "uniform", inputs**-0.5, matmul=adapter.matmul)
            yield Tensor(f"{name}.lora_B", (columns, outputs), "zeros", matmul=adapter.matmul)


def parts(layers, views):
    """{name: array} of every adapter alone: `layers.0.attention.q.lora_A` (D, r) and `.lora_B` (r, E of the part).

    views: {name: array} of the tensors of `parameters`
    """
    found = {}
    for layer, own in enumerate(layers):
        for adapter in own:
            a, b = (views[f"layers.{layer}.{adapter.name}.{kind}"] for kind in ("lora_A", "lora_B"))
            for index, part in enumerate(adapter.parts):
                rows = slice(index * adapter.rank, (index + 1) * adapter.rank)
                found[f"layers.{layer}.{part.name}.lora_A"] = a[:, rows]
                found[f"layers.{layer}.{part.name}.lora_B"] = b[rows, part.start : part.stop]
    return found


def parameter_count(layers):
    """Number of elements of all A and B, without the zeros off the diagonal."""
    return sum(
        adapter.rank * (adapter.shape[0] + part.stop - part.start)
        for own in layers
        for adapter in own
        for part in adapter.parts
    )


def block_plan(own, tokens):
    """The activations that the adapters of a layer save: u."""
    for adapter in own:
        kind = "compute" if adapter.matmul else "accumulation"
        yield Request(f"{adapter.name}.lora", (tokens, adapter.columns), "saved", kind)


def plan(layers, tokens):
    """The scratch that all adapters share."""
    every = [adapter for own in layers for adapter in own]
    if every:
        yield Request("lora_sums", (tokens * max(adapter.columns for adapter in every),), "scratch")
    if any(adapter.dropout for adapter in every):
        size = tokens * max(adapter.shape[0] for adapter in every)
        yield Request("lora_x", (size,), "scratch", "cast")
        yield Request("lora_dx", (size,), "scratch")


def dropout_of(adapter, a, start):
    """The Dropout of an adapter's input, of the rows from `start` on; None without."""
    dropouts = a["lora_dropout"]
    if not dropouts:
        return None
    dropout = dropouts[adapter.index]
    return dropout._replace(key=dropout.key + start) if start else dropout


def scratch_like(a, x):
    """Memory for an array of the shape and type of x."""
    flat = a["lora_dx"] if a["lora_dx"].dtype == x.dtype else a["lora_x"]
    return flat[: x.size].reshape(x.shape)


def dropped(adapter, a, x, start):
    """D(x)"""
    dropout = dropout_of(adapter, a, start)
    if dropout is None:
        return x
    out = scratch_like(a, x)
    if not x.flags.c_contiguous:  # a view of columns
        out[...] = x
        x = out
    ops.dropout_forward(out, x, None, dropout)
    return out


def saved(adapter, a, rows, start):
    """(u, memory of its shape in the accumulation dtype, perhaps u itself), of `rows` rows from `start` on."""
    u = a[f"{adapter.name}.lora"][start : start + rows]
    sums = a["lora_sums"][: u.size].reshape(u.shape)
    return u, u if u.dtype == sums.dtype else sums


def scaled(adapter, u, sums):
    """u = s sums"""
    sums *= adapter.scale
    if sums is not u:
        ops.convert(u, sums)


def save(adapter, w, a, x, start):
    """u = s D(x) A, which is saved for backward"""
    u, sums = saved(adapter, a, len(x), start)
    ops.linear_forward(sums, dropped(adapter, a, x, start), w[f"{adapter.name}.lora_A"], None, None)
    scaled(adapter, u, sums)
    return u


def forward(adapter, w, a, out, x, residual, start):
    """out = s D(x) A B + residual"""
    u = save(adapter, w, a, x, start)
    ops.linear_forward(out, u, w[f"{adapter.name}.lora_B"], None, residual)


def backward_input(adapter, w, g, a, dx, dout, start):
    """dx = D(du A^T),   dB += u^T dout. Overwrites the saved u with du, for `backward_weight`."""
    u, sums = saved(adapter, a, len(dout), start)
    dweight = g[f"{adapter.name}.lora_B"]
    ops.linear_backward_weight(dweight, None, dout, u)
    for index, part in enumerate(adapter.parts):
        rows = dweight[index * adapter.rank : (index + 1) * adapter.rank]
        rows[:, : part.start] = 0
        rows[:, part.stop :] = 0
    ops.linear_backward_input(sums, dout, w[f"{adapter.name}.lora_B"])
    scaled(adapter, u, sums)
    dropout = dropout_of(adapter, a, start)
    if dropout is None:
        ops.linear_backward_input(dx, u, w[f"{adapter.name}.lora_A"])
        return
    dropped_dx = scratch_like(a, dx)
    ops.linear_backward_input(dropped_dx, u, w[f"{adapter.name}.lora_A"])
    ops.dropout_backward(dropped_dx, dropped_dx, dropout)
    dx[...] = dropped_dx


def backward_weight(adapter, g, a, x, start):
    """dA += D(x)^T du"""
    du, _ = saved(adapter, a, len(x), start)
    ops.linear_backward_weight(g[f"{adapter.name}.lora_A"], None, du, dropped(adapter, a, x, start))

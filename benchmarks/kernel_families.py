"""What `kernel_bench.py` times: every op family at the sizes of a shape, in both CPU kernel sets and in PyTorch.

A family is a function of (ModelConfig, B) that yields cases, and nothing for a shape without such an op. Its docstring
says what its work counts. Sizes: B batch, T steps, N = B T tokens, D width, V vocabulary.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import checkout  # noqa: F401
import numpy as np
from shapes import SCAN_BACKWARD, SCAN_FORWARD, attention_operations, matmuls

from slm_np import ops
from slm_np.nn import head
from slm_np.nn.model import parameters
from slm_np.nn.parameters import Parameters
from slm_np.ops.device import CPU, kernels_of
from slm_np.training.optimizer import AdamW

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = F = None

RNG = np.random.default_rng(0)
EPS, DROPOUT = 1e-5, ops.Dropout(0.1, ops.dropout_key(0))


class Case(NamedTuple):
    """An op in one direction, as functions that do its work once and return its results, in one order.

    work   per call: bytes that must be read and written (unit "GB/s"), or operations (unit "GFLOP/s")
    numba  with slm_np's compiled kernels
    numpy  with its NumPy kernels, to be called within kernel_set("numpy")
    torch  None where PyTorch is not installed
    """

    op: str
    direction: str
    size: str
    unit: str
    work: float
    numba: Callable
    numpy: Callable
    torch: Callable | None


@contextlib.contextmanager
def kernel_set(name):
    """Within, the CPU's kernel set is `name`."""
    CPU.use_kernels(name)
    try:
        yield
    finally:
        CPU.use_kernels("numba")


def pair(op, size, unit, work, engine, in_torch, directions=("forward", "backward")):
    """Two cases. work and in_torch have an entry for each direction.

    engine: makes (forward, backward) of the kernel set that is chosen when it is called
    """
    functions = []
    for name in ("numba", "numpy"):
        with kernel_set(name):
            functions.append(engine())
    return [Case(op, direction, size, unit, *rest) for direction, *rest in zip(directions, work, *functions, in_torch)]


def call(op, results, *arguments):
    """An op as a function without arguments, which returns the first `results` arguments: outputs come first."""

    def run():
        op(*arguments)
        return arguments[:results]

    return run


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def zeros_like(*arrays):
    """Outputs with the shapes of arrays, zero for those that accumulate."""
    return [np.zeros_like(x) for x in arrays]


def autograd(function, inputs, dout, both=False):
    """(forward, backward) of a PyTorch function on arrays, (None, None) without PyTorch.

    Forward builds its graph, as in training; backward reads a graph that is kept, and returns the gradients of the
    floating-point inputs.   both: backward runs forward first, and returns the gradients and then the output
    """
    if torch is None:
        return None, None
    inputs = [torch.as_tensor(x).requires_grad_() if x.dtype.kind == "f" else torch.as_tensor(x).long() for x in inputs]
    wanted, dout = [x for x in inputs if x.requires_grad], torch.as_tensor(dout)

    def forward():
        return [function(*inputs)]

    def forward_backward():
        out = forward()
        return [*torch.autograd.grad(out, wanted, [dout]), *out]

    if both:
        return forward, forward_backward
    out = forward()
    return forward, lambda: torch.autograd.grad(out, wanted, [dout], retain_graph=True)


# Activations

ACTIVATIONS = {
    "silu": lambda x: F.silu(x),
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu": lambda x: F.silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
}


def activation(config, batch):
    """The feed-forward's activations on (N, F); swiglu reads (N, 2 F).

    Bytes: forward reads x and writes out. Backward reads dout and x and writes dx and out, which PyTorch has saved. It
    works in place, on copies whose time counts.
    """
    if config.feed_forward != "none":
        for name in ACTIVATIONS:
            yield from one_activation(name, batch * config.block_size, config.n_hidden)


def one_activation(name, n, width):
    forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    x, dout = normal(n, 2 * width if name == "swiglu" else width), normal(n, width)

    def engine():
        out, again, dx = zeros_like(dout, dout, x)

        def run_backward():
            dx[:], again[:] = x, dout
            backward(dx, again)
            return dx, again

        return call(forward, 1, out, x), run_backward

    work = x.nbytes + dout.nbytes, 2 * (x.nbytes + dout.nbytes)
    return pair(name, f"{n} x {width}", "GB/s", work, engine, autograd(ACTIVATIONS[name], (x,), dout))


# AdamW

# Moments decay so slowly that they do not become denormal numbers, which are slow, after thousands of zero gradients.
RATE, BETA, ADAMW_EPS, DECAY = 1e-6, 0.99999, 1e-8, 0.1


def adamw(config, batch):
    """AdamW on all parameters of a model: the gradient norm, and the whole step (norm, clipping, update).

    Bytes: the norm reads the gradients. The update reads weights, gradients and both moments and writes all four; the
    gradients become zero. PyTorch clips with its own function and updates with its fused AdamW, tensor by tensor.
    """
    model = Parameters(parameters(config))
    weights, gradients = normal(model.weights.size), normal(model.weights.size)

    def engine():
        p = Parameters(parameters(config))
        p.weights[:], p.gradients[:] = weights, gradients
        optimizer = AdamW(p, RATE, DECAY, BETA, BETA, ADAMW_EPS, grad_clip=1.0)

        def step():
            optimizer.step()
            return p.weight.values()

        return lambda: [optimizer.gradient_norm()], step

    in_torch = adamw_in_torch(model.like(weights).values(), model.like(gradients).values())
    work = weights.nbytes, 9 * weights.nbytes
    yield from pair("adamw", f"{weights.size:,}", "GB/s", work, engine, in_torch, ("norm", "step"))


def adamw_in_torch(weights, gradients):
    if torch is None:
        return None, None
    tensors = [torch.tensor(weight).requires_grad_() for weight in weights]
    for tensor, gradient in zip(tensors, gradients):
        tensor.grad = torch.tensor(gradient)
    groups = [
        dict(params=[tensor for tensor in tensors if tensor.ndim > 1], weight_decay=DECAY),
        dict(params=[tensor for tensor in tensors if tensor.ndim == 1], weight_decay=0.0),
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(BETA, BETA), eps=ADAMW_EPS, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimizer.step()
        return tensors

    return lambda: [torch.nn.utils.get_total_norm([tensor.grad for tensor in tensors])], step


# Attention


def attention(config, batch):
    """Causal attention on qkv (N, (H + 2 K) w), with grouped queries where K < H; size B x T, H/K heads of width w.

    Operations: of the matmuls over keys up to the query, two forward and five backward. The NumPy kernels compute the
    upper triangle too. Backward works in place, on a copy whose time counts.
    """
    if not config.has_attention:
        return
    T, H, K, w = config.block_size, config.n_head, config.n_kv_head, config.head_dim
    qkv, dout = normal(batch * T, (H + 2 * K) * w), normal(batch * T, H * w)

    def engine():
        dqkv, out, lse = *zeros_like(qkv, dout), np.zeros((batch * H, T), np.float32)
        scratch = np.zeros(kernels_of(qkv).attention_scratch(T, w, batch * H), np.float32)
        forward = call(ops.attention_forward, 1, out, lse, scratch, qkv, H, K, T, None)
        forward()  # backward reads its lse

        def backward():
            dqkv[:] = qkv
            ops.attention_backward(dqkv, scratch, dout, out, lse, H, K, T, None)
            return [dqkv]

        return forward, backward

    def in_torch(qkv):
        q, k, v = qkv.view(batch, T, -1, w).transpose(1, 2).split((H, K, K), 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
        return out.transpose(1, 2).reshape(batch * T, -1)

    one = attention_operations(config, batch) / (7 * config.letters.count("A"))  # matmul
    size = f"{batch} x {T}, {H}/{K} of {w}"
    yield from pair("attention", size, "GFLOP/s", (2 * one, 5 * one), engine, autograd(in_torch, (qkv,), dout))


# Dropout


def dropout(config, batch):
    """Dropout of a tenth before a residual connection, (N, D).

    Bytes: forward reads x and the residual and writes out, backward reads dout and writes dx. slm_np draws its mask
    again in backward; PyTorch has saved it.
    """
    n, d = batch * config.block_size, config.n_embd
    x, residual, dout = normal(n, d), normal(n, d), normal(n, d)

    def engine():
        out, dx = zeros_like(x, x)
        forward = call(ops.dropout_forward, 1, out, x, residual, DROPOUT)
        return forward, call(ops.dropout_backward, 1, dx, dout, DROPOUT)

    in_torch = autograd(lambda x, residual: F.dropout(x, DROPOUT.rate) + residual, (x, residual), dout)
    yield from pair("dropout", f"{n} x {d}", "GB/s", (3 * x.nbytes, 2 * x.nbytes), engine, in_torch)


# Embedding


def embedding(config, batch):
    """Token embedding with learned positions: rows of a table (V, D), selected forward and summed backward.

    Bytes: each row of the table whose token occurs, once (twice where it accumulates), and the N rows of out or dout.
    """
    T, d, learned = config.block_size, config.n_embd, config.positions == "learned"
    tokens = RNG.integers(0, config.vocab_size, (batch, T)).astype(np.int32)
    weight, dout = normal(config.vocab_size, d), normal(batch * T, d)
    positions = normal(T, d) if learned else None
    tables = (weight, positions) if learned else (weight,)

    def engine():
        out, *gradients = zeros_like(dout, *tables)

        def backward():
            ops.embedding_backward(gradients[0], gradients[1] if learned else None, dout, tokens)
            return gradients

        return call(ops.embedding_forward, 1, out, tokens, weight, positions), backward

    def in_torch(tokens, weight, *positions):
        return sum(positions, F.embedding(tokens, weight))

    rows = 4 * d * (np.unique(tokens).size + (T if learned else 0))
    work, size = (rows + dout.nbytes, 2 * rows + dout.nbytes), f"{batch * T} x {d} of {config.vocab_size}"
    theirs = autograd(in_torch, (tokens, *tables), dout.reshape(batch, T, d))
    yield from pair("embedding", size, "GB/s", work, engine, theirs)


# Linear layers


def linear(config, batch):
    """The linear layers of a model, x W + b, x (N, D), W (D, E); size N x D x E. The family `loss` has the head.

    Operations: 2 N D E forward, 4 N D E backward. PyTorch stores W as (E, D).
    """
    sizes = [(n, d, e) for n, d, e, _ in matmuls(config, batch)]
    for n, d, e in sizes if config.head == "none" else sizes[:-1]:
        yield from one_linear(n, d, e)


def one_linear(n, d, e):
    x, weight, bias, dout = normal(n, d), normal(d, e), normal(e), normal(n, e)

    def engine():
        out, dx, dweight, dbias = zeros_like(dout, x, weight, bias)
        forward = call(ops.linear_forward, 1, out, x, weight, bias, None)
        return forward, call(ops.linear_backward, 3, dx, dweight, dbias, dout, x, weight)

    rows_of_inputs = np.asfortranarray(weight)  # its transpose is contiguous, (E, D)
    in_torch = autograd(lambda x, w, b: F.linear(x, w.T, b), (x, rows_of_inputs, bias), dout)
    return pair("linear", f"{n} x {d} x {e}", "GFLOP/s", (2 * n * d * e, 4 * n * d * e), engine, in_torch)


# Loss


def loss(config, batch):
    """Softmax cross-entropy on logits (N, V), and the head fused with it, N x D x V; N is one chunk of the head's rows.

    "both" is what a training step does: losses and gradients at once. Bytes of the softmax: forward reads the logits,
    both also overwrites them with their gradient. Operations of the head: 2 N D V forward, 6 N D V both.
    """
    v, rows = config.vocab_size, batch * config.block_size
    if config.head != "none":
        rows = next(head.plan(config, rows, CPU)).shape[0]
    yield from softmax(rows, v)
    if config.head != "none":
        yield from fused_head(rows, head.width(config), v)


def softmax(n, v):
    logits, targets = normal(n, v), RNG.integers(0, v, n).astype(np.int32)

    def engine():
        losses, dlogits = np.zeros(n, np.float32), logits.copy()

        def both():
            ops.softmax_cross_entropy_backward(dlogits, losses, dlogits, targets, 1 / n)
            return dlogits, losses

        return call(ops.softmax_cross_entropy_forward, 1, losses, logits, targets), both

    def in_torch(logits, targets):
        return F.cross_entropy(logits, targets, reduction="none")

    theirs = autograd(in_torch, (logits, targets), np.full(n, 1 / n, np.float32), both=True)
    work = logits.nbytes, 2 * logits.nbytes
    return pair("softmax", f"{n} x {v}", "GB/s", work, engine, theirs, ("forward", "both"))


def fused_head(n, d, v):
    x, weight, targets = normal(n, d), normal(v, d) / np.float32(d**0.5), RNG.integers(0, v, n).astype(np.int32)

    def engine():
        losses, logits = np.zeros(n, np.float32), np.zeros((n, v), np.float32)
        dx, dweight = zeros_like(x, weight)
        forward = call(ops.head_cross_entropy_forward, 1, losses, logits, x, weight, targets)
        outputs, inputs = (dx, dweight, losses, logits, logits), (x, weight, targets, 1 / n)
        return forward, call(ops.head_cross_entropy_backward, 3, *outputs, *inputs)

    def in_torch(x, weight, targets):
        return F.cross_entropy(F.linear(x, weight), targets, reduction="none")

    theirs = autograd(in_torch, (x, weight, targets), np.full(n, 1 / n, np.float32), both=True)
    work = 2 * n * d * v, 6 * n * d * v
    return pair("head", f"{n} x {d} x {v}", "GFLOP/s", work, engine, theirs, ("forward", "both"))


# Norms


def norm(config, batch):
    """RMSNorm and LayerNorm of the hidden state (N, D).

    Bytes: forward reads x and writes out; backward reads dout, x and dx and writes dx. slm_np accumulates into the
    residual's gradient, PyTorch makes a new one.
    """
    n, d = batch * config.block_size, config.n_embd
    x, dout, weight, bias = normal(n, d), normal(n, d), normal(d), normal(d)

    def rmsnorm():
        out, dx, dweight, rstd = zeros_like(x, x, weight, x[:, 0])
        forward = call(ops.rmsnorm_forward, 1, out, rstd, x, weight, EPS)
        forward()  # backward reads its rstd
        return forward, call(ops.rmsnorm_backward, 2, dx, dweight, dout, x, weight, rstd)

    def layernorm():
        out, dx, dweight, dbias, mean, rstd = zeros_like(x, x, weight, bias, x[:, 0], x[:, 0])
        forward = call(ops.layernorm_forward, 1, out, mean, rstd, x, weight, bias, EPS)
        forward()
        return forward, call(ops.layernorm_backward, 3, dx, dweight, dbias, dout, x, weight, mean, rstd)

    size, work = f"{n} x {d}", (2 * x.nbytes, 4 * x.nbytes)
    theirs = autograd(lambda x, w: F.rms_norm(x, w.shape, w, EPS), (x, weight), dout)
    yield from pair("rmsnorm", size, "GB/s", work, rmsnorm, theirs)
    theirs = autograd(lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS), (x, weight, bias), dout)
    yield from pair("layernorm", size, "GB/s", work, layernorm, theirs)


# Recurrences


def recurrence(config, batch):
    """The linear recurrence H_t = U_t + H_(t-1) A, states (T, B, S) and A (S, S); size T x B x S x S.

    Operations: 2 T B S^2 forward, 4 T B S^2 backward. slm_np works in place, on copies whose time counts. One step is a
    matmul of B x S x S: the share compares it with the rate of one large matmul.
    """
    if "S" not in config.letters:
        return
    T, S = config.block_size, config.recurrence_size
    inputs, dout, weight = normal(T, batch, S), normal(T, batch, S), normal(S, S) * np.float32(0.3 * S**-0.5)

    def engine():
        states, dstates = np.zeros((2, T + 1, batch, S), np.float32)
        dweight, scratch = np.zeros_like(weight), normal(kernels_of(weight).linear_recurrence_scratch(batch, S))

        def forward():
            states[1:] = inputs
            ops.linear_recurrence_forward(states, scratch, weight)
            return [states[1:]]

        def backward():
            dstates[1:] = dout
            dweight.fill(0)
            ops.linear_recurrence_backward(dstates, dweight, scratch, states, weight)
            return [dstates[1:], dweight]

        forward()  # backward reads its states
        return forward, backward

    def in_torch(inputs, weight):
        states = []
        for x in inputs:
            states.append(x + states[-1] @ weight if states else x)
        return torch.stack(states)

    one = 2 * T * batch * S * S
    size = f"{T} x {batch} x {S} x {S}"
    theirs = autograd(in_torch, (inputs, weight), dout)
    yield from pair("recurrence", size, "GFLOP/s", (one, 2 * one), engine, theirs)


def scan(config, batch):
    """Mamba's selective scan and convolution on x (N, E); size B x T, E channels of S states, or E by K kernel width.

    Operations of the scan: its vector instructions, see shapes.py. Bytes of the convolution: what must be moved. The
    NumPy kernels and PyTorch have a time loop over all channels and sequences. slm_np works in place, on copies whose
    time counts.
    """
    if "M" in config.letters:
        yield from selective_scan(batch, config.block_size, config.n_inner, config.ssm_state_size)
        yield from convolution(batch, config.block_size, config.n_inner, config.conv_kernel)


def selective_scan(batch, T, E, S):
    n = batch * T
    x, delta, dout = normal(n, E), normal(n, E) - np.float32(3), normal(n, E)
    ssm_parameters, projected, D = normal(n, 2 * S), normal(n, 2 * E), normal(E)
    A_log = np.log(np.arange(1, S + 1, dtype=np.float32))[:, None] + np.zeros((S, E), np.float32)
    inputs = x, delta, ssm_parameters, projected, A_log, D

    def engine():
        kernels = kernels_of(x)
        states = np.zeros((batch, kernels.selective_scan_chunks(T) + 1, S, E), np.float32)
        scratch = np.zeros(kernels.selective_scan_scratch(E, S, batch), np.float32)
        partials = np.zeros(kernels.selective_scan_partials(batch, T, E, S), np.float32)
        out = np.zeros_like(x)
        dx, ddelta, dssm_parameters, dprojected, dA_log, dD = gradients = zeros_like(*inputs)
        forward = call(ops.selective_scan_forward, 1, out, states, scratch, *inputs)
        forward()  # backward reads its states

        def backward():
            ddelta[:], dprojected[:] = delta, projected
            dA_log.fill(0)
            dD.fill(0)
            ops.selective_scan_backward(*gradients, partials, scratch, dout, states, x, ssm_parameters, A_log, D)
            dprojected[:, :E] = 0  # not the scan's
            return gradients

        return forward, backward

    def in_torch(x, delta, ssm_parameters, projected, A_log, D):
        x, step, gate = (
            x.view(batch, T, E),
            F.softplus(delta).view(batch, T, E),
            projected.view(batch, T, 2 * E)[..., E:],
        )
        B, C = ssm_parameters.view(batch, T, 2 * S).split(S, -1)
        decay, entering = torch.exp(-step[:, :, None] * torch.exp(A_log)), (step * x)[:, :, None] * B[..., None]
        h, ys = torch.zeros(batch, S, E), []
        for t in range(T):
            h = decay[:, t] * h + entering[:, t]  # (B, S, E)
            ys.append((h * C[:, t, :, None]).sum(1))
        return ((torch.stack(ys, 1) + D * x) * F.silu(gate)).reshape(n, E)

    work = SCAN_FORWARD * n * E * S, SCAN_BACKWARD * n * E * S
    return pair("scan", f"{batch} x {T}, {E} of {S}", "GFLOP/s", work, engine, autograd(in_torch, inputs, dout))


def convolution(batch, T, E, K):
    n = batch * T
    x, weight, bias, dout = normal(n, E), normal(K, E), normal(E), normal(n, E)
    past = np.zeros((batch, K - 1, E), np.float32)

    def engine():
        out, dx, dweight, dbias, again, scratch = zeros_like(x, x, weight, bias, dout, x)

        def backward():
            dx[:], again[:] = x, dout
            dweight.fill(0)
            dbias.fill(0)
            ops.convolution_backward(dx, dweight, dbias, scratch, again, past, weight, bias)
            return [dx, dweight, dbias]

        return call(ops.convolution_forward, 1, out, x, past, weight, bias), backward

    def in_torch(x, weight, bias):
        x = x.view(batch, T, E).transpose(1, 2)
        out = F.conv1d(x, weight.T[:, None], bias, padding=K - 1, groups=E)[..., :T]
        return F.silu(out).transpose(1, 2).reshape(n, E)

    theirs = autograd(in_torch, (x, weight, bias), dout)
    return pair("convolution", f"{batch} x {T}, {E} by {K}", "GB/s", (8 * n * E, 16 * n * E), engine, theirs)


# Rotary positions


def rotary(config, batch):
    """Rotary positions of queries and keys, (N, (H + K) w), in place, for every shape with attention.

    Bytes: both directions read and write all of x. PyTorch makes a new array.
    """
    if not config.has_attention:
        return
    T, heads, w = config.block_size, config.n_head + config.n_kv_head, config.head_dim
    x, dout = normal(batch * T, heads * w), normal(batch * T, heads * w)
    cos, sin = np.zeros((2, T, w // 2), np.float32)
    ops.rotary_table(cos, sin, config.rope_theta)

    def engine():
        forward = call(ops.rotary_forward, 1, x.copy(), cos, sin, heads, w)
        return forward, call(ops.rotary_backward, 1, dout.copy(), cos, sin, heads, w)

    def in_torch(x):
        a, b = x.view(batch, T, heads, w).chunk(2, -1)
        c, s = torch.as_tensor(cos[:, None]), torch.as_tensor(sin[:, None])
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    theirs = autograd(in_torch, (x,), dout.reshape(batch, T, heads, w))
    size, work = f"{batch * T} x {heads} x {w}", (2 * x.nbytes, 2 * x.nbytes)
    yield from pair("rotary", size, "GB/s", work, engine, theirs)


FAMILIES = {
    family.__name__: family
    for family in (
        activation,
        adamw,
        attention,
        dropout,
        embedding,
        linear,
        loss,
        norm,
        recurrence,
        rotary,
        scan,
    )
}

"""The float64 oracle in plain NumPy: every op from its formula, slow and obviously right. Nothing here shares code with the engine.

Functions take arrays of any float type, compute in float64 and return new arrays. `<op>_backward(dout, ...)` takes the forward's arguments
and returns the gradients in their order. Derivatives are whole Jacobians, or rotations, or outer products, never the kernels' rearrangements.
Sizes: B batch, T time, N = B T rows, D width, H query heads, G key-value heads, W width of a head, F hidden width, V vocabulary, L layers.
"""

import functools
import math

import numpy as np
from scipy.special import expit as sigmoid  # neither cancels nor overflows in its tails
from scipy.special import ndtr as normal


def exact(function):
    """Turn every float array among the arguments into float64 first."""

    def widen(x):
        return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x

    @functools.wraps(function)
    def wide(*arguments, **named):
        return function(*map(widen, arguments), **{name: widen(x) for name, x in named.items()})

    return wide


# Embedding and positions


@exact
def embedding(tokens, weight, places=None):
    """out[b, t] = weight[tokens[b, t]] + places[t]        tokens (B, T), weight (V, D), places (at least T, D) or None, out (B, T, D)"""
    out = weight[tokens]
    return out if places is None else out + places[: tokens.shape[1]]


@exact
def embedding_backward(dout, tokens, weight, places=None):
    """dweight[v] = sum of dout where v stands, dplaces[t] = sum over the batch (None without places)"""
    dweight = np.zeros_like(weight)
    for b, t in np.ndindex(tokens.shape):
        dweight[tokens[b, t]] += dout[b, t]
    if places is None:
        return dweight, None
    dplaces = np.zeros_like(places)
    dplaces[: tokens.shape[1]] = dout.sum(0)
    return dweight, dplaces


def sinusoidal(T, D):
    """(T, D): column 2i is sin(t / 10000^(2i/D)), column 2i+1 its cosine ("Attention is all you need")."""
    return np.array(
        [[(math.cos if d % 2 else math.sin)(t / 10000.0 ** ((d - d % 2) / D)) for d in range(D)] for t in range(T)]
    ).reshape(T, D)


def rotation(t, W, theta):
    """(W, W): the matrix that turns each pair (i, i + W/2) by the angle t theta^(-2i/W), as Llama does."""
    matrix = np.zeros((W, W))
    for i in range(W // 2):
        angle, j = t * theta ** (-2.0 * i / W), i + W // 2
        matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = (
            math.cos(angle),
            -math.sin(angle),
            math.sin(angle),
            math.cos(angle),
        )
    return matrix


@exact
def rotary(x, theta=10000.0, start=0):
    """out[b, t, h] = rotation(start + t) x[b, t, h]        x, out (B, T, H, W)"""
    turns = np.stack([rotation(start + t, x.shape[3], theta) for t in range(x.shape[1])])
    return np.einsum("tij,bthj->bthi", turns, x)


@exact
def rotary_backward(dout, x, theta=10000.0, start=0):
    """dx[b, t, h] = rotation(start + t)^T dout[b, t, h]"""
    turns = np.stack([rotation(start + t, x.shape[3], theta) for t in range(x.shape[1])])
    return np.einsum("tij,bthi->bthj", turns, dout)


# Linear and norms; x (..., D)


@exact
def linear(x, weight, bias=None):
    """out = x weight + bias        weight (D, F), bias (F,) or None"""
    out = x @ weight
    return out if bias is None else out + bias


@exact
def linear_backward(dout, x, weight, bias=None):
    """dx = dout weight^T, dweight = x^T dout over all rows, dbias = sum of dout (None without a bias)"""
    rows, drows = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
    return dout @ weight.T, rows.T @ drows, None if bias is None else drows.sum(0)


@exact
def layernorm(x, weight, bias=None, eps=1e-5):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, the variance over D, not D - 1"""
    centred = x - x.mean(-1, keepdims=True)
    out = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight
    return out if bias is None else out + bias


@exact
def layernorm_backward(dout, x, weight, bias=None, eps=1e-5):
    """Row by row through the Jacobian d xhat_i / d x_j = r (delta_ij - 1/D) - r^3 c_i c_j / D,   c = x - mean, r = (variance + eps)^(-1/2)"""
    D = x.shape[-1]
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for row in np.ndindex(x.shape[:-1]):
        c = x[row] - x[row].mean()
        r = ((c**2).mean() + eps) ** -0.5
        jacobian = r * (np.eye(D) - 1 / D) - r**3 * np.outer(c, c) / D
        dx[row] = (dout[row] * weight) @ jacobian
        dweight += dout[row] * c * r
    return dx, dweight, None if bias is None else dout.reshape(-1, D).sum(0)


@exact
def rmsnorm(x, weight, eps=1e-5):
    """out = x / sqrt(mean(x^2) + eps) * weight"""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


@exact
def rmsnorm_backward(dout, x, weight, eps=1e-5):
    """Row by row through the Jacobian d xhat_i / d x_j = r delta_ij - r^3 x_i x_j / D,   r = (mean(x^2) + eps)^(-1/2)"""
    D = x.shape[-1]
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for row in np.ndindex(x.shape[:-1]):
        r = ((x[row] ** 2).mean() + eps) ** -0.5
        jacobian = r * np.eye(D) - r**3 * np.outer(x[row], x[row]) / D
        dx[row] = (dout[row] * weight) @ jacobian
        dweight += dout[row] * x[row] * r
    return dx, dweight


# Attention; q (B, T, H, W), k and v (B, T, G, W)


def split_heads(qkv, H, G):
    """q, k, v of the rows qkv (B, T, (H + 2 G) W): the queries' columns first, then the keys', then the values'."""
    heads = qkv.reshape(*qkv.shape[:2], H + 2 * G, -1)
    return heads[:, :, :H], heads[:, :, H : H + G], heads[:, :, H + G :]


def softmax(x):
    """exp(x) / sum exp(x) over the last axis"""
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@exact
def attention_scores(q, k):
    """(B, H, T, T): q_t . k_s / sqrt(W) for s <= t, -inf for s > t; query head h looks at key-value head h // (H / G)."""
    T, group = q.shape[1], q.shape[2] // k.shape[2]
    scores = np.einsum("bthw,bshw->bhts", q, np.repeat(k, group, axis=2)) / math.sqrt(q.shape[3])
    return np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)


@exact
def attention(q, k, v):
    """out[b, t, h] = sum_s softmax(scores)[t, s] v[b, s, h // (H / G)]        out (B, T, H, W)"""
    return np.einsum("bhts,bshw->bthw", softmax(attention_scores(q, k)), np.repeat(v, q.shape[2] // v.shape[2], axis=2))


@exact
def attention_backward(dout, q, k, v):
    """dq, dk, dv, one query at a time, the softmax through its Jacobian diag(p) - p p^T; a key-value head sums over its group."""
    B, T, H, W = q.shape
    group = H // k.shape[2]
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    p = softmax(attention_scores(q, k))
    for b, h, t in np.ndindex(B, H, T):
        g, row = h // group, p[b, h, t]
        dv[b, :, g] += np.outer(row, dout[b, t, h])
        dscores = (np.diag(row) - np.outer(row, row)) @ (v[b, :, g] @ dout[b, t, h]) / math.sqrt(W)
        dq[b, t, h] += dscores @ k[b, :, g]
        dk[b, :, g] += np.outer(dscores, q[b, t, h])
    return dq, dk, dv


# Activations, element by element


@exact
def silu(x):
    """x sigmoid(x), also called SiLU"""
    return x * sigmoid(x)


@exact
def silu_backward(dout, x):
    """silu' = sigmoid + x sigmoid (1 - sigmoid)"""
    return dout * (sigmoid(x) + x * sigmoid(x) * sigmoid(-x))


@exact
def gelu(x):
    """x P(x),   P(x) = (1 + erf(x / sqrt 2)) / 2 the distribution function of the standard normal"""
    return x * normal(x)


@exact
def gelu_backward(dout, x):
    """gelu' = P(x) + x p(x),   p the density of the standard normal"""
    return dout * (normal(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi))


@exact
def gelu_tanh(x):
    """x (1 + tanh u) / 2 = x sigmoid(2u),   u = sqrt(2/pi) (x + 0.044715 x^3): GPT-2's approximation"""
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@exact
def gelu_tanh_backward(dout, x):
    """out' = (1 + tanh u) / 2 + x (1 - tanh^2 u) u' / 2"""
    u, du = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return dout * (sigmoid(2 * u) + x * du / 2 / np.cosh(np.clip(u, -300, 300)) ** 2)


@exact
def swiglu(x):
    """out = silu(gate) up, the first half of the columns of x (..., 2 F) being the gate, the second the up part; out (..., F)"""
    gate, up = np.split(x, 2, axis=-1)
    return silu(gate) * up


@exact
def swiglu_backward(dout, x):
    """dx = [dout up silu'(gate), dout silu(gate)]"""
    gate, up = np.split(x, 2, axis=-1)
    return np.concatenate((silu_backward(dout * up, gate), dout * silu(gate)), axis=-1)


# Recurrences


@exact
def convolution(x, past, weight, bias):
    """out[b, t] = silu(bias + sum_k weight[k] x[b, t - K + 1 + k])        x (B, T, E), past (B, K - 1, E) before it, weight (K, E), bias (E,)"""
    seen = np.concatenate((past, x), axis=1)
    return silu(np.stack([(seen[:, t : t + len(weight)] * weight).sum(1) for t in range(x.shape[1])], axis=1) + bias)


@exact
def convolution_backward(dout, x, past, weight, bias):
    """(dx, dweight, dbias): what a token gives to each of the K that see it; nothing for what came before."""
    seen, K = np.concatenate((past, x), axis=1), len(weight)
    summed = np.stack([(seen[:, t : t + K] * weight).sum(1) for t in range(x.shape[1])], axis=1) + bias
    dsum, dseen, dweight = silu_backward(dout, summed), np.zeros_like(seen), np.zeros_like(weight)
    for t, k in np.ndindex(x.shape[1], K):
        dseen[:, t + k] += dsum[:, t] * weight[k]
        dweight[k] += (dsum[:, t] * seen[:, t + k]).sum(0)
    return dseen[:, K - 1 :], dweight, dsum.sum((0, 1))


def softplus(x):
    return np.logaddexp(0, x)


@exact
def selective_scan(x, delta, selected, projected, a_log, skip, first):
    """h_t = exp(-d e^a_log) h_(t-1) + d x B,   out = (<h, C> + skip x) silu(gate),   d = softplus(delta)

    x, delta (B, T, E), selected (B, T, R + 2 S) with B and C last, projected (B, T, 2 E) with the gate last, a_log (S, E), skip (E,),
    first (B, S, E): h before the first step. Returns (out (B, T, E), every h (B, T + 1, S, E)).
    """
    S, E = a_log.shape
    enter, leave, gate, hs, out = selected[..., -2 * S : -S], selected[..., -S:], projected[..., E:], [first], []
    for t in range(x.shape[1]):
        step = softplus(delta[:, t])
        hs.append(np.exp(-step[:, None] * np.exp(a_log)) * hs[-1] + (step * x[:, t])[:, None] * enter[:, t, :, None])
        out.append(((hs[-1] * leave[:, t, :, None]).sum(1) + skip * x[:, t]) * silu(gate[:, t]))
    return np.stack(out, axis=1), np.stack(hs, axis=1)


@exact
def selective_scan_backward(dout, x, delta, selected, projected, a_log, skip, first):
    """(dx, ddelta, dselected, dprojected, da_log, dskip): the adjoint of each step, from the last to the first, with every state kept."""
    (S, E), (out, hs) = a_log.shape, selective_scan(x, delta, selected, projected, a_log, skip, first)
    enter, leave, gate, rate = selected[..., -2 * S : -S], selected[..., -S:], projected[..., E:], np.exp(a_log)
    dx, ddelta, dselected, dprojected, da_log, dskip, dh = (
        *map(np.zeros_like, (x, delta, selected, projected, a_log, skip)),
        np.zeros_like(first),
    )
    for t in reversed(range(x.shape[1])):
        step, before, after = softplus(delta[:, t]), hs[:, t], hs[:, t + 1]
        decay = np.exp(-step[:, None] * rate)
        plain = (after * leave[:, t, :, None]).sum(1) + skip * x[:, t]
        dprojected[:, t, E:] = silu_backward(dout[:, t] * plain, gate[:, t])
        dy = dout[:, t] * silu(gate[:, t])
        dh = dh + dy[:, None] * leave[:, t, :, None]
        dselected[:, t, -S:], dselected[:, t, -2 * S : -S] = (
            (after * dy[:, None]).sum(2),
            (dh * (step * x[:, t])[:, None]).sum(2),
        )
        dinput, ddecay = (dh * enter[:, t, :, None]).sum(1), dh * before
        dstep = dinput * x[:, t] - (ddecay * decay * rate).sum(1)
        dx[:, t], ddelta[:, t] = dinput * step + dy * skip, dstep * sigmoid(delta[:, t])
        da_log -= (ddecay * decay * step[:, None] * rate).sum(0)
        dskip += (dy * x[:, t]).sum(0)
        dh = dh * decay
    return dx, ddelta, dselected, dprojected, da_log, dskip


# Loss; logits (..., V), targets (...)


@exact
def cross_entropy(logits, targets):
    """Mean of -log softmax(logits)[target] over the targets that are not -1, in nats; 0 without any."""
    counted = targets.reshape(-1) >= 0
    rows, targets = logits.reshape(-1, logits.shape[-1])[counted], targets.reshape(-1)[counted]
    rows = rows - rows.max(-1, keepdims=True)
    return float(np.sum(np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(rows)), targets]) / max(1, len(rows)))


@exact
def cross_entropy_backward(dout, logits, targets):
    """dlogits = dout (softmax(logits) - onehot(target)) / N, 0 where the target is -1        dout a number, N targets that are not -1"""
    counted = (targets >= 0)[..., None]
    return dout * counted * (softmax(logits) - np.eye(logits.shape[-1])[targets]) / max(1, counted.sum())


# Optimiser


def clip(gradients, limit, eps=1e-6):
    """({name: gradient}, norm): all gradients times min(1, limit / (norm + eps)), the norm that of all of them together; limit 0 is off."""
    gradients = {name: gradient.astype(np.float64) for name, gradient in gradients.items()}
    norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    scale = min(1.0, limit / (norm + eps)) if limit else 1.0
    return {name: gradient * scale for name, gradient in gradients.items()}, norm


@exact
def adamw(weight, gradient, m, v, step, learning_rate, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0):
    """(weight, m, v) after update number `step` (from 1), decay decoupled (Loshchilov and Hutter, 2019):

    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,
    weight = (1 - lr decay) weight - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
    """
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    update = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return (1 - learning_rate * weight_decay) * weight - learning_rate * update, m, v


# The whole model, dropout 0


def shapes(config):
    """{name: shape} of the weights that a `ModelConfig` calls for."""
    V, T, D, F = config.vocab_size, config.block_size, config.n_embd, config.n_hidden
    H, G, W = config.n_head, config.n_kv_head, config.head_dim
    found = {}

    def add_linear(name, rows, columns):
        found[f"{name}.weight"] = (rows, columns)
        if config.bias:
            found[f"{name}.bias"] = (columns,)

    def add_norm(name):
        if config.norm != "none":
            found[f"{name}.weight"] = (D,)
        if config.norm == "layernorm" and config.bias:
            found[f"{name}.bias"] = (D,)

    found["embedding.weight"] = (V, D)
    if config.positions == "learned":
        found["positions.weight"] = (T, D)
    for i in range(config.n_layer):
        add_norm(f"layers.{i}.mixer_norm")
        mixer, out = (
            config.pattern[i % len(config.pattern)],
            V if config.head == "none" and i == config.n_layer - 1 else D,
        )
        if mixer == "A":
            add_linear(f"layers.{i}.attention.qkv", D, (H + 2 * G) * W)
            add_linear(f"layers.{i}.attention.output", H * W, out)
        elif mixer == "M":
            E, S, R = config.n_inner, config.ssm_state_size, config.time_step_rank
            add_linear(f"layers.{i}.mamba.in_proj", D, 2 * E)
            for name, shape in (
                ("convolution.weight", (config.conv_kernel, E)),
                ("convolution.bias", (E,)),
                ("select.weight", (E, R + 2 * S)),
                ("step.weight", (R, E)),
                ("step.bias", (E,)),
                ("a_log", (S, E)),
                ("skip", (E,)),
            ):
                found[f"layers.{i}.mamba.{name}"] = shape
            add_linear(f"layers.{i}.mamba.out_proj", E, out)
        else:
            for name, shape in (
                ("input", (D, config.recurrence_size)),
                ("state", (config.recurrence_size,) * 2),
                ("output", (config.recurrence_size, out)),
                ("skip", (D, out)),
            ):
                found[f"layers.{i}.recurrence.{name}.weight"] = shape
        if config.feed_forward != "none":
            add_norm(f"layers.{i}.feed_forward_norm")
            add_linear(f"layers.{i}.feed_forward.input", D, 2 * F if config.feed_forward == "swiglu" else F)
            add_linear(f"layers.{i}.feed_forward.output", F, D)
    if config.head != "none":
        add_norm("norm")
    if config.head == "linear":
        found["head.weight"] = (V, D)
    if config.head == "mlp":
        add_linear("head.input", D, config.head_hidden)
        found["head.weight"] = (V, config.head_hidden)
    return found


def reference_logits(config, arrays, tokens):
    """Logits (B, T, V), float64, of the model `config` with the weights `arrays` {name: array} after integer `tokens` (B, T)."""

    def normed(name, x):
        if config.norm == "none":
            return x
        if config.norm == "rmsnorm":
            return rmsnorm(x, arrays[f"{name}.weight"], config.norm_eps)
        return layernorm(x, arrays[f"{name}.weight"], arrays.get(f"{name}.bias"), config.norm_eps)

    def matrix(name, x):
        return linear(x, arrays[f"{name}.weight"], arrays.get(f"{name}.bias"))

    def attend(i, x):
        q, k, v = split_heads(matrix(f"layers.{i}.attention.qkv", x), config.n_head, config.n_kv_head)
        if config.positions == "rotary":
            q, k = rotary(q, config.rope_theta), rotary(k, config.rope_theta)
        return matrix(f"layers.{i}.attention.output", attention(q, k, v).reshape(B, T, -1))

    def select(i, x):
        w = {
            name: arrays[f"layers.{i}.mamba.{name}"]
            for name in (
                "convolution.weight",
                "convolution.bias",
                "select.weight",
                "step.weight",
                "step.bias",
                "a_log",
                "skip",
            )
        }
        projected = matrix(f"layers.{i}.mamba.in_proj", x)
        S, E = w["a_log"].shape
        inner = convolution(
            projected[..., :E],
            np.zeros((B, len(w["convolution.weight"]) - 1, E)),
            w["convolution.weight"],
            w["convolution.bias"],
        )
        selected = linear(inner, w["select.weight"])
        delta = linear(selected[..., : config.time_step_rank], w["step.weight"], w["step.bias"])
        return matrix(
            f"layers.{i}.mamba.out_proj",
            selective_scan(inner, delta, selected, projected, w["a_log"], w["skip"], np.zeros((B, S, E)))[0],
        )

    def recur(i, x):
        enter, pass_on, leave, beside = (
            arrays[f"layers.{i}.recurrence.{name}.weight"] for name in ("input", "state", "output", "skip")
        )
        h, out = np.zeros((B, len(pass_on))), []
        for t in range(T):
            h = linear(x[:, t], enter) + linear(h, pass_on)
            out.append(linear(silu(h), leave) + linear(x[:, t], beside))
        return np.stack(out, axis=1)

    activation = {"silu": silu, "gelu": gelu, "gelu-tanh": gelu_tanh, "swiglu": swiglu}.get(config.feed_forward)
    B, T = tokens.shape
    places = {"learned": arrays.get("positions.weight"), "sinusoidal": sinusoidal(T, config.n_embd)}.get(
        config.positions
    )
    x = embedding(tokens, arrays["embedding.weight"], places)
    for i in range(config.n_layer):
        mixed = {"A": attend, "M": select, "S": recur}[config.pattern[i % len(config.pattern)]](
            i, normed(f"layers.{i}.mixer_norm", x)
        )
        x = x + mixed if config.residual else mixed
        if activation:
            inner = activation(matrix(f"layers.{i}.feed_forward.input", normed(f"layers.{i}.feed_forward_norm", x)))
            given = matrix(f"layers.{i}.feed_forward.output", inner)
            x = x + given if config.residual else given
    if config.head == "none":
        return x
    x = normed("norm", x)
    if config.head == "mlp":
        x = silu(matrix("head.input", x))
    return linear(x, arrays["embedding.weight" if config.head == "tied" else "head.weight"].T)


def reference_loss(config, arrays, tokens, targets):
    """Mean cross-entropy in nats of the model's logits at integer `targets` (B, T)."""
    return cross_entropy(reference_logits(config, arrays, tokens), targets)

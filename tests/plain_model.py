"""A whole model in float64 from its formulas, forward only: the oracle of the model. It shares no code with the engine.

Sizes: B batch, T steps, D width, H query heads, K key-value heads, w head width, E channels, S states, V vocabulary.
"""

import math

import numpy as np
from scipy.special import expit as sigmoid
from scipy.special import ndtr


def silu(x):
    return x * sigmoid(x)


def gelu_tanh(x):
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def swiglu(x):
    gate, up = np.split(x, 2, axis=-1)
    return silu(gate) * up


ACTIVATIONS = {"silu": silu, "gelu": lambda x: x * ndtr(x), "gelu-tanh": gelu_tanh, "swiglu": swiglu}


def sinusoidal(T, D):
    """(T, D): column 2i is sin(t / 10000^(2i/D)), column 2i + 1 the cosine of the same."""
    function = (math.sin, math.cos)
    return np.array([[function[d % 2](t / 10000.0 ** ((d - d % 2) / D)) for d in range(D)] for t in range(T)])


def frequencies(half, theta, scaling):
    """theta^(-2i/r), the radians per token of pair i; scaling: --rope-scaling, after Llama 3.1's reference code."""
    found = []
    for i in range(half):
        frequency = theta ** (-i / half)
        if scaling:
            factor, low, high, context = map(float, scaling.removeprefix("llama3:").split(","))
            wavelength = 2 * math.pi / frequency
            if wavelength > context / low:
                frequency /= factor
            elif wavelength >= context / high:
                smooth = (context / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        found.append(frequency)
    return np.array(found)


def rotated(x, config):
    """x (B, T, H, w), each pair (i, i + r/2) of the first r columns rotated by its angle, as complex numbers."""
    half = (config.rotary_dim or config.head_dim) // 2
    angle = np.arange(x.shape[1])[:, None] * frequencies(half, config.rope_theta, config.rope_scaling)
    z = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(1j * angle)[:, None]
    return np.concatenate((z.real, z.imag, x[..., 2 * half :]), axis=-1)


def attention(q, k, v, window, scale):
    """q (B, T, H, w), k and v (B, T, K, w). A token sees the newest `window`."""
    T, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("bthw,bshw->bhts", q, k) * scale
    seen = np.array([[0 <= i - j < window for j in range(T)] for i in range(T)])
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshw->bthw", p / p.sum(-1, keepdims=True), v)


def convolution(x, weight, bias):
    """silu of a causal depthwise convolution: x (B, T, E), weight (K, E)."""
    K = len(weight)
    seen = np.pad(x, ((0, 0), (K - 1, 0), (0, 0)))
    return silu(np.stack([(seen[:, t : t + K] * weight).sum(1) for t in range(x.shape[1])], axis=1) + bias)


def selective_scan(x, delta, B, C, gate, A_log, D):
    """x, delta, gate (b, T, E), B and C (b, T, S), A_log (S, E), D (E,)."""
    h, out = np.zeros((len(x), *A_log.shape)), []
    for t in range(x.shape[1]):
        step = np.logaddexp(0, delta[:, t])[:, None]  # (b, 1, E)
        h = np.exp(-step * np.exp(A_log)) * h + step * x[:, t, None] * B[:, t, :, None]
        out.append(((h * C[:, t, :, None]).sum(1) + D * x[:, t]) * silu(gate[:, t]))
    return np.stack(out, axis=1)


def recurrence(x, w):
    """H_t = x_t B + H_(t-1) A,   y_t = silu(H_t) C + x_t D"""
    h, out = np.zeros((len(x), len(w["state.weight"]))), []
    for t in range(x.shape[1]):
        h = x[:, t] @ w["input.weight"] + h @ w["state.weight"]
        out.append(silu(h) @ w["output.weight"] + x[:, t] @ w["skip.weight"])
    return np.stack(out, axis=1)


def shapes(config):
    """{name: shape} of the weights that a ModelConfig calls for."""
    V, T, D, F = config.vocab_size, config.block_size, config.n_embd, config.n_hidden
    found = {}

    def add_linear(name, rows, columns, bias=config.bias):
        found[f"{name}.weight"] = (rows, columns)
        if bias:
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
        layer, letter = f"layers.{i}", config.pattern[i % len(config.pattern)]
        out = V if config.head == "none" and i == config.n_layer - 1 else D
        add_norm(f"{layer}.mixer_norm")
        if letter in "ALN":
            w, biased = config.head_dim, {"auto": config.bias, "on": True, "off": False}[config.qkv_bias]
            add_linear(f"{layer}.attention.qkv", D, (config.n_head + 2 * config.n_kv_head) * w, biased)
            if config.qk_norm:
                found |= {f"{layer}.attention.{part}_norm.weight": (w,) for part in "qk"}
            add_linear(f"{layer}.attention.output", config.n_head * w, out)
        elif letter == "M":
            E, S, R, K = config.n_inner, config.ssm_state_size, config.time_step_rank, config.conv_kernel
            add_linear(f"{layer}.mamba.in_proj", D, 2 * E)
            add_linear(f"{layer}.mamba.out_proj", E, out)
            found |= {
                f"{layer}.mamba.conv1d.weight": (K, E),
                f"{layer}.mamba.conv1d.bias": (E,),
                f"{layer}.mamba.x_proj.weight": (E, R + 2 * S),
                f"{layer}.mamba.dt_proj.weight": (R, E),
                f"{layer}.mamba.dt_proj.bias": (E,),
                f"{layer}.mamba.A_log": (S, E),
                f"{layer}.mamba.D": (E,),
            }
        else:
            S = config.recurrence_size
            found |= {
                f"{layer}.recurrence.input.weight": (D, S),
                f"{layer}.recurrence.state.weight": (S, S),
                f"{layer}.recurrence.output.weight": (S, out),
                f"{layer}.recurrence.skip.weight": (D, out),
            }
        if config.feed_forward != "none":
            add_norm(f"{layer}.feed_forward_norm")
            add_linear(f"{layer}.feed_forward.input", D, 2 * F if config.feed_forward == "swiglu" else F)
            add_linear(f"{layer}.feed_forward.output", F, D)
    if config.head != "none":
        add_norm("norm")
    if config.head == "mlp":
        add_linear("head.input", D, config.head_hidden)
    if config.head in ("linear", "mlp"):
        found["head.weight"] = (V, config.head_hidden if config.head == "mlp" else D)
    return found


def plain_logits(config, weights, tokens):
    """Logits (B, T, V), float64, of the model `config` with {name: array} after integer tokens (B, T)."""
    weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    B, T = tokens.shape

    def linear(name, x):
        return x @ weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def norm(name, x):
        if config.norm == "none":
            return x
        center = x - x.mean(-1, keepdims=True) if config.norm == "layernorm" else x
        return scaled(center) * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def scaled(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)

    def mix(i, x):
        layer, letter = f"layers.{i}", config.pattern[i % len(config.pattern)]
        if letter in "ALN":
            heads = linear(f"{layer}.attention.qkv", x).reshape(B, T, -1, config.head_dim)
            q, k, v = np.split(heads, (config.n_head, config.n_head + config.n_kv_head), axis=2)
            if config.qk_norm:
                q = scaled(q) * weights[f"{layer}.attention.q_norm.weight"]
                k = scaled(k) * weights[f"{layer}.attention.k_norm.weight"]
            if config.positions == "rotary" and letter != "N":
                q, k = rotated(q, config), rotated(k, config)
            window, scale = config.window if letter == "L" else T, config.score_scale or config.head_dim**-0.5
            return linear(f"{layer}.attention.output", attention(q, k, v, window, scale).reshape(B, T, -1))
        if letter == "M":
            mamba, E = f"{layer}.mamba", config.n_inner
            projected = linear(f"{mamba}.in_proj", x)
            inner = convolution(projected[..., :E], weights[f"{mamba}.conv1d.weight"], weights[f"{mamba}.conv1d.bias"])
            R, S = config.time_step_rank, config.ssm_state_size
            rank, in_weight, out_weight = np.split(inner @ weights[f"{mamba}.x_proj.weight"], (R, R + S), axis=-1)
            delta = linear(f"{mamba}.dt_proj", rank)
            A_log, D = weights[f"{mamba}.A_log"], weights[f"{mamba}.D"]
            scanned = selective_scan(inner, delta, in_weight, out_weight, projected[..., E:], A_log, D)
            return linear(f"{mamba}.out_proj", scanned)
        prefix = f"{layer}.recurrence."
        return recurrence(x, {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)})

    x = weights["embedding.weight"][tokens]
    if config.positions == "learned":
        x = x + weights["positions.weight"][:T]
    elif config.positions == "sinusoidal":
        x = x + sinusoidal(T, config.n_embd)
    for i in range(config.n_layer):
        before, mixed = x, mix(i, norm(f"layers.{i}.mixer_norm", x))
        x = x + mixed if config.residual else mixed
        if config.feed_forward != "none":
            read = before if config.parallel else x
            hidden = linear(f"layers.{i}.feed_forward.input", norm(f"layers.{i}.feed_forward_norm", read))
            branch = linear(f"layers.{i}.feed_forward.output", ACTIVATIONS[config.feed_forward](hidden))
            x = x + branch if config.residual else branch
    if config.head == "none":
        return x
    x = norm("norm", x)
    if config.head == "mlp":
        x = silu(linear("head.input", x))
    return x @ weights["embedding.weight" if config.head == "tied" else "head.weight"].T


def cross_entropy(logits, targets):
    """-log softmax(logits)[target] in nats, 0 where the target is -1: logits (..., V), targets (...)."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(-1))
    picked = np.take_along_axis(shifted, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets >= 0, log_sum - picked, 0.0)


def plain_loss(config, weights, tokens, targets):
    """Mean cross-entropy in nats over the targets that are not -1."""
    losses = cross_entropy(plain_logits(config, weights, tokens), targets)
    return float(losses.sum() / max(1, (targets >= 0).sum()))

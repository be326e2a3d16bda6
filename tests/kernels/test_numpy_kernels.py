"""The NumPy kernels by themselves: PyTorch's float64 autograd, extreme values, decoding, threads."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from kernel_cases import (
    EPS,
    Kernels,
    activation,
    attention,
    convolution,
    embedding,
    layernorm,
    linear,
    linear_recurrence,
    linear_transposed,
    normal,
    rmsnorm,
    rotary,
    selective_scan,
    softmax_cross_entropy,
)
from scipy.special import ndtr

from slm_np.errors import UserError
from slm_np.kernels import numpy as kernels
from slm_np.kernels.numpy import threads
from slm_np.kernels.numpy.normal import normal_cdf

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None
else:
    torch.set_num_threads(1)  # more threads only wait at these sizes

DOUBLE = Kernels(kernels, np.float64)


# PyTorch. Each case beside the same op as a function of tensors, by the names of the case's inputs


def attend(heads, kv_heads, steps):
    def run(qkv, **_):
        q, k, v = (
            x.reshape(-1, steps, n, x.shape[1] // n).transpose(1, 2)
            for n, x in zip((heads, kv_heads, kv_heads), split(qkv, heads, kv_heads))
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(len(qkv), -1)

    return run


def split(qkv, heads, kv_heads):
    width = qkv.shape[1] // (heads + 2 * kv_heads)
    return qkv.split([heads * width, kv_heads * width, kv_heads * width], 1)


def rotate(heads, width, steps):
    """Pairs (i, i + w/2) as complex numbers, multiplied by cos + i sin."""

    def run(x, cos, sin, **_):
        left, right = x[:, : heads * width].reshape(-1, steps, heads, width).chunk(2, -1)
        turned = torch.complex(left, right) * torch.complex(cos, sin)[:, None]
        turned = torch.cat((turned.real, turned.imag), -1).reshape(len(x), -1)
        return torch.cat((turned, x[:, heads * width :]), 1)

    return run


def convolve(x, past, weight, bias, **_):
    batch, _, channels = past.shape
    seen = torch.cat((past, x[:, :channels].reshape(batch, -1, channels)), 1).transpose(1, 2)
    out = F.silu(F.conv1d(seen, weight.T[:, None], bias, groups=channels))
    return out.transpose(1, 2).reshape(-1, channels)


def scan(x, delta, ssm_parameters, projected, A_log, D, first, **_):
    (n_states, channels), batch, h, out = A_log.shape, len(first), first, []
    x, delta, w, gate = (a.reshape(batch, -1, a.shape[1]) for a in (x, delta, ssm_parameters, projected[:, channels:]))
    for t in range(x.shape[1]):
        d = F.softplus(delta[:, t])
        b, c = w[:, t, -2 * n_states : -n_states], w[:, t, -n_states:]
        h = torch.exp(-d[:, None] * torch.exp(A_log)) * h + torch.einsum("be,bs->bse", d * x[:, t], b)
        out.append((torch.einsum("bse,bs->be", h, c) + D * x[:, t]) * F.silu(gate[:, t]))
    return torch.stack(out, 1).reshape(-1, channels)


def recur(states, weight, **_):
    out = [states[0]]
    for u in states[1:]:
        out.append(u + out[-1] @ weight)
    return torch.stack(out)


def embed(tokens, weight, positions=None, **_):
    out = F.embedding(tokens, weight)
    return (out if positions is None else out + positions).reshape(-1, weight.shape[1])


def norm(function):
    return lambda x, weight, bias=None, **_: function(x, weight, bias)


PYTORCH = [
    (activation("silu", "5x7", normal(5, 7)), lambda x, **_: F.silu(x)),
    (activation("gelu", "5x7", normal(5, 7)), lambda x, **_: F.gelu(x)),
    (activation("gelu_tanh", "5x7", normal(5, 7)), lambda x, **_: F.gelu(x, approximate="tanh")),
    (activation("swiglu", "5x14", normal(5, 14)), lambda x, **_: F.silu(x[:, :7]) * x[:, 7:]),
    (linear(4, 7, 3), lambda x, weight, **_: x @ weight),
    (linear(4, 7, 3, bias=True, residual=True), lambda x, weight, bias, residual, **_: x @ weight + bias + residual),
    (linear_transposed(4, 7, 11), lambda x, weight, **_: x @ weight.T),
    (rmsnorm(4, 7), norm(lambda x, w, b: F.rms_norm(x, (7,), w, EPS))),
    (rmsnorm(1, 1), norm(lambda x, w, b: F.rms_norm(x, (1,), w, EPS))),
    (layernorm(4, 7), norm(lambda x, w, b: F.layer_norm(x, (7,), w, b, EPS))),
    (layernorm(4, 7, bias=False), norm(lambda x, w, b: F.layer_norm(x, (7,), w, b, EPS))),
    (embedding(2, 5, 11, 7), embed),
    (embedding(2, 5, 11, 7, positions=False), embed),
    (rotary(2, 5, 3, 6, more=4), rotate(3, 6, 5)),
    (rotary(1, 1, 1, 2, start=40), rotate(1, 2, 1)),
    (attention(2, 5, 3, 3, 4), attend(3, 3, 5)),
    (attention(2, 5, 6, 2, 4), attend(6, 2, 5)),
    (attention(1, 1, 1, 1, 1), attend(1, 1, 1)),
    (convolution(2, 7, 5, 4), convolve),
    (convolution(2, 2, 3, 1), convolve),
    (selective_scan(2, 7, 5, 3, 2), scan),
    (linear_recurrence(9, 2, 5), recur),
    (softmax_cross_entropy("7x11", normal(7, 11)), lambda logits, targets, **_: entropy(logits, targets)),
    (softmax_cross_entropy("7x11", normal(7, 11), masked=True), lambda logits, targets, **_: entropy(logits, targets)),
    (softmax_cross_entropy("1x1", normal(1, 1)), lambda logits, targets, **_: entropy(logits, targets)),
]


def entropy(logits, targets):
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("case, function", PYTORCH, ids=[case.id.replace(" ", "-") for case, _ in PYTORCH])
def test_results_and_gradients_equal_pytorchs(case, function):
    found = DOUBLE.results(case)
    tensors = {
        name: torch.tensor(x.astype(np.float64), requires_grad=True) if x.dtype.kind == "f" else torch.tensor(x).long()
        for name, x in case.inputs.items()
    }
    out = function(**tensors)
    out.backward(tensors["dout"].detach())
    np.testing.assert_allclose(found["out"], out.detach().numpy(), rtol=1e-12, atol=1e-13)
    gradients = [name for name in tensors if f"d{name}" in found]
    assert gradients
    for name in gradients:
        np.testing.assert_allclose(found[f"d{name}"], tensors[name].grad.numpy(), rtol=1e-12, atol=1e-13, err_msg=name)


# Values


# (x, P(X <= x)) by mpmath.ncdf with 40 digits
NORMAL = [
    (-37.5, 4.605353009581955e-308),
    (-30.25, 2.6086402857412604e-201),
    (-20.3, 6.429244467698346e-92),
    (-10.1, 2.762109471764517e-24),
    (-5.7, 5.990371401063528e-09),
    (-5.6, 1.071759025831093e-08),
    (-3.3, 0.0004834241423837775),
    (-1.1, 0.13566606094638264),
    (-0.7, 0.24196365222307303),
    (-0.6, 0.2742531177500736),
    (-1e-09, 0.49999999960105773),
    (0.3, 0.6179114221889527),
    (0.67, 0.7485711049046899),
    (0.9, 0.8159398746532405),
    (2.5, 0.9937903346742238),
    (6.1, 0.9999999994696577),
]


def test_normal_cdf():
    x, exact = np.array(NORMAL).T
    np.testing.assert_allclose(normal_cdf(x), exact, rtol=8e-16)
    x = np.linspace(-40, 40, 100_001)
    np.testing.assert_allclose(normal_cdf(x), ndtr(x), rtol=0, atol=2.3e-16)
    np.testing.assert_allclose(normal_cdf(x), [(1 + math.erf(v / math.sqrt(2))) / 2 for v in x], rtol=0, atol=3e-16)
    tail = x[(x > -37) & (x < 0)]  # below, it underflows; ndtr rounds x / sqrt(2), which its error grows with
    np.testing.assert_array_less(np.abs(normal_cdf(tail) / ndtr(tail) - 1), 2.3e-16 * (8 + tail**2))
    ends = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(normal_cdf(ends), [np.nan, 1, 0, 1, 0, 0.5])


def test_normal_cdf_keeps_shape_and_dtype():
    x = normal(3, 5).astype(np.float32)
    np.testing.assert_array_equal(normal_cdf(x), ndtr(x.astype(float)).astype(np.float32), strict=True)


def test_known_values():
    one, out = np.ones((1, 1)), np.empty((1, 1))
    for name, value in (("silu", 1 / (1 + np.exp(-1))), ("gelu", ndtr(1.0)), ("gelu_tanh", 0.8411919906082768)):
        getattr(kernels, f"{name}_forward")(out, one)
        assert out[0, 0] == pytest.approx(value, rel=1e-14)
    losses = np.empty(3)
    kernels.softmax_cross_entropy_forward(losses, np.zeros((3, 11)), np.arange(3))
    np.testing.assert_allclose(losses, np.log(11), rtol=1e-14)
    x = np.array([[1.0, 0.0]])
    kernels.rotary_forward(x, np.cos([[1.0]]), np.sin([[1.0]]), 1, 2)
    np.testing.assert_allclose(x, [[np.cos(1), np.sin(1)]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_activations_neither_overflow_nor_warn(name, dtype):
    x = np.array([[-1e3, -40.0, 0.0, 40.0, 1e3]], dtype)
    out, dx, again = np.empty_like(x), x.copy(), np.ones_like(x)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        getattr(kernels, f"{name}_forward")(out, x)
        getattr(kernels, f"{name}_backward")(dx, again)
    for found in (out, again):
        np.testing.assert_allclose(found, np.maximum(x, 0), atol=1e-15)
    np.testing.assert_allclose(dx, [[0, 0, 0.5, 1, 1]], atol=1e-15)


def test_cross_entropy_of_large_logits_neither_overflows_nor_warns():
    logits, losses, targets = np.array([[1e4, 0.0], [0.0, -1e4]]), np.empty(2), np.array([1, 0])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        kernels.softmax_cross_entropy_backward(logits, losses, logits, targets, 1.0)
    np.testing.assert_allclose(losses, [1e4, 0], atol=1e-15)
    np.testing.assert_allclose(logits, [[1, -1], [0, 0]], atol=1e-15)


@pytest.mark.parametrize("delta", [-100.0, -20.0, 0.0, 30.0, 1e4])
def test_the_selective_scan_of_extreme_time_steps_neither_overflows_nor_warns(delta):
    """A step of nearly no time keeps the state, a long one forgets it."""
    case = selective_scan(1, 5, 3, 2, 1)
    inputs = case.inputs | dict(delta=np.full_like(case.inputs["delta"], delta))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = DOUBLE.results(case, inputs)
    assert all(np.isfinite(x).all() for x in found.values())
    if delta == -100:
        np.testing.assert_allclose(found["last"], inputs["first"], rtol=1e-12)


# The rest of the contract


def test_rows_of_the_gradient_may_be_longer_than_the_logits():
    """Further columns are zeros, and the head's backward does not read them."""
    logits, targets, losses = normal(5, 11), np.array([3, -1, 0, 10, 10]), np.empty(5, np.float32)
    x, weight, dlogits = normal(5, 7), normal(11, 7), np.full((5, 16), np.nan, np.float32)
    kernels.softmax_cross_entropy_backward(dlogits, losses, logits.copy(), targets, 0.5)
    kernels.softmax_cross_entropy_backward(logits, losses, logits, targets, 0.5)
    np.testing.assert_array_equal(dlogits[:, :11], logits)
    assert (dlogits[:, 11:] == 0).all()
    dlogits[:, 11:] = np.nan
    results = []
    for gradient in (logits, dlogits):
        dx, dweight = np.full_like(x, np.nan), np.ones_like(weight)
        kernels.linear_transposed_backward(dx, dweight, gradient, x, weight)
        results.append((dx, dweight))
    for found, expected in zip(*results):
        np.testing.assert_array_equal(found, expected)


def test_scalars_may_be_arrays_of_one_element():
    def one(x, dtype=np.float64):
        return np.array([x], dtype)

    x, targets = normal(5, 7).astype(float), np.array([3, -1, 0, 6, 6])
    results = []
    for scale, key, position in ((0.5, 9, 3), (one(0.5), one(9, np.uint32), one(3, np.int32))):
        losses, dlogits, dropped, out = np.empty(5), x.copy(), np.empty_like(x), np.empty((2, 6))
        keys, values = normal(2, 1, 4, 3).astype(float), normal(2, 1, 4, 3, seed=1).astype(float)
        kernels.softmax_cross_entropy_backward(dlogits, losses, dlogits, targets, scale)
        kernels.dropout_forward(dropped, x, None, (0.3, key))
        kernels.attention_step(out, keys, values, normal(2, 12).astype(float), 2, 1, position)
        flat = [normal(9, seed=i).astype(float) ** 2 for i in range(4)]
        kernels.adamw(*flat, 5, scale, scale, 0.1, 0.9, 0.95, scale, scale, 1e-8)
        results.append([losses, dlogits, dropped, out, keys, values, *flat])
    for found, expected in zip(*results):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("local", [0, 1, 4, 9, 20])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-13)], ids=["float32", "float64"])
def test_decoding_equals_attention_over_the_whole_sequence(dtype, tolerance, local):
    """As long as the cache holds all tokens; after that, it equals attention over the newest.

    local: the attention window, 0 for none
    """
    batch, steps, slots, heads, kv_heads, width = 2, 13, 9, 4, 2, 5
    qkv = normal(batch, steps, (heads + 2 * kv_heads) * width).astype(dtype)
    keys, values = np.full((2, batch, kv_heads, slots, width), np.nan, dtype)
    for t in range(steps):
        out = np.full((batch, heads * width), np.nan, dtype)
        kernels.attention_step(out, keys, values, qkv[:, t], heads, kv_heads, t, local)
        window = qkv[:, max(0, t + 1 - slots) : t + 1]
        rows = np.ascontiguousarray(window).reshape(-1, qkv.shape[2])
        whole, lse = np.empty((len(rows), heads * width), dtype), np.empty((batch * heads, window.shape[1]), dtype)
        kernels.attention_forward(whole, lse, np.empty(0), rows, heads, kv_heads, window.shape[1], None, local)
        np.testing.assert_allclose(out, whole.reshape(batch, -1, heads * width)[:, -1], rtol=tolerance, atol=tolerance)


# The process


def test_numba_is_not_imported():
    code = "import sys, slm_np.kernels.numpy; print(sorted({'numba', 'llvmlite'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == "[]"


def test_threads_are_those_of_numpys_blas():
    cores, before = threads.available_cores(), threads.thread_count()
    try:
        assert threads.use_threads(1) == threads.thread_count() == 1
        assert threads.use_threads(0) == threads.thread_count() == cores
        with pytest.raises(UserError, match=f"--threads {cores + 1} exceeds the {cores} available cores; give at most"):
            threads.use_threads(cores + 1)
        assert threads.thread_count() == cores
    finally:
        threads.use_threads(before)
    assert threads.matmul_name().startswith("NumPy with ")

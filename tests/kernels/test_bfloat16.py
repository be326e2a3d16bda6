"""bfloat16: matmul inputs and stored results are rounded once, to nearest even; everything else is as in float32.

Conversions, gemms, attention, other ops and whole models, and the same on other processors.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
from amx_emulator import POSSIBLE
from bfloat16_arrays import (
    assert_cast_copies_match,
    assert_guards_untouched,
    guarded,
    nearest,
    norm,
    normal,
    poisoned,
    to_bfloat16,
    unpair,
    widened,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ACTIVATIONS, row_losses
from llvmlite import binding
from thread_counts import over_threads, several

from slm_np import ops
from slm_np.config import ModelConfig
from slm_np.dtypes import BF16
from slm_np.inference.decoder import Decoder
from slm_np.kernels import cpu as cpu_kernels
from slm_np.kernels import numpy as numpy_kernels
from slm_np.kernels.cpu import gemm_bf16, microkernel_bf16
from slm_np.kernels.numpy.attention import by_head, split_heads
from slm_np.kernels.numpy.loss import softmax_cross_entropy_backward
from slm_np.nn.model import Model
from slm_np.ops.device import CPU, kernels_of, whole_lines
from slm_np.presets import BYTE_TRANSFORMER, GPT2, LLAMA
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
kernels = CPU.kernels
ROWS, COLUMNS, TERMS = microkernel_bf16.ROWS, microkernel_bf16.COLUMNS, gemm_bf16.TERMS
UNIT, HALF_ULP = 2.0**-24, 2.0**-8  # largest relative error of rounding to float32 and to bfloat16
SMALLEST = 2.0**-126  # the smallest normal number; denormals may be flushed to zero


def cast_copy(weight):
    copy = kernels.cast_copy(weight)
    kernels.update_cast_copy(copy)
    return copy


# Conversion


def assert_converted(x):
    """ops.convert rounds x to nearest even, keeps NaN and may flush denormals."""
    found = np.empty(x.shape, BF16)
    ops.convert(found, x)
    assert (np.isnan(widened(found)) == np.isnan(x)).all()
    flushed = (np.abs(x) < SMALLEST) & (found & 0x7FFF == 0)
    assert (found == to_bfloat16(x))[~flushed & ~np.isnan(x)].all()


def test_every_upper_half_is_rounded_to_nearest_even():
    """All signs, exponents and leading digits, with NaN, infinity and denormals, below, at and above every tie."""
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        assert_converted(((np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(low)).view(np.float32))


@settings(max_examples=100, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70), repeats=st.sampled_from([1, 1, 1, 300]))
def test_any_bits_are_rounded_to_nearest_even(bits, repeats):
    assert_converted(np.tile(np.array(bits, np.uint32), repeats).view(np.float32))


def test_the_oracle_of_rounding():
    rounded = {
        0: 0,
        1: 1,
        1 + 2**-8: 1,
        1 + 3 * 2**-8: 1 + 2**-6,
        1 + 2**-8 + 2**-20: 1 + 2**-7,
        1.001: 1,
        -1.999: -2,
        3.4e38: np.inf,
        np.inf: np.inf,
        -np.inf: -np.inf,
        np.nan: np.nan,
    }
    np.testing.assert_array_equal(nearest(np.float32([*rounded])), [*rounded.values()])
    assert to_bfloat16(np.float32([-0.0]))[0] == 0x8000


def test_widening_is_exact():
    x = np.arange(1 << 16).astype(BF16)
    found = np.empty(x.shape, np.float32)
    ops.convert(found, x)
    np.testing.assert_array_equal(found.view(np.uint32), x.astype(np.uint32) << 16)


# Gemms


@pytest.mark.parametrize("d, e", [(1, 1), (2, 3), (3, 2), (32, 32), (33, 65), (64, 31), (67, 98)])
def test_cast_copies_are_packed_for_both_directions(d, e):
    weight = normal(d, e)
    copy = kernels.cast_copy(weight)
    for panels, w in ((copy.forward, weight), (copy.backward, weight.T)):
        for row, column in np.ndindex((len(w) + 1) // 2, w.shape[1]):
            panels[column // COLUMNS, row, column % COLUMNS] = 0x7FC07FC0  # a pair of NaN
    kernels.update_cast_copy(copy)
    for panels, w in ((copy.forward, weight), (copy.backward, weight.T)):
        found = unpair(gemm_bf16.unpacked(panels, panels.size))
        np.testing.assert_array_equal(found[: len(w), : w.shape[1]], to_bfloat16(w))
        assert not found[len(w) :].any() and not found[:, w.shape[1] :].any()


def assert_product(found, unrounded, a, b, prefill=0.0, more=0.0):
    """found = prefill + a b, but for the rounding of sums to float32 and of results to the type of `found`.

    a and b are float64 and hold bfloat16 values, `unrounded` are the same two matrices before rounding. Compared with
    their product, `found` may have at most twice the error of exact arithmetic with rounded inputs. `more` adds to the
    size of sums.
    """
    exact, ideal = prefill + a @ b, prefill + unrounded[0].astype(np.float64) @ unrounded[1]
    # The rounding error of a sum is a random walk of about 0.4 UNIT |a_i| |b_j|, with a_i a row and b_j a column.
    bound = 8 * UNIT * (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=0) + np.abs(prefill) + more)
    shown, best = widened(found).astype(np.float64), exact
    if found.dtype == BF16:
        bound, best = bound + HALF_ULP * (np.abs(exact) + bound), nearest(exact)
    assert (np.abs(shown - exact) <= bound + SMALLEST).all()
    assert norm(shown - ideal) <= 2 * norm(best - ideal) + 8 * UNIT * norm(ideal) + SMALLEST


def check_gemms(m, k, n):
    """The gemms of a linear layer, x (m, k) and W (k, n), and of an embedding W^T, with NaN around all results."""
    x, dy, w = normal(m, k), normal(m, n, seed=1), normal(k, n, seed=2)
    (_, x16), (_, dy16), copy, transposed = guarded(x), guarded(dy), cast_copy(w), cast_copy(np.ascontiguousarray(w.T))
    X, DY, W = map(nearest, (x, dy, w))
    bias, residual = normal(n, seed=3), normal(m, n, seed=4)
    for with_bias in (False, True):
        for with_residual in (False, True):
            results = []
            for dtype in (np.float32, BF16):
                whole, out = guarded((m, n), dtype)
                stored = to_bfloat16(residual) if dtype == BF16 else residual
                poisoned(gemm_bf16.MEMORY.of(1))
                ops.linear_forward(out, x16, copy, bias if with_bias else None, stored if with_residual else None)
                assert_guards_untouched(whole)
                prefill = np.zeros((m, n)) + with_bias * bias + with_residual * widened(stored)
                assert_product(out, (x, w), X, W, prefill, with_residual * np.abs(widened(stored)))
                results.append(out)
            if k <= 2 * TERMS and not with_residual:
                np.testing.assert_array_equal(results[1], to_bfloat16(results[0]))  # the same sum, rounded once
    for dtype in (np.float32, BF16):
        for multiply, unrounded, rounded, shape in (
            (lambda out: ops.linear_backward_input(out, dy16, copy), (dy, w.T), (DY, W.T), (m, k)),
            (lambda out: ops.linear_transposed_forward(out, x16, transposed), (x, w), (X, W), (m, n)),
        ):
            whole, out = guarded(shape, dtype)
            poisoned(gemm_bf16.MEMORY.of(1))
            multiply(out)
            assert_guards_untouched(whole)
            assert_product(out, unrounded, *rounded)
    dweight, dbias = normal(k, n, seed=5), normal(n, seed=6)  # before
    (weight_whole, found), (bias_whole, found_bias) = guarded(dweight, np.float32), guarded(dbias, np.float32)
    poisoned(gemm_bf16.MEMORY.of(1))
    ops.linear_backward_weight(found, found_bias, dy16, x16)
    assert_guards_untouched(weight_whole, bias_whole)
    assert_product(found, (x.T, dy), X.T, DY, dweight.astype(np.float64), np.abs(dweight))
    np.testing.assert_allclose(found_bias, dbias + DY.sum(0), rtol=0, atol=8 * UNIT * (np.abs(DY).sum(0).max() + 9))


SHAPES = [
    (1, 1, 1),
    (1, 2, 1),
    (2, 1, 3),
    (ROWS, 2, COLUMNS),
    (ROWS - 1, 3, COLUMNS - 1),
    (ROWS + 1, 5, COLUMNS + 1),
    (2 * ROWS, 64, 2 * COLUMNS),
    (3, 33, 2 * COLUMNS + 1),
    (65, 129, 40),
    (COLUMNS + 1, 2 * COLUMNS - 1, 66),
    (9, 2 * TERMS, 33),
    (9, 2 * TERMS + 1, 33),
    (9, 2 * TERMS + 2, 33),
    (17, 5 * TERMS + 7, 34),
    (2 * gemm_bf16.OUTER_TERMS + 3, 3, 5),
    (2100, 11, 7),
    (13, gemm_bf16.OUTER_ROWS + 9, 35),
    (13, 35, 390),
]


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_gemms(m, k, n):
    check_gemms(m, k, n)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 100), k=st.integers(1, 300), n=st.integers(1, 100))
def test_any_gemms(m, k, n):
    check_gemms(m, k, n)


# Attention


def attention_in_numpy(
    qkv,
    dout,
    heads,
    kv_heads,
    steps,
    dropout,
    window,
    scale,
    rounding,
):
    """(out, lse, dqkv) in float64. `rounding` rounds every result and every intermediate matmul input."""
    q, k, v = split_heads(qkv, heads, kv_heads, steps)  # (B, K, G, T, w), and (B, K, 1, T, w) twice
    dy, scale = by_head(dout, heads, steps).reshape(q.shape), scale or 1 / math.sqrt(q.shape[-1])
    age = np.arange(steps)[:, None] - np.arange(steps)
    scores = np.where(
        (age >= 0) & (age < (window or steps)), q @ k.swapaxes(-1, -2) * scale, -np.inf
    )  # (B, K, G, T, T)
    largest = scores.max(-1, keepdims=True)
    lse = largest + np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    p, mask = np.exp(scores - lse), np.ones(scores.shape)
    if dropout[0]:
        ops.dropout_forward(mask, np.ones(scores.shape), None, dropout)
    dp = dy @ v.swapaxes(-1, -2) * mask
    ds, dropped = rounding(p * (dp - (p * dp).sum(-1, keepdims=True))), rounding(p * mask)
    dq = ds @ k * scale
    dk, dv = (ds.swapaxes(-1, -2) @ q).sum(2) * scale, (dropped.swapaxes(-1, -2) @ dy).sum(2)  # (B, K, T, w)
    dqkv = np.concatenate([dq.reshape(len(dq), heads, *dq.shape[3:]), dk, dv], axis=1)  # (B, H + 2 K, T, w)
    out = (dropped @ v).reshape(len(dq), heads, *dq.shape[3:])  # (B, H, T, w)
    out, dqkv = (rounding(x.swapaxes(1, 2).reshape(like.shape)) for x, like in ((out, dout), (dqkv, qkv)))
    return out, lse.reshape(-1, steps), dqkv


def attention_of_kernels(
    qkv,
    dout,
    heads,
    kv_heads,
    steps,
    dropout,
    window,
    scale,
):
    """(out, lse, dqkv) of the kernels, from arrays of bfloat16 or float64. Their scratch holds NaN before."""
    dtype = np.float32 if qkv.dtype == BF16 else np.float64
    batch, width = len(qkv) // steps, dout.shape[1] // heads
    scratch = np.empty(kernels_of(qkv).attention_scratch(steps, width, batch * heads), dtype)
    lse = poisoned(np.empty((batch * heads, steps), dtype))
    (out_whole, out), (dqkv_whole, dqkv) = guarded(dout.shape, qkv.dtype), guarded(qkv.shape, qkv.dtype)
    poisoned(scratch)
    settings = heads, kv_heads, steps, dropout, window, scale
    ops.attention_forward(out, lse, scratch, qkv, *settings)
    poisoned(scratch)
    dqkv[...] = qkv
    ops.attention_backward(dqkv, scratch, dout, out, lse, *settings)
    assert_guards_untouched(out_whole, dqkv_whole)
    return widened(out), lse, widened(dqkv)


def check_attention(
    batch,
    steps,
    heads,
    kv_heads,
    width,
    rate=0.0,
    window=0,
    scale=None,
):
    """Each head's result has at most twice the error of exact arithmetic with the same roundings."""
    qkv = to_bfloat16(normal(batch * steps, (heads + 2 * kv_heads) * width))
    dout = to_bfloat16(normal(batch * steps, heads * width, seed=1))
    settings = heads, kv_heads, steps, (rate, 7), window, scale
    wide = [widened(x).astype(np.float64) for x in (qkv, dout)]
    found, exact = attention_of_kernels(qkv, dout, *settings), attention_of_kernels(*wide, *settings)
    for a, b in zip(attention_in_numpy(*wide, *settings, lambda x: x), exact):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)  # both oracles agree
    np.testing.assert_allclose(found[1], exact[1], rtol=1e-5, atol=1e-5)
    ideal = attention_in_numpy(*wide, *settings, nearest)
    for i, count in ((0, heads), (2, heads + 2 * kv_heads)):  # out's heads, and those of dq, dk and dv
        for head in range(count):
            part = slice(head * width, head * width + width)
            error, unavoidable = (norm(x[i][:, part] - exact[i][:, part]) for x in (found, ideal))
            assert error <= 2 * unavoidable + 1e-6 * math.sqrt(steps) * norm(exact[0]), (i, head)


ATTENTION = [
    (1, 1, 1, 1, 4, 0),
    (2, 7, 4, 2, 3, 0),
    (1, 65, 2, 1, 5, 0),
    (2, 70, 2, 1, 32, 0),
    (1, 130, 1, 1, 7, 0),
    (2, 9, 2, 2, 3, 0.3),
    (1, 150, 4, 2, 33, 0.2),
    (1, 64, 4, 4, 32, 0),
    (1, 2 * 256 + 70, 1, 1, 6, 0),  # more than 256 pairs of keys
    (2, 9, 2, 1, 3, 0.3, 4, 1.0),
    (1, 150, 2, 1, 8, 0, 20),
    (1, 150, 2, 2, 7, 0.2, 70, 0.2),
    (1, 2 * 256 + 70, 1, 1, 6, 0, 520),
]


@pytest.mark.parametrize("sizes", ATTENTION, ids=["x".join(map(str, sizes)) for sizes in ATTENTION])
def test_attention(sizes):
    check_attention(*sizes)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    steps=st.integers(1, 140),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    width=st.integers(1, 40),
    rate=st.sampled_from([0.0, 0.25]),
)
def test_any_attention(batch, steps, kv_heads, group, width, rate):
    check_attention(batch, steps, kv_heads * group, kv_heads, width, rate)


# Other ops: their float32 results for the same inputs, rounded


def assert_rounded(found, expected):
    """found is `expected`, a float32 result, rounded to bfloat16.

    The compiler may fuse other operations when types differ, so float32 results may differ slightly before rounding.
    """
    slack = 4e-6 * np.abs(expected) + 4e-7 * np.abs(expected).max()
    low, high = nearest(expected - slack), nearest(expected + slack)
    assert found.dtype == BF16 and ((low <= widened(found)) & (widened(found) <= high)).all()
    assert (found == to_bfloat16(expected)).mean() > 0.95


N, D = 37, 270  # more elements than a block of 8192, and no multiple of a vector


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x, dout = to_bfloat16(3 * normal(N, D)), to_bfloat16(normal(N, D // 2 if name == "swiglu" else D, seed=1))
    forward, backward = (getattr(ops, f"{name}_{direction}") for direction in ("forward", "backward"))
    results = []
    for dtype in (np.float32, BF16):
        a, b = (z.copy() if dtype == BF16 else widened(z) for z in (x, dout))
        out = poisoned(np.empty(b.shape, dtype))
        forward(out, a)
        backward(a, b)
        results.append((out, a, b))
    for expected, found in zip(*results):
        assert_rounded(found, expected)


def test_silu_backward_with_a_float32_gradient():
    x, dout = to_bfloat16(3 * normal(N, D)), normal(N, D, seed=1)
    dx, out, exact_dx, exact_out = x.copy(), dout.copy(), widened(x), dout.copy()
    ops.silu_backward(exact_dx, exact_out)
    ops.silu_backward(dx, out)
    assert_rounded(dx, exact_dx)
    np.testing.assert_allclose(out, exact_out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_norms(bias):
    x, weight, b = normal(N, D), normal(D), normal(D, seed=1) if bias else None
    for name in ("rmsnorm", "layernorm"):
        results = []
        for dtype in (np.float32, BF16):
            out, mean, rstd = poisoned(np.empty(x.shape, dtype)), np.zeros(N, np.float32), np.empty(N, np.float32)
            if name == "rmsnorm":
                ops.rmsnorm_forward(out, rstd, x, weight, 1e-5)
            else:
                ops.layernorm_forward(out, mean, rstd, x, weight, b, 1e-5)
            results.append((out, mean, rstd))
        assert_rounded(results[1][0], results[0][0])
        np.testing.assert_allclose(results[1][1:], results[0][1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("heads, kv_heads, width", [(4, 2, 6), (1, 1, 1), (3, 1, 70)])
def test_head_norm(heads, kv_heads, width):
    """The copy in bfloat16 and its gradient are those of float32, rounded."""
    n, settings = 37, (heads, kv_heads, 1e-5)
    qkv, dout = (to_bfloat16(normal(n, (heads + 2 * kv_heads) * width, seed=seed)) for seed in range(2))
    weights, results = (normal(width), normal(width, seed=1)), []
    for x, dy in ((qkv, dout), (widened(qkv), widened(dout))):
        out, rstd = poisoned(np.empty_like(x)), poisoned(np.empty((n, heads + kv_heads), np.float32))
        dx, dweights = x.copy(), np.zeros((2, width), np.float32)
        ops.head_norm_forward(out, rstd, x, *weights, *settings)
        ops.head_norm_backward(dx, *dweights, dy, *weights, rstd, heads, kv_heads)
        results.append((out, dx, rstd, dweights))
    for found, expected in zip(results[0][:2], results[1][:2]):
        assert_rounded(found, expected)
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=1e-6)
    np.testing.assert_allclose(results[0][3], results[1][3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rotated", [14, 4])
def test_rotary(rotated):
    steps, heads, width = 5, 3, 14
    x = to_bfloat16(normal(4 * steps, (heads + 2) * width))
    cos, sin = np.empty((2, steps, rotated // 2), np.float32)
    ops.rotary_table(cos, sin, 10000.0)
    for rotate in (ops.rotary_forward, ops.rotary_backward):
        found, expected = x.copy(), widened(x)
        rotate(found, cos, sin, heads, width)
        rotate(expected, cos, sin, heads, width)
        assert_rounded(found, expected)
        np.testing.assert_array_equal(found[:, heads * width :], x[:, heads * width :])


def test_dropout():
    x, residual = to_bfloat16(normal(N, D)), normal(N, D, seed=1)
    dtypes = np.float32, np.float32, BF16, np.float32
    found, expected, gradient, exact_gradient = (poisoned(np.empty((N, D), dtype)) for dtype in dtypes)
    ops.dropout_forward(found, x, residual, (0.3, 5))
    ops.dropout_forward(expected, widened(x), residual, (0.3, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    ops.dropout_backward(gradient, residual, (0.3, 5))
    ops.dropout_backward(exact_gradient, residual, (0.3, 5))
    assert_rounded(gradient, exact_gradient)
    assert ((gradient == 0) == (exact_gradient == 0)).all()


def test_softmax_cross_entropy():
    logits, targets = 3 * normal(N, D), np.random.default_rng(0).integers(0, D, N).astype(np.int32)
    targets[[0, 9]] = -1
    logits[9] = np.nan
    found, expected = poisoned(np.empty((N, D), BF16)), logits.copy()
    losses, exact = np.empty((2, N), np.float32)
    ops.softmax_cross_entropy_backward(found, losses, logits.copy(), targets, 0.25)
    ops.softmax_cross_entropy_backward(expected, exact, expected, targets, 0.25)
    assert not found[[0, 9]].any()
    counted = targets >= 0
    assert_rounded(found[counted], expected[counted])
    np.testing.assert_allclose(losses, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [N, 16])
@pytest.mark.parametrize("columns", [71, 72, whole_lines(71)])
def test_head_cross_entropy(rows, columns):
    """Rows of dlogits as long as those of the logits, longer ones, and padded to whole cache lines as in a model."""
    d, v, scale = 33, 71, 1 / N
    x, weight, before = normal(N, d), normal(v, d, seed=1), normal(v, d, seed=2)
    targets = np.random.default_rng(0).integers(0, v, N).astype(np.int32)
    targets[3] = -1
    logits, dlogits = poisoned(np.empty((rows, v), np.float32)), poisoned(np.empty((rows, columns), BF16))
    losses, again, dx = np.empty(N, np.float32), np.empty(N, np.float32), poisoned(np.empty((N, d), np.float32))
    x16, copy, dweight = to_bfloat16(x), cast_copy(weight), before.copy()
    ops.head_cross_entropy_forward(losses, logits, x16, copy, targets)
    ops.head_cross_entropy_backward(
        dx,
        dweight,
        again,
        logits,
        dlogits,
        x16,
        copy,
        targets,
        scale,
    )
    X, W = nearest(x), nearest(weight)
    expected, dz = row_losses(X @ W.T, targets), np.empty((N, v))
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)
    softmax_cross_entropy_backward(dz, np.empty(N), X @ W.T, targets, scale)
    for found, exact, ideal in ((dx, dz @ W, nearest(dz) @ W), (dweight - before, dz.T @ X, nearest(dz).T @ X)):
        assert norm(found - exact) <= 2 * norm(ideal - exact)


# Whole models

SIZES = dict(vocab_size=65, block_size=40, n_layer=2, n_embd=32, n_head=4, n_hidden=64)
MODELS = {
    "gpt2-dropout": dict(GPT2, bias=True, dropout=0.1),
    "llama": LLAMA,
    "byte-transformer": BYTE_TRANSFORMER,
    "grouped-queries": dict(LLAMA, n_kv_head=2, head="linear"),
    "odd-widths": dict(GPT2, n_embd=33, n_head=3, n_hidden=37, vocab_size=61, head="linear", bias=True),
    "mlp-head": dict(feed_forward="gelu-tanh", head="mlp", bias=True, head_hidden=45),
    "bare": dict(feed_forward="silu", norm="none", positions="none"),
    "local": dict(pattern="AL", window=40, block_size=150, feed_forward="silu", norm="none", positions="none"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def config(name):
    return ModelConfig(**{**SIZES, **MODELS[name]})


def make_model(config, compute_dtype=BF16, dtype=np.float32):
    """A model with noise on its weights, so that no bias is 0 and no norm's weight is 1.

    The weights hold float32 values for any dtype.
    """
    model = Model(config, 0, dtype=dtype, compute_dtype=compute_dtype)
    weights = model.parameters.weights
    noise = 0.1 * np.random.default_rng(1).standard_normal(weights.size)
    weights[:] = weights.astype(np.float32) + noise.astype(np.float32)
    model.parameters.update_cast_copies()
    return model


def random_tokens(config, batch=3, seed=0):
    return np.random.default_rng([seed, 2]).integers(0, config.vocab_size, (batch, config.block_size)).astype(np.int32)


def loss_and_gradient(model):
    tokens, targets = random_tokens(model.config), random_tokens(model.config, seed=1)
    return model.loss_and_gradient(tokens, targets, key=(1, 2))


def fill_arena(model, fill):
    """Plan the activations of 3 sequences and call fill(arena)."""
    activations = model.plan(3, model.config.block_size)
    fill(activations.arena)
    activations.set_positions(model.config, 0)


def fill_with_nan(arena):
    poisoned(*arena.arrays.values())


def exact_gradients(config):
    """(loss, gradients) in float64."""
    model = make_model(config, None, np.float64)
    return loss_and_gradient(model), model.parameters.gradients


def check_model(config, loss, gradients):
    """Gradients point in the same direction as in float64 and the loss is close, whatever the arena held before."""
    found = []
    for fill in (lambda arena: arena.fill(np.nan), fill_with_nan, lambda arena: arena.fill(0.0)):
        model = make_model(config)
        fill_arena(model, fill)
        assert loss_and_gradient(model) == pytest.approx(float(loss), rel=3e-3)
        found.append(model.parameters.gradients)
        np.testing.assert_array_equal(found[-1], found[0])
    for name, exact in model.parameters.like(gradients).items():
        gradient = model.parameters.gradient[name]
        assert np.vdot(exact, gradient) > 0.99 * norm(exact) * norm(gradient) > 0, name
    assert gradients @ found[0] > 0.999 * norm(gradients) * norm(found[0])
    assert norm(found[0]) == pytest.approx(norm(gradients), rel=0.01)


@every_model
def test_gradients_point_in_the_direction_of_float64(name):
    check_model(config(name), *exact_gradients(config(name)))


@every_model
def test_losses_and_logits_are_close_to_float64(name):
    tokens, targets = random_tokens(config(name)), random_tokens(config(name), seed=1)
    model, exact = make_model(config(name)), make_model(config(name), None, np.float64)
    fill_arena(model, fill_with_nan)
    assert model.loss(tokens, targets) == pytest.approx(exact.loss(tokens, targets), rel=3e-3)
    logits, expected = model.logits(tokens), exact.logits(tokens)
    assert 0 < norm(logits - expected) < 0.02 * norm(expected)


@pytest.mark.parametrize("name", ["llama", "gpt2-dropout"])
def test_a_token_changes_no_earlier_logits(name):
    model = make_model(config(name))
    tokens = random_tokens(model.config)
    before, changed = model.logits(tokens), tokens.copy()
    changed[:, 23] = (changed[:, 23] + 1) % 65
    after = model.logits(changed)
    np.testing.assert_array_equal(after[:, :23], before[:, :23])
    assert (after[:, 23:] != before[:, 23:]).any()


@every_model
def test_full_precision_is_the_float32_model(name):
    model, float32 = make_model(config(name)), make_model(config(name), None)
    tokens, targets = random_tokens(config(name)), random_tokens(config(name), seed=1)
    model.loss(tokens, targets)
    activations, full = model.activations, model.full_precision()
    assert full.loss(tokens, targets) == float32.loss(tokens, targets) != model.loss(tokens, targets)
    np.testing.assert_array_equal(full.logits(tokens), float32.logits(tokens))
    assert model.activations is activations is not full.activations
    assert np.shares_memory(full.parameters.weights, model.parameters.weights)


def test_decoding_uses_the_float32_weights():
    model, float32 = make_model(config("llama")), make_model(config("llama"), None)
    tokens = random_tokens(config("llama"))
    for prompt in (1, 7):
        a, b = Decoder(model, 3), Decoder(float32, 3)
        np.testing.assert_array_equal(a.read(tokens[:, :prompt]), b.read(tokens[:, :prompt]))
        np.testing.assert_array_equal(a.step(tokens[:, prompt]), b.step(tokens[:, prompt]))


WIDE = {
    "llama": dict(LLAMA, n_embd=96, n_head=6, n_kv_head=2, n_hidden=160, block_size=130, vocab_size=300),
    "gpt2-dropout": dict(
        GPT2, n_embd=95, n_head=5, n_hidden=201, block_size=130, vocab_size=301, bias=True, dropout=0.2
    ),
}


@several
@pytest.mark.parametrize("name", WIDE)
def test_the_same_bits_for_any_number_of_threads(name):
    config = ModelConfig(n_layer=1, **WIDE[name])
    tokens, targets = random_tokens(config, 4), random_tokens(config, 4, seed=1)

    def run():
        model = Model(config, 1, compute_dtype=BF16)
        optimizer, found = AdamW(model.parameters, 1e-2), []
        for update in range(2):
            found.append(model.loss_and_gradient(tokens, targets, key=(1, update)))
            found.append(model.parameters.gradients.copy())
            found += [optimizer.step(), model.parameters.weights.copy(), *model.parameters.cast_copies[-1][1:]]
        return found

    over_threads(run)


def test_an_update_renews_the_cast_copies():
    model = make_model(config("llama"))
    optimizer, before = AdamW(model.parameters), [copy.forward.copy() for copy in model.parameters.cast_copies]
    assert_cast_copies_match(model.parameters)
    loss_and_gradient(model)
    optimizer.step(0.1)
    assert_cast_copies_match(model.parameters)
    assert all((copy.forward != panels).any() for copy, panels in zip(model.parameters.cast_copies, before))
    model.parameters.initialize(5)
    assert_cast_copies_match(model.parameters)


# Other processors, in processes of their own

HOST = binding.get_host_cpu_features()
AMX_FEATURES = HOST.flatten() + ",+amx-tile,+amx-bf16"


def check_avx2():
    assert not microkernel_bf16.AMX and not microkernel_bf16.NATIVE and COLUMNS == 16
    assert microkernel_bf16.multiply_chosen_tile is microkernel_bf16.multiply_register_tile
    assert microkernel_bf16.bfloat16_unit() == (False, "this processor has no instruction for bfloat16")


def check_amx():
    assert microkernel_bf16.AMX and ROWS == 32
    reason = "this processor has AMX and its self-test passed"
    assert microkernel_bf16.bfloat16_unit() == (True, reason)


def check_gemms_and_a_model(exact):
    """What a process for another processor runs. exact: a file with a model's loss and gradients in float64."""
    for shape in ((1, 1, 1), (33, 65, 31), (64, 64, 32), (9, 2 * TERMS + 3, 33)):
        check_gemms(*shape)
    with np.load(exact) as arrays:
        check_model(config("local"), arrays["loss"], arrays["gradients"])


def check_float_windows():
    """Attention in float32 with windows. Its tiles have another height than those of AVX-512."""
    steps, settings = 150, (2, 1, 150, None)
    for window in (1, 31, 70, 100):
        qkv, dout = normal(steps, 4 * 6), normal(steps, 2 * 6, seed=1)
        results = []
        for kernels, dtype in ((cpu_kernels, np.float32), (numpy_kernels, np.float64)):
            dqkv, dy = qkv.astype(dtype), dout.astype(dtype)
            out, lse = poisoned(np.empty_like(dy)), poisoned(np.empty((2, steps), dtype))
            scratch = poisoned(np.empty(kernels.attention_scratch(steps, 6, 2), dtype))
            kernels.attention_forward(out, lse, scratch, dqkv, *settings, window)
            poisoned(scratch)
            kernels.attention_backward(dqkv, scratch, dy, out, lse, *settings, window)
            results.append((out, dqkv))
        for found, exact in zip(*results):
            np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


AVX2_PROCESS = """\
import sys
import test_bfloat16
test_bfloat16.check_avx2()
test_bfloat16.check_float_windows()
test_bfloat16.check_gemms_and_a_model(sys.argv[1])
print("passed")
"""
AMX_PROCESS = """\
import sys
import amx_emulator
amx_emulator.pretend()
import test_bfloat16
test_bfloat16.check_amx()
before = amx_emulator.performed()
test_bfloat16.check_gemms_and_a_model(sys.argv[1])
assert amx_emulator.performed() > before + 1000
print("passed")
"""
AMX_SWITCHED_OFF = """\
from slm_np.kernels.cpu import microkernel_bf16
assert not microkernel_bf16.AMX
assert microkernel_bf16.multiply_chosen_tile is microkernel_bf16.multiply_register_tile
unit = microkernel_bf16.bfloat16_unit()
assert microkernel_bf16.NATIVE or unit == (False, "SLM_NP_AMX=0 disables AMX"), unit
print("passed")
"""


def assert_passes(code, *arguments, **environment):
    """Run Python code in a process of its own with these variables instead of this process's choice of a processor."""
    choices = "SLM_NP_CPU", "SLM_NP_AMX", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"
    kept = {name: value for name, value in small.environment().items() if name not in choices}
    kept["PYTHONPATH"] = os.pathsep.join([kept["PYTHONPATH"], *(str(Path(__file__).parents[i]) for i in range(2))])
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**kept, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert run.returncode == 0 and run.stdout.endswith("passed\n"), run.stdout + run.stderr


@pytest.fixture
def cold_cache(tmp_path):
    """Variables of a process that compiles what it calls, and nothing else, into a cache of its own."""
    return dict(SLM_NP_CACHE=str(tmp_path / "kernels"))


@pytest.fixture
def exact_file(tmp_path):
    """A file with `exact_gradients` of the model that other processors run.

    It is made here because float64 kernels would take long to compile there.
    """
    loss, gradients = exact_gradients(config("local"))
    np.savez(tmp_path / "exact.npz", loss=loss, gradients=gradients)
    return tmp_path / "exact.npz"


@pytest.mark.slow
@pytest.mark.skipif(not (HOST.get("avx2") and HOST.get("fma")), reason="this processor has no AVX2")
def test_on_a_processor_with_avx2(exact_file, cold_cache):
    assert_passes(AVX2_PROCESS, exact_file, SLM_NP_CPU="avx2", **cold_cache)


@pytest.mark.slow
@pytest.mark.skipif(not POSSIBLE, reason="the emulator runs on Linux on x86-64 only")
@pytest.mark.skipif(not HOST.get("avx512f"), reason="AMX code uses AVX-512, which is not emulated")
def test_on_a_processor_with_amx(exact_file, cold_cache):
    """Tile instructions are emulated."""
    assert_passes(AMX_PROCESS, exact_file, NUMBA_CPU_FEATURES=AMX_FEATURES, **cold_cache)


@pytest.mark.skipif(not HOST.get("avx2"), reason="this is no x86-64 processor, or an old one")
def test_switching_amx_off_selects_registers(cold_cache):
    assert_passes(AMX_SWITCHED_OFF, NUMBA_CPU_FEATURES=AMX_FEATURES, SLM_NP_AMX="0", **cold_cache)

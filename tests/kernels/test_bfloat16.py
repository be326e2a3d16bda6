"""bfloat16: only operands are rounded, once and to nearest; everything else is as in float32. Conversions, products, attention, the other ops,
whole models, runs, and the same on other processors."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference as ref
import small
from amx_emulator import POSSIBLE
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding
from test_threads import over_threads, several

from slm_np import ops
from slm_np.config import ModelConfig
from slm_np.dtypes import BF16
from slm_np.formats import checkpoint, run_config
from slm_np.inference.decoder import Decoder
from slm_np.kernels.cpu import gemm_bf16 as product_pairs
from slm_np.kernels.cpu import microkernel_bf16 as pair_tile
from slm_np.nn.model import Model
from slm_np.ops.device import CPU, kernels_of, whole_lines
from slm_np.presets import BYTE_TRANSFORMER, GPT2, LLAMA
from slm_np.training.optimizer import AdamW
from slm_np.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
kernels = CPU.kernels
ROWS, COLUMNS, TERMS = pair_tile.ROWS, pair_tile.COLUMNS, product_pairs.TERMS
UNIT, HALF_ULP = 2.0**-24, 2.0**-8  # the largest relative error of rounding to float32 and to bfloat16
SMALLEST = 2.0**-126  # what is smaller is denormal, and may count as zero


def floats(x):
    """bfloat16 as the float32 it is, float32 as it is."""
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == BF16 else x


def bfloats(x):
    """The bits of the bfloat16 nearest to numbers x, the even one of two, found by comparing distances in float64."""
    x = np.asarray(x, np.float32)
    below = x.view(np.uint32) >> 16
    with np.errstate(invalid="ignore"):
        exact, *values = (z.view(np.float32).astype(np.float64) for z in (x, below << 16, below + 1 << 16))
        values[1] = np.where(
            below & 0x7FFF == 0x7F7F, np.copysign(2.0**128, exact), values[1]
        )  # the next, were there one, stands for infinity
        down, up = (np.abs(exact - value) for value in values)
    above = (up < down) | ((up == down) & (below % 2 == 1))
    return np.where(np.isnan(x), 0x7FC0, np.where(np.isinf(x), below, below + above)).astype(BF16)


def nearest(x):
    """Numbers rounded to bfloat16, as float64."""
    return floats(bfloats(x)).astype(np.float64)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def poisoned(*arrays):
    """Set every bit: each float32, bfloat16 and pair of them is NaN then."""
    for array in arrays:
        array.view(np.uint8).fill(0xFF)
    return arrays[0]


def guarded(x, dtype=BF16):
    """x, or an array of NaN in the shape x, between two others of NaN: (the three, the one between)."""
    shape = x if isinstance(x, tuple) else x.shape
    whole = poisoned(np.empty((3, *shape), dtype))
    if shape is not x:
        whole[1] = bfloats(x) if dtype == BF16 else x
    return whole, whole[1]


def untouched(*wholes):
    for whole in wholes:
        assert (whole[[0, 2]].view(np.uint8) == 0xFF).all()


def packed(weight):
    operand = kernels.cast_copy(weight)
    kernels.update_cast_copy(operand)
    return operand


def unpaired(pairs):
    """Rows of pairs as rows of bfloat16, twice as many."""
    return pairs.view(BF16).reshape(*pairs.shape, 2).transpose(0, 2, 1).reshape(2 * len(pairs), -1)


def size(x):
    return np.linalg.norm(np.asarray(x, np.float64).reshape(-1))


# Conversion


def assert_rounded(x):
    found = np.empty(x.shape, BF16)
    ops.convert(found, x)
    assert (np.isnan(floats(found)) == np.isnan(x)).all()
    flushed = (np.abs(x) < SMALLEST) & (found & 0x7FFF == 0)
    assert (found == bfloats(x))[~flushed & ~np.isnan(x)].all()


def test_every_upper_half_is_rounded_to_nearest_even():
    """All signs, exponents and leading digits, NaN, infinity and denormal numbers among them, below, at and above every tie."""
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        assert_rounded(((np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(low)).view(np.float32))


@settings(max_examples=100, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70), repeats=st.sampled_from([1, 1, 1, 300]))
def test_any_bits_are_rounded_to_nearest_even(bits, repeats):
    assert_rounded(np.tile(np.array(bits, np.uint32), repeats).view(np.float32))


def test_the_oracle_of_rounding():
    x = np.float32(
        [0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1.001, -1.999, 3.4e38, np.inf, -np.inf, np.nan]
    )
    np.testing.assert_array_equal(
        nearest(x), [0, 0, 1, 1, 1 + 2**-6, 1 + 2**-7, 1, -2, np.inf, np.inf, -np.inf, np.nan]
    )
    assert bfloats(x)[1] == 0x8000


def test_widening_is_exact():
    x = np.arange(1 << 16).astype(BF16)
    found = np.empty(x.shape, np.float32)
    ops.convert(found, x)
    np.testing.assert_array_equal(found.view(np.uint32), x.astype(np.uint32) << 16)


# Products


@pytest.mark.parametrize("d, e", [(1, 1), (2, 3), (3, 2), (32, 32), (33, 65), (64, 31), (67, 98)])
def test_weights_are_packed_for_both_directions(d, e):
    weight = normal(d, e)
    operand = kernels.cast_copy(weight)
    for panels, w in ((operand.forward, weight), (operand.backward, weight.T)):
        for row, column in np.ndindex((len(w) + 1) // 2, w.shape[1]):
            panels[column // COLUMNS, row, column % COLUMNS] = 0x7FC07FC0
    kernels.update_cast_copy(operand)
    for panels, w in ((operand.forward, weight), (operand.backward, weight.T)):
        found = unpaired(product_pairs.unpacked(panels, panels.size))
        np.testing.assert_array_equal(found[: len(w), : w.shape[1]], bfloats(w))
        assert not found[len(w) :].any() and not found[:, w.shape[1] :].any()


def assert_sum_of_products(found, before, a, b, under=0.0, more=0.0):
    """found = under + a b, but for float32's rounding of sums; and beside the product of `before`, a and b as they were before they were
    rounded, at most 2 times as wrong as exact rounding would be."""
    exact, unrounded = under + a @ b, under + before[0].astype(np.float64) @ before[1]
    # A random walk's rounding error is about 0.4 UNIT |a_i| |b_j|, a_i being a row and b_j a column.
    bound = 8 * UNIT * (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=0) + np.abs(under) + more)
    shown, ideal = floats(found).astype(np.float64), exact
    if found.dtype == BF16:
        bound, ideal = bound + HALF_ULP * (np.abs(exact) + bound), nearest(exact)
    assert (np.abs(shown - exact) <= bound + SMALLEST).all()
    allowed = 2 * size(ideal - unrounded) + 8 * UNIT * size(unrounded)
    assert size(shown - unrounded) <= allowed + SMALLEST


def check_products(m, k, n):
    """The three products of a linear layer x (m, k), W (k, n), and those of a table W^T, all with NaN around."""
    numbers = x, dy, w = normal(m, k), normal(m, n, seed=1), normal(k, n, seed=2)
    (_, x16), (_, dy16), operand, turned = guarded(x), guarded(dy), packed(w), packed(np.ascontiguousarray(w.T))
    X, DY, W = map(nearest, numbers)
    bias, residual = normal(n, seed=3), normal(m, n, seed=4)
    for with_bias in (False, True):
        for with_residual in (False, True):
            exact = []
            for dtype in (np.float32, BF16):
                whole, out = guarded((m, n), dtype)
                below = bfloats(residual) if dtype == BF16 else residual
                poisoned(product_pairs.MEMORY.of(1))
                ops.linear_forward(out, x16, operand, bias if with_bias else None, below if with_residual else None)
                untouched(whole)
                under = np.zeros((m, n)) + with_bias * bias + with_residual * floats(below)
                assert_sum_of_products(out, (x, w), X, W, under, with_residual * np.abs(floats(below)))
                exact.append(out)
            if k <= 2 * TERMS and not with_residual:
                np.testing.assert_array_equal(exact[1], bfloats(exact[0]))  # the same sum, then one rounding
    for dtype in (np.float32, BF16):
        for product, given, numbers, shape in (
            (lambda out: ops.linear_backward_input(out, dy16, operand), (dy, w.T), (DY, W.T), (m, k)),
            (lambda out: ops.linear_transposed_forward(out, x16, turned), (x, w), (X, W), (m, n)),
        ):
            whole, out = guarded(shape, dtype)
            poisoned(product_pairs.MEMORY.of(1))
            product(out)
            untouched(whole)
            assert_sum_of_products(out, given, *numbers)
    dweight, dbias, before = (
        guarded(normal(k, n, seed=5), np.float32),
        guarded(normal(n, seed=6), np.float32),
        (normal(k, n, seed=5), normal(n, seed=6)),
    )
    poisoned(product_pairs.MEMORY.of(1))
    ops.linear_backward_weight(dweight[1], dbias[1], dy16, x16)
    untouched(dweight[0], dbias[0])
    assert_sum_of_products(dweight[1], (x.T, dy), X.T, DY, before[0].astype(np.float64), np.abs(before[0]))
    np.testing.assert_allclose(dbias[1], before[1] + DY.sum(0), rtol=0, atol=8 * UNIT * (np.abs(DY).sum(0).max() + 9))


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
    (2 * product_pairs.OUTER_TERMS + 3, 3, 5),
    (2100, 11, 7),
    (13, product_pairs.OUTER_ROWS + 9, 35),
    (13, 35, 390),
]


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_products(m, k, n):
    check_products(m, k, n)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 100), k=st.integers(1, 300), n=st.integers(1, 100))
def test_any_products(m, k, n):
    check_products(m, k, n)


# Attention


def attention_in_numpy(qkv, dout, heads, kv_heads, steps, dropout, key, rounding):
    """(out, lse, dqkv) in float64, every operand of every product and every result rounded by `rounding`."""
    batch, width, group = len(qkv) // steps, dout.shape[1] // heads, heads // kv_heads
    q, k, v = (
        np.ascontiguousarray(x.swapaxes(1, 2)) for x in ref.split_heads(qkv.reshape(batch, steps, -1), heads, kv_heads)
    )
    k, v, dout = np.repeat(k, group, 1), np.repeat(v, group, 1), dout.reshape(batch, steps, heads, width).swapaxes(1, 2)
    scores = np.where(np.tril(np.ones((steps, steps), bool)), q @ k.swapaxes(2, 3) / math.sqrt(width), -np.inf)
    largest = scores.max(-1, keepdims=True)
    lse = largest + np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    p, mask = np.exp(scores - lse), 1.0
    if dropout:
        mask = np.empty(scores.shape)
        ops.dropout_forward(mask, np.ones(scores.shape), None, (dropout, key))
    dp = dout @ v.swapaxes(2, 3) * mask
    ds, dropped = rounding(p * (dp - (p * dp).sum(-1, keepdims=True))), rounding(p * mask)
    summed = [
        x.reshape(batch, kv_heads, group, steps, width).sum(2)
        for x in (ds.swapaxes(2, 3) @ q / math.sqrt(width), dropped.swapaxes(2, 3) @ dout)
    ]
    dqkv = np.concatenate([ds @ k / math.sqrt(width), *summed], axis=1)
    return (
        rounding(dropped @ v).swapaxes(1, 2).reshape(dout.shape[0] * steps, -1),
        lse.reshape(-1, steps),
        rounding(dqkv.swapaxes(1, 2).reshape(qkv.shape)),
    )


def attended(qkv, dout, heads, kv_heads, steps, dropout, key):
    """The engine's (out, lse, dqkv) from arrays of bfloat16 or float64, its scratch full of NaN."""
    number = np.float32 if qkv.dtype == BF16 else np.float64
    batch, width = len(qkv) // steps, dout.shape[1] // heads
    scratch = np.empty(kernels_of(qkv).attention_scratch(steps, width, batch * heads), number)
    lse = poisoned(np.empty((batch * heads, steps), number))
    (whole, out), (around, dqkv) = guarded(dout.shape, qkv.dtype), guarded(qkv.shape, qkv.dtype)
    poisoned(scratch)
    ops.attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, (dropout, key))
    poisoned(scratch)
    dqkv[...] = qkv
    ops.attention_backward(dqkv, scratch, dout, out, lse, heads, kv_heads, steps, (dropout, key))
    untouched(whole, around)
    return floats(out), lse, floats(dqkv)


def check_attention(batch, steps, heads, kv_heads, width, dropout=0.0):
    qkv, dout = (
        bfloats(normal(batch * steps, (heads + 2 * kv_heads) * width)),
        bfloats(normal(batch * steps, heads * width, seed=1)),
    )
    sizes, wide = (heads, kv_heads, steps, dropout, 7), (nearest(floats(qkv)), nearest(floats(dout)))
    found, exact, ideal = (
        attended(qkv, dout, *sizes),
        attended(*wide, *sizes),
        attention_in_numpy(*wide, *sizes, nearest),
    )
    for a, b in zip(attention_in_numpy(*wide, *sizes, lambda x: x), exact):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)  # both oracles agree
    np.testing.assert_allclose(found[1], exact[1], rtol=1e-5, atol=1e-5)
    for place, columns in ((0, heads), (2, heads + 2 * kv_heads)):
        for c in range(columns):  # each head's output, its queries', its keys' and its values' gradient alone
            part = slice(c * width, c * width + width)
            error, unavoidable = (size(x[place][:, part] - exact[place][:, part]) for x in (found, ideal))
            assert error <= 2 * unavoidable + 1e-6 * math.sqrt(steps) * size(exact[0]), (place, c)


HEADS = [
    (1, 1, 1, 1, 4, 0),
    (2, 7, 4, 2, 3, 0),
    (1, 65, 2, 1, 5, 0),
    (2, 70, 2, 1, 32, 0),
    (1, 130, 1, 1, 7, 0),
    (2, 9, 2, 2, 3, 0.3),
    (1, 150, 4, 2, 33, 0.2),
    (1, 64, 4, 4, 32, 0),
    (1, 2 * 256 + 70, 1, 1, 6, 0),
]  # the last one has more than 256 pairs of keys


@pytest.mark.parametrize("sizes", HEADS, ids=["x".join(map(str, sizes)) for sizes in HEADS])
def test_attention(sizes):
    check_attention(*sizes)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    steps=st.integers(1, 140),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    width=st.integers(1, 40),
    dropout=st.sampled_from([0.0, 0.25]),
)
def test_any_attention(batch, steps, kv_heads, group, width, dropout):
    check_attention(batch, steps, kv_heads * group, kv_heads, width, dropout)


# Other ops: what float32 makes of the same numbers, rounded


def assert_rounds(found, expected):
    """found is what rounding makes of float32's result, or of a neighbour of that: the compiler may fuse other steps of another loop."""
    slack = 4e-6 * np.abs(expected) + 4e-7 * np.abs(expected).max()
    low, high = nearest(expected - slack), nearest(expected + slack)
    assert found.dtype == BF16 and ((low <= floats(found)) & (floats(found) <= high)).all()
    assert (found == bfloats(expected)).mean() > 0.95


ACTIVATIONS = "silu", "gelu", "gelu_tanh", "swiglu"
N, D = 37, 270  # more than a block of 8192 numbers, no multiple of anything


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x, dout = bfloats(3 * normal(N, D)), bfloats(normal(N, D // 2 if name == "swiglu" else D, seed=1))
    forward, backward = (getattr(ops, f"{name}_{direction}") for direction in ("forward", "backward"))
    results = []
    for dtype in (np.float32, BF16):
        a, b = (z.copy() if dtype == BF16 else floats(z) for z in (x, dout))
        out = poisoned(np.empty(b.shape, dtype))
        forward(out, a)
        backward(a, b)
        results.append((out, a, b))
    for expected, found in zip(*results):
        assert_rounds(found, expected)


def test_silu_backward_of_a_head_whose_gradient_is_not_rounded():
    x, dout = bfloats(3 * normal(N, D)), normal(N, D, seed=1)
    dx, out, wide, again = x.copy(), dout.copy(), floats(x), dout.copy()
    ops.silu_backward(wide, again)
    ops.silu_backward(dx, out)
    assert_rounds(dx, wide)
    np.testing.assert_allclose(out, again, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_norms(bias):
    x, weight, b = normal(N, D), normal(D), normal(D, seed=1) if bias else None
    for norm in ("rmsnorm", "layernorm"):
        results = []
        for dtype in (np.float32, BF16):
            out, mean, rstd = poisoned(np.empty(x.shape, dtype)), np.empty(N, np.float32), np.empty(N, np.float32)
            if norm == "rmsnorm":
                ops.rmsnorm_forward(out, rstd, x, weight, 1e-5)
                mean[:] = 0
            else:
                ops.layernorm_forward(out, mean, rstd, x, weight, b, 1e-5)
            results.append((out, mean, rstd))
        assert_rounds(results[1][0], results[0][0])
        np.testing.assert_allclose(results[1][1:], results[0][1:], rtol=1e-6, atol=1e-6)


def test_rotary():
    steps, heads, width = 5, 3, 14
    x, cos, sin = (
        bfloats(normal(4 * steps, (heads + 2) * width)),
        *(np.empty((steps, width // 2), np.float32) for _ in range(2)),
    )
    ops.rotary_table(cos, sin, 10000.0)
    for rotate in (ops.rotary_forward, ops.rotary_backward):
        found, expected = x.copy(), floats(x)
        rotate(found, cos, sin, heads)
        rotate(expected, cos, sin, heads)
        assert_rounds(found, expected)
        np.testing.assert_array_equal(found[:, heads * width :], x[:, heads * width :])


def test_dropout():
    x, residual = bfloats(normal(N, D)), normal(N, D, seed=1)
    found, expected, gradient, exact = (
        poisoned(np.empty((N, D), dtype)) for dtype in (np.float32, np.float32, BF16, np.float32)
    )
    ops.dropout_forward(found, x, residual, (0.3, 5))
    ops.dropout_forward(expected, floats(x), residual, (0.3, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    ops.dropout_backward(gradient, residual, (0.3, 5))
    ops.dropout_backward(exact, residual, (0.3, 5))
    assert_rounds(gradient, exact)
    assert ((gradient == 0) == (exact == 0)).all()


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
    assert_rounds(found[counted], expected[counted])
    np.testing.assert_allclose(losses, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [N, 16])
@pytest.mark.parametrize("columns", [71, 72, whole_lines(71)])
def test_head_cross_entropy(rows, columns):
    """The gradient of the logits in rows as long as the logits', in longer ones, and in those of a model."""
    d, pieces, scale = 33, 71, 1 / N
    x, weight, targets = (
        normal(N, d),
        normal(pieces, d, seed=1),
        np.random.default_rng(0).integers(0, pieces, N).astype(np.int32),
    )
    targets[3] = -1
    X, W, operand = nearest(x), nearest(weight), packed(weight)
    logits, dlogits = poisoned(np.empty((rows, pieces), np.float32)), poisoned(np.empty((rows, columns), BF16))
    losses, again, dx = np.empty(N, np.float32), np.empty(N, np.float32), poisoned(np.empty((N, d), np.float32))
    dweight = normal(pieces, d, seed=2)
    ops.head_cross_entropy_forward(losses, logits, bfloats(x), operand, targets)
    ops.head_cross_entropy_backward(dx, dweight, again, logits, dlogits, bfloats(x), operand, targets, scale)
    exact = [ref.cross_entropy((X @ W.T)[i : i + 1], targets[i : i + 1]) for i in range(N)]
    np.testing.assert_allclose(losses, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(again, exact, rtol=1e-5, atol=1e-5)
    dz = ref.cross_entropy_backward(scale * (N - 1), X @ W.T, targets)
    for found, exact, ideal in (
        (dx, dz @ W, nearest(dz) @ W),
        (dweight - normal(pieces, d, seed=2), dz.T @ X, nearest(dz).T @ X),
    ):
        assert size(found - exact) <= 2 * size(ideal - exact)


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
}
every_model = pytest.mark.parametrize("name", MODELS)


def config(name):
    return ModelConfig(**{**SIZES, **MODELS[name]})


def made(config, compute_dtype=BF16, dtype=np.float32):
    """A model whose biases are not zero and whose norms are not one, its weights those of float32 in any type."""
    model = Model(config, 0, dtype=dtype, compute_dtype=operand)
    weights = model.parameters.weights
    weights[:] = weights.astype(np.float32) + (0.1 * np.random.default_rng(1).standard_normal(weights.size)).astype(
        np.float32
    )
    model.parameters.update_cast_copies()
    return model


def text(config, batch=3, seed=0):
    return np.random.default_rng([seed, 2]).integers(0, config.vocab_size, (batch, config.block_size)).astype(np.int32)


def prefilled(model, batch, fill):
    """The arena of a model, filled by fill(workspace)."""
    activations = model.plan(batch, model.config.block_size)
    fill(activations.arena)
    activations.set_positions(model.config, 0)
    return activations


def float64_s(config):
    """(loss, gradients) in float64."""
    model = made(config, None, np.float64)
    return model.loss_and_gradient(text(config), text(config, seed=1), key=(1, 2)), model.parameters.gradients


def check_model(config, loss, gradients):
    """Gradients point where float64's do, whatever the arena held before; the loss is near float64's."""
    found = []
    for fill in (
        lambda workspace: workspace.fill(np.nan),
        lambda workspace: poisoned(*workspace.arrays.values()),
        lambda workspace: workspace.fill(0.0),
    ):
        model = made(config)
        prefilled(model, 3, fill)
        assert model.loss_and_gradient(text(config), text(config, seed=1), key=(1, 2)) == pytest.approx(
            float(loss), rel=3e-3
        )
        found.append(model.parameters.gradients)
        np.testing.assert_array_equal(found[-1], found[0])
    for name, exact in model.parameters.like(gradients).items():
        assert (
            np.vdot(exact, model.parameters.gradient[name])
            > 0.99 * size(exact) * size(model.parameters.gradient[name])
            > 0
        ), name
    assert gradients @ found[0] > 0.999 * size(gradients) * size(found[0])
    assert size(found[0]) == pytest.approx(size(gradients), rel=0.01)


@every_model
def test_gradients_point_where_float64_s_do(name):
    check_model(config(name), *float64_s(config(name)))


@every_model
def test_losses_and_logits_are_near_float64_s(name):
    settings, (tokens, targets) = config(name), (text(config(name), seed=seed) for seed in range(2))
    model, exact = made(settings), made(settings, None, np.float64)
    prefilled(model, 3, lambda workspace: poisoned(*workspace.arrays.values()))
    assert model.loss(tokens, targets) == pytest.approx(exact.loss(tokens, targets), rel=3e-3)
    logits, expected = model.logits(tokens), exact.logits(tokens)
    assert 0 < size(logits - expected) < 0.02 * size(expected)


@pytest.mark.parametrize("name", ["llama", "gpt2-dropout"])
def test_a_token_changes_no_earlier_logits(name):
    model = made(config(name))
    tokens = text(model.config)
    before, changed = model.logits(tokens), tokens.copy()
    changed[:, 23] = (changed[:, 23] + 1) % 65
    after = model.logits(changed)
    np.testing.assert_array_equal(after[:, :23], before[:, :23])
    assert (after[:, 23:] != before[:, 23:]).any()


@every_model
def test_exact_is_the_float32_model(name):
    rounded, plain, (tokens, targets) = (
        made(config(name)),
        made(config(name), None),
        (text(config(name), seed=seed) for seed in range(2)),
    )
    rounded.loss(tokens, targets)
    arena, exact = rounded.activations, rounded.full_precision()
    assert exact.loss(tokens, targets) == plain.loss(tokens, targets) != rounded.loss(tokens, targets)
    np.testing.assert_array_equal(exact.logits(tokens), plain.logits(tokens))
    assert rounded.activations is arena is not exact.activations and np.shares_memory(
        exact.parameters.weights, rounded.parameters.weights
    )


def test_decoding_multiplies_the_weights_as_they_are():
    rounded, plain, tokens = made(config("llama")), made(config("llama"), None), text(config("llama"))
    for prompt in (1, 7):
        a, b = Decoder(rounded, 3), Decoder(plain, 3)
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
    settings = ModelConfig(n_layer=1, **WIDE[name])

    def run():
        model = Model(settings, 1, compute_dtype=BF16)
        optimizer, found = AdamW(model.parameters, 1e-2), []
        for update in range(2):
            found.append(model.loss_and_gradient(text(settings, 4), text(settings, 4, seed=1), key=(1, update)))
            found += [
                model.parameters.gradients.copy(),
                optimizer.step(),
                model.parameters.weights.copy(),
                *model.parameters.cast_copies[-1][1:],
            ]
        return found

    over_threads(run)


# Copies of the weights


def assert_packed(parameters):
    """What products take are the weights as they are now, rounded."""
    assert len(parameters.cast_copies) > 3
    for operand in parameters.cast_copies:
        for panels, weight in ((operand.forward, operand.weight), (operand.backward, operand.weight.T)):
            np.testing.assert_array_equal(
                unpaired(product_pairs.unpacked(panels, weight.shape[1]))[: len(weight)], bfloats(weight)
            )
        assert np.shares_memory(operand.weight, parameters.weights)


def test_an_update_packs_the_weights():
    model, tokens = made(config("llama")), text(config("llama"))
    optimizer, before = AdamW(model.parameters), [operand.forward.copy() for operand in model.parameters.cast_copies]
    assert_packed(model.parameters)
    model.loss_and_gradient(tokens, tokens)
    optimizer.step(0.1)
    assert_packed(model.parameters)
    assert all((operand.forward != pairs).any() for operand, pairs in zip(model.parameters.cast_copies, before))
    model.parameters.initialize(5)
    assert_packed(model.parameters)


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


def dtype(run):
    return run_config.read_config(run).train.dtype


def test_a_run_learns_and_resumes_with_the_same_bits_in_another_process(tmp_path, data):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run, length in ((whole, 12), (halves, 8)):
        assert (
            small.status(
                "train", *small.flags(data, dtype="bf16", out_dir=run, max_iters=length, lr_decay_iters=12, dropout=0.1)
            )
            == 0
        )
        assert dtype(run) == "bf16"
    losses = [row["val_loss"] for row in small.rows(whole) if "val_loss" in row]
    assert losses == sorted(losses, reverse=True) and losses[-1] < math.log(256) - 0.3
    resumed = small.command("train", "--resume", halves, "--max-iters", 12, cwd=tmp_path)
    assert resumed.returncode == 0 and "from step 8" in resumed.stderr, resumed.stderr
    assert "bf16: bfloat16 products with float32 sums" in resumed.stderr
    small.assert_same_state(whole, halves, 12)
    assert small.rows(whole) == small.rows(halves) and dtype(halves) == "bf16"


def test_a_trainer_resumes_with_the_same_bits_and_packed_weights(tmp_path, data):
    whole, part = (small.trainer(data, tmp_path / name, dtype="bf16") for name in ("whole", "part"))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        part.step()
    part.save()
    again = small.trainer(data, dtype="bf16")
    small.resume(again, tmp_path / "part")
    assert again.updates == 3
    assert_packed(again.model.parameters)
    for _ in range(3):
        again.step()
    for a, b in (
        (whole.model.parameters.weights, again.model.parameters.weights),
        (whole.optimizer.mean, again.optimizer.mean),
    ):
        np.testing.assert_array_equal(a, b)
    plain = small.trainer(data, dtype="fp32")
    for _ in range(6):
        plain.step()
    difference = size(plain.model.parameters.weights - whole.model.parameters.weights)
    assert 0 < difference < 0.3 * size(plain.model.parameters.weights)


@pytest.mark.parametrize("began, asked", [("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "fp16")])
def test_resuming_in_another_precision_is_refused(tmp_path, data, capsys, began, asked):
    small.trainer(data, tmp_path / "run", dtype=began)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert small.status("train", "--resume", tmp_path / "run", "--dtype", asked) == 2
    sentence = capsys.readouterr().err
    assert f"was trained with --dtype {began}, not {asked}" in sentence and sentence.count("\n") == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_what_is_faster_here_says_so_and_keeps_it(tmp_path, data, capsys, monkeypatch, fast):
    reason = "such is this machine"
    monkeypatch.setattr(kernels, "bfloat16_unit", lambda: pair_tile.Unit(fast, reason))
    assert small.status("train", *small.flags(data, dtype=None, out_dir=tmp_path / "run", max_iters=2)) == 0
    name, said = ("bf16", f"bf16: bfloat16 products with float32 sums ({reason})") if fast else ("fp32", f"({reason})")
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("slm_np: on the CPU"))
    assert said in line and f", {name}" in line and ("bf16" in line) == fast
    assert dtype(tmp_path / "run") == name
    monkeypatch.setattr(kernels, "bfloat16_unit", lambda: pair_tile.Unit(not fast, reason))
    assert small.status("train", "--resume", tmp_path / "run", "--dtype", "auto", "--max-iters", 4) == 0
    assert dtype(tmp_path / "run") == name and checkpoint.newest_checkpoint(tmp_path / "run").step == 4
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("slm_np: on the CPU"))
    assert f", {name}" in line and ("bf16 would be faster: " in line) != fast


def test_float16_is_refused(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert small.status("train", *small.flags(data, dtype="fp16", out_dir="run")) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert "--dtype fp16" in sentence and "bf16" in sentence
    assert small.tree(tmp_path) == []


def test_finetuning_starts_from_the_base_s_weights(tmp_path, data, monkeypatch):
    small.trainer(data, tmp_path / "base", dtype="bf16").train()
    base, _ = checkpoint.load_best(tmp_path / "base")
    train, seen = Trainer.train, []

    def checked(self):
        assert_packed(self.model.parameters)
        seen.append({name: view.copy() for name, view in self.model.parameters.weight.items()})
        train(self)

    monkeypatch.setattr(Trainer, "train", checked)
    flags = (
        "--base",
        tmp_path / "base",
        "--data",
        small.text_file(tmp_path, "other.txt", seed=1),
        "--dtype",
        "bf16",
        "--max-iters",
        2,
    )
    assert small.status("finetune", *flags, "--out-dir", tmp_path / "tuned") == 0
    assert dtype(tmp_path / "tuned") == "bf16" and len(seen) == 1
    for name, array in seen[0].items():
        np.testing.assert_array_equal(array, base[name])


# Other processors, in processes of their own that make others believe in them

OTHER = """\
import sys
from llvmlite import binding
found = binding.get_host_cpu_features()
for name in list(found):
    found[name] = found[name] and not (sys.argv[1] == "avx2" and name.startswith("avx512"))
binding.get_host_cpu_features = lambda: found
import amx_emulator
amx_emulator.pretend()
from slm_np.kernels.cpu import microkernel_bf16 as pair_tile
import test_bfloat16 as test
unit = pair_tile.bfloat16_unit()
if sys.argv[1] == "avx2":
    assert not pair_tile.AMX and not pair_tile.NATIVE and pair_tile.COLUMNS == 16
    assert pair_tile.multiply_chosen_tile is pair_tile.multiply_register_tile and unit == (False, "SLM_NP_AMX=0 switches AMX off"), unit
else:
    assert pair_tile.AMX and pair_tile.ROWS == 32 and unit == (True, "this processor has AMX and products of integers on it are exact"), unit
    before = amx_emulator.performed()
for shape in ((1, 1, 1), (33, 65, 31), (64, 64, 32), (9, 2 * test.TERMS + 3, 33)):
    test.check_products(*shape)
exact = test.np.load(sys.argv[2])
test.check_model(test.config("bare"), exact["loss"], exact["gradients"])
assert sys.argv[1] == "avx2" or amx_emulator.performed() > before + 1000
print("right")
"""
HASWELL = "sse sse2 sse3 ssse3 sse4.1 sse4.2 avx avx2 fma f16c bmi bmi2 lzcnt popcnt movbe cx8 cx16 cmov fxsr mmx xsave 64bit amx-tile amx-bf16"
HOST = binding.get_host_cpu_features()


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory):
    """Where processes of other processors keep their kernels."""
    return os.environ.get("SLM_NP_TEST_OTHER_CACHE") or str(tmp_path_factory.mktemp("kernels"))


@pytest.mark.skipif(not POSSIBLE, reason="the emulator is made for Linux on x86-64")
@pytest.mark.parametrize("processor", ["avx2", "amx"])
def test_on_another_processor(tmp_path, kernel_cache, processor):
    """Without AVX-512, where SLM_NP_AMX=0 keeps products on registers although there are tiles; and on emulated tiles."""
    if not HOST.get("avx2" if processor == "avx2" else "avx512f"):
        pytest.skip("its other instructions are run, not emulated")
    features = dict(
        NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=",".join(f"+{name}" for name in HASWELL.split()), SLM_NP_AMX="0"
    )
    if processor == "amx":
        features = dict(NUMBA_CPU_FEATURES=HOST.flatten() + ",+amx-tile,+amx-bf16")
    environment = {
        name: value
        for name, value in small.environment(**features, SLM_NP_CACHE=kernel_cache, SLM_NP_COMPILING="1").items()
        if processor == "avx2" or name != "SLM_NP_AMX"
    }
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(Path(__file__).parent)])
    loss, gradients = float64_s(config("bare"))  # here, as compiling for float64 there would take longer than all else
    np.savez(tmp_path / "exact.npz", loss=loss, gradients=gradients)
    done = subprocess.run(
        [sys.executable, "-c", OTHER, processor, str(tmp_path / "exact.npz")],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout.endswith("right\n"), done.stdout + done.stderr

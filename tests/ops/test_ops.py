"""Every op against the float64 oracle: in float32 no worse than its formula in plain NumPy, in float64 exact, and writing as it promises.

A case runs an op and its derivative three ways: by the engine, by the same formula in NumPy in the inputs' own type, and by the oracle.
"""

import math
from typing import Callable, NamedTuple

import numpy as np
import pytest
import reference as ref
from scipy.special import erfc

from slm_np import ops
from slm_np.ops.device import kernels_of

pytestmark = pytest.mark.usefixtures("one_thread")
ULP = np.finfo(np.float32).eps
EPS = 1e-5  # of the norms
ONE_WIDE = (
    EPS**-0.5
)  # one number less its mean, or over its size, hardly changes with it: a gradient times 1/sqrt(eps) cancels


class Case(NamedTuple):
    id: str
    inputs: list  # float32 arrays
    engine: Callable  # (start, *inputs) -> outputs; those that accumulate begin as `start`, the others as NaN
    plain: Callable  # (*inputs) -> the same by NumPy, in the type of the inputs
    exact: Callable  # (*inputs) -> the same by the oracle
    sums: int = 0  # how many outputs, the last ones, accumulate
    terms: float = 0  # size of what cancels inside an output, where nearly all of it does


def normal(*shape, scale=1.0, seed=0):
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def scaled_by(scale):
    return f" scale {scale}" if scale != 1 else ""


def empty(shape, like):
    return np.full(shape, np.nan, like.dtype)


def begun(start, like):
    return np.full(like.shape, start, like.dtype)


# Activations


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def distribution(x):
    return erfc(-x * math.sqrt(0.5)) / 2


def cubic(x):
    return math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x)


def halves(x):
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


def silu_slope(x):
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def gelu_tanh_slope(x):
    s = sigmoid(cubic(x))
    return s * (1 + x * (1 - s) * math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * x * x))


PLAIN = {
    "silu": (lambda x: x * sigmoid(x), lambda dout, x: dout * silu_slope(x)),
    "gelu": (
        lambda x: x * distribution(x),
        lambda dout, x: dout * (distribution(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
    ),
    "gelu_tanh": (lambda x: x * sigmoid(cubic(x)), lambda dout, x: dout * gelu_tanh_slope(x)),
    "swiglu": (
        lambda x: halves(x)[0] * sigmoid(halves(x)[0]) * halves(x)[1],
        lambda dout, x: np.hstack(
            (dout * halves(x)[1] * silu_slope(halves(x)[0]), dout * halves(x)[0] * sigmoid(halves(x)[0]))
        ),
    ),
}


def activation(name, label, x):
    dout = normal(len(x), x.shape[1] // (2 if name == "swiglu" else 1))
    forward, backward = PLAIN[name]

    def engine(start, x, dout):
        out, dx, again = empty(dout.shape, x), x.copy(), dout.copy()
        getattr(ops, f"{name}_forward")(out, x)
        getattr(ops, f"{name}_backward")(dx, again)
        return out, dx, again

    def exact(x, dout):
        out = getattr(ref, name)(x)
        return out, getattr(ref, f"{name}_backward")(dout, x), out

    return Case(
        f"{name} {label}", [x, dout], engine, lambda x, dout: (forward(x), backward(dout, x), forward(x)), exact
    )


# Linear


def linear(n, d, e, bias=False, residual=False, scale=1.0):
    inputs = (
        [normal(n, d, scale=scale), normal(d, e), normal(n, e, seed=1)]
        + [normal(e)] * bias
        + [normal(n, e, seed=2)] * residual
    )

    def parts(more):
        return more[0] if bias else None, more[-1] if residual else None

    def engine(start, x, weight, dout, *more):
        b, r = parts(more)
        out, dx, dweight = empty(dout.shape, x), empty(x.shape, x), begun(start, weight)
        dbias = begun(start, b) if bias else None
        ops.linear_forward(out, x, weight, b, r)
        ops.linear_backward(dx, dweight, dbias, dout, x, weight)
        return (out, dx, dweight) + ((dbias,) if bias else ())

    def plain(x, weight, dout, *more):
        b, r = parts(more)
        out = x @ weight + (b if bias else 0) + (r if residual else 0)
        return (out, dout @ weight.T, x.T @ dout) + ((dout.sum(0),) if bias else ())

    def exact(x, weight, dout, *more):
        b, r = parts(more)
        out, (dx, dweight, dbias) = ref.linear(x, weight, b), ref.linear_backward(dout, x, weight, b)
        return (out + r.astype(float) if residual else out, dx, dweight) + ((dbias,) if bias else ())

    return Case(
        f"linear {n}x{d}x{e}{' bias' * bias}{' residual' * residual}{scaled_by(scale)}",
        inputs,
        engine,
        plain,
        exact,
        1 + bias,
    )


def linear_transposed(n, d, v):
    def engine(start, x, weight, dout):
        out, dx, dweight = empty(dout.shape, x), empty(x.shape, x), begun(start, weight)
        ops.linear_transposed_forward(out, x, weight)
        ops.linear_transposed_backward(dx, dweight, dout, x, weight)
        return out, dx, dweight

    def exact(x, weight, dout):
        dx, dweight, _ = ref.linear_backward(dout, x, weight.T)
        return ref.linear(x, weight.T), dx, dweight.T

    return Case(
        f"linear_transposed {n}x{d}x{v}",
        [normal(n, d), normal(v, d), normal(n, v)],
        engine,
        lambda x, weight, dout: (x @ weight.T, dout @ weight, dout.T @ x),
        exact,
        1,
    )


# Norms; dx accumulates as well


def rmsnorm(n, d, scale=1.0):
    def engine(start, x, weight, dout):
        out, rstd, dx, dweight = empty(x.shape, x), empty(n, x), begun(start, x), begun(start, weight)
        ops.rmsnorm_forward(out, rstd, x, weight, EPS)
        ops.rmsnorm_backward(dx, dweight, dout, x, weight, rstd)
        return out, dx, dweight

    def plain(x, weight, dout):
        r = 1 / np.sqrt((x * x).mean(1, keepdims=True) + EPS)
        g, unit = dout * weight, x * r
        return x * r * weight, r * (g - unit * (g * unit).mean(1, keepdims=True)), (dout * unit).sum(0)

    return Case(
        f"rmsnorm {n}x{d}{scaled_by(scale)}",
        [normal(n, d, scale=scale), normal(d), normal(n, d, seed=1)],
        engine,
        plain,
        lambda x, weight, dout: (ref.rmsnorm(x, weight, EPS), *ref.rmsnorm_backward(dout, x, weight, EPS)),
        2,
        terms=ONE_WIDE * (d == 1),
    )


def layernorm(n, d, bias=True, offset=0.0):
    def engine(start, x, weight, dout, b=None):
        out, mean, rstd = empty(x.shape, x), empty(n, x), empty(n, x)
        grads = begun(start, x), begun(start, weight), begun(start, weight) if bias else None
        ops.layernorm_forward(out, mean, rstd, x, weight, b, EPS)
        ops.layernorm_backward(*grads, dout, x, weight, mean, rstd)
        return (out, *grads[: 2 + bias])

    def plain(x, weight, dout, b=None):
        centred = x - x.mean(1, keepdims=True)
        r = 1 / np.sqrt((centred * centred).mean(1, keepdims=True) + EPS)
        g, unit = dout * weight, centred * r
        dx = r * (g - g.mean(1, keepdims=True) - unit * (g * unit).mean(1, keepdims=True))
        return (unit * weight + (b if bias else 0), dx, (dout * unit).sum(0), dout.sum(0))[: 3 + bias]

    def exact(x, weight, dout, b=None):
        return (ref.layernorm(x, weight, b, EPS), *ref.layernorm_backward(dout, x, weight, b, EPS))[: 3 + bias]

    return Case(
        f"layernorm {n}x{d}{' bias' * bias}{f' offset {offset}' if offset else ''}",
        [normal(n, d) + np.float32(offset), normal(d), normal(n, d, seed=1)] + [normal(d)] * bias,
        engine,
        plain,
        exact,
        2 + bias,
        terms=ONE_WIDE * (d == 1),
    )


# Embedding, rotary positions, the residual's gradient


def embedding(batch, steps, pieces, d, positions=True, one=None):
    tokens = (
        np.random.default_rng(3).integers(0, pieces, (batch, steps)) if one is None else np.full((batch, steps), one)
    )

    def engine(start, weight, dout, places=None):
        out, dweight, dplaces = (
            empty((batch * steps, d), weight),
            begun(start, weight),
            begun(start, places) if positions else None,
        )
        ops.embedding_forward(out, tokens.astype(np.int32), weight, places)
        ops.embedding_backward(dweight, dplaces, dout, tokens.astype(np.int32))
        return (out, dweight, dplaces)[: 2 + positions]

    def plain(weight, dout, places=None):
        dweight = np.zeros_like(weight)
        np.add.at(dweight, tokens.reshape(-1), dout)
        out = weight[tokens] + (places if positions else 0)
        return (out.reshape(-1, d), dweight, dout.reshape(batch, steps, d).sum(0))[: 2 + positions]

    def exact(weight, dout, places=None):
        gradients = ref.embedding_backward(dout.reshape(batch, steps, d), tokens, weight, places)
        return (ref.embedding(tokens, weight, places).reshape(-1, d), *gradients)[: 2 + positions]

    return Case(
        f"embedding {batch}x{steps} of {pieces}x{d}{' positions' * positions}{'' if one is None else ' one token'}",
        [normal(pieces, d), normal(batch * steps, d)] + [normal(steps, d)] * positions,
        engine,
        plain,
        exact,
        1 + positions,
    )


def rotary(batch, steps, heads, width, first=0, more=0):
    """The last `more` columns of a row are no turning heads."""
    columns = heads * width + more

    def engine(start, x, dout):
        out, dx = x.copy(), dout.copy()
        cos, sin = empty((steps, width // 2), x), empty((steps, width // 2), x)
        ops.rotary_table(cos, sin, 100.0, first)
        ops.rotary_forward(out, cos, sin, heads)
        ops.rotary_backward(dx, cos, sin, heads)
        return out, dx

    def turned(x, sign):
        angle = (np.arange(first, first + steps)[:, None] * 100.0 ** (-np.arange(width // 2) * 2 / width))[
            None, :, None
        ]
        cos, sin = np.cos(angle).astype(x.dtype), sign * np.sin(angle).astype(x.dtype)
        a, b = np.split(x[:, : heads * width].reshape(batch, steps, heads, width), 2, axis=3)
        return np.hstack(
            (np.concatenate((a * cos - b * sin, b * cos + a * sin), 3).reshape(len(x), -1), x[:, heads * width :])
        )

    def exactly(function, x):
        return np.hstack(
            (
                function(x[:, : heads * width].reshape(batch, steps, heads, width)).reshape(len(x), -1),
                x[:, heads * width :],
            )
        )

    def exact(x, dout):
        return exactly(lambda x: ref.rotary(x, 100.0, first), x), exactly(
            lambda d: ref.rotary_backward(d, d, 100.0, first), dout
        )

    return Case(
        f"rotary {batch}x{steps} heads {heads}x{width} from {first}",
        [normal(batch * steps, columns), normal(batch * steps, columns, seed=1)],
        engine,
        lambda x, dout: (turned(x, 1), turned(dout, -1)),
        exact,
    )


def accumulate(n, d):
    def engine(start, x):
        total = begun(start, x)
        ops.accumulate(total, x)
        return (total,)

    return Case(f"accumulate {n}x{d}", [normal(n, d)], engine, lambda x: (x,), lambda x: (x.astype(float),), 1)


# Attention


def split(qkv, batch, heads, kv_heads):
    return ref.split_heads(qkv.reshape(batch, len(qkv) // batch, -1), heads, kv_heads)


def attention(batch, steps, heads, kv_heads, width, scale=1.0):
    def engine(start, qkv, dout):
        out, lse, dqkv = empty(dout.shape, qkv), empty((batch * heads, steps), qkv), qkv.copy()
        scratch = empty(kernels_of(qkv).attention_scratch(steps, width, batch * heads), qkv)
        ops.attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, None)
        scratch.fill(np.nan)
        ops.attention_backward(dqkv, scratch, dout, out, lse, heads, kv_heads, steps, None)
        return out, dqkv

    def plain(qkv, dout):
        group = heads // kv_heads
        q, k, v = (x.swapaxes(1, 2) for x in split(qkv, batch, heads, kv_heads))
        k, v, dout = (
            np.repeat(k, group, 1),
            np.repeat(v, group, 1),
            dout.reshape(batch, steps, heads, width).swapaxes(1, 2),
        )
        scores = q @ k.swapaxes(2, 3) * (1 / math.sqrt(width))
        scores[..., ~np.tril(np.ones((steps, steps), bool))] = -np.inf
        top = scores.max(3, keepdims=True)
        e = np.exp(scores - top)
        total = e.sum(3, keepdims=True)
        out, p = e / total @ v, np.exp(scores - (np.log(total) + top))
        dp = dout @ v.swapaxes(2, 3)
        ds = p * (dp - (p * dp).sum(3, keepdims=True)) * (1 / math.sqrt(width))
        summed = [
            x.reshape(batch, kv_heads, group, steps, width).sum(2)
            for x in (ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dout)
        ]
        dqkv = np.concatenate([x.swapaxes(1, 2).reshape(batch * steps, -1) for x in (ds @ k, *summed)], axis=1)
        return out.swapaxes(1, 2).reshape(batch * steps, -1), dqkv

    def exact(qkv, dout):
        parts = split(qkv, batch, heads, kv_heads)
        grads = ref.attention_backward(dout.reshape(batch, steps, heads, width), *parts)
        return ref.attention(*parts).reshape(batch * steps, -1), np.concatenate(
            [g.reshape(batch * steps, -1) for g in grads], axis=1
        )

    return Case(
        f"attention {batch}x{steps} heads {heads}/{kv_heads}x{width}{scaled_by(scale)}",
        [normal(batch * steps, (heads + 2 * kv_heads) * width, scale=scale), normal(batch * steps, heads * width)],
        engine,
        plain,
        exact,
    )


# Loss


def row_losses(logits, targets):
    """The oracle's loss of each row."""
    return np.array([ref.cross_entropy(logits[i : i + 1], targets[i : i + 1]) for i in range(len(logits))])


def plain_cross_entropy(logits, targets, scale):
    top, counted = logits.max(1, keepdims=True), targets >= 0
    e = np.exp(logits - top)
    total = e.sum(1, keepdims=True)
    gradient = e / total * logits.dtype.type(scale)
    gradient[np.arange(len(logits)), targets] -= logits.dtype.type(scale)
    return counted * (np.log(total)[:, 0] + (top[:, 0] - logits[np.arange(len(logits)), targets])), counted[
        :, None
    ] * gradient


def some_targets(seed, n, v, masked):
    """(targets, 1 / counted ones): integers below v, two in three of them -1 if `masked`."""
    targets = np.random.default_rng(seed).integers(0, v, n)
    if masked:
        targets[np.arange(n) % 3 != 1] = -1
    return targets, 1 / max(1, (targets >= 0).sum())


def cross_entropy(label, logits, masked=False):
    targets, scale = some_targets(4, *logits.shape, masked)

    def engine(start, logits):
        losses, again, dlogits = empty(len(logits), logits), empty(len(logits), logits), logits.copy()
        ops.softmax_cross_entropy_forward(losses, logits, targets.astype(np.int32))
        ops.softmax_cross_entropy_backward(dlogits, again, dlogits, targets.astype(np.int32), scale)
        return losses, again, dlogits

    def plain(logits):
        losses, dlogits = plain_cross_entropy(logits, targets, scale)
        return losses, losses, dlogits

    def exact(logits):
        losses = row_losses(logits, targets)
        return losses, losses, ref.cross_entropy_backward(1.0, logits, targets)

    return Case(f"softmax_cross_entropy {label}", [logits], engine, plain, exact)


def head_cross_entropy(n, d, v, rows, scale=1.0, masked=False):
    targets, share = some_targets(5, n, v, masked)

    def engine(start, x, weight):
        losses, again, logits = empty(n, x), empty(n, x), empty((rows, v), x)
        dx, dweight = empty(x.shape, x), begun(start, weight)
        ops.head_cross_entropy_forward(losses, logits, x, weight, targets.astype(np.int32))
        ops.head_cross_entropy_backward(dx, dweight, again, logits, logits, x, weight, targets.astype(np.int32), share)
        return losses, again, dx, dweight

    def plain(x, weight):
        losses, dlogits = plain_cross_entropy(x @ weight.T, targets, share)
        return losses, losses, dlogits @ weight, dlogits.T @ x

    def exact(x, weight):
        logits = ref.linear(x, weight.T)
        losses = row_losses(logits, targets)
        dx, dweight, _ = ref.linear_backward(ref.cross_entropy_backward(1.0, logits, targets), x, weight.T)
        return losses, losses, dx, dweight.T

    return Case(
        f"head_cross_entropy {n}x{d}x{v} chunks of {rows}{scaled_by(scale)}{' masked' * masked}",
        [normal(n, d, scale=scale), normal(v, d)],
        engine,
        plain,
        exact,
        1,
    )


def wide(reach, *shape):
    """Evenly from -reach to reach."""
    return np.linspace(-reach, reach, math.prod(shape), dtype=np.float32).reshape(shape)


def with_masked(logits, value):
    """Some pieces ruled out, a whole row among them save for one."""
    logits = logits.copy()
    logits[1:, ::3] = value
    logits[2, 1:] = value
    return logits


CASES = [
    *(
        activation(name, label, x)
        for name in PLAIN
        for label, x in (
            ("1x2", normal(1, 2)),
            ("1x14", normal(1, 14)),
            ("70x130", 2 * normal(70, 130)),
            ("within 12", wide(12, 7, 286)),
            ("within 100", wide(100, 5, 402)),
            ("tiny", 1e-20 * normal(5, 14)),
        )
    ),
    linear(1, 7, 11, bias=True, residual=True),
    linear(1, 1, 1),
    linear(1, 1, 1, bias=True),
    linear(70, 130, 65, residual=True),
    linear(130, 7, 257, bias=True),
    linear(5, 70, 11, scale=1e3),
    linear(300, 3, 1, bias=True, residual=True),
    linear_transposed(1, 7, 11),
    linear_transposed(1, 1, 1),
    linear_transposed(70, 130, 65),
    rmsnorm(1, 7),
    rmsnorm(5, 1),
    rmsnorm(70, 130),
    rmsnorm(3, 64),
    rmsnorm(3, 64, scale=1e4),
    rmsnorm(3, 11, scale=1e-4),
    rmsnorm(130, 7),
    *(layernorm(n, d, bias) for n, d in ((1, 7), (5, 1), (70, 130), (3, 64), (130, 7)) for bias in (True, False)),
    layernorm(9, 130, offset=100.0),
    embedding(1, 1, 1, 1),
    embedding(2, 5, 11, 7),
    embedding(2, 5, 11, 7, positions=False),
    embedding(3, 70, 11, 130),
    embedding(130, 1, 11, 33),
    embedding(4, 70, 11, 7, one=3),
    embedding(4, 70, 11, 7, positions=False, one=10),
    rotary(1, 1, 1, 2),
    rotary(2, 5, 2, 6, more=7),
    rotary(1, 70, 3, 10),
    rotary(2, 13, 2, 8, first=100000, more=8),
    accumulate(1, 1),
    accumulate(1, 7),
    accumulate(130, 70),
    attention(1, 1, 1, 1, 5),
    attention(2, 7, 4, 2, 3),
    attention(1, 64, 2, 2, 16),
    attention(1, 65, 3, 1, 4),
    attention(2, 70, 2, 1, 7),
    attention(1, 130, 2, 2, 8),
    attention(2, 9, 2, 2, 7, scale=5.0),
    attention(1, 70, 2, 1, 8, scale=5.0),
    *(
        cross_entropy(label, logits)
        for label, logits in (
            ("1x11", normal(1, 11)),
            ("1x1", normal(1, 1)),
            ("70x130", normal(70, 130)),
            ("7x11 within 80", wide(80, 7, 11)),
            ("7x1030 within 80", normal(7, 1030, scale=30).clip(-80, 80)),
            ("5x11 equal", np.full((5, 11), -1e30, np.float32)),
            ("9x11 offset", normal(9, 11) + np.float32(1000)),
            ("9x11 masked", with_masked(normal(9, 11), np.finfo(np.float32).min)),
            ("9x12 masked", with_masked(normal(9, 12), -1e4)),
            ("9x50257 scale 5", normal(9, 50257, scale=5.0)),
        )
    ),
    *(head_cross_entropy(7, 5, 11, rows) for rows in (1, 3, 7)),
    head_cross_entropy(1, 7, 11, 4),
    head_cross_entropy(70, 130, 257, 64),
    head_cross_entropy(9, 64, 130, 9, scale=4.0),
    cross_entropy("masked", normal(9, 130), masked=True),
    head_cross_entropy(70, 130, 257, 64, masked=True),
    head_cross_entropy(1, 7, 11, 4, masked=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=[case.id.replace(" ", "-") for case in CASES])


@every_case
def test_float32_is_as_good_as_numpy(case):
    with np.errstate(all="ignore"):
        usual = case.plain(*case.inputs)
    for found, plain, exact in zip(case.engine(0, *case.inputs), usual, case.exact(*case.inputs), strict=True):
        assert found.dtype == plain.dtype == np.float32
        allowed = max(3 * np.abs(plain - exact).max(), 4 * ULP * np.abs(exact).max(), 4 * ULP * case.terms)
        assert np.abs(found - exact).max() <= allowed


@every_case
def test_float64_is_exact_and_sums_are_added(case):
    """What overwrites was NaN, what accumulates was one: it must be the oracle's value, or that plus one."""
    inputs = [x.astype(np.float64) for x in case.inputs]
    before = [x.copy() for x in inputs]
    found, exact = case.engine(1, *inputs), case.exact(*inputs)
    for place, (got, value) in enumerate(zip(found, exact, strict=True)):
        assert got.dtype == np.float64
        np.testing.assert_allclose(
            got, value + (place >= len(found) - case.sums), rtol=1e-12, atol=1e-13 * max(1, np.abs(value).max())
        )
    for x, kept in zip(inputs, before):
        np.testing.assert_array_equal(x, kept)


@every_case
def test_plain_formula_is_the_oracles(case):
    inputs = [x.astype(np.float64) for x in case.inputs]
    with np.errstate(all="ignore"):
        usual = case.plain(*inputs)
    for plain, exact in zip(usual, case.exact(*inputs), strict=True):
        np.testing.assert_allclose(plain, exact, rtol=1e-11, atol=1e-12 * max(1e-20, np.abs(exact).max()))


@pytest.mark.parametrize("width", [1, 7, 130, 384])
@pytest.mark.parametrize("value", [0.1, 1000.1, 1e10])
def test_layernorm_of_equal_elements_is_its_bias(value, width):
    x, weight, bias = np.full((2, width), value, np.float32), normal(width), normal(width, seed=1)
    out, mean, rstd = empty(x.shape, x), empty(2, x), empty(2, x)
    ops.layernorm_forward(out, mean, rstd, x, weight, bias, EPS)
    np.testing.assert_array_equal(out, np.broadcast_to(bias, x.shape))
    np.testing.assert_array_equal(mean, x[:, 0])


# The functions under the ops, float32 without the C library


@pytest.fixture(scope="module")
def elementary():
    """{name: function of a float32 array} for exp, sigmoid and normal, which returns (distribution, density)."""
    from slm_np.kernels.cpu import elementary as e
    from slm_np.kernels.cpu.jit import row

    exp, sigmoid, normal = e.exp, e.sigmoid, e.normal

    @row
    def exp_of(out, x):
        for i in range(x.size):
            out[i] = exp(x[i])

    @row
    def sigmoid_of(out, x):
        for i in range(x.size):
            out[i] = sigmoid(x[i])

    @row
    def normal_of(out, density, x):
        for i in range(x.size):
            out[i], density[i] = normal(x[i])

    def over(function, outputs=1):
        def run(x):
            found = [empty(x.shape, x) for _ in range(outputs)]
            function(*found, x)
            return found if outputs > 1 else found[0]

        return run

    return dict(exp=over(exp_of), sigmoid=over(sigmoid_of), normal=over(normal_of, 2))


def grid(low, high):
    """A million floats evenly in [low, high], and every power of two in it from 2^-149 on with its neighbours."""
    powers = np.ldexp(np.float32(1), np.arange(-149, 10)).astype(np.float32)
    special = np.concatenate([np.nextafter(powers, np.float32(to)) for to in (-np.inf, np.inf)] + [powers, [0]]).astype(
        np.float32
    )
    x = np.concatenate([np.linspace(low, high, 1_000_003, dtype=np.float32), special, -special])
    return x[(x >= low) & (x <= high)]


def relative_error(found, exact):
    assert found.dtype == np.float32
    return np.abs(found / exact - 1)


def test_exp(elementary):
    x = grid(-87, 88)
    assert relative_error(elementary["exp"](x), np.exp(x.astype(float))).max() < 2e-7


def test_exp_outside_its_range(elementary):
    x = np.array([-87.5, -1e30, -np.inf, 88.5, 1e30, np.inf], np.float32)
    np.testing.assert_allclose(elementary["exp"](x), np.exp([-87.0] * 3 + [88.0] * 3), rtol=2e-7)
    assert elementary["exp"](np.zeros(1, np.float32)) == 1


def test_sigmoid(elementary):
    """Two roundings and one division more than exp."""
    x = grid(-87, 200)
    assert relative_error(elementary["sigmoid"](x), 1 / (1 + np.exp(-x.astype(float)))).max() < 3.5e-7
    below = elementary["sigmoid"](np.array([-88.5, -1e4, -np.inf], np.float32))
    assert (below >= 0).all() and (below < 1e-38).all()


def test_normal(elementary):
    """The exponent x^2/2 is rounded to float32, so in the tails the error grows with it."""
    x = grid(-12.9, 12.9)
    distribution, density = elementary["normal"](x)
    exact, wide = ref.normal(x.astype(float)), 1 + x.astype(float) ** 2 / 2
    assert np.abs(distribution - exact).max() < 3e-7
    assert (relative_error(distribution, exact) / wide).max() < 6e-7
    assert (relative_error(density, np.exp(-(x.astype(float) ** 2) / 2) / math.sqrt(2 * math.pi)) / wide).max() < 2e-7


def test_elementary_functions_keep_nan(elementary):
    for length in (1, 33):  # alone, and inside a vector
        x = normal(length)
        x[-1] = np.nan
        for found in (elementary["exp"](x), elementary["sigmoid"](x), *elementary["normal"](x)):
            assert np.isnan(found[-1]) and np.isfinite(found[:-1]).all()


# What is not finite must be seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 5, 10])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cross_entropy_of_a_bad_logit_is_nan(bad, place, dtype):
    logits = normal(3, 11).astype(dtype)
    logits[1, place] = bad
    targets, losses, again = np.array([4, 5, 6], np.int32), np.zeros(3, dtype), np.zeros(3, dtype)
    ops.softmax_cross_entropy_forward(losses, logits, targets)
    ops.softmax_cross_entropy_backward(logits, again, logits, targets, 1.0)
    for found in (losses, again, logits.sum(1)):
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_target_of_minus_one_is_not_counted_whatever_its_logits(dtype):
    logits = normal(4, 11).astype(dtype)
    logits[1:3] = np.nan
    targets, losses, again = np.array([4, -1, 5, -1], np.int32), np.full(4, np.nan, dtype), np.full(4, np.nan, dtype)
    ops.softmax_cross_entropy_forward(losses, logits, targets)
    ops.softmax_cross_entropy_backward(logits, again, logits, targets, 0.5)
    np.testing.assert_array_equal(losses, again)
    assert losses[0] > 0 and np.isnan(losses[2]) and losses[1] == losses[3] == 0
    assert (
        (logits[1] == 0).all() and (logits[3] == 0).all() and np.isnan(logits[2]).all() and np.isfinite(logits[0]).all()
    )


@pytest.mark.parametrize("place", [0, 3, 7])
def test_attention_to_a_bad_key_is_nan(place):
    steps, width = 8, 4
    qkv = normal(steps, 3 * width)
    qkv[place, width] = np.nan
    out, lse = empty((steps, width), qkv), empty((1, steps), qkv)
    ops.attention_forward(
        out, lse, empty(kernels_of(qkv).attention_scratch(steps, width, 1), qkv), qkv, 1, 1, steps, None
    )
    np.testing.assert_array_equal(np.isnan(out).all(1), np.arange(steps) >= place)
    np.testing.assert_array_equal(np.isnan(lse[0]), np.arange(steps) >= place)
    assert np.isfinite(out[:place]).all()


@pytest.mark.parametrize("name", PLAIN)
def test_activations_far_out_and_of_nan(name):
    x = np.array([[-1e4, -200, 0, 200, 1e4, np.nan, 1]], np.float32)
    given = np.hstack((x, np.ones_like(x))) if name == "swiglu" else x
    out, dx, again = empty(x.shape, x), given.copy(), np.ones_like(x)
    getattr(ops, f"{name}_forward")(out, given)
    getattr(ops, f"{name}_backward")(dx, again)
    for found in (out, again):
        np.testing.assert_allclose(found[0, :5], np.maximum(x[0, :5], 0), rtol=1e-6, atol=1e-20)
        assert np.isnan(found[0, 5]) and np.isfinite(found[0, 6])
    np.testing.assert_allclose(dx[0, :5], [0, 0, 0.5, 1, 1], rtol=1e-6, atol=1e-20)
    assert np.isnan(dx[0, 5]) and np.isfinite(dx[0, 6])


# Embedding, fused head, attention: promises of their own


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_embedding_backward_of_one_token_is_numpys(dtype):
    dout, tokens = normal(4 * 70, 33).astype(dtype), np.full((4, 70), 5, np.int32)
    dweight, expected = np.ones((11, 33), dtype), np.ones((11, 33), dtype)
    ops.embedding_backward(dweight, None, dout, tokens)
    np.add.at(expected, tokens.reshape(-1), dout)
    np.testing.assert_array_equal(dweight, expected)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64])
def test_tokens_may_be_any_integers(kind):
    weight, tokens = normal(11, 7), np.array([[0, 10, 3], [10, 10, 0]], kind)
    out, dweight = empty((6, 7), weight), np.zeros_like(weight)
    ops.embedding_forward(out, tokens, weight, None)
    ops.embedding_backward(dweight, None, out, tokens)
    np.testing.assert_array_equal(out, weight[tokens.reshape(-1)])
    np.testing.assert_allclose(
        dweight[[0, 10, 3, 1]], weight[[0, 10, 3, 1]] * np.array([[2], [3], [1], [0]], np.float32), rtol=1e-6
    )


@pytest.mark.parametrize("rows", [1, 3, 7, 9], ids=lambda rows: f"chunks-of-{rows}")
def test_fused_head_equals_the_ops_it_is_made_of(rows):
    n, d, v = 7, 5, 11
    x, weight, targets = normal(n, d).astype(float), normal(v, d).astype(float), np.arange(n).astype(np.int32)
    logits, losses, dx, dweight = empty((n, v), x), empty(n, x), empty(x.shape, x), np.ones_like(weight)
    ops.linear_transposed_forward(logits, x, weight)
    ops.softmax_cross_entropy_backward(logits, losses, logits, targets, 0.7)
    ops.linear_transposed_backward(dx, dweight, logits, x, weight)
    chunk, forward, backward = empty((rows, v), x), empty(n, x), empty(n, x)
    fused_dx, fused_dweight = empty(x.shape, x), np.ones_like(weight)
    ops.head_cross_entropy_forward(forward, chunk, x, weight, targets)
    chunk.fill(np.nan)
    ops.head_cross_entropy_backward(fused_dx, fused_dweight, backward, chunk, chunk, x, weight, targets, 0.7)
    for fused, plain in ((forward, losses), (backward, losses), (fused_dx, dx), (fused_dweight, dweight)):
        np.testing.assert_allclose(fused, plain, rtol=1e-13, atol=1e-14)


def attend(qkv, heads, kv_heads, steps, dropout=0.0, key=0):
    width = qkv.shape[1] // (heads + 2 * kv_heads)
    out, lse = empty((len(qkv), heads * width), qkv), empty((len(qkv) // steps * heads, steps), qkv)
    ops.attention_forward(
        out,
        lse,
        empty(kernels_of(qkv).attention_scratch(steps, width, len(lse)), qkv),
        qkv,
        heads,
        kv_heads,
        steps,
        (dropout, key),
    )
    return out, lse


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("changed", [0, 1, 63, 64, 65, 129])
def test_attention_does_not_see_the_future(changed, dropout):
    steps, heads = 130, 2
    qkv = normal(2 * steps, 4 * 8)
    before, lse = attend(qkv, heads, 1, steps, dropout, 7)
    qkv[changed::steps] += 1
    after, lse_after = attend(qkv, heads, 1, steps, dropout, 7)
    earlier = np.arange(2 * steps) % steps < changed
    np.testing.assert_array_equal(after[earlier], before[earlier])
    np.testing.assert_array_equal(lse_after[:, :changed], lse[:, :changed])
    assert (after[~earlier] != before[~earlier]).any(1).all() or dropout


def test_dropout_in_attention_replays_its_mask():
    """With v the identity, out is the matrix of dropped probabilities; with dout the identity, its transpose is dv."""
    steps, share = 64, 0.3
    qkv = np.hstack((normal(steps, 2 * steps, scale=0.3), np.eye(steps, dtype=np.float32)))
    whole, lse = attend(qkv, 1, 1, steps)
    dropped, same_lse = attend(qkv, 1, 1, steps, share, 5)
    np.testing.assert_array_equal(dropped, attend(qkv, 1, 1, steps, share, 5)[0])
    np.testing.assert_array_equal(same_lse, lse)
    causal = np.tril(np.ones((steps, steps), bool))
    kept = dropped[causal] != 0
    np.testing.assert_allclose(dropped[causal][kept], whole[causal][kept] / (1 - share), rtol=1e-5)
    assert (dropped[~causal] == 0).all()
    assert abs(kept.mean() - (1 - share)) < 4 * math.sqrt(share * (1 - share) / kept.size)
    other = attend(qkv, 1, 1, steps, share, 6)[0][causal] != 0
    assert abs((kept != other).mean() - 2 * share * (1 - share)) < 4 * math.sqrt(0.25 / kept.size)
    dqkv = qkv.copy()
    ops.attention_backward(
        dqkv,
        empty(kernels_of(qkv).attention_scratch(steps, steps, 1), qkv),
        np.eye(steps, dtype=np.float32),
        dropped,
        lse,
        1,
        1,
        steps,
        (share, 5),
    )
    np.testing.assert_allclose(dqkv[:, 2 * steps :], dropped.T, rtol=1e-5, atol=1e-7)


# Dropout


def drop(x, share, key, residual=None):
    out = empty(x.shape, x)
    ops.dropout_forward(out, x, residual, (share, key))
    return out


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.95])
def test_dropout_keeps_its_share_and_the_mean(share):
    x = np.ones((100, 2003), np.float32)
    out = drop(x, share, ops.dropout_key(1, 2, 3))
    kept = out != 0
    np.testing.assert_allclose(out[kept], 1 / (1 - share), rtol=1e-6)
    sigma = math.sqrt(share * (1 - share) / x.size)
    assert abs(kept.mean() - (1 - share)) < 4 * sigma
    assert abs(out.mean(dtype=float) - 1) < 4 * sigma / (1 - share)
    for axis, size in ((0, 100), (1, 2003)):  # neither a row nor a column is favoured
        assert np.abs(kept.mean(axis) - (1 - share)).max() < 5.5 * math.sqrt(share * (1 - share) / size)


def test_dropout_mask_is_a_function_of_the_key():
    x = np.ones(70001, np.float32)
    masks = [drop(x, 0.3, key) != 0 for key in (0, 1, 2, 1 << 30, (1 << 31) - 1)]
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, drop(x, 0.3, (0, 1, 2, 1 << 30, (1 << 31) - 1)[i]) != 0)
        np.testing.assert_array_equal(mask, drop(x.astype(float), 0.3, (0, 1, 2, 1 << 30, (1 << 31) - 1)[i]) != 0)
        for other in [np.roll(mask, 1), *masks[:i]]:  # neither neighbours nor keys go together
            assert abs((mask != other).mean() - 2 * 0.3 * 0.7) < 5 * math.sqrt(0.25 / x.size)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (130, 70)])
def test_dropout_backward_draws_the_mask_of_forward(shape):
    x, dout, residual = normal(*shape) + 10, normal(*shape, seed=1) + 10, normal(*shape, seed=2)
    out, dx = drop(x, 0.4, 9), empty(shape, x)
    ops.dropout_backward(dx, dout, (0.4, 9))
    np.testing.assert_array_equal(dx != 0, out != 0)
    np.testing.assert_allclose(dx, dout * (out != 0) / 0.6, rtol=1e-6)
    np.testing.assert_allclose(drop(x, 0.4, 9, residual), out + residual, rtol=1e-6)
    np.testing.assert_array_equal(drop(x, 0.0, 9), x)


def test_dropout_keys_of_different_parts_differ():
    parts = [
        (seed, step, micro, place)
        for seed in range(3)
        for step in range(20)
        for micro in range(3)
        for place in range(5)
    ]
    keys = [ops.dropout_key(*p) for p in parts]
    assert keys == [ops.dropout_key(*p) for p in parts]
    assert len(set(keys)) == len(keys) and 0 <= min(keys) and max(keys) < 1 << 31

"""One list of cases for all kernel sets: inputs, and a function that runs an op and its derivative on any set.

A case names its results: `out` is what forward computes, `dx` the gradient of the input `x` for the gradient `dout` of
`out`. A result that a kernel overwrites holds NaN before, one that it accumulates into holds `Kernels.start`. So the
results of two sets can be compared with each other, and gradients with finite differences.
"""

import functools
import math
from typing import Callable, NamedTuple

import numpy as np
from scipy.special import logsumexp

EPS = 1e-5  # of the norms
ULP = np.finfo(np.float32).eps
ONE_WIDE = EPS**-0.5  # a norm of one element is nearly constant: in its gradient, terms of this size cancel


class Kernels:
    """A kernel set, whose names are attributes, and arrays for it.

    module   the kernel set
    dtype    the type of the arrays
    start    what a result that accumulates holds before
    arrays   the array module: NumPy, or CuPy for kernels/gpu
    """

    def __init__(self, module, dtype, start=0, arrays=np):
        self.module, self.dtype, self.start, self.arrays = module, np.dtype(dtype), start, arrays

    def __getattr__(self, name):
        return getattr(self.module, name)

    def full(self, shape, value, dtype=None):
        return self.arrays.full(shape, value, dtype or self.dtype)

    def empty(self, shape):
        """A result that a kernel overwrites, or scratch."""
        return self.full(shape, np.nan)

    def sums(self, shape):
        """A result that a kernel accumulates into."""
        return self.full(shape, self.start)

    def array(self, x):
        """A copy of a NumPy array, floats in the set's type."""
        return self.arrays.asarray(np.array(x, self.dtype if x.dtype.kind == "f" else x.dtype))

    def numpy(self, x):
        """A copy of an array, or of a number, as a NumPy array."""
        return x.get() if hasattr(x, "get") else np.array(x)

    def results(self, case, inputs=None):
        """{name: NumPy array} of a case, for its own inputs or others. Inputs that are no results must not change."""
        inputs = inputs or case.inputs
        given = {name: self.array(x) for name, x in inputs.items()}
        found = case.run(self, **given)
        for name, x in given.items():
            if not any(x is result for result in found.values()):
                np.testing.assert_array_equal(self.numpy(x), inputs[name].astype(x.dtype), name)
        return {name: self.numpy(x) for name, x in found.items()}


class Case(NamedTuple):
    """An op on given inputs.

    inputs    {name: NumPy array}: float32 or integers
    run       run(kernels, **inputs) -> {name: result}
    sums      names of the results that accumulate
    cancels   size of the terms inside a result that cancel, where nearly all of it does
    """

    id: str
    inputs: dict
    run: Callable
    sums: tuple = ()
    cancels: float = 0


def assert_precise(found, single, exact, cancels=0):
    """float32 results are as precise as NumPy's in float32, `single`, or a few roundings off `exact`, in float64."""
    assert found.keys() == exact.keys()
    for name, x in found.items():
        assert x.dtype == single[name].dtype and x.shape == exact[name].shape
        size = max(np.abs(exact[name]).max(), cancels)
        allowed = max(3 * np.abs(single[name] - exact[name]).max(), 4 * ULP * size)
        assert np.abs(x - exact[name]).max() <= allowed, name


def assert_exact(found, exact):
    """Assert equality with NumPy's float64 up to summation order."""
    assert found.keys() == exact.keys()
    for name, x in found.items():
        assert x.dtype == exact[name].dtype and x.shape == exact[name].shape
        atol = 1e-13 * max(1, np.abs(exact[name]).max())
        np.testing.assert_allclose(x, exact[name], rtol=1e-12, atol=atol, err_msg=name)


def normal(*shape, scale=1.0, seed=0):
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def given(**arrays):
    """The inputs that are not None."""
    return {name: x for name, x in arrays.items() if x is not None}


# Activations


def activation(name, label, x):
    def run(kernels, x, dout):
        out = kernels.empty(dout.shape)
        getattr(kernels, f"{name}_forward")(out, x)
        getattr(kernels, f"{name}_backward")(x, dout)
        return dict(out=out, dx=x, again=dout)

    dout = normal(len(x), x.shape[1] // (2 if name == "swiglu" else 1))
    return Case(f"{name} {label}", dict(x=x, dout=dout), run)


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swiglu")


def wide(reach, *shape):
    """Evenly from -reach to reach."""
    return np.linspace(-reach, reach, math.prod(shape), dtype=np.float32).reshape(shape)


# Linear layers


def linear(n, d, e, bias=False, residual=False, in_place=False, scale=1.0):
    """in_place: the residual is `out` itself."""

    def run(kernels, x, weight, dout, bias=None, residual=None):
        out = residual if in_place else kernels.empty(dout.shape)
        dx, dweight, dbias = kernels.empty(x.shape), kernels.sums(weight.shape), kernels.sums(dout.shape[1])
        kernels.linear_forward(out, x, weight, bias, residual)
        added = kernels.sums(x.shape)
        kernels.linear_backward_input(dx, dout, weight)
        kernels.linear_backward_input(added, dout, weight, added)
        kernels.linear_backward_weight(dweight, None if bias is None else dbias, dout, x)
        return dict(out=out, dx=dx, added=added, dweight=dweight) | ({} if bias is None else dict(dbias=dbias))

    return Case(
        f"linear {n}x{d}x{e}{' bias' * bias}{' residual' * residual}{' in place' * in_place}{label(scale)}",
        given(
            x=normal(n, d, scale=scale),
            weight=normal(d, e),
            dout=normal(n, e, seed=1),
            bias=normal(e) if bias else None,
            residual=normal(n, e, seed=2) if residual else None,
        ),
        run,
        ("added", "dweight", "dbias") if bias else ("added", "dweight"),
    )


def label(scale):
    return "" if scale == 1 else f" scale {scale}"


def linear_transposed(n, d, v):
    def run(kernels, x, weight, dout):
        out, dx, dweight = kernels.empty(dout.shape), kernels.empty(x.shape), kernels.sums(weight.shape)
        kernels.linear_transposed_forward(out, x, weight)
        kernels.linear_transposed_backward(dx, dweight, dout, x, weight)
        frozen = kernels.empty(x.shape)
        kernels.linear_transposed_backward(frozen, None, dout, x, weight)
        return dict(out=out, dx=dx, dweight=dweight, frozen=frozen)

    inputs = dict(x=normal(n, d), weight=normal(v, d), dout=normal(n, v))
    return Case(f"linear_transposed {n}x{d}x{v}", inputs, run, ("dweight",))


# Norms, whose dx accumulates too


def rmsnorm(n, d, scale=1.0):
    def run(kernels, x, weight, dout):
        out, rstd = kernels.empty(x.shape), kernels.empty(n)
        dx, dweight = kernels.sums(x.shape), kernels.sums(weight.shape)
        kernels.rmsnorm_forward(out, rstd, x, weight, EPS)
        kernels.rmsnorm_backward(dx, dweight, dout, x, weight, rstd)
        frozen = kernels.sums(x.shape)
        kernels.rmsnorm_backward(frozen, None, dout, x, weight, rstd)
        return dict(out=out, rstd=rstd, dx=dx, dweight=dweight, frozen=frozen)

    inputs = dict(x=normal(n, d, scale=scale), weight=normal(d), dout=normal(n, d, seed=1))
    return Case(f"rmsnorm {n}x{d}{label(scale)}", inputs, run, ("dx", "dweight", "frozen"), ONE_WIDE * (d == 1))


def layernorm(n, d, bias=True, offset=0.0):
    def run(kernels, x, weight, dout, bias=None):
        out, mean, rstd = kernels.empty(x.shape), kernels.empty(n), kernels.empty(n)
        dx, dweight, dbias = kernels.sums(x.shape), kernels.sums(d), kernels.sums(d)
        kernels.layernorm_forward(out, mean, rstd, x, weight, bias, EPS)
        kernels.layernorm_backward(dx, dweight, None if bias is None else dbias, dout, x, weight, mean, rstd)
        frozen = kernels.sums(x.shape)
        kernels.layernorm_backward(frozen, None, None, dout, x, weight, mean, rstd)
        found = dict(out=out, mean=mean, rstd=rstd, dx=dx, dweight=dweight, frozen=frozen)
        return found if bias is None else found | dict(dbias=dbias)

    return Case(
        f"layernorm {n}x{d}{' bias' * bias}{f' offset {offset}' if offset else ''}",
        given(
            x=normal(n, d) + np.float32(offset),
            weight=normal(d),
            dout=normal(n, d, seed=1),
            bias=normal(d) if bias else None,
        ),
        run,
        ("dx", "dweight", "frozen", *(["dbias"] if bias else [])),
        ONE_WIDE * (d == 1),
    )


# Embedding, positions, residual, dropout


def embedding(batch, steps, vocabulary, d, positions=True, one=None):
    """one: the only token there is."""
    tokens = np.random.default_rng(3).integers(0, vocabulary, (batch, steps)).astype(np.int32)

    def run(kernels, tokens, weight, dout, positions=None):
        out, dweight, dpositions = kernels.empty(dout.shape), kernels.sums(weight.shape), kernels.sums((steps, d))
        kernels.embedding_forward(out, tokens, weight, positions)
        kernels.embedding_backward(dweight, None if positions is None else dpositions, dout, tokens)
        return dict(out=out, dweight=dweight) | ({} if positions is None else dict(dpositions=dpositions))

    return Case(
        f"embedding {batch}x{steps} of {vocabulary}x{d}{' positions' * positions}{'' if one is None else ' one token'}",
        given(
            tokens=tokens if one is None else np.full_like(tokens, one),
            weight=normal(vocabulary, d),
            dout=normal(batch * steps, d),
            positions=normal(steps, d) if positions else None,
        ),
        run,
        ("dweight", "dpositions") if positions else ("dweight",),
    )


def head_norm(n, heads, kv_heads, width, scale=1.0):
    def run(kernels, qkv, q_weight, k_weight, dout):
        out, rstd = kernels.empty(qkv.shape), kernels.empty((n, heads + kv_heads))
        dq_weight, dk_weight = kernels.sums(width), kernels.sums(width)
        kernels.head_norm_forward(
            out,
            rstd,
            qkv,
            q_weight,
            k_weight,
            heads,
            kv_heads,
            EPS,
        )
        kernels.head_norm_backward(
            qkv,
            dq_weight,
            dk_weight,
            dout,
            q_weight,
            k_weight,
            rstd,
            heads,
            kv_heads,
        )
        return dict(out=out, rstd=rstd, dqkv=qkv, dq_weight=dq_weight, dk_weight=dk_weight)

    shape = n, (heads + 2 * kv_heads) * width
    return Case(
        f"head_norm {n} heads {heads}/{kv_heads}x{width}{label(scale)}",
        dict(
            qkv=normal(*shape, scale=scale),
            q_weight=normal(width),
            k_weight=normal(width, seed=1),
            dout=normal(*shape, seed=2),
        ),
        run,
        ("dq_weight", "dk_weight"),
        ONE_WIDE * (width == 1),
    )


def rotary(batch, steps, heads, width, start=0, more=0, rotated=0):
    """more: columns after the rotated heads.   rotated: rotated columns of a head, 0 for all"""

    def run(kernels, x, cos, sin, dout):
        kernels.rotary_forward(x, cos, sin, heads, width)
        kernels.rotary_backward(dout, cos, sin, heads, width)
        return dict(out=x, dx=dout)

    turned = rotated or width
    angle = np.arange(start, start + steps)[:, None] * 100.0 ** (-np.arange(turned // 2) * 2 / turned)  # (T, r/2)
    shape = batch * steps, heads * width + more
    return Case(
        f"rotary {batch}x{steps} heads {heads}x{width} from {start}{f' rotated {rotated}' if rotated else ''}",
        dict(
            x=normal(*shape),
            cos=np.cos(angle).astype(np.float32),
            sin=np.sin(angle).astype(np.float32),
            dout=normal(*shape, seed=1),
        ),
        run,
    )


def accumulate(n, d):
    def run(kernels, x):
        total = kernels.sums(x.shape)
        kernels.accumulate(total, x)
        return dict(total=total)

    return Case(f"accumulate {n}x{d}", dict(x=normal(n, d)), run, ("total",))


def convert(n, d):
    def run(kernels, x):
        out = kernels.empty(x.shape)
        kernels.convert(out, x)
        return dict(out=out)

    return Case(f"convert {n}x{d}", dict(x=normal(n, d)), run)


def dropout(n, d, rate, key, residual=False):
    def run(kernels, x, dout, residual=None):
        out, dx = kernels.empty(x.shape), kernels.empty(x.shape)
        kernels.dropout_forward(out, x, residual, (rate, key))
        kernels.dropout_backward(dx, dout, (rate, key))
        return dict(out=out, dx=dx)

    return Case(
        f"dropout {n}x{d} rate {rate}{' residual' * residual}",
        given(x=normal(n, d), dout=normal(n, d, seed=1), residual=normal(n, d, seed=2) if residual else None),
        run,
    )


# Attention


def attention(
    batch,
    steps,
    heads,
    kv_heads,
    width,
    dropout=None,
    scale=1.0,
    window=0,
    score_scale=None,
):
    """scale: of the inputs.   score_scale: of the scores"""

    def run(kernels, qkv, dout):
        out, lse = kernels.empty(dout.shape), kernels.empty((batch * heads, steps))
        scratch = kernels.empty(kernels.attention_scratch(steps, width, batch * heads))
        settings = heads, kv_heads, steps, dropout, window, score_scale
        kernels.attention_forward(out, lse, scratch, qkv, *settings)
        scratch.fill(np.nan)
        kernels.attention_backward(qkv, scratch, dout, out, lse, *settings)
        return dict(out=out, lse=lse, dqkv=qkv)

    return Case(
        f"attention {batch}x{steps} heads {heads}/{kv_heads}x{width}{' dropout' if dropout else ''}{label(scale)}"
        f"{f' window {window}' if window else ''}{f' scores {score_scale}' if score_scale else ''}",
        dict(
            qkv=normal(batch * steps, (heads + 2 * kv_heads) * width, scale=scale),
            dout=normal(batch * steps, heads * width),
        ),
        run,
    )


def attention_step(batch, steps, heads, kv_heads, width, slots, window=0, score_scale=None):
    """`steps` steps, more than there are slots; the position is an integer and an array of one in turns."""

    def run(kernels, qkv):
        keys, values = (kernels.empty((batch, kv_heads, slots, width)) for _ in range(2))
        outs = {f"out{t}": kernels.empty((batch, heads * width)) for t in range(steps)}
        for t, out in enumerate(outs.values()):
            position = t if t % 2 else kernels.full(1, t, np.int32)
            kernels.attention_step(
                out,
                keys,
                values,
                qkv[t],
                heads,
                kv_heads,
                position,
                window,
                score_scale,
            )
        return outs | dict(keys=keys, values=values)

    return Case(
        f"attention_step {batch}x{steps} heads {heads}/{kv_heads}x{width} slots {slots}"
        f"{f' window {window}' if window else ''}{f' scores {score_scale}' if score_scale else ''}",
        dict(qkv=normal(steps, batch, (heads + 2 * kv_heads) * width)),
        run,
    )


# Recurrences


def convolution(batch, steps, channels, taps, more=2):
    """more: columns of x after the channels, which stay as they are."""

    def run(kernels, x, past, weight, bias, dout):
        out, scratch = kernels.empty(dout.shape), kernels.empty(dout.shape)
        dweight, dbias, rest = kernels.sums(weight.shape), kernels.sums(channels), kernels.numpy(x)[:, channels:]
        kernels.convolution_forward(out, x, past, weight, bias)
        kernels.convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias)
        np.testing.assert_array_equal(kernels.numpy(x)[:, channels:], rest)
        x[:, channels:] = 0
        return dict(out=out, dx=x, dweight=dweight, dbias=dbias, again=dout)

    return Case(
        f"convolution {batch}x{steps} channels {channels} taps {taps}",
        dict(
            x=normal(batch * steps, channels + more),
            past=normal(batch, taps - 1, channels),
            weight=normal(taps, channels),
            bias=normal(channels),
            dout=normal(batch * steps, channels, seed=1),
        ),
        run,
        ("dweight", "dbias"),
    )


def selective_scan(batch, steps, channels, states, rank):
    def run(kernels, x, delta, ssm_parameters, projected, A_log, D, first, dout):
        out, dx, dssm_parameters = kernels.empty(x.shape), kernels.empty(x.shape), kernels.empty(ssm_parameters.shape)
        kept = kernels.empty((batch, kernels.selective_scan_chunks(steps) + 1, states, channels))
        scratch = kernels.empty(kernels.selective_scan_scratch(channels, states, batch))
        parts = kernels.empty(kernels.selective_scan_partials(batch, steps, channels, states))
        dA_log, dD, rest = kernels.sums(A_log.shape), kernels.sums(D.shape), kernels.numpy(projected)[:, :channels]
        kept[:, 0] = first
        kernels.selective_scan_forward(out, kept, scratch, x, delta, ssm_parameters, projected, A_log, D)
        scratch.fill(np.nan)
        dssm_parameters[:, :rank] = 5
        kernels.selective_scan_backward(
            dx,
            delta,
            dssm_parameters,
            projected,
            dA_log,
            dD,
            parts,
            scratch,
            dout,
            kept,
            x,
            ssm_parameters,
            A_log,
            D,
        )
        assert (kernels.numpy(dssm_parameters)[:, :rank] == 5).all()
        np.testing.assert_array_equal(kernels.numpy(projected)[:, :channels], rest)
        dssm_parameters[:, :rank], projected[:, :channels] = 0, 0
        return dict(
            out=out,
            last=kept[:, -1],
            dx=dx,
            ddelta=delta,
            dssm_parameters=dssm_parameters,
            dprojected=projected,
            dA_log=dA_log,
            dD=dD,
        )

    n = batch * steps
    return Case(
        f"selective_scan {batch}x{steps} channels {channels} of {states}",
        dict(
            x=normal(n, channels),
            delta=normal(n, channels, seed=1),
            ssm_parameters=normal(n, rank + 2 * states),
            projected=normal(n, 2 * channels),
            A_log=normal(states, channels, scale=0.5),
            D=normal(channels),
            first=normal(batch, states, channels),
            dout=normal(n, channels, seed=2),
        ),
        run,
        ("dA_log", "dD"),
    )


def linear_recurrence(steps, batch, width):
    def run(kernels, states, weight, dout):
        scratch, dweight = (
            kernels.empty(kernels.linear_recurrence_scratch(batch, width)),
            kernels.sums(weight.shape),
        )
        kernels.linear_recurrence_forward(states, scratch, weight)
        scratch.fill(np.nan)
        kernels.linear_recurrence_backward(dout, scratch, weight)
        kernels.linear_backward_weight(dweight, None, dout[1:].reshape(-1, width), states[:-1].reshape(-1, width))
        return dict(out=states, dstates=dout, dweight=dweight)

    return Case(
        f"linear_recurrence {steps}x{batch} width {width}",
        dict(
            states=normal(steps + 1, batch, width),
            weight=normal(width, width, scale=0.9 * width**-0.5),
            dout=normal(steps + 1, batch, width, seed=1),
        ),
        run,
        ("dweight",),
    )


def time_major(batch, total, width, start, stop):
    """Steps `start` to `stop` of `total` by time, and back."""

    def run(kernels, x, residual, dout):
        out, dx, joined = kernels.empty(dout.shape), kernels.full(x.shape, 0), kernels.full(x.shape, 0)
        kernels.time_major(out, x, start)
        kernels.batch_major(dx, dout, None, start)
        kernels.batch_major(joined, dout, residual, start)
        return dict(out=out, dx=dx, joined=joined)

    rows = batch * total, width
    inputs = dict(x=normal(*rows), residual=normal(*rows, seed=1), dout=normal(stop - start, batch, width))
    return Case(f"time_major {batch}x{total}x{width} {start} to {stop}", inputs, run)


# Loss and optimizer


def softmax_cross_entropy(label, logits, masked=False):
    """The gradient takes the place of the logits. masked: two in three targets do not count."""
    n, vocabulary = logits.shape
    targets = np.random.default_rng(4).integers(0, vocabulary, n).astype(np.int32)
    if masked:
        targets[np.arange(n) % 3 != 1] = -1
    scale = float(np.float32(1 / max(1, (targets >= 0).sum())))

    def run(kernels, logits, targets, dout):
        out, again = kernels.empty(n), kernels.empty(n)
        kernels.softmax_cross_entropy_forward(out, logits, targets)
        kernels.softmax_cross_entropy_backward(logits, again, logits, targets, scale)
        return dict(out=out, again=again, dlogits=logits)

    dout = np.full(n, scale, np.float32)  # of each loss, where the loss is their mean
    return Case(
        f"softmax_cross_entropy {label}{' masked' * masked}", dict(logits=logits, targets=targets, dout=dout), run
    )


def ruled_out(logits, value):
    """Some tokens are impossible, in one row all but one."""
    logits = logits.copy()
    logits[1:, ::3] = value
    logits[2, 1:] = value
    return logits


def adamw(size, n_decayed):
    """Two updates with a new gradient each."""

    def run(kernels, weights, gradients, more, mean, square):
        for step in (1, 2):
            kernels.adamw(
                weights,
                gradients,
                mean,
                square,
                n_decayed,
                0.7,
                0.01,
                0.3,
                0.8,
                0.9,
                1 - 0.8**step,
                1 - 0.9**step,
                1e-6,
            )
            assert (kernels.numpy(gradients) == 0).all()
            gradients[...] = more
        return dict(weights=weights, gradients=gradients, mean=mean, square=square)

    arrays = {name: normal(size, seed=i) for i, name in enumerate(("weights", "gradients", "more", "mean", "square"))}
    arrays["square"] **= 2
    return Case(f"adamw {size} decayed {n_decayed}", arrays, run)


def orthogonal_update(rows, columns, *parts, before=0, after=0):
    """Two updates of a weight whose matrices are `parts` of its columns, between other elements of the flat buffers."""
    size = before + rows * columns + after
    matrices = np.array([(before, rows, columns, first, stop) for first, stop in parts or [(0, columns)]])

    def run(kernels, weights, gradients, more, mean):
        for _ in range(2):
            kernels.orthogonal_update(
                weights,
                gradients,
                mean,
                matrices,
                0.7,
                0.02,
                0.3,
                0.9,
                0.2,
                1.01,
                np.array([(8.1, -23.6, 17.4), (3.6, -2.7, 0.5), (2.7, -2.0, 0.5)]),
            )
            left = kernels.numpy(gradients)[before : before + rows * columns].reshape(rows, columns)
            assert all((left[:, first:stop] == 0).all() for *_, first, stop in matrices)
            gradients[...] = more
        return dict(weights=weights, gradients=gradients, mean=mean)

    arrays = {name: normal(size, seed=i) for i, name in enumerate(("weights", "gradients", "more", "mean"))}
    label = " ".join(f"{first}-{stop}" for first, stop in parts)
    return Case(f"orthogonal_update {rows}x{columns} {label}".strip(), arrays, run)


def square_sum(size):
    def run(kernels, x):
        partial = kernels.full(kernels.square_sum_blocks(size), np.nan, np.float64)
        return dict(total=kernels.numpy(kernels.square_sum(partial, x)).reshape(()))

    return Case(f"square_sum {size}", dict(x=normal(size)), run)


# What several test files run on NumPy arrays


class OnDevice:
    """Kernels of a GPU, called with NumPy arrays, which are copied to the device and back."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return functools.partial(self.run, getattr(self.module, name))

    @staticmethod
    def run(kernel, *arguments):
        import cupy  # the real one, or tests/fake_cupy.py

        there = {id(x): (x, cupy.asarray(x)) for x in arguments if isinstance(x, np.ndarray)}
        found = kernel(*[there[id(x)][1] if id(x) in there else x for x in arguments])
        for x, device in there.values():
            x[...] = cupy.asnumpy(device)
        return found


def row_losses(logits, targets):
    """-log softmax(logits)[target] of each row in float64, 0 where the target is -1."""
    logits = logits.astype(np.float64)
    return np.where(targets < 0, 0, logsumexp(logits, 1) - logits[np.arange(len(logits)), targets])


def attend(kernels, qkv, heads, kv_heads, steps, dropout=0.0, key=0):
    """(out, lse) of attention_forward."""
    width = qkv.shape[1] // (heads + 2 * kv_heads)
    out, lse = (
        np.full((len(qkv), heads * width), np.nan, qkv.dtype),
        np.full((len(qkv) // steps * heads, steps), np.nan, qkv.dtype),
    )
    scratch = np.full(kernels.attention_scratch(steps, width, len(lse)), np.nan, qkv.dtype)
    kernels.attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, (dropout, key))
    return out, lse


def drop(kernels, x, rate, key, residual=None):
    """out of dropout_forward."""
    out = np.full_like(x, np.nan)
    kernels.dropout_forward(out, x, residual, (rate, key))
    return out


def fused_head(ops, x, weight, targets, rows, scale, start):
    """Losses of head_cross_entropy, forward's and backward's, and its gradients, `rows` rows at a time."""
    (forward, backward), dx = np.full((2, len(x)), np.nan, x.dtype), np.full_like(x, np.nan)
    chunk, dweight = np.full((rows, len(weight)), np.nan, x.dtype), np.full_like(weight, start)
    ops.head_cross_entropy_forward(forward, chunk, x, weight, targets)
    chunk.fill(np.nan)
    ops.head_cross_entropy_backward(dx, dweight, backward, chunk, chunk, x, weight, targets, scale)
    return dict(forward=forward, backward=backward, dx=dx, dweight=dweight)


CASES = [
    *(
        activation(name, label, x)
        for name in ACTIVATIONS
        for label, x in (
            ("1x2", normal(1, 2)),
            ("1x14", normal(1, 14)),
            ("70x130", 2 * normal(70, 130)),
            ("within 12", wide(12, 7, 286)),
            ("within 100", wide(100, 5, 402)),
            ("tiny", 1e-20 * normal(5, 14)),
        )
    ),
    linear(1, 1, 1),
    linear(1, 1, 1, bias=True),
    linear(1, 7, 11, bias=True, residual=True),
    linear(5, 7, 11, bias=True, residual=True, in_place=True),
    linear(5, 70, 11, scale=1e3),
    linear(9, 5, 3, residual=True, in_place=True),
    linear(70, 130, 65, residual=True),
    linear(130, 7, 257, bias=True),
    linear(300, 3, 1, bias=True, residual=True),
    linear_transposed(1, 1, 1),
    linear_transposed(1, 7, 11),
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
    rotary(2, 13, 2, 8, start=100000, more=8),
    rotary(2, 5, 2, 10, more=7, rotated=4),
    rotary(1, 13, 3, 16, more=16, rotated=8),
    head_norm(1, 1, 1, 1),
    head_norm(5, 3, 1, 6),
    head_norm(37, 4, 2, 8),
    head_norm(3, 2, 2, 70, scale=5.0),
    accumulate(1, 1),
    accumulate(1, 7),
    accumulate(130, 70),
    convert(1, 7),
    convert(130, 70),
    dropout(1, 1, 0.5, 1),
    dropout(5, 7, 0.3, 2**31 - 1),
    dropout(130, 70, 0.1, 9, residual=True),
    dropout(3, 11, 0.0, 5),
    attention(1, 1, 1, 1, 5),
    attention(2, 7, 4, 2, 3),
    attention(1, 64, 2, 2, 16),
    attention(1, 65, 3, 1, 4),
    attention(2, 70, 2, 1, 7),
    attention(1, 130, 2, 2, 8),
    attention(2, 9, 2, 2, 7, scale=5.0),
    attention(1, 70, 2, 1, 8, scale=5.0),
    attention(2, 9, 2, 2, 3, dropout=(0.3, 5)),
    attention(2, 70, 4, 2, 6, dropout=(0.2, 2**31 - 5)),
    attention(2, 9, 2, 1, 3, window=1),
    attention(2, 9, 2, 1, 3, window=4, dropout=(0.3, 5)),
    attention(1, 70, 2, 2, 8, window=9, score_scale=1.0),
    attention(2, 150, 4, 2, 8, window=64),
    attention(1, 200, 2, 1, 5, window=130, dropout=(0.2, 7)),
    attention(1, 20, 2, 1, 5, window=50),
    attention(1, 130, 1, 1, 4, score_scale=0.3),
    attention_step(1, 3, 1, 1, 5, 2),
    attention_step(2, 17, 4, 2, 7, 12),
    attention_step(2, 17, 4, 2, 7, 12, window=5, score_scale=1.0),
    attention_step(1, 9, 2, 1, 4, 4, window=4),
    attention_step(1, 9, 2, 1, 4, 8, window=1),
    convolution(1, 1, 1, 4),
    convolution(2, 7, 5, 4),
    convolution(3, 2, 3, 4),
    convolution(2, 4, 3, 1),
    convolution(2, 2, 70, 5),
    convolution(1, 9, 70, 3),
    convolution(1, 9, 130, 1),
    convolution(2, 100, 33, 4),
    selective_scan(1, 1, 1, 1, 1),
    selective_scan(2, 5, 3, 2, 1),
    selective_scan(3, 1, 7, 1, 2),
    selective_scan(2, 33, 20, 1, 1),
    selective_scan(1, 70, 7, 5, 3),
    selective_scan(1, 5, 150, 4, 1),
    selective_scan(2, 20, 33, 19, 2),
    linear_recurrence(1, 1, 1),
    linear_recurrence(5, 9, 35),
    linear_recurrence(31, 2, 6),  # whose states grow
    linear_recurrence(33, 3, 7),
    linear_recurrence(100, 16, 40),
    time_major(1, 1, 1, 0, 1),
    time_major(3, 5, 7, 0, 5),
    time_major(2, 9, 11, 3, 7),
    *(
        softmax_cross_entropy(label, logits)
        for label, logits in (
            ("1x1", normal(1, 1)),
            ("1x11", normal(1, 11)),
            ("70x130", normal(70, 130)),
            ("7x11 within 80", wide(80, 7, 11)),
            ("7x1030 within 80", normal(7, 1030, scale=30).clip(-80, 80)),
            ("5x11 equal", np.full((5, 11), -1e30, np.float32)),
            ("9x11 offset", normal(9, 11) + np.float32(1000)),
            ("9x11 ruled out", ruled_out(normal(9, 11), np.finfo(np.float32).min)),
            ("9x12 ruled out", ruled_out(normal(9, 12), -1e4)),
        )
    ),
    softmax_cross_entropy("9x130", normal(9, 130), masked=True),
    softmax_cross_entropy("9x50257 scale 5", normal(9, 50257, scale=5.0)),
    adamw(1, 0),
    adamw(1000, 333),
    adamw(70000, 40000),
    orthogonal_update(16, 16),
    orthogonal_update(1, 9, before=3),
    orthogonal_update(9, 1, after=3),
    orthogonal_update(33, 70, before=5, after=2),
    orthogonal_update(70, 33),
    orthogonal_update(34, 99, (0, 34), (34, 67), (67, 99), before=7),
    orthogonal_update(20, 90, (45, 90), (0, 45)),
    orthogonal_update(130, 48, (0, 40)),
    square_sum(1),
    square_sum(100003),
]

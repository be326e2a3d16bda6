"""Check every derivative against finite differences, in float64: `python -m slm_np.gradcheck [--preset P]`.

For an input x, a random unit direction d and a scalar function f, the gradient g is right if <g, d> = (f(x + e d) - f(x - e d)) / 2e.
Outputs that overwrite are prefilled with NaN and those that accumulate with ones, so that the check covers both promises.
"""

import dataclasses
from typing import Callable, NamedTuple

import numpy as np

from slm_np import ops
from slm_np.cli import flags
from slm_np.errors import exit_with_sentence
from slm_np.nn.model import Model
from slm_np.ops.device import kernels_of
from slm_np.presets import PRESETS, preset

EPS, TOLERANCE = 1e-5, 1e-7


def directional_error(function, inputs, gradients, rng):
    """Largest |analytic - numeric| / max(1, |analytic|) over a unit direction in each input and one in all together.

    function() -> float reads the arrays `inputs` (changed and restored here); gradients: arrays of the same shapes.
    """
    worst = 0.0
    for moved in [[i] for i in range(len(inputs))] + ([range(len(inputs))] if len(inputs) > 1 else []):
        directions = [rng.standard_normal(inputs[i].shape) for i in moved]
        length = np.sqrt(sum((d * d).sum() for d in directions))
        kept, values = [inputs[i].copy() for i in moved], []
        for sign in (1, -1):
            for i, x, d in zip(moved, kept, directions):
                inputs[i][...] = x + sign * EPS / length * d
            values.append(function())
        for i, x in zip(moved, kept):
            inputs[i][...] = x
        numeric = (values[0] - values[1]) / (2 * EPS)
        analytic = sum(float((gradients[i] * d).sum()) for i, d in zip(moved, directions)) / length
        error = abs(analytic - numeric) / max(1.0, abs(analytic))
        worst = max(worst, error if error == error else np.inf)
    return worst


class Case(NamedTuple):
    """An op on given inputs: forward(*inputs) -> out, backward(dout, *inputs) -> gradients in the inputs' order."""

    name: str
    inputs: list
    forward: Callable
    backward: Callable
    even: bool = False  # the op takes one scale for all outputs instead of a dout

    def error(self, seed=0):
        """`directional_error` of the scalar <dout, out> for a random dout."""
        rng = np.random.default_rng(seed)
        out = self.forward(*self.inputs)
        dout = np.full(out.shape, 0.7) if self.even else rng.standard_normal(out.shape)
        gradients = self.backward(dout.copy(), *self.inputs)
        return directional_error(lambda: float((self.forward(*self.inputs) * dout).sum()), self.inputs, gradients, rng)


def overwritten(shape):
    return np.full(shape, np.nan)


def accumulated(function, *shapes):
    """Gradients of an op that adds to its outputs: they start as ones, which are taken off again."""
    arrays = [np.ones(shape) for shape in shapes]
    function(*arrays)
    return [array - 1 for array in arrays]


def op_cases(seed=0):
    """A case for every op, at odd sizes."""
    rng = np.random.default_rng(seed)
    for cases in (
        elementwise_cases,
        linear_cases,
        embedding_cases,
        norm_cases,
        rotary_cases,
        attention_cases,
        convolution_cases,
        scan_cases,
        recurrence_cases,
        loss_cases,
    ):
        yield from cases(rng)


def elementwise_cases(rng):
    """Activations and dropout."""
    normal = rng.standard_normal

    def simple(name, forward, backward, *inputs, columns=None):
        """An op of one input and one output."""

        def run(*xs):
            out = overwritten(xs[0].shape if columns is None else (len(xs[0]), columns))
            forward(out, *xs)
            return out

        def back(dout, *xs):
            dx = overwritten(xs[0].shape)
            backward(dx, dout, *xs)
            return [dx]

        return Case(name, list(inputs), run, back)

    def in_place(backward):
        """An activation's backward, which works in place."""

        def run(dx, dout, x):
            dx[:] = x
            backward(dx, dout.copy())

        return run

    for name, columns in (("silu", 14), ("gelu", 14), ("gelu_tanh", 14), ("swiglu", 7)):
        yield simple(
            name,
            getattr(ops, f"{name}_forward"),
            in_place(getattr(ops, f"{name}_backward")),
            2 * normal((5, 14)),
            columns=columns,
        )
    yield simple(
        "dropout",
        lambda out, x: ops.dropout_forward(out, x, None, (0.3, 99)),
        lambda dx, dout, x: ops.dropout_backward(dx, dout, (0.3, 99)),
        normal((5, 7)),
    )


def linear_cases(rng):
    """Linear layers."""
    normal = rng.standard_normal
    for n, d, e, bias, residual in (
        (5, 7, 11, True, True),
        (1, 1, 1, True, False),
        (9, 3, 4, False, True),
        (70, 65, 33, False, False),
    ):

        def linear(x, weight, *more, e=e, bias=bias, residual=residual):
            out = overwritten((len(x), e))
            ops.linear_forward(out, x, weight, more[0] if bias else None, more[-1] if residual else None)
            return out

        def linear_back(dout, x, weight, *more, bias=bias, residual=residual):
            dx = overwritten(x.shape)
            if bias:
                dweight, dbias = accumulated(
                    lambda dw, db: ops.linear_backward(dx, dw, db, dout, x, weight), weight.shape, more[0].shape
                )
            else:
                (dweight,) = accumulated(lambda dw: ops.linear_backward(dx, dw, None, dout, x, weight), weight.shape)
            return [dx, dweight] + ([dbias] if bias else []) + ([dout] if residual else [])

        yield Case(
            f"linear {n} x {d} x {e}{' bias' * bias}{' residual' * residual}",
            [normal((n, d)), normal((d, e))] + [normal(e)] * bias + [normal((n, e))] * residual,
            linear,
            linear_back,
        )

    def transposed(x, weight):
        out = overwritten((len(x), len(weight)))
        ops.linear_transposed_forward(out, x, weight)
        return out

    def transposed_back(dout, x, weight):
        dx = overwritten(x.shape)
        return [dx] + accumulated(lambda dw: ops.linear_transposed_backward(dx, dw, dout, x, weight), weight.shape)

    yield Case("linear_transposed", [normal((5, 7)), normal((11, 7))], transposed, transposed_back)


def embedding_cases(rng):
    """The embedding and its positions."""
    normal = rng.standard_normal
    for label, tokens in (("", rng.integers(0, 11, (2, 5))), (" one token", np.full((2, 5), 3))):

        def embed(weight, positions, tokens=tokens):
            out = overwritten((tokens.size, weight.shape[1]))
            ops.embedding_forward(out, tokens, weight, positions)
            return out

        def embed_back(dout, weight, positions, tokens=tokens):
            return accumulated(
                lambda dw, dp: ops.embedding_backward(dw, dp, dout, tokens), weight.shape, positions.shape
            )

        yield Case(f"embedding{label}", [normal((11, 7)), normal((5, 7))], embed, embed_back)


def norm_cases(rng):
    """RMSNorm and LayerNorm."""
    normal = rng.standard_normal
    for width in (7, 1, 64):

        def rms(x, weight):
            out = overwritten(x.shape)
            ops.rmsnorm_forward(out, overwritten(len(x)), x, weight, 1e-5)
            return out

        def rms_back(dout, x, weight):
            rstd = overwritten(len(x))
            ops.rmsnorm_forward(overwritten(x.shape), rstd, x, weight, 1e-5)
            return accumulated(
                lambda dx, dw: ops.rmsnorm_backward(dx, dw, dout, x, weight, rstd), x.shape, weight.shape
            )

        yield Case(f"rmsnorm {width} wide", [1 + normal((5, width)), normal(width)], rms, rms_back)

        for bias in (True, False):

            def layer(x, weight, *b):
                out = overwritten(x.shape)
                ops.layernorm_forward(
                    out, overwritten(len(x)), overwritten(len(x)), x, weight, b[0] if b else None, 1e-5
                )
                return out

            def layer_back(dout, x, weight, *b):
                mean, rstd = overwritten(len(x)), overwritten(len(x))
                ops.layernorm_forward(overwritten(x.shape), mean, rstd, x, weight, None, 1e-5)
                if b:
                    return accumulated(
                        lambda dx, dw, db: ops.layernorm_backward(dx, dw, db, dout, x, weight, mean, rstd),
                        x.shape,
                        weight.shape,
                        weight.shape,
                    )
                return accumulated(
                    lambda dx, dw: ops.layernorm_backward(dx, dw, None, dout, x, weight, mean, rstd),
                    x.shape,
                    weight.shape,
                )

            if width > 1:  # one number less its own mean is zero, whatever the number
                yield Case(
                    f"layernorm {width} wide{' bias' * bias}",
                    [normal((5, width)), normal(width)] + [normal(width)] * bias,
                    layer,
                    layer_back,
                )


def rotary_cases(rng):
    """Rotary positions."""
    normal = rng.standard_normal
    cos, sin = np.empty((5, 3)), np.empty((5, 3))
    ops.rotary_table(cos, sin, 100.0, first=2)

    def turn(x):
        out = x.copy()
        ops.rotary_forward(out, cos, sin, 2)
        return out

    def turn_back(dout, x):
        ops.rotary_backward(dout, cos, sin, 2)
        return [dout]

    yield Case("rotary", [normal((10, 19))], turn, turn_back)


def attention_cases(rng):
    """Causal attention, grouped queries and dropout among them."""
    normal = rng.standard_normal
    for batch, steps, heads, kv_heads, width, dropout in (
        (2, 7, 4, 2, 3, 0.0),
        (1, 1, 1, 1, 5, 0.0),
        (2, 70, 2, 1, 4, 0.0),
        (1, 130, 1, 1, 8, 0.0),
        (2, 9, 2, 2, 3, 0.3),
    ):

        def attend(
            qkv, batch=batch, steps=steps, heads=heads, kv_heads=kv_heads, width=width, dropout=dropout, keep=None
        ):
            out, lse = overwritten((batch * steps, heads * width)), overwritten((batch * heads, steps))
            ops.attention_forward(
                out,
                lse,
                overwritten(kernels_of(qkv).attention_scratch(steps, width, batch * heads)),
                qkv,
                heads,
                kv_heads,
                steps,
                (dropout, 5),
            )
            if keep is not None:
                keep += [out, lse]
            return out

        def attend_back(
            dout,
            qkv,
            attend=attend,
            batch=batch,
            steps=steps,
            heads=heads,
            kv_heads=kv_heads,
            width=width,
            dropout=dropout,
        ):
            keep, dqkv = [], qkv.copy()
            attend(qkv, keep=keep)
            ops.attention_backward(
                dqkv,
                overwritten(kernels_of(qkv).attention_scratch(steps, width, batch * heads)),
                dout,
                *keep,
                heads,
                kv_heads,
                steps,
                (dropout, 5),
            )
            return [dqkv]

        yield Case(
            f"attention T {steps} heads {heads}/{kv_heads}{' dropout' if dropout else ''}",
            [normal((batch * steps, (heads + 2 * kv_heads) * width))],
            attend,
            attend_back,
        )


def convolution_cases(rng):
    """The causal depthwise convolution; the columns after the channels are not its own."""
    normal = rng.standard_normal
    for batch, steps, channels, size in ((2, 7, 5, 4), (1, 1, 1, 4), (3, 2, 3, 4), (1, 9, 70, 3), (2, 4, 3, 1)):
        past = normal((batch, size - 1, channels))

        def convolve(x, weight, bias, past=past):
            out = overwritten((len(x), weight.shape[1]))
            ops.convolution_forward(out, x, past, weight, bias)
            return out

        def convolve_back(dout, x, weight, bias, past=past):
            dx = x.copy()
            dweight, dbias = accumulated(
                lambda dw, db: ops.convolution_backward(dx, dw, db, overwritten(dout.shape), dout, past, weight, bias),
                weight.shape,
                bias.shape,
            )
            dx[:, weight.shape[1] :] = 0
            return [dx, dweight, dbias]

        yield Case(
            f"convolution T {steps} channels {channels} of {size}",
            [normal((batch * steps, channels + 2)), normal((size, channels)), normal(channels)],
            convolve,
            convolve_back,
        )


def scan_cases(rng):
    """The selective scan: one step, one state, chunks that are not full, more channels than a worker takes at a time."""
    normal = rng.standard_normal
    for batch, steps, channels, states, rank in (
        (2, 7, 5, 3, 2),
        (1, 1, 1, 1, 1),
        (2, 33, 20, 1, 1),
        (1, 70, 7, 5, 3),
        (1, 5, 150, 4, 1),
    ):
        first = normal((batch, states, channels))

        def scan(x, delta, selected, projected, a_log, skip, first=first, batch=batch, steps=steps, kept=None):
            out, states = (
                overwritten(x.shape),
                overwritten((batch, kernels_of(x).selective_scan_chunks(steps) + 1, *a_log.shape)),
            )
            scratch = overwritten(kernels_of(x).selective_scan_scratch(x.shape[1], len(a_log), batch))
            states[:, 0] = first
            ops.selective_scan_forward(out, states, scratch, x, delta, selected, projected, a_log, skip)
            if kept is not None:
                scratch.fill(np.nan)
                kept += [states, scratch]
            return out

        def scan_back(dout, x, delta, selected, projected, a_log, skip, scan=scan, batch=batch, steps=steps):
            kept, ddelta, dprojected = [], delta.copy(), projected.copy()
            scan(x, delta, selected, projected, a_log, skip, kept=kept)
            dx, dselected = overwritten(x.shape), np.zeros_like(selected)
            parts = overwritten(kernels_of(x).selective_scan_partials(batch, steps, x.shape[1], len(a_log)))
            da_log, dskip = accumulated(
                lambda da, ds: ops.selective_scan_backward(
                    dx, ddelta, dselected, dprojected, da, ds, parts, kept[1], dout, kept[0], x, selected, a_log, skip
                ),
                a_log.shape,
                skip.shape,
            )
            dprojected[:, : x.shape[1]] = 0
            return [dx, ddelta, dselected, dprojected, da_log, dskip]

        n = batch * steps
        yield Case(
            f"selective_scan T {steps} channels {channels} of {states}",
            [
                normal((n, channels)),
                normal((n, channels)),
                normal((n, rank + 2 * states)),
                normal((n, 2 * channels)),
                0.5 * normal((states, channels)),
                normal(channels),
            ],
            scan,
            scan_back,
        )


def recurrence_cases(rng):
    """The dense linear recurrence, its first state among the inputs: one step, and a window long enough to show a gradient that is cut."""
    normal = rng.standard_normal
    for steps, batch, width in ((1, 1, 1), (32, 2, 6), (5, 9, 35)):

        def recur(states, weight, batch=batch, width=width):
            out = states.copy()
            ops.linear_recurrence_forward(
                out, overwritten(kernels_of(out).linear_recurrence_scratch(batch, width)), weight
            )
            return out

        def recur_back(dout, states, weight, recur=recur, batch=batch, width=width):
            scratch = overwritten(kernels_of(dout).linear_recurrence_scratch(batch, width))
            return [dout] + accumulated(
                lambda dw: ops.linear_recurrence_backward(dout, dw, scratch, recur(states, weight), weight),
                weight.shape,
            )

        yield Case(
            f"linear_recurrence T {steps} width {width}",
            [normal((steps + 1, batch, width)), 0.9 * width**-0.5 * normal((width, width))],
            recur,
            recur_back,
        )


def loss_cases(rng):
    """Softmax cross-entropy, alone and fused with the head, also where some targets are not counted."""
    normal = rng.standard_normal
    all_targets = rng.integers(0, 11, 7)
    for label, targets in (("", all_targets), (" some not counted", np.where(np.arange(7) % 3 == 1, all_targets, -1))):

        def entropy(logits, targets=targets):
            losses = overwritten(len(logits))
            ops.softmax_cross_entropy_forward(losses, logits.copy(), targets)
            return losses

        def entropy_back(dout, logits, targets=targets):
            dlogits = logits.copy()
            ops.softmax_cross_entropy_backward(dlogits, overwritten(len(logits)), dlogits, targets, dout[0])
            return [dlogits]

        yield Case(f"softmax_cross_entropy{label}", [3 * normal((7, 11))], entropy, entropy_back, even=True)

        def head(x, weight, targets=targets):
            losses = overwritten(len(x))
            ops.head_cross_entropy_forward(losses, overwritten((3, len(weight))), x, weight, targets)
            return losses

        def head_back(dout, x, weight, targets=targets):
            dx = overwritten(x.shape)
            return [dx] + accumulated(
                lambda dw: ops.head_cross_entropy_backward(
                    dx, dw, overwritten(len(x)), *[overwritten((3, len(weight)))] * 2, x, weight, targets, dout[0]
                ),
                weight.shape,
            )

        yield Case(f"head_cross_entropy{label}", [normal((7, 5)), normal((11, 5))], head, head_back, even=True)


def shrunk(config, **changes):
    """The same architecture at a size that finite differences can afford."""
    width = 8 if config.n_head == 1 else 12
    heads = min(config.n_head, 2)
    sizes = dict(
        vocab_size=11,
        block_size=9,
        n_layer=2,
        n_embd=width,
        n_hidden=10,
        n_head=heads,
        head_dim=width // heads,
        n_kv_head=heads,
        head_hidden=7,
        recurrence_size=6,
        n_inner=10,
        ssm_state_size=3,
        time_step_rank=2,
    )
    used = {name: size for name, size in sizes.items() if name not in config.unused}
    return dataclasses.replace(config, **{**used, **changes})


def model_error(config, batch=2, seed=0):
    """{tensor name: directional error} of the whole model's loss, dropout replayed, and of all tensors together under ""."""
    rng = np.random.default_rng(seed)
    model = Model(config, seed=seed, dtype=np.float64)
    p = model.parameters
    p.weights += 0.3 * rng.standard_normal(p.weights.size)  # away from zero biases and equal norms
    tokens, targets = (rng.integers(0, config.vocab_size, (batch, config.block_size)) for _ in range(2))
    model.plan(batch, config.block_size).arena.fill(np.nan)
    model.activations.set_positions(config, 0)
    key = (seed, 1, 0) if config.dropout else None
    p.gradients.fill(1)
    model.loss_and_gradient(tokens, targets, key=key)
    p.gradients -= 1
    gradients = p.gradients.copy()

    def function():
        loss = model.loss_and_gradient(tokens, targets, key=key)
        return loss

    errors = {
        name: directional_error(function, [view], [p.like(gradients)[name]], rng) for name, view in p.weight.items()
    }
    errors[""] = directional_error(function, [p.weights], [gradients], rng)
    return errors


@exit_with_sentence
def main(argv=None):
    """The command: a line per op, or per tensor of one preset's shrunk model; exit status 1 if an error exceeds the tolerance."""
    parser = flags.Parser(
        prog="slm-np gradcheck",
        description="Check every hand-written derivative against finite differences in float64.",
    )
    parser.add_argument(
        "--preset",
        help="check the whole model of this preset, shrunk, tensor by tensor; without it: every op and every preset",
    )
    args = parser.parse(argv)
    config = shrunk(preset(args.preset)[0]) if args.preset else None
    worst = 0.0

    def report(name, error):
        nonlocal worst
        worst = max(worst, error)
        print(f"{name:<44} {error:9.1e} {'ok' if error <= TOLERANCE else 'WRONG'}", flush=True)

    print(f"{'':<44} error     (tolerance {TOLERANCE:.0e})")
    if config:
        for name, error in model_error(config).items():
            report(name or "all tensors", error)
    else:
        for case in op_cases():
            report(case.name, case.error())
        for name in PRESETS:
            report(f"model of {name}", max(model_error(shrunk(preset(name)[0])).values()))
    raise SystemExit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()

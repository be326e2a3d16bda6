"""The cases of the gradient check: every op at odd sizes. `op_cases` yields them all."""

import numpy as np

from slm_np import ops
from slm_np.nn.gradient_check import Case, accumulated, overwritten
from slm_np.ops.device import kernels_of


def op_cases():
    """Yield the `Case` of every op."""
    rng = np.random.default_rng(0)
    for cases in (
        elementwise_cases,
        linear_cases,
        embedding_cases,
        norm_cases,
        head_norm_cases,
        rotary_cases,
        attention_cases,
        convolution_cases,
        scan_cases,
        recurrence_cases,
        loss_cases,
    ):
        yield from cases(rng.standard_normal, rng.integers)


def elementwise_cases(normal, integers):
    """Activations and dropout."""
    for name, columns in (("silu", 14), ("gelu", 14), ("gelu_tanh", 14), ("swiglu", 7)):
        yield activation_case(name, 2 * normal((5, 14)), columns)

    def drop(x):
        out = overwritten(x.shape)
        ops.dropout_forward(out, x, None, ops.Dropout(0.3, 99))
        return out

    def drop_backward(dout, x):
        dx = overwritten(x.shape)
        ops.dropout_backward(dx, dout, ops.Dropout(0.3, 99))
        return [dx]

    yield Case("dropout", [normal((5, 7))], drop, drop_backward)


def activation_case(name, x, columns):
    """An activation with `columns` columns of output and a backward in place."""

    def forward(x):
        out = overwritten((len(x), columns))
        getattr(ops, f"{name}_forward")(out, x)
        return out

    def backward(dout, x):
        dx = x.copy()
        getattr(ops, f"{name}_backward")(dx, dout.copy())
        return [dx]

    return Case(name, [x], forward, backward)


def linear_cases(normal, integers):
    """Linear layers, also with a transposed weight."""
    for n, d, e, bias, residual in (
        (5, 7, 11, True, True),
        (1, 1, 1, True, False),
        (9, 3, 4, False, True),
        (70, 65, 33, False, False),
    ):
        inputs = [normal((n, d)), normal((d, e))] + [normal(e)] * bias + [normal((n, e))] * residual
        yield linear_case(f"linear {n} x {d} x {e}", inputs, bias, residual)

    def transposed(x, weight):
        out = overwritten((len(x), len(weight)))
        ops.linear_transposed_forward(out, x, weight)
        return out

    def transposed_backward(dout, x, weight):
        dx = overwritten(x.shape)
        return [dx] + accumulated(lambda dw: ops.linear_transposed_backward(dx, dw, dout, x, weight), weight.shape)

    yield Case("linear_transposed", [normal((5, 7)), normal((11, 7))], transposed, transposed_backward)


def linear_case(name, inputs, bias, residual):
    """A linear layer. inputs: x, weight, and a bias and a residual if it has them."""

    def forward(x, weight, *more):
        out = overwritten((len(x), weight.shape[1]))
        ops.linear_forward(out, x, weight, more[0] if bias else None, more[-1] if residual else None)
        return out

    def backward(dout, x, weight, *more):
        dx = overwritten(x.shape)
        if bias:
            gradients = accumulated(
                lambda dw, db: ops.linear_backward(dx, dw, db, dout, x, weight), weight.shape, more[0].shape
            )
        else:
            gradients = accumulated(lambda dw: ops.linear_backward(dx, dw, None, dout, x, weight), weight.shape)
        return [dx, *gradients] + [dout] * residual

    return Case(f"{name}{' bias' * bias}{' residual' * residual}", inputs, forward, backward)


def embedding_cases(normal, integers):
    """The embedding with learned positions."""
    for name, tokens in (("embedding", integers(0, 11, (2, 5))), ("embedding one token", np.full((2, 5), 3))):
        yield embedding_case(name, tokens, normal((11, 7)), normal((5, 7)))


def embedding_case(name, tokens, weight, positions):
    def forward(weight, positions):
        out = overwritten((tokens.size, weight.shape[1]))
        ops.embedding_forward(out, tokens, weight, positions)
        return out

    def backward(dout, weight, positions):
        return accumulated(lambda dw, dp: ops.embedding_backward(dw, dp, dout, tokens), weight.shape, positions.shape)

    return Case(name, [weight, positions], forward, backward)


def norm_cases(normal, integers):
    """RMSNorm and LayerNorm."""

    def rmsnorm(x, weight):
        out = overwritten(x.shape)
        ops.rmsnorm_forward(out, overwritten(len(x)), x, weight, 1e-5)
        return out

    def rmsnorm_backward(dout, x, weight):
        rstd = overwritten(len(x))
        ops.rmsnorm_forward(overwritten(x.shape), rstd, x, weight, 1e-5)
        return accumulated(lambda dx, dw: ops.rmsnorm_backward(dx, dw, dout, x, weight, rstd), x.shape, weight.shape)

    def layernorm(x, weight, bias=None):
        out = overwritten(x.shape)
        ops.layernorm_forward(out, overwritten(len(x)), overwritten(len(x)), x, weight, bias, 1e-5)
        return out

    def layernorm_backward(dout, x, weight, bias=None):
        mean, rstd = overwritten(len(x)), overwritten(len(x))
        ops.layernorm_forward(overwritten(x.shape), mean, rstd, x, weight, bias, 1e-5)

        def op(dx, dweight, dbias=None):
            ops.layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd)

        return accumulated(op, x.shape, weight.shape, *([] if bias is None else [bias.shape]))

    for width in (7, 1, 64):
        yield Case(f"rmsnorm {width} wide", [1 + normal((5, width)), normal(width)], rmsnorm, rmsnorm_backward)
        for bias in (True, False):
            if width > 1:  # a single element less its mean is 0
                inputs = [normal((5, width)), normal(width)] + [normal(width)] * bias
                yield Case(f"layernorm {width} wide{' bias' * bias}", inputs, layernorm, layernorm_backward)


def head_norm_cases(normal, integers):
    """RMSNorm of the heads of queries and keys; values pass."""
    for rows, heads, kv_heads, width in ((5, 4, 2, 3), (1, 1, 1, 64), (70, 2, 1, 7)):
        inputs = [1 + normal((rows, (heads + 2 * kv_heads) * width)), normal(width), normal(width)]
        yield head_norm_case(f"head_norm N {rows} heads {heads}/{kv_heads} of {width}", inputs, heads, kv_heads)


def head_norm_case(name, inputs, heads, kv_heads):
    def outputs(qkv, q_weight, k_weight):
        out, rstd = overwritten(qkv.shape), overwritten((len(qkv), heads + kv_heads))
        ops.head_norm_forward(
            out,
            rstd,
            qkv,
            q_weight,
            k_weight,
            heads,
            kv_heads,
            1e-5,
        )
        return out, rstd

    def backward(dout, qkv, *weights):
        dqkv, (_, rstd) = qkv.copy(), outputs(qkv, *weights)
        dweights = accumulated(
            lambda dq, dk: ops.head_norm_backward(
                dqkv,
                dq,
                dk,
                dout,
                *weights,
                rstd,
                heads,
                kv_heads,
            ),
            *(weight.shape for weight in weights),
        )
        return [dqkv, *dweights]

    return Case(name, inputs, lambda *inputs: outputs(*inputs)[0], backward)


def rotary_cases(normal, integers):
    """Rotary positions of all columns of a head, and of the first ones."""
    for name, width in (("rotary", 6), ("rotary in 6 of 8 columns", 8)):
        cos, sin = np.empty((5, 3)), np.empty((5, 3))
        ops.rotary_table(cos, sin, 100.0, start=2)
        yield rotary_case(name, normal((10, 3 * width + 1)), cos, sin, width)


def rotary_case(name, x, cos, sin, width):
    """The rotation of the first two heads of a row."""

    def rotate(x):
        out = x.copy()
        ops.rotary_forward(out, cos, sin, 2, width)
        return out

    def rotate_backward(dout, x):
        ops.rotary_backward(dout, cos, sin, 2, width)
        return [dout]

    return Case(name, [x], rotate, rotate_backward)


def attention_cases(normal, integers):
    """Causal attention, also with grouped queries, dropout, windows and a given scale."""
    for batch, steps, heads, kv_heads, width, rate, window, scale in (
        (2, 7, 4, 2, 3, 0.0, 0, None),
        (1, 1, 1, 1, 5, 0.0, 0, None),
        (2, 70, 2, 1, 4, 0.0, 0, None),
        (1, 130, 1, 1, 8, 0.0, 0, None),
        (2, 9, 2, 2, 3, 0.3, 0, None),
        (2, 9, 4, 2, 3, 0.3, 4, 1.0),
        (1, 7, 1, 1, 3, 0.0, 1, None),
        (1, 200, 2, 1, 4, 0.0, 70, 0.7),
    ):
        name = f"attention T {steps} heads {heads}/{kv_heads}{' dropout' * (rate > 0)}"
        name += f"{f' window {window}' * (window > 0)}{' scaled' * (scale is not None)}"
        qkv, dropout = normal((batch * steps, (heads + 2 * kv_heads) * width)), ops.Dropout(rate, 5) if rate else None
        yield attention_case(name, qkv, batch, heads, kv_heads, (steps, dropout, window, scale))


def attention_case(name, qkv, batch, heads, kv_heads, settings):
    """settings: steps, dropout, window and scale, as attention takes them."""
    width, steps = qkv.shape[1] // (heads + 2 * kv_heads), settings[0]

    def scratch(qkv):
        return overwritten(kernels_of(qkv).attention_scratch(steps, width, batch * heads))

    def outputs(qkv):
        out, lse = overwritten((batch * steps, heads * width)), overwritten((batch * heads, steps))
        ops.attention_forward(out, lse, scratch(qkv), qkv, heads, kv_heads, *settings)
        return out, lse

    def backward(dout, qkv):
        dqkv = qkv.copy()
        ops.attention_backward(dqkv, scratch(qkv), dout, *outputs(qkv), heads, kv_heads, *settings)
        return [dqkv]

    return Case(name, [qkv], lambda qkv: outputs(qkv)[0], backward)


def convolution_cases(normal, integers):
    """The causal depthwise convolution. x has columns after the channels, which it must not touch."""
    for batch, steps, channels, width in ((2, 7, 5, 4), (1, 1, 1, 4), (3, 2, 3, 4), (1, 9, 70, 3), (2, 4, 3, 1)):
        past = normal((batch, width - 1, channels))
        inputs = [normal((batch * steps, channels + 2)), normal((width, channels)), normal(channels)]
        yield convolution_case(f"convolution T {steps} channels {channels} of {width}", past, inputs)


def convolution_case(name, past, inputs):
    def forward(x, weight, bias):
        out = overwritten((len(x), weight.shape[1]))
        ops.convolution_forward(out, x, past, weight, bias)
        return out

    def backward(dout, x, weight, bias):
        dx = x.copy()
        dweight, dbias = accumulated(
            lambda dw, db: ops.convolution_backward(dx, dw, db, overwritten(dout.shape), dout, past, weight, bias),
            weight.shape,
            bias.shape,
        )
        dx[:, weight.shape[1] :] = 0
        return [dx, dweight, dbias]

    return Case(name, inputs, forward, backward)


def scan_cases(normal, integers):
    """The selective scan: one step, one state, an incomplete chunk, more channels than a worker takes at a time."""
    for batch, steps, channels, states, rank in (
        (2, 7, 5, 3, 2),
        (1, 1, 1, 1, 1),
        (2, 33, 20, 1, 1),
        (1, 70, 7, 5, 3),
        (1, 5, 150, 4, 1),
    ):
        n, initial = batch * steps, normal((batch, states, channels))
        inputs = [
            normal((n, channels)),
            normal((n, channels)),
            normal((n, rank + 2 * states)),
            normal((n, 2 * channels)),
            0.5 * normal((states, channels)),
            normal(channels),
        ]
        yield scan_case(f"selective_scan T {steps} channels {channels} of {states}", steps, initial, inputs)


def scan_case(name, steps, initial, inputs):
    """The scan from the states `initial` (B, S, E). inputs: x, delta, ssm_parameters, projected, A_log, D."""
    batch, n_states, channels = initial.shape

    def outputs(x, delta, ssm_parameters, projected, A_log, D):
        """out, and the states and scratch that backward takes."""
        kernels = kernels_of(x)
        states = overwritten((batch, kernels.selective_scan_chunks(steps) + 1, n_states, channels))
        scratch = overwritten(kernels.selective_scan_scratch(channels, n_states, batch))
        out, states[:, 0] = overwritten(x.shape), initial
        ops.selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D)
        return out, states, scratch

    def backward(dout, x, delta, ssm_parameters, projected, A_log, D):
        _, states, scratch = outputs(x, delta, ssm_parameters, projected, A_log, D)
        scratch.fill(np.nan)
        dx, ddelta, dprojected = overwritten(x.shape), delta.copy(), projected.copy()
        dssm_parameters = np.zeros_like(ssm_parameters)
        partials = overwritten(kernels_of(x).selective_scan_partials(batch, steps, channels, n_states))
        dA_log, dD = accumulated(
            lambda dA_log, dD: ops.selective_scan_backward(
                dx,
                ddelta,
                dssm_parameters,
                dprojected,
                dA_log,
                dD,
                partials,
                scratch,
                dout,
                states,
                x,
                ssm_parameters,
                A_log,
                D,
            ),
            A_log.shape,
            D.shape,
        )
        dprojected[:, :channels] = 0  # the columns that are not the gate
        return [dx, ddelta, dssm_parameters, dprojected, dA_log, dD]

    return Case(name, inputs, lambda *inputs: outputs(*inputs)[0], backward)


def recurrence_cases(normal, integers):
    """The dense linear recurrence, its first state among the inputs.

    One step, and a window so long that a truncated gradient is visibly wrong.
    """

    def forward(states, weight):
        out = states.copy()
        ops.linear_recurrence_forward(out, scratch(states), weight)
        return out

    def backward(dout, states, weight):
        found = forward(states, weight)
        dweight = accumulated(
            lambda dw: ops.linear_recurrence_backward(dout, dw, scratch(states), found, weight), weight.shape
        )
        return [dout, *dweight]

    def scratch(states):
        return overwritten(kernels_of(states).linear_recurrence_scratch(*states.shape[1:]))

    for steps, batch, width in ((1, 1, 1), (32, 2, 6), (5, 9, 35)):
        inputs = [normal((steps + 1, batch, width)), 0.9 * width**-0.5 * normal((width, width))]
        yield Case(f"linear_recurrence T {steps} width {width}", inputs, forward, backward)


def loss_cases(normal, integers):
    """Softmax cross-entropy, alone and fused with the head, also with masked targets."""
    targets = integers(0, 11, 7)
    for name, some in (("", targets), (" masked", np.where(np.arange(7) % 3 == 1, targets, -1))):
        yield cross_entropy_case(f"softmax_cross_entropy{name}", some, 3 * normal((7, 11)))
        yield head_case(f"head_cross_entropy{name}", some, normal((7, 5)), normal((11, 5)))


def cross_entropy_case(name, targets, logits):
    def forward(logits):
        losses = overwritten(len(logits))
        ops.softmax_cross_entropy_forward(losses, logits.copy(), targets)
        return losses

    def backward(dout, logits):
        dlogits = logits.copy()
        ops.softmax_cross_entropy_backward(dlogits, overwritten(len(logits)), dlogits, targets, dout[0])
        return [dlogits]

    return Case(name, [logits], forward, backward, scaled=True)


def head_case(name, targets, x, weight):
    """The head in chunks of three rows."""

    def chunk(weight):
        return overwritten((3, len(weight)))  # (C, V)

    def forward(x, weight):
        losses = overwritten(len(x))
        ops.head_cross_entropy_forward(losses, chunk(weight), x, weight, targets)
        return losses

    def backward(dout, x, weight):
        dx, losses, logits = overwritten(x.shape), overwritten(len(x)), chunk(weight)
        dweight = accumulated(
            lambda dw: ops.head_cross_entropy_backward(dx, dw, losses, logits, logits, x, weight, targets, dout[0]),
            weight.shape,
        )
        return [dx, *dweight]

    return Case(name, [x, weight], forward, backward, scaled=True)

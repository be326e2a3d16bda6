"""The dense linear recurrence as a mixer: H_t = x_t B + H_(t-1) A,   y_t = silu(H_t) C + x_t D.

Sizes: B batch, T steps, N = B T, S state width. The model's rows are sequences of T tokens, the recurrence's are steps
of B tokens: x is transposed to time-major (T, B, .) on the way in and y back to batch-major on the way out. A chunk of
time steps goes through at a time: what lies between the matmuls stays in the cache, and except for the states one
chunk's scratch is all that exists.
"""

from slm_np import ops
from slm_np.nn import linear
from slm_np.nn.arena import Request
from slm_np.nn.dropout import NO_DROPOUT
from slm_np.nn.parameters import Tensor
from slm_np.nn.residual import cast, project_backward

ROWS = 2048  # of a chunk on a CPU: matmuls this tall lose nothing


def parameters(config, columns):
    """A starts with a spectral radius of about 0.3: a short memory that training can lengthen.

    Unless --init is uniform, C and D, which write to the residual branch, start smaller by 1 / sqrt(2 L), like the
    projections of other mixers.
    """
    width, size = config.n_embd, config.recurrence_size
    bound = 1.5 / (2 * config.n_layer) ** 0.5 if config.init != "uniform" else 1.5
    yield Tensor("recurrence.input.weight", (width, size), "uniform", 1.5 * width**-0.5, matmul=True)  # B
    yield Tensor("recurrence.state.weight", (size, size), "uniform", 0.5 * size**-0.5)  # A
    yield Tensor("recurrence.output.weight", (size, columns), "uniform", bound * size**-0.5, matmul=True)  # C
    yield Tensor("recurrence.skip.weight", (width, columns), "uniform", bound * width**-0.5, matmul=True)  # D


def chunks(steps, length):
    """[(start, stop)] of the time steps of each chunk of `length`."""
    return [(start, min(steps, start + length)) for start in range(0, steps, length)]


def plan(config, batch, steps, device):
    size, length = config.recurrence_size, max(1, device.chunk_rows(batch * steps, ROWS) // batch)
    rows = length * batch
    widest = max(config.n_embd, config.vocab_size if config.head == "none" else 0)
    scratch = device.kernels.linear_recurrence_scratch(batch, size)
    yield Request("recurrence.states", (steps + 1, batch, size), "saved")
    yield Request("recurrence.dstates", (length + 1, batch, size), "scratch")
    yield Request("recurrence.active", (rows, size), "scratch", "compute")
    yield Request("recurrence.du_cast", (rows, size), "scratch", "cast")
    yield Request("recurrence.x", (rows, config.n_embd), "scratch", "compute")
    yield Request("recurrence.dx_input", (rows, config.n_embd), "scratch")
    yield Request("recurrence.dy", (rows * widest,), "scratch", "compute")
    yield Request("recurrence.dx", (rows, config.n_embd), "scratch")
    yield Request("recurrence.y", (rows * widest,), "scratch")
    yield Request("recurrence.scratch", (scratch,), "scratch")


def state_elements(config, batch):
    """Elements of a State."""
    return batch * config.recurrence_size


class State:
    """The recurrent state H (B, S) after the last token. A sequence starts from zeros."""

    def __init__(self, config, batch, memory):
        self.last = memory.reshape(batch, config.recurrence_size)

    def clear(self):
        """Start new sequences."""
        self.last.fill(0)


def forward(config, w, a, out, x, residual, dropout, state=None):
    """out = residual + dropout(y). With `state`, the sequences continue from its H, and it moves on."""
    states, target = a["recurrence.states"], out if dropout.branch is None else a["branch"]
    batch, columns, width = states.shape[1], out.shape[1], config.n_embd
    states[0] = 0 if state is None else state.last
    for start, stop in chunks(len(states) - 1, len(a["recurrence.dstates"]) - 1):
        rows = (stop - start) * batch
        x_t, active = a["recurrence.x"][:rows], a["recurrence.active"][:rows]  # (n, D), (n, S)
        y = a["recurrence.y"][: rows * columns].reshape(rows, columns)
        u = states[start + 1 : stop + 1].reshape(rows, -1)  # (n, S): x B, which becomes H
        ops.time_major(x_t.reshape(-1, batch, width), x, start)
        linear.forward(w, a, "recurrence.input", u, x_t, None, start * batch)
        ops.linear_recurrence_forward(states[start : stop + 1], a["recurrence.scratch"], w["recurrence.state.weight"])
        ops.silu_forward(active, u)
        linear.forward(w, a, "recurrence.skip", y, x_t, None, start * batch)
        linear.forward(w, a, "recurrence.output", y, active, y, start * batch)
        ops.batch_major(target, y.reshape(-1, batch, columns), residual if dropout.branch is None else None, start)
    if state is not None:
        state.last[:] = states[-1]
    if dropout.branch is not None:
        ops.dropout_forward(out, target, residual, dropout.branch)


def step(config, w, a, out, x, residual, state, position):
    """`forward` of one new token per sequence: the recurrence does not need to know its position. x (B, D)"""
    forward(config, w, a, out, x, residual, NO_DROPOUT, state)


def backward(config, w, g, a, dx, dout, x, dropout):
    """dx = the gradient of the mixer's input, from the last chunk to the first.

    The first row of a chunk's dstates is the gradient that reaches the state before the chunk. The activation was not
    saved: its backward recomputes it from the states.
    """
    states, dlast = a["recurrence.states"], a["recurrence.dstates"][0]  # (T + 1, B, S), (B, S)
    dbranch = dout if dropout.branch is None else project_backward(a, dout, dropout.branch)
    batch, columns, width = states.shape[1], dout.shape[1], config.n_embd
    dlast.fill(0)
    for start, stop in reversed(chunks(len(states) - 1, len(a["recurrence.dstates"]) - 1)):
        rows = (stop - start) * batch
        x_t, active, dx_t = a["recurrence.x"][:rows], a["recurrence.active"][:rows], a["recurrence.dx"][:rows]
        dy = a["recurrence.dy"][: rows * columns].reshape(rows, columns)
        dstates = a["recurrence.dstates"][: stop - start + 1]
        du = dstates[1:].reshape(rows, -1)
        ops.time_major(x_t.reshape(-1, batch, width), x, start)
        ops.time_major(dy.reshape(-1, batch, columns), dbranch, start)
        dstates[1:] = states[start + 1 : stop + 1]
        linear.backward_input(w, g, a, "recurrence.output", active, dy, start * batch)
        ops.silu_backward(du, active)
        linear.backward_weight(w, g, a, "recurrence.output", dy, active, start * batch)
        ops.accumulate(dstates[-1], dlast)
        dlast.fill(0)
        ops.linear_recurrence_backward(
            dstates,
            g.get("recurrence.state.weight"),
            a["recurrence.scratch"],
            states[start : stop + 1],
            w["recurrence.state.weight"],
        )
        linear.backward(w, g, a, "recurrence.skip", dx_t, dy, x_t, start * batch)
        du, dx_input = cast(a, "recurrence.du_cast", du), a["recurrence.dx_input"][:rows]
        linear.backward(w, g, a, "recurrence.input", dx_input, du, x_t, start * batch)
        ops.accumulate(dx_t, dx_input)
        ops.batch_major(dx, dx_t.reshape(-1, batch, width), None, start)

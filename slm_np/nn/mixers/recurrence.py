"""The dense linear recurrence as a mixer: H_t = x_t B + H_(t-1) A,   y_t = silu(H_t) C + x_t D. Sizes: B batch, T steps, N = B T, S state width.

The stream's rows are texts of T tokens, the recurrence's are steps of B tokens: x is turned to time-major (T, B, .) on the way in and y back
to the stream's order on the way out, and everything between lies that way round. It goes through time a chunk of steps at a time: what lies
between the products stays in the cache, and but for the states one chunk's scratch is all that exists.
"""

from slm_np import ops
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor
from slm_np.nn.residual import join_backward, operand
from slm_np.ops.device import at_once

NAME = "recurrence"
ROWS = 2048  # of a chunk: products so tall lose nothing
TENSORS = ("input.weight", "state.weight", "output.weight", "skip.weight")  # B, A, C, D


def parameters(config, columns):
    """A starts with a spectral radius of about 0.3: a short memory that lengthens as it learns.

    In a trunk of normal initialisation C and D, which write to the stream, start smaller by 1 / sqrt(2 L), as other mixers' projections do.
    """
    width, size = config.n_embd, config.recurrence_size
    outward = 1.5 / (2 * config.n_layer) ** 0.5 if config.init == "normal" else 1.5
    yield Tensor("recurrence.input.weight", (width, size), "uniform", 1.5 * width**-0.5, multiplies=True)
    yield Tensor("recurrence.state.weight", (size, size), "uniform", 0.5 * size**-0.5)
    yield Tensor("recurrence.output.weight", (size, columns), "uniform", outward * size**-0.5, multiplies=True)
    yield Tensor("recurrence.skip.weight", (width, columns), "uniform", outward * width**-0.5, multiplies=True)


def chunks(steps, length):
    """[(first, last)] steps of each chunk of `length`."""
    return [(first, min(steps, first + length)) for first in range(0, steps, length)]


def plan(config, batch, steps, arrays):
    size, length = config.recurrence_size, max(1, at_once(arrays, batch * steps, ROWS) // batch)
    yield Request("recurrence.states", (steps + 1, batch, size), "saved")
    yield Request("recurrence.dstates", (length + 1, batch, size), "scratch")
    yield Request("recurrence.active", (length * batch, size), "scratch", "operand")
    yield Request("recurrence.dentered", (length * batch, size), "scratch", "rounded")
    yield Request("recurrence.x", (length * batch, config.n_embd), "scratch", "operand")
    yield Request("recurrence.more", (length * batch, config.n_embd), "scratch")
    yield Request(
        "recurrence.dy",
        (length * batch * max(config.n_embd, config.vocab_size if config.head == "none" else 0),),
        "scratch",
        "operand",
    )
    yield Request("recurrence.dx", (length * batch, config.n_embd), "scratch")
    yield Request(
        "recurrence.y",
        (length * batch * max(config.n_embd, config.vocab_size if config.head == "none" else 0),),
        "scratch",
    )
    yield Request("recurrence.walk", (kernels_of(arrays.empty(0)).linear_recurrence_scratch(batch, size),), "scratch")


def state_elements(config, batch):
    """How many numbers a State holds."""
    return batch * config.recurrence_size


class State:
    """H (B, S) after the last token, in `memory`; a text starts with zeros."""

    def __init__(self, config, batch, memory):
        self.last = memory.reshape(batch, config.recurrence_size)

    def clear(self):
        """Begin new texts."""
        self.last.fill(0)


def forward(config, w, a, out, x, residual, key, join_key, state=None):
    """out = residual + y. With `state`, the sequence goes on from H there, and leaves there what H becomes."""
    states, target = a["recurrence.states"], out if join_key is None else a["branch"]
    batch, columns = states.shape[1], out.shape[1]
    states[0] = 0 if state is None else state.last
    for first, last in chunks(len(states) - 1, len(a["recurrence.dstates"]) - 1):
        rows = (last - first) * batch
        turned, y, active = (
            a["recurrence.x"][:rows],
            a["recurrence.y"][: rows * columns].reshape(rows, columns),
            a["recurrence.active"][:rows],
        )
        entered = states[first + 1 : last + 1].reshape(rows, -1)
        ops.time_major(turned.reshape(-1, batch, config.n_embd), x, first)
        ops.linear_forward(entered, turned, w["recurrence.input.weight"], None, None)
        ops.linear_recurrence_forward(states[first : last + 1], a["recurrence.walk"], w["recurrence.state.weight"])
        ops.silu_forward(active, entered)
        ops.linear_forward(y, turned, w["recurrence.skip.weight"], None, None)
        ops.linear_forward(y, active, w["recurrence.output.weight"], None, y)
        ops.batch_major(target, y.reshape(-1, batch, columns), residual if join_key is None else None, first)
    if state is not None:
        state.last[:] = states[-1]
    if join_key is not None:
        ops.dropout_forward(out, target, residual, (config.dropout, join_key))


def backward(config, w, g, a, dx, dout, x, key, join_key):
    """dx = the gradient of the mixer's input, from the last chunk to the first: the first row of a chunk's dstates is what reaches the state
    before it. The activation was not kept: its derivative's kernel makes it again from the states."""
    states, flow, dbranch = (
        a["recurrence.states"],
        a["recurrence.dstates"][0],
        dout if join_key is None else join_backward(config, a, dout, join_key),
    )
    batch, columns = states.shape[1], dout.shape[1]
    flow.fill(0)
    for first, last in reversed(chunks(len(states) - 1, len(a["recurrence.dstates"]) - 1)):
        rows = (last - first) * batch
        turned, dy, active = (
            a["recurrence.x"][:rows],
            a["recurrence.dy"][: rows * columns].reshape(rows, columns),
            a["recurrence.active"][:rows],
        )
        dstates, dturned = a["recurrence.dstates"][: last - first + 1], a["recurrence.dx"][:rows]
        dentered = dstates[1:].reshape(rows, -1)
        ops.time_major(turned.reshape(-1, batch, config.n_embd), x, first)
        ops.time_major(dy.reshape(-1, batch, columns), dbranch, first)
        dstates[1:] = states[first + 1 : last + 1]
        ops.linear_backward_input(active, dy, w["recurrence.output.weight"])
        ops.silu_backward(dentered, active)
        ops.linear_backward_weight(g["recurrence.output.weight"], None, dy, active)
        ops.accumulate(dstates[-1], flow)
        flow.fill(0)
        ops.linear_recurrence_backward(
            dstates,
            g["recurrence.state.weight"],
            a["recurrence.walk"],
            states[first : last + 1],
            w["recurrence.state.weight"],
        )
        ops.linear_backward(dturned, g["recurrence.skip.weight"], None, dy, turned, w["recurrence.skip.weight"])
        dentered, more = operand(a, "recurrence.dentered", dentered), a["recurrence.more"][:rows]
        ops.linear_backward_weight(g["recurrence.input.weight"], None, dentered, turned)
        ops.linear_backward_input(more, dentered, w["recurrence.input.weight"])
        ops.accumulate(dturned, more)
        ops.batch_major(dx, dturned.reshape(-1, batch, config.n_embd), None, first)

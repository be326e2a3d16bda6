"""The dense linear recurrence as a mixer: H_t = x_t B + H_(t-1) A,   y_t = swish(H_t) C + x_t D. Sizes: B batch, T steps, N = B T, S state width.

The stream's rows are texts of T tokens, the recurrence's are steps of B tokens: x is turned to time-major (T, B, .) on the way in and y back
to the stream's order on the way out, and everything between lies that way round. The last mixer of a model without a head has V columns.
"""
import numpy as np

from slm_np import ops
from slm_np.branch import join_backward
from slm_np.params import Tensor
from slm_np.workspace import Request

NAME = "recurrence"
TENSORS = ("input.weight", "state.weight", "output.weight", "skip.weight")  # B, A, C, D


def parameters(config, columns):
    """A starts with a spectral radius of about 0.3: a short memory that lengthens as it learns.

    In a trunk of normal initialisation C and D, which write to the stream, start smaller by 1 / sqrt(2 L), as other mixers' projections do.
    """
    width, size = config.n_embd, config.state_size
    outward = 1.5 / (2 * config.n_layer) ** 0.5 if config.init == "normal" else 1.5
    yield Tensor("recurrence.input.weight", (width, size), "uniform", 1.5 * width ** -0.5)
    yield Tensor("recurrence.state.weight", (size, size), "uniform", 0.5 * size ** -0.5)
    yield Tensor("recurrence.output.weight", (size, columns), "uniform", outward * size ** -0.5)
    yield Tensor("recurrence.skip.weight", (width, columns), "uniform", outward * width ** -0.5)


def plan(config, batch, steps):
    n, size, widest = batch * steps, config.state_size, max(config.n_embd, config.vocab_size if config.head == "none" else 0)
    yield Request("recurrence.states", (steps + 1, batch, size), "saved")
    yield Request("recurrence.dstates", (steps + 1, batch, size), "scratch")
    yield Request("recurrence.active", (n, size), "scratch")
    yield Request("recurrence.x", (n, config.n_embd), "scratch")
    yield Request("recurrence.y", (n * widest,), "scratch")
    yield Request("recurrence.dx_skip", (n, config.n_embd), "scratch")
    yield Request("recurrence.walk", (ops.linear_recurrence_scratch(batch, size, np.empty(0)),), "scratch")


def state_size(config, batch):
    """How many numbers a State holds."""
    return batch * config.state_size


class State:
    """H (B, S) after the last token, in `memory`; a text starts with zeros."""

    def __init__(self, config, batch, memory):
        self.last = memory.reshape(batch, config.state_size)

    def clear(self):
        """Begin new texts."""
        self.last.fill(0)


def rows_of(flat, n, columns):
    """The first n rows of `columns` numbers of a flat array: the last mixer of a model may be wider or narrower than the others."""
    return flat[:n * columns].reshape(n, columns)


def forward(config, w, a, out, x, residual, key, join_key, state=None):
    """out = residual + y. With `state`, the sequence goes on from H there, and leaves there what H becomes."""
    states, active, n = a["recurrence.states"], a["recurrence.active"], len(x)
    steps, batch = len(states) - 1, states.shape[1]
    turned, y = a["recurrence.x"], rows_of(a["recurrence.y"], n, out.shape[1])
    ops.time_major(turned.reshape(steps, batch, -1), x)
    states[0] = 0 if state is None else state.last
    entered = states[1:].reshape(n, -1)
    ops.linear_forward(entered, turned, w["recurrence.input.weight"], None, None)
    ops.linear_recurrence_forward(states, a["recurrence.walk"], w["recurrence.state.weight"])
    if state is not None:
        state.last[:] = states[-1]
    ops.swish_forward(active, entered)
    ops.linear_forward(y, turned, w["recurrence.skip.weight"], None, None)
    ops.linear_forward(y, active, w["recurrence.output.weight"], None, y)
    if join_key is None:
        ops.batch_major(out, y.reshape(steps, batch, -1), residual)
    else:
        branch = a["branch"][:n]
        ops.batch_major(branch, y.reshape(steps, batch, -1), None)
        ops.dropout_forward(out, branch, residual, config.dropout, join_key)


def backward(config, w, g, a, dx, dout, x, key, join_key):
    """dx = the gradient of the mixer's input. The activation was not kept: its derivative's kernel makes it again from the states."""
    states, dstates, active, n = a["recurrence.states"], a["recurrence.dstates"], a["recurrence.active"], len(x)
    steps, batch = len(states) - 1, states.shape[1]
    turned, dx_skip, dy = a["recurrence.x"], a["recurrence.dx_skip"], rows_of(a["recurrence.y"], n, dout.shape[1])
    ops.time_major(turned.reshape(steps, batch, -1), x)
    ops.time_major(dy.reshape(steps, batch, -1), join_backward(config, a, dout, join_key))
    dstates[0], dstates[1:] = 0, states[1:]
    dentered = dstates[1:].reshape(n, -1)
    ops.linear_backward_input(active, dy, w["recurrence.output.weight"])
    ops.swish_backward(dentered, active)
    ops.linear_backward_weight(g["recurrence.output.weight"], None, dy, active)
    ops.linear_recurrence_backward(dstates, g["recurrence.state.weight"], a["recurrence.walk"], states, w["recurrence.state.weight"])
    ops.linear_backward(dx_skip, g["recurrence.skip.weight"], None, dy, turned, w["recurrence.skip.weight"])
    ops.linear_backward_weight(g["recurrence.input.weight"], None, dentered, turned)
    ops.linear_backward_input(turned, dentered, w["recurrence.input.weight"])
    ops.accumulate(turned, dx_skip)
    ops.batch_major(dx, turned.reshape(steps, batch, -1), None)

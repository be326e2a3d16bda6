"""Mamba as a mixer (Gu and Dao 2023): a projection into channels and their gates, a short convolution, a selective scan, a projection back.

Equations and initial weights are those of Hugging Face's MambaForCausalLM. Sizes: B batch, T steps, N = B T, E channels, S states of each, R rank
of the time steps, K tokens that the convolution sees.
"""

import numpy as np

from slm_np import ops
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor, weight
from slm_np.nn.residual import join_backward, join_forward, operand
from slm_np.ops.device import columns

NAME = "mamba"
TENSORS = (
    "in_proj.weight",
    "in_proj.bias",
    "conv1d.weight",
    "conv1d.bias",
    "x_proj.weight",
    "dt_proj.weight",
    "dt_proj.bias",
    "A_log",
    "D",
    "out_proj.weight",
    "out_proj.bias",
)
SHORTEST, LONGEST, LEAST = 1e-3, 0.1, 1e-4  # time steps at the start


def rates(draw, shape):
    """A_log = log 1, log 2, ..., log S in every channel: S time scales"""
    return np.log(np.arange(1, shape[0] + 1))[:, None] + np.zeros(shape)


def time_steps(draw, shape):
    """Biases whose softplus is spread evenly, by its logarithm, from the shortest to the longest time step."""
    step = np.maximum(LEAST, np.exp(draw.uniform(np.log(SHORTEST), np.log(LONGEST), shape)))
    return step + np.log(-np.expm1(-step))


def parameters(config, columns):
    width, channels, states, rank, bias = (
        config.n_embd,
        config.n_inner,
        config.ssm_state_size,
        config.time_step_rank,
        config.bias,
    )
    yield weight(config, "mamba.in_proj.weight", (width, 2 * channels), width)
    yield Tensor("mamba.conv1d.weight", (config.conv_kernel, channels), "uniform", config.conv_kernel**-0.5)
    yield Tensor("mamba.conv1d.bias", (channels,), "zeros")
    yield weight(config, "mamba.x_proj.weight", (channels, rank + 2 * states), channels)._replace(
        multiplies=False
    )  # small: not worth rounding
    yield Tensor("mamba.dt_proj.weight", (rank, channels), "uniform", rank**-0.5)
    yield Tensor("mamba.dt_proj.bias", (channels,), time_steps)
    yield Tensor("mamba.A_log", (states, channels), rates, decay=False)
    yield Tensor("mamba.D", (channels,), "ones")
    yield Tensor("mamba.out_proj.weight", (channels, columns), "uniform", channels**-0.5, multiplies=True)
    if bias:
        yield Tensor("mamba.in_proj.bias", (2 * channels,), "zeros")
        yield Tensor("mamba.out_proj.bias", (columns,), "zeros")


def plan(config, batch, steps, arrays):
    n, channels, states, rank = batch * steps, config.n_inner, config.ssm_state_size, config.time_step_rank
    device = arrays.empty(0)
    yield Request("mamba.projected", (n, 2 * channels), "saved")
    yield Request("mamba.past", (batch, config.conv_kernel - 1, channels), "saved")
    yield Request("mamba.x", (n, channels), "saved")
    yield Request("mamba.ssm_parameters", (n, rank + 2 * states), "saved")
    yield Request("mamba.delta", (n, channels), "saved")
    yield Request(
        "mamba.states", (batch, kernels_of(device).selective_scan_chunks(steps) + 1, states, channels), "saved"
    )
    yield Request("mamba.out", (n, channels), "saved")
    yield Request("mamba.read", (n, channels), "scratch", "rounded")
    yield Request("mamba.dprojected", (n, 2 * channels), "scratch", "rounded")
    yield Request("mamba.rank", (n, rank), "scratch")
    yield Request("mamba.scan", kernels_of(device).selective_scan_scratch(channels, states, batch), "scratch")
    yield Request("mamba.dout", (n, channels), "scratch")
    yield Request("mamba.dx", (n, channels), "scratch")
    yield Request("mamba.dssm_parameters", (n, rank + 2 * states), "scratch")
    yield Request("mamba.drank", (n, rank), "scratch")
    yield Request(
        "mamba.parts", (kernels_of(device).selective_scan_partials(batch, steps, channels, states),), "scratch"
    )


def state_elements(config, batch):
    """How many numbers a State holds."""
    return batch * (config.ssm_state_size + config.conv_kernel - 1) * config.n_inner


class State:
    """What a text carries on, in `memory`: the scan's states (B, S, E) and the last K - 1 inputs of the convolution (B, K - 1, E)."""

    def __init__(self, config, batch, memory):
        split = batch * config.ssm_state_size * config.n_inner
        self.memory, self.scan = memory, memory[:split].reshape(batch, config.ssm_state_size, config.n_inner)
        self.past = memory[split:].reshape(batch, config.conv_kernel - 1, config.n_inner)

    def clear(self):
        """Begin new texts."""
        self.memory.fill(0)

    def take(self, projected, states, past):
        """Keep what follows needs: the states after the window, and its last inputs. past: a copy of those before it, which a short one leaves some of."""
        batch, kept, channels = self.past.shape
        inputs = projected.reshape(batch, -1, 2 * channels)[:, -kept:, :channels] if kept else self.past
        steps = inputs.shape[1]
        if (
            steps < kept
        ):  # a window shorter than the convolution; from the copy, as CuPy would take memory to move what lies in one array
            self.past[:, : kept - steps] = past[:, steps:]
        self.past[:, kept - steps :] = inputs
        self.scan[...] = states[:, -1]


def forward(config, w, a, out, x, residual, key, join_key, state=None):
    """out = residual + mamba(x) W + b. With `state`, the texts go on from there, and leave there what they carry on."""
    projected, past, inner, ssm_parameters, delta, states = (
        a[f"mamba.{name}"] for name in ("projected", "past", "x", "ssm_parameters", "delta", "states")
    )
    past[...] = 0 if state is None else state.past
    states[:, 0] = 0 if state is None else state.scan
    ops.linear_forward(projected, x, w["mamba.in_proj.weight"], w.get("mamba.in_proj.bias"), None)
    ops.convolution_forward(inner, projected, past, w["mamba.conv1d.weight"], w["mamba.conv1d.bias"])
    ops.linear_forward(ssm_parameters, inner, w["mamba.x_proj.weight"], None, None)
    ops.linear_forward(
        delta, columns(ssm_parameters, a["mamba.rank"]), w["mamba.dt_proj.weight"], w["mamba.dt_proj.bias"], None
    )
    ops.selective_scan_forward(
        a["mamba.out"], states, a["mamba.scan"], inner, delta, ssm_parameters, projected, w["mamba.A_log"], w["mamba.D"]
    )
    if state is not None:
        state.take(projected, states, past)
    join_forward(config, w, a, "mamba.out_proj", out, operand(a, "mamba.read", a["mamba.out"]), residual, join_key)


def backward(config, w, g, a, dx, dout, x, key, join_key):
    """dx = the gradient of the mixer's input. What forward saved of the projection and of the time steps becomes its gradient."""
    projected, inner, delta, dinner = a["mamba.projected"], a["mamba.x"], a["mamba.delta"], a["mamba.dx"]
    ssm_parameters, dssm_parameters, dscan = a["mamba.ssm_parameters"], a["mamba.dssm_parameters"], a["mamba.dout"]
    dbranch = join_backward(config, a, dout, join_key)
    ops.linear_backward(
        dscan,
        g["mamba.out_proj.weight"],
        g.get("mamba.out_proj.bias"),
        dbranch,
        operand(a, "mamba.read", a["mamba.out"]),
        w["mamba.out_proj.weight"],
    )
    ops.selective_scan_backward(
        dinner,
        delta,
        dssm_parameters,
        projected,
        g["mamba.A_log"],
        g["mamba.D"],
        a["mamba.parts"],
        a["mamba.scan"],
        dscan,
        a["mamba.states"],
        inner,
        ssm_parameters,
        w["mamba.A_log"],
        w["mamba.D"],
    )
    rank, drank = columns(ssm_parameters, a["mamba.rank"]), columns(dssm_parameters, a["mamba.drank"], filled=False)
    ops.linear_backward(
        drank, g["mamba.dt_proj.weight"], g["mamba.dt_proj.bias"], delta, rank, w["mamba.dt_proj.weight"]
    )
    dssm_parameters[:, : drank.shape[1]] = drank
    ops.linear_backward(dscan, g["mamba.x_proj.weight"], None, dssm_parameters, inner, w["mamba.x_proj.weight"])
    ops.accumulate(dinner, dscan)
    ops.convolution_backward(
        projected,
        g["mamba.conv1d.weight"],
        g["mamba.conv1d.bias"],
        dscan,
        dinner,
        a["mamba.past"],
        w["mamba.conv1d.weight"],
        w["mamba.conv1d.bias"],
    )
    ops.linear_backward(
        dx,
        g["mamba.in_proj.weight"],
        g.get("mamba.in_proj.bias"),
        operand(a, "mamba.dprojected", projected),
        x,
        w["mamba.in_proj.weight"],
    )

"""Mamba as a mixer (Gu and Dao 2023): projection into channels and gates, convolution, selective scan, projection back.

Equations, names of tensors and initial weights are those of Hugging Face's MambaForCausalLM; matrices are (in, out).
Sizes: B batch, T steps, N = B T, E channels, S states per channel, R rank of the time step, K kernel width of the
convolution.
"""

import numpy as np

from slm_np import ops
from slm_np.nn import linear
from slm_np.nn.arena import Request
from slm_np.nn.dropout import NO_DROPOUT
from slm_np.nn.parameters import Tensor, matmul_weight
from slm_np.nn.residual import cast, project_backward, project_forward
from slm_np.ops.device import device_of

TIME_STEP_MIN, TIME_STEP_MAX, TIME_STEP_FLOOR = 1e-3, 0.1, 1e-4  # initial time steps


def initial_A_log(draw, shape):
    """A_log = log 1, log 2, ..., log S in every channel: S time scales"""
    return np.log(np.arange(1, shape[0] + 1))[:, None] + np.zeros(shape)


def initial_time_step_bias(draw, shape):
    """Biases b with softplus(b) log-uniform between the shortest and the longest time step."""
    step = np.exp(draw.uniform(np.log(TIME_STEP_MIN), np.log(TIME_STEP_MAX), shape))
    step = np.maximum(TIME_STEP_FLOOR, step)
    return step + np.log(-np.expm1(-step))


def parameters(config, columns):
    width, channels, states, rank = config.n_embd, config.n_inner, config.ssm_state_size, config.time_step_rank
    kernel = config.conv_kernel
    yield matmul_weight(config, "mamba.in_proj.weight", (width, 2 * channels), width)
    yield Tensor("mamba.conv1d.weight", (kernel, channels), "uniform", kernel**-0.5)
    yield Tensor("mamba.conv1d.bias", (channels,), "zeros")
    x_proj = matmul_weight(config, "mamba.x_proj.weight", (channels, rank + 2 * states), channels)
    yield x_proj._replace(matmul=False)  # small: a cast copy would not pay
    yield Tensor("mamba.dt_proj.weight", (rank, channels), "uniform", rank**-0.5)
    yield Tensor("mamba.dt_proj.bias", (channels,), initial_time_step_bias)
    yield Tensor("mamba.A_log", (states, channels), initial_A_log, decay=False)
    yield Tensor("mamba.D", (channels,), "ones")
    yield Tensor("mamba.out_proj.weight", (channels, columns), "uniform", channels**-0.5, matmul=True)
    if config.bias:
        yield Tensor("mamba.in_proj.bias", (2 * channels,), "zeros")
        yield Tensor("mamba.out_proj.bias", (columns,), "zeros")


def plan(config, batch, steps, device):
    n, channels, states, rank = batch * steps, config.n_inner, config.ssm_state_size, config.time_step_rank
    kernels = device.kernels
    chunks = kernels.selective_scan_chunks(steps)
    yield Request("mamba.projected", (n, 2 * channels), "saved")
    yield Request("mamba.past", (batch, config.conv_kernel - 1, channels), "saved")
    yield Request("mamba.x", (n, channels), "saved")
    yield Request("mamba.ssm_parameters", (n, rank + 2 * states), "saved")
    yield Request("mamba.delta", (n, channels), "saved")
    yield Request("mamba.states", (batch, chunks + 1, states, channels), "saved")
    yield Request("mamba.out", (n, channels), "saved")
    yield Request("mamba.out_cast", (n, channels), "scratch", "cast")
    yield Request("mamba.dprojected_cast", (n, 2 * channels), "scratch", "cast")
    yield Request("mamba.rank", (n, rank), "scratch")
    yield Request("mamba.scan", kernels.selective_scan_scratch(channels, states, batch), "scratch")
    yield Request("mamba.dout", (n, channels), "scratch")
    yield Request("mamba.dx", (n, channels), "scratch")
    yield Request("mamba.dssm_parameters", (n, rank + 2 * states), "scratch")
    yield Request("mamba.drank", (n, rank), "scratch")
    yield Request("mamba.partials", (kernels.selective_scan_partials(batch, steps, channels, states),), "scratch")


def state_elements(config, batch):
    """Elements of a State."""
    return batch * (config.ssm_state_size + config.conv_kernel - 1) * config.n_inner


class State:
    """The recurrent state: the scan's states (B, S, E) and the last K - 1 inputs of the convolution (B, K - 1, E)."""

    def __init__(self, config, batch, memory):
        split = batch * config.ssm_state_size * config.n_inner
        self.memory, self.scan = memory, memory[:split].reshape(batch, config.ssm_state_size, config.n_inner)
        self.past = memory[split:].reshape(batch, config.conv_kernel - 1, config.n_inner)

    def clear(self):
        """Start new sequences."""
        self.memory.fill(0)

    def update(self, projected, states, past):
        """Keep the states after the window and its last inputs.

        past: a copy of those before; a short window keeps part of it.
        """
        batch, kept, channels = self.past.shape
        inputs = projected.reshape(batch, -1, 2 * channels)[:, -kept:, :channels] if kept else self.past
        steps = inputs.shape[1]
        if steps < kept:  # from the copy: CuPy would allocate to move elements within one array
            self.past[:, : kept - steps] = past[:, steps:]
        self.past[:, kept - steps :] = inputs
        self.scan[...] = states[:, -1]


def forward(config, w, a, out, x, residual, dropout, state=None):
    """out = residual + dropout(mamba(x) W + b). With `state`, the sequences continue from it, and it moves on."""
    projected, past, inner, ssm_parameters, delta, states = (
        a[f"mamba.{name}"] for name in ("projected", "past", "x", "ssm_parameters", "delta", "states")
    )
    past[...] = 0 if state is None else state.past
    states[:, 0] = 0 if state is None else state.scan
    linear.forward(w, a, "mamba.in_proj", projected, x)
    ops.convolution_forward(inner, projected, past, w["mamba.conv1d.weight"], w["mamba.conv1d.bias"])
    linear.forward(w, a, "mamba.x_proj", ssm_parameters, inner)
    rank = device_of(ssm_parameters).split_columns(ssm_parameters, a["mamba.rank"])  # (N, R)
    linear.forward(w, a, "mamba.dt_proj", delta, rank)
    ops.selective_scan_forward(
        a["mamba.out"],
        states,
        a["mamba.scan"],
        inner,
        delta,
        ssm_parameters,
        projected,
        w["mamba.A_log"],
        w["mamba.D"],
    )
    if state is not None:
        state.update(projected, states, past)
    project_forward(w, a, "mamba.out_proj", out, cast(a, "mamba.out_cast", a["mamba.out"]), residual, dropout.branch)


def step(config, w, a, out, x, residual, state, position):
    """`forward` of one new token per sequence: the recurrence does not need to know its position. x (B, D)"""
    forward(config, w, a, out, x, residual, NO_DROPOUT, state)


def backward(config, w, g, a, dx, dout, x, dropout):
    """dx = the gradient of the mixer's input.

    The projection and the time steps that forward saved become their gradients.
    """
    projected, inner, delta, dinner = a["mamba.projected"], a["mamba.x"], a["mamba.delta"], a["mamba.dx"]
    ssm_parameters, dssm_parameters, dscan = a["mamba.ssm_parameters"], a["mamba.dssm_parameters"], a["mamba.dout"]
    dbranch, scan_out = project_backward(a, dout, dropout.branch), cast(a, "mamba.out_cast", a["mamba.out"])
    linear.backward(w, g, a, "mamba.out_proj", dscan, dbranch, scan_out)
    ops.selective_scan_backward(
        dinner,
        delta,
        dssm_parameters,
        projected,
        g["mamba.A_log"],
        g["mamba.D"],
        a["mamba.partials"],
        a["mamba.scan"],
        dscan,
        a["mamba.states"],
        inner,
        ssm_parameters,
        w["mamba.A_log"],
        w["mamba.D"],
    )
    rank = device_of(ssm_parameters).split_columns(ssm_parameters, a["mamba.rank"])
    drank = device_of(dssm_parameters).split_columns(dssm_parameters, a["mamba.drank"], filled=False)
    linear.backward(w, g, a, "mamba.dt_proj", drank, delta, rank)
    dssm_parameters[:, : drank.shape[1]] = drank
    linear.backward(w, g, a, "mamba.x_proj", dscan, dssm_parameters, inner)
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
    dprojected = cast(a, "mamba.dprojected_cast", projected)
    linear.backward(w, g, a, "mamba.in_proj", dx, dprojected, x)

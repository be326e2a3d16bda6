"""The selective scan, Mamba's recurrence (Gu and Dao 2023). Sizes: B batch, T steps, N = B T, E channels, S states of each, R other columns, K chunks.

Every channel walks through time alone, by a step, an input and an output weight that depend on the token; only the decay's rates are its own.
"""

from slm_np.ops.device import kernels_of


def selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D):
    """For each channel:  d = softplus(delta),   h_t = exp(-d e^A_log) h_(t-1) + d x B,   out = (<h_t, C> + D x) silu(gate)

    out, x, delta (N, E)   ssm_parameters (N, R + 2 S): its last columns are B, then C   projected (N, 2 E): its last columns are the gate
    A_log (S, E)   D (E,)   states (B, K + 1, S, E): states[:, 0] is given, h before the first step; the others become h before each later
    chunk and, last, after the window. scratch: what `selective_scan_scratch` says.
    """
    kernels_of(out).selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D)


def selective_scan_backward(
    dx, delta, dssm_parameters, projected, dA_log, dD, parts, scratch, dout, states, x, ssm_parameters, A_log, D
):
    """With a = exp(-d e^A_log), dy = dout silu(gate) and G_t = a_(t+1) G_(t+1) + C dy_t, the gradient of h_t:

    dB = sum_e G d x,   dC = sum_e h dy,   da = G h_(t-1),   dd = x sum_s G B - sum_s da a e^A_log,   dx = d sum_s G B + D dy,
    dA_log += -sum_t da a d e^A_log,   dD += sum_t dy x,   dgate = dout (<h, C> + D x) silu'(gate),   ddelta = dd sigmoid(delta).
    dssm_parameters: its last 2 S columns = dB, dC; the others are left alone. delta becomes its gradient, and so do projected's last E columns.
    states is what forward left; the states between are made again. Nothing flows back into states[:, 0]. parts: room for as many numbers as
    `selective_scan_partials` says.
    """
    kernels_of(dx).selective_scan_backward(
        dx, delta, dssm_parameters, projected, dA_log, dD, parts, scratch, dout, states, x, ssm_parameters, A_log, D
    )


def selective_scan_chunks(steps, array):
    """K, into how many chunks `steps` steps are cut on the device of `array`."""
    return kernels_of(array).selective_scan_chunks(steps)


def selective_scan_scratch(channels, states, batch, array):
    """Shape of the scratch for B texts of E channels with S states on the device of `array`."""
    return kernels_of(array).selective_scan_scratch(channels, states, batch)


def selective_scan_partials(batch, steps, channels, states, array):
    """Numbers of room that backward wants for the parts of its sums on the device of `array`."""
    return kernels_of(array).selective_scan_partials(batch, steps, channels, states)

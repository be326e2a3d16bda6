"""The selective scan, Mamba's recurrence (Gu and Dao 2023).

Sizes: B batch, T steps, N = B T, E channels, S states per channel, R rank of the time step, K chunks of time steps.
Every channel is a recurrence of its own whose step, input and output weights depend on the token; only the decay rates
do not.
"""

from slm_np.ops.device import kernels_of


def selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D):
    """Per channel:  d = softplus(delta),   h_t = exp(-d e^A_log) h_(t-1) + d x B,   out = (<h_t, C> + D x) silu(gate)

    out, x, delta   (N, E)
    states          (B, K + 1, S, E): states[:, 0] is given, h before the first step; the others become h before each
                    further chunk and, last, after the window. K = kernels.selective_scan_chunks(T)
    scratch         of shape kernels.selective_scan_scratch(E, S, B)
    ssm_parameters  (N, R + 2 S): the last columns are B | C
    projected       (N, 2 E): the last E columns are the gate
    A_log           (S, E)
    D               (E,)
    """
    kernels_of(out).selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D)


def selective_scan_backward(
    dx,
    delta,
    dssm_parameters,
    projected,
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
):
    """With a = exp(-d e^A_log), dy = dout silu(gate) and G_t = a_(t+1) G_(t+1) + C dy_t, the gradient of h_t:

    dB = sum_e G d x,   dC = sum_e h dy,   da = G h_(t-1),   dd = x sum_s G B - sum_s da a e^A_log,
    dx = d sum_s G B + D dy,   ddelta = dd sigmoid(delta),   dgate = dout (<h, C> + D x) silu'(gate),
    dA_log += -sum_t da a d e^A_log,   dD += sum_t dy x

    The last 2 S columns of dssm_parameters become dB | dC, the others are untouched. delta becomes its gradient, and so
    do the last E columns of projected. states are those of forward; the states in between are recomputed. Nothing flows
    into states[:, 0]. partials: as many elements as kernels.selective_scan_partials(B, T, E, S), for partial sums.
    """
    kernels_of(dx).selective_scan_backward(
        dx,
        delta,
        dssm_parameters,
        projected,
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
    )

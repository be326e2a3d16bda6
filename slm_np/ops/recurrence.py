"""The dense linear recurrence, and the time-major layout it needs. Sizes: T steps, B batch, S state width, D columns.

Time comes before batch, (T, B, .): what a step reads and writes is contiguous, and the states before all steps, or
after them, are one contiguous array. So everything except H A itself is one large matmul over the whole sequence.
"""

from slm_np.ops.device import kernels_of
from slm_np.ops.linear import linear_backward_weight


def linear_recurrence_forward(states, scratch, weight):
    """H_t = U_t + H_(t-1) A,   t = 0 ... T - 1        states (T + 1, B, S)   weight: A (S, S)

    states holds H_(-1), U_0, U_1, ..., and the U become H_0, H_1, ... in place.
    scratch: as many elements as kernels.linear_recurrence_scratch(B, S).
    """
    kernels_of(states).linear_recurrence_forward(states, scratch, weight)


def linear_recurrence_backward(dstates, dweight, scratch, states, weight):
    """G_t = g_t + G_(t+1) A^T,   t = T - 1 ... -1,   dweight += sum_t H_(t-1)^T G_t

    dstates, states (T + 1, B, S). dstates holds g_t, the gradient of H_t from its own step, and becomes G_t, the
    gradient of U_t (at -1, of the first state): backpropagation through all of time. H_(t+1)'s differential gives both
    terms: <G_(t+1), dH_t A + H_t dA> = <G_(t+1) A^T, dH_t> + <H_t^T G_(t+1), dA>. dweight None: A is frozen.
    """
    kernels_of(dstates).linear_recurrence_backward(dstates, scratch, weight)
    if dweight is not None:
        width = states.shape[2]
        linear_backward_weight(dweight, None, dstates[1:].reshape(-1, width), states[:-1].reshape(-1, width))


def time_major(out, x, start):
    """out[t, b] = x[b, start + t]

    out (T, B, D)   x (B, ., D) as rows (B ., D).   Its derivative is `batch_major`.
    """
    kernels_of(out).time_major(out, x, start)


def batch_major(out, x, residual, start):
    """out[b, start + t] = x[t, b] + residual[b, start + t]

    out, residual (B ., D)   x (T, B, D)   residual may be None
    """
    kernels_of(out).batch_major(out, x, residual, start)

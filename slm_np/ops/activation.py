"""Activations of the feed-forward. Sizes: N tokens, F hidden width.

Every backward works in place: x becomes its gradient dx, and dout becomes the activation `out` again, which shares its
exponential with the derivative. The next weight's gradient needs `out`, so forward need not save it.
"""

from slm_np.ops.device import kernels_of


def silu_forward(out, x):
    """out = x s,   s = sigmoid(x) = 1 / (1 + e^-x)

    out, x (N, F)   (Ramachandran et al. 2017, also called swish)
    """
    kernels_of(out).silu_forward(out, x)


def silu_backward(x, dout):
    """dx = dout * (s + x s (1 - s)) = dout * s (1 + x (1 - s)),   since s' = s (1 - s);   out = x s again"""
    kernels_of(x).silu_backward(x, dout)


def gelu_forward(out, x):
    """out = x P(x),   P(x) = (1 + erf(x / sqrt 2)) / 2, the standard normal's cumulative distribution

    out, x (N, F)   (Hendrycks and Gimpel 2016)
    """
    kernels_of(out).gelu_forward(out, x)


def gelu_backward(x, dout):
    """dx = dout * (P(x) + x p(x)),   p(x) = P'(x) = e^(-x^2/2) / sqrt(2 pi);   out = x P(x) again"""
    kernels_of(x).gelu_backward(x, dout)


def gelu_tanh_forward(out, x):
    """out = x (1 + tanh u) / 2 = x s(2u),   u = sqrt(2/pi) (x + 0.044715 x^3),   s = sigmoid

    GPT-2's approximation
    """
    kernels_of(out).gelu_tanh_forward(out, x)


def gelu_tanh_backward(x, dout):
    """dx = dout * s (1 + x (1 - s) 2u'),   u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2);   out = x s again"""
    kernels_of(x).gelu_tanh_backward(x, dout)


def swiglu_forward(out, x):
    """out = silu(gate) * up        out (N, F)   x (N, 2F) = gate | up   (Shazeer 2020)"""
    kernels_of(out).swiglu_forward(out, x)


def swiglu_backward(x, dout):
    """dgate = dout * up * silu'(gate),   dup = dout * silu(gate);   out = silu(gate) * up again

    x (N, 2F) becomes dgate | dup.
    """
    kernels_of(x).swiglu_backward(x, dout)

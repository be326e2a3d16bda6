"""The feed-forward's activations. Each backward gives the activation again beside its gradient: the product that follows needs both."""
from numba import prange

from .elementary import normal, sigmoid
from .jit import kernel

BLOCK = 8192
# tanh(u) = 2 sigmoid(2 u) - 1 turns GELU's tanh form into x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3).
SLOPE, CUBIC = 1.5957691216057308, 0.044715


@kernel
def _swish_forward(out, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            out[i] = x[i] * sigmoid(x[i])


@kernel
def _swish_backward(dx, out, dout, x):
    one = x.dtype.type(1)
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            s = sigmoid(x[i])
            dx[i] = dout[i] * s * (one + x[i] * (one - s))
            out[i] = x[i] * s


@kernel
def _gelu_forward(out, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            below, density = normal(x[i])
            out[i] = x[i] * below


@kernel
def _gelu_backward(dx, out, dout, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            below, density = normal(x[i])
            dx[i] = dout[i] * (below + x[i] * density)
            out[i] = x[i] * below


@kernel
def _gelu_tanh_forward(out, x):
    slope, cubic = x.dtype.type(SLOPE), x.dtype.type(CUBIC * SLOPE)
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            out[i] = x[i] * sigmoid(x[i] * (slope + cubic * x[i] * x[i]))


@kernel
def _gelu_tanh_backward(dx, out, dout, x):
    one, slope, cubic, cubic3 = x.dtype.type(1), x.dtype.type(SLOPE), x.dtype.type(CUBIC * SLOPE), x.dtype.type(3 * CUBIC * SLOPE)
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(x.size, block * BLOCK + BLOCK)):
            square = x[i] * x[i]
            s = sigmoid(x[i] * (slope + cubic * square))
            dx[i] = dout[i] * s * (one + x[i] * (one - s) * (slope + cubic3 * square))
            out[i] = x[i] * s


@kernel
def swiglu_forward(out, x):
    rows, width = out.shape
    for r in prange(rows):
        for c in range(width):
            out[r, c] = x[r, c] * sigmoid(x[r, c]) * x[r, width + c]


@kernel
def swiglu_backward(dx, out, dout, x):
    rows, width = out.shape
    one = x.dtype.type(1)
    for r in prange(rows):
        for c in range(width):
            gate, up, d = x[r, c], x[r, width + c], dout[r, c]
            s = sigmoid(gate)
            swish = gate * s
            dx[r, c] = d * up * s * (one + gate * (one - s))
            dx[r, width + c] = d * swish
            out[r, c] = swish * up


def swish_forward(out, x):
    _swish_forward(out.reshape(-1), x.reshape(-1))


def swish_backward(dx, out, dout, x):
    _swish_backward(dx.reshape(-1), out.reshape(-1), dout.reshape(-1), x.reshape(-1))


def gelu_forward(out, x):
    _gelu_forward(out.reshape(-1), x.reshape(-1))


def gelu_backward(dx, out, dout, x):
    _gelu_backward(dx.reshape(-1), out.reshape(-1), dout.reshape(-1), x.reshape(-1))


def gelu_tanh_forward(out, x):
    _gelu_tanh_forward(out.reshape(-1), x.reshape(-1))


def gelu_tanh_backward(dx, out, dout, x):
    _gelu_tanh_backward(dx.reshape(-1), out.reshape(-1), dout.reshape(-1), x.reshape(-1))

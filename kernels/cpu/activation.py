"""The activations of the feed-forward: SiLU, GELU, its tanh form, and SwiGLU.

Backward works in place: x becomes its gradient, and dout becomes the activation, recomputed. The matmuls of the
feed-forward's backward need both.
"""

from .bfloat16 import read, type_of, write
from .jit import BLOCK, blocks_of, kernel, row
from .math import normal, sigmoid

# GELU's tanh form is x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3), because tanh(u) = 2 sigmoid(2 u) - 1.
SLOPE, CUBIC = 1.5957691216057308, 0.044715


@row
def silu_block(out, x):
    for i in range(x.size):
        v = read(x, i)
        write(out, i, v * sigmoid(v))


@row
def silu_backward_block(x, dout):
    one = type_of(x)(1)
    for i in range(x.size):
        v, d = read(x, i), read(dout, i)
        s = sigmoid(v)
        out = v * s
        write(x, i, d * s * (one + v * (one - s)))
        write(dout, i, out)


@row
def gelu_block(out, x):
    for i in range(x.size):
        v = read(x, i)
        cdf, pdf = normal(v)
        write(out, i, v * cdf)


@row
def gelu_backward_block(x, dout):
    for i in range(x.size):
        v, d = read(x, i), read(dout, i)
        cdf, pdf = normal(v)
        write(x, i, d * (cdf + v * pdf))
        write(dout, i, v * cdf)


@row
def gelu_tanh_block(out, x):
    slope, cubic = type_of(x)(SLOPE), type_of(x)(CUBIC * SLOPE)
    for i in range(x.size):
        v = read(x, i)
        write(out, i, v * sigmoid(v * (slope + cubic * v * v)))


@row
def gelu_tanh_backward_block(x, dout):
    one, slope = type_of(x)(1), type_of(x)(SLOPE)
    cubic, cubic3 = type_of(x)(CUBIC * SLOPE), type_of(x)(3 * CUBIC * SLOPE)
    for i in range(x.size):
        v, d = read(x, i), read(dout, i)
        square = v * v
        s = sigmoid(v * (slope + cubic * square))
        write(x, i, d * s * (one + v * (one - s) * (slope + cubic3 * square)))
        write(dout, i, v * s)


@kernel
def _silu_forward(block, out, x):
    part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
    silu_block(out[part], x[part])


@kernel
def _silu_backward(block, x, dout):
    part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
    silu_backward_block(x[part], dout[part])


@kernel
def _gelu_forward(block, out, x):
    part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
    gelu_block(out[part], x[part])


@kernel
def _gelu_backward(block, x, dout):
    part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
    gelu_backward_block(x[part], dout[part])


@kernel
def _gelu_tanh_forward(block, out, x):
    part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
    gelu_tanh_block(out[part], x[part])


@kernel
def _gelu_tanh_backward(block, x, dout):
    part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
    gelu_tanh_backward_block(x[part], dout[part])


@row
def swiglu_row(out, gate, up):
    for c in range(out.size):
        g = read(gate, c)
        write(out, c, g * sigmoid(g) * read(up, c))


@row
def swiglu_backward_row(gate, up, dout):
    one = type_of(dout)(1)
    for c in range(dout.size):
        g, u, d = read(gate, c), read(up, c), read(dout, c)
        s = sigmoid(g)
        silu = g * s
        write(gate, c, d * u * s * (one + g * (one - s)))
        write(up, c, d * silu)
        write(dout, c, silu * u)


@kernel
def _swiglu_forward(r, out, x):
    """x: gate and up projection, (N, 2, F)"""
    swiglu_row(out[r], x[r, 0], x[r, 1])


@kernel
def _swiglu_backward(r, x, dout):
    swiglu_backward_row(x[r, 0], x[r, 1], dout[r])


def swiglu_forward(out, x):
    _swiglu_forward(len(x), out, x.reshape(len(x), 2, -1))  # (N, 2, F)


def swiglu_backward(x, dout):
    _swiglu_backward(len(x), x.reshape(len(x), 2, -1), dout)


def silu_forward(out, x):
    _silu_forward(blocks_of(x), out.reshape(-1), x.reshape(-1))


def silu_backward(x, dout):
    _silu_backward(blocks_of(x), x.reshape(-1), dout.reshape(-1))


def gelu_forward(out, x):
    _gelu_forward(blocks_of(x), out.reshape(-1), x.reshape(-1))


def gelu_backward(x, dout):
    _gelu_backward(blocks_of(x), x.reshape(-1), dout.reshape(-1))


def gelu_tanh_forward(out, x):
    _gelu_tanh_forward(blocks_of(x), out.reshape(-1), x.reshape(-1))


def gelu_tanh_backward(x, dout):
    _gelu_tanh_backward(blocks_of(x), x.reshape(-1), dout.reshape(-1))

"""The feed-forward's activations. Backward is in place: x becomes its gradient, dout the activation again, and the products that follow need both."""

from .source import Kernel, grid
from .vector import SEVERAL, count, threads_of_row, variants

SILU, GELU, GELU_TANH = range(3)

# An activation and its slope from one exponential; what a kernel does not use of them, the compiler leaves out.
FUNCTIONS = (
    SEVERAL
    + r"""
struct Value { Compute out, slope; };

__device__ __forceinline__ float erfc_(float v) { return erfcf(v); }
__device__ __forceinline__ double erfc_(double v) { return erfc(v); }

template <int FUNCTION> __device__ __forceinline__ Value activation(Compute v) {
    if constexpr (FUNCTION == 0) {
        const Compute s = sigmoid(v);
        return {v * s, s * (1 + v * (1 - s))};
    } else if constexpr (FUNCTION == 1) {
        const Compute half_root = 0.70710678118654752440, over_root = 0.39894228040143267794, half = 0.5;
        const Compute below = half * erfc_(-v * half_root), density = over_root * exp_(-half * v * v);
        return {v * below, below + v * density};
    } else {  // (1 + tanh u) / 2 = sigmoid(2 u)
        const Compute slope = 1.5957691216057308, cubic = 0.044715 * 1.5957691216057308;
        const Compute square = v * v, s = sigmoid(v * (slope + cubic * square));
        return {v * s, s * (1 + v * (1 - s) * (slope + 3 * cubic * square))};
    }
}
"""
)

TYPES = [types for t in ("float", "double", "bfloat16", "half") for types in variants(Out=t, In=t)]
TYPES += [
    types for t in ("bfloat16", "half") for types in variants(Out="float", In=t)
]  # the head's hidden values and their gradient
VARIANTS = [dict(types, FUNCTION=function) for types in TYPES for function in (SILU, GELU, GELU_TANH)]

forward = Kernel(
    "activation_forward",
    FUNCTIONS
    + r"""
extern "C" __global__ void activation_forward(Out* out, const In* x, size_t n) {
    for (size_t i = first_number(); i < n; i += next_numbers()) {
        const Several<In> v = several(x + i);
        Several<Out> y;
        for (int j = 0; j < COUNT; ++j) y.at[j] = store<Out>(activation<FUNCTION>(load(v.at[j])).out);
        several(out + i) = y;
    }
}""",
    variants=VARIANTS,
)

backward = Kernel(
    "activation_backward",
    FUNCTIONS
    + r"""
extern "C" __global__ void activation_backward(In* x, Out* dout, size_t n) {
    for (size_t i = first_number(); i < n; i += next_numbers()) {
        Several<In> v = several(x + i);
        Several<Out> d = several(dout + i);
        for (int j = 0; j < COUNT; ++j) {
            const Value y = activation<FUNCTION>(load(v.at[j]));
            v.at[j] = store<In>(load(d.at[j]) * y.slope);
            d.at[j] = store<Out>(y.out);
        }
        several(x + i) = v;
        several(dout + i) = d;
    }
}""",
    variants=VARIANTS,
)

# x (rows, 2, width): the gate and the value above it. A block takes a row at a time, so that no thread divides to find its own.
gated_forward = Kernel(
    "swiglu_forward",
    FUNCTIONS
    + r"""
extern "C" __global__ void swiglu_forward(Out* out, const In* x, size_t rows, size_t width) {
    for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
        for (size_t c = COUNT * threadIdx.x; c < width; c += COUNT * blockDim.x) {
            const Several<In> gate = several(x + 2 * r * width + c), up = several(x + (2 * r + 1) * width + c);
            Several<Out> y;
            for (int j = 0; j < COUNT; ++j) y.at[j] = store<Out>(activation<0>(load(gate.at[j])).out * load(up.at[j]));
            several(out + r * width + c) = y;
        }
    }
}""",
    variants=TYPES,
)

gated_backward = Kernel(
    "swiglu_backward",
    FUNCTIONS
    + r"""
extern "C" __global__ void swiglu_backward(In* x, Out* dout, size_t rows, size_t width) {
    for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
        for (size_t c = COUNT * threadIdx.x; c < width; c += COUNT * blockDim.x) {
            Several<In> gate = several(x + 2 * r * width + c), up = several(x + (2 * r + 1) * width + c);
            Several<Out> d = several(dout + r * width + c);
            for (int j = 0; j < COUNT; ++j) {
                const Compute u = load(up.at[j]), slope = load(d.at[j]);
                const Value y = activation<0>(load(gate.at[j]));
                gate.at[j] = store<In>(slope * u * y.slope);
                up.at[j] = store<In>(slope * y.out);
                d.at[j] = store<Out>(y.out * u);
            }
            several(x + 2 * r * width + c) = gate;
            several(x + (2 * r + 1) * width + c) = up;
            several(dout + r * width + c) = d;
        }
    }
}""",
    variants=TYPES,
)


def _forward(out, x, function):
    several = count(out.size, out, x)
    forward(grid(out.size // several), (out, x, out.size), Out=out, In=x, COUNT=several, FUNCTION=function)


def _backward(x, dout, function):
    several = count(x.size, x, dout)
    backward(grid(x.size // several), (x, dout, x.size), Out=dout, In=x, COUNT=several, FUNCTION=function)


def swiglu_forward(out, x):
    rows, width = out.shape
    several = count(width, out, x)
    gated_forward(
        grid(rows, 1, 1 << 16),
        (out, x, rows, width),
        threads=threads_of_row(width // several),
        Out=out,
        In=x,
        COUNT=several,
    )


def swiglu_backward(x, dout):
    rows, width = dout.shape
    several = count(width, x, dout)
    gated_backward(
        grid(rows, 1, 1 << 16),
        (x, dout, rows, width),
        threads=threads_of_row(width // several),
        Out=dout,
        In=x,
        COUNT=several,
    )


def silu_forward(out, x):
    _forward(out, x, SILU)


def silu_backward(x, dout):
    _backward(x, dout, SILU)


def gelu_forward(out, x):
    _forward(out, x, GELU)


def gelu_backward(x, dout):
    _backward(x, dout, GELU)


def gelu_tanh_forward(out, x):
    _forward(out, x, GELU_TANH)


def gelu_tanh_backward(x, dout):
    _backward(x, dout, GELU_TANH)

"""Activations of the feed-forward. Backward is in place: x becomes its gradient, dout becomes the activation again."""

from .source import Kernel, grid
from .vector import VECTOR, threads_for_row, variants, vector_size

SILU, GELU, GELU_TANH = range(3)

# An activation and its derivative share one exponential. The compiler removes what a kernel does not use.
FUNCTIONS = (
    VECTOR
    + r"""
struct Value { Accum out, derivative; };

__device__ __forceinline__ float erfc_(float v) { return erfcf(v); }
__device__ __forceinline__ double erfc_(double v) { return erfc(v); }

template <int FUNCTION> __device__ __forceinline__ Value activation(Accum v) {
    if constexpr (FUNCTION == 0) {         // SiLU: v s,   s = sigmoid(v)
        const Accum s = sigmoid(v);
        return {v * s, s * (1 + v * (1 - s))};
    } else if constexpr (FUNCTION == 1) {  // GELU: v P(v),   P the normal distribution function, p its density
        const Accum sqrt_half = 0.70710678118654752440, inv_sqrt_two_pi = 0.39894228040143267794, half = 0.5;
        const Accum P = half * erfc_(-v * sqrt_half), p = inv_sqrt_two_pi * exp_(-half * v * v);
        return {v * P, P + v * p};
    } else {                               // GELU by tanh: v (1 + tanh u) / 2 = v sigmoid(2 u),   2 u = v (c + d v^2)
        const Accum c = 1.5957691216057308, d = 0.044715 * 1.5957691216057308;
        const Accum square = v * v, s = sigmoid(v * (c + d * square));
        return {v * s, s * (1 + v * (1 - s) * (c + 3 * d * square))};
    }
}
"""
)

TYPES = [types for t in ("float", "double", "bfloat16", "half") for types in variants(Out=t, In=t)]
TYPES += [types for t in ("bfloat16", "half") for types in variants(Out="float", In=t)]  # the head: dout is float32
VARIANTS = [dict(types, FUNCTION=function) for types in TYPES for function in (SILU, GELU, GELU_TANH)]

forward_kernel = Kernel(
    "activation_forward",
    FUNCTIONS
    + r"""
extern "C" __global__ void activation_forward(Out* out, const In* x, size_t n) {
    for (size_t i = first_element(); i < n; i += element_stride()) {
        const Vector<In> v = vector(x + i);
        Vector<Out> y;
        for (int j = 0; j < VEC; ++j) y.at[j] = store<Out>(activation<FUNCTION>(load(v.at[j])).out);
        vector(out + i) = y;
    }
}""",
    variants=VARIANTS,
)

backward_kernel = Kernel(
    "activation_backward",
    FUNCTIONS
    + r"""
extern "C" __global__ void activation_backward(In* x, Out* dout, size_t n) {
    for (size_t i = first_element(); i < n; i += element_stride()) {
        Vector<In> v = vector(x + i);
        Vector<Out> d = vector(dout + i);
        for (int j = 0; j < VEC; ++j) {
            const Value y = activation<FUNCTION>(load(v.at[j]));
            v.at[j] = store<In>(load(d.at[j]) * y.derivative);
            d.at[j] = store<Out>(y.out);
        }
        vector(x + i) = v;
        vector(dout + i) = d;
    }
}""",
    variants=VARIANTS,
)

# x (rows, 2, width): gate, then up. A block takes one row at a time, so that no thread has to divide to find its row.
swiglu_forward_kernel = Kernel(
    "swiglu_forward",
    FUNCTIONS
    + r"""
extern "C" __global__ void swiglu_forward(Out* out, const In* x, size_t rows, size_t width) {
    for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
        for (size_t c = VEC * threadIdx.x; c < width; c += VEC * blockDim.x) {
            const Vector<In> gate = vector(x + 2 * r * width + c), up = vector(x + (2 * r + 1) * width + c);
            Vector<Out> y;
            for (int j = 0; j < VEC; ++j) y.at[j] = store<Out>(activation<0>(load(gate.at[j])).out * load(up.at[j]));
            vector(out + r * width + c) = y;
        }
    }
}""",
    variants=TYPES,
)

swiglu_backward_kernel = Kernel(
    "swiglu_backward",
    FUNCTIONS
    + r"""
extern "C" __global__ void swiglu_backward(In* x, Out* dout, size_t rows, size_t width) {
    for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
        for (size_t c = VEC * threadIdx.x; c < width; c += VEC * blockDim.x) {
            Vector<In> gate = vector(x + 2 * r * width + c), up = vector(x + (2 * r + 1) * width + c);
            Vector<Out> d = vector(dout + r * width + c);
            for (int j = 0; j < VEC; ++j) {
                const Accum u = load(up.at[j]), dy = load(d.at[j]);
                const Value silu = activation<0>(load(gate.at[j]));
                gate.at[j] = store<In>(dy * u * silu.derivative);
                up.at[j] = store<In>(dy * silu.out);
                d.at[j] = store<Out>(silu.out * u);
            }
            vector(x + 2 * r * width + c) = gate;
            vector(x + (2 * r + 1) * width + c) = up;
            vector(dout + r * width + c) = d;
        }
    }
}""",
    variants=TYPES,
)


def _forward(out, x, function):
    vec = vector_size(out.size, out, x)
    forward_kernel(grid(out.size // vec), (out, x, out.size), Out=out, In=x, VEC=vec, FUNCTION=function)


def _backward(x, dout, function):
    vec = vector_size(x.size, x, dout)
    backward_kernel(grid(x.size // vec), (x, dout, x.size), Out=dout, In=x, VEC=vec, FUNCTION=function)


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


def swiglu_forward(out, x):
    rows, width = out.shape
    vec = vector_size(width, out, x)
    swiglu_forward_kernel(
        grid(rows, 1, 1 << 16),
        (out, x, rows, width),
        threads=threads_for_row(width // vec),
        Out=out,
        In=x,
        VEC=vec,
    )


def swiglu_backward(x, dout):
    rows, width = dout.shape
    vec = vector_size(width, x, dout)
    swiglu_backward_kernel(
        grid(rows, 1, 1 << 16),
        (x, dout, rows, width),
        threads=threads_for_row(width // vec),
        Out=dout,
        In=x,
        VEC=vec,
    )

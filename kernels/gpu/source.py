"""CUDA source to callable: how GPU kernels are compiled and launched, and what every kernel's source may use (`PRELUDE`).

A kernel's CUDA source stands as a string beside its Python. It is compiled when first launched, once for each combination of types and
constants, by NVRTC through CuPy; no header of the CUDA toolkit is included, so the driver and CuPy's own libraries are all that is needed.
CuPy flushes float32 numbers under 2^-126 to zero (`-ftz=true`).
"""

import operator
import re

import numpy as np

from slm_np.dtypes import BF16

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")  # what kernels are compiled for in tests: T4, A100, H100 and H200
OPTIONS = ("-std=c++17",)

PRELUDE = r"""
#define INF __int_as_float(0x7f800000)

// Types that are stored: bits alone, computed with as float.
struct bfloat16 { unsigned short bits; };
struct half { unsigned short bits; };

template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

#ifdef __CUDA_ARCH__  // what only PTX can say; the emulator of the tests says it in C++
#define TENSOR_CORES (__CUDA_ARCH__ >= 800)

__device__ __forceinline__ float half_value(unsigned short bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
__device__ __forceinline__ unsigned short half_bits(float v) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}

// The warp's product d += a b of 16 x 16 and 16 x 8 numbers. Lane 4 i + j holds, as pairs whose first number lies in the low half,
//   a[0] = A[i, 2j..], a[1] = A[i+8, 2j..], a[2] = A[i, 2j+8..], a[3] = A[i+8, 2j+8..]        b[0] = B[2j.., i], b[1] = B[2j+8.., i]
//   d[0], d[1] = D[i, 2j], D[i, 2j+1]        d[2], d[3] = D[i+8, 2j], D[i+8, 2j+1]
template <class T> __device__ void mma(float d[4], const unsigned a[4], const unsigned b[2]);
#if TENSOR_CORES
template <> __device__ __forceinline__ void mma<bfloat16>(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> __device__ __forceinline__ void mma<half>(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#endif

// Nearest, the even one of two; NaN stays NaN.
__device__ __forceinline__ unsigned short bfloat16_bits(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned short nearest;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(nearest) : "f"(v));
    return nearest;
#else
    const unsigned bits = __float_as_uint(v);
    return v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ double load(double x) { return x; }
__device__ __forceinline__ float load(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float load(half x) { return half_value(x.bits); }

template <class T, class V> __device__ __forceinline__ T store(V v) {
    if constexpr (same<T, bfloat16>) return bfloat16{bfloat16_bits((float)v)};
    else if constexpr (same<T, half>) return half{half_bits((float)v)};
    else return (T)v;
}

// A number that may change from step to step: given by value, or by the array of one number where a captured graph finds the present one.
template <class T> struct Scalar {
    const T* pointer;
    T value;
    __device__ __forceinline__ T operator()() const { return pointer ? *pointer : value; }
};

__device__ __forceinline__ float exp_(float v) { return expf(v); }
__device__ __forceinline__ double exp_(double v) { return exp(v); }
template <class T> __device__ __forceinline__ T sigmoid(T v) { return T(1) / (T(1) + exp_(-v)); }

// Sums and maxima of all lanes or threads, each of which receives them; blocks are of whole warps. The order of additions is fixed. max passes over NaN.
template <class T> __device__ __forceinline__ T larger(T a, T b) { return a > b || b != b ? a : b; }

template <class T> __device__ __forceinline__ T warp_sum(T v) {
    for (int lane = 16; lane; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
    return v;
}
template <class T> __device__ __forceinline__ T warp_max(T v) {
    for (int lane = 16; lane; lane /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, lane));
    return v;
}

__device__ __forceinline__ unsigned thread_of_block() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
__device__ __forceinline__ unsigned threads_of_block() { return blockDim.x * blockDim.y * blockDim.z; }

// `shared` has room for 32 numbers, one of each warp, and may be used again when the function returns.
template <class T> __device__ __forceinline__ T block_sum(T v, T* shared) {
    const unsigned thread = thread_of_block(), lane = thread % 32;
    v = warp_sum(v);
    if (lane == 0) shared[thread / 32] = v;
    __syncthreads();
    v = warp_sum(lane < threads_of_block() / 32 ? shared[lane] : T(0));
    __syncthreads();
    return v;
}
template <class T> __device__ __forceinline__ T block_max(T v, T* shared) {
    const unsigned thread = thread_of_block(), lane = thread % 32;
    v = warp_max(v);
    if (lane == 0) shared[thread / 32] = v;
    __syncthreads();
    v = warp_max(shared[lane < threads_of_block() / 32 ? lane : 0]);
    __syncthreads();
    return v;
}

// The threads of a block fill n numbers with NaN together.
template <class T> __device__ void fill_nan(T* x, size_t n) {
    for (size_t i = thread_of_block(); i < n; i += threads_of_block()) x[i] = store<T>(__int_as_float(0x7fffffff));
}

// Dropout's 32 bits of (key, index): the same as kernels/cpu/dropout.py draws.
__device__ __forceinline__ unsigned hash(unsigned key, size_t index) {
    unsigned x = (unsigned)index ^ key;
    x = (x ^ x >> 16) * 0x21F0AAADu;
    x = (x ^ x >> 15) * 0xD35A2D97u;
    x = (x ^ x >> 15) + key;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    return x ^ x >> 16;
}
"""

# C types and the NumPy types of their arrays and values.
TYPES = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "bfloat16": BF16,
    "half": np.dtype(np.float16),
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
    "long long": np.dtype(np.int64),
    "size_t": np.dtype(np.uint64),
    "unsigned char": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
C_NAMES = {dtype: name for name, dtype in TYPES.items()}
SAME = {
    "unsigned int": "unsigned",
    "unsigned long long": "size_t",
    "uint16_t": "bfloat16",
    "unsigned short": "bfloat16",
}
MOST_SHARED = 48 * 1024  # bytes of dynamic shared memory that a block has without asking


def grid(n, threads=256, most=4096):
    """Blocks for a loop over n numbers, one a thread; at most `most` blocks, which fill the largest GPU several times: the loop strides on."""
    return max(1, min(-(-int(n) // threads), most))


def _c_name(value):
    """The C type that an array, a NumPy type or a C name stands for."""
    if isinstance(value, str):
        return SAME.get(value, value)
    return C_NAMES[np.dtype(getattr(value, "dtype", value))]


def _number(dtype, what):
    """A converter to `dtype`, by value: what does not fit is an OverflowError, what is no number (an array of the GPU, say) a TypeError."""
    if dtype.kind == "f":

        def convert(value):
            if not isinstance(value, (int, float, np.generic)):
                raise TypeError(f"{what} takes a number, not {type(value).__name__}")
            return dtype.type(value)
    elif dtype.kind == "b":

        def convert(value):
            return np.bool_(operator.index(bool(value)))
    else:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)

        def convert(value):
            value = operator.index(value)
            if not low <= value <= high:
                raise OverflowError(f"{what}: {value} does not fit")
            return dtype.type(value)

    return convert


def _array(dtype, what):
    """A converter for a pointer parameter: an array of `dtype`, or None for a null pointer."""

    def convert(value):
        if value is None:
            return np.uint64(0)
        if value.dtype != dtype:
            raise TypeError(f"{what} takes an array of {dtype}, not of {value.dtype}")
        return value

    return convert


def _scalar(dtype, what):
    """A converter for a `Scalar`: a number, or the array of one number that holds it."""
    struct, number = np.dtype([("pointer", np.uint64), ("value", dtype)], align=True), _number(dtype, what)

    def convert(value):
        held = np.zeros(1, struct)  # CuPy passes an array of one number of NumPy's by value
        if hasattr(value, "data") and hasattr(value.data, "ptr"):
            if value.dtype != dtype or value.size != 1:
                raise TypeError(f"{what} takes one number of {dtype}, not {value.size} of {value.dtype}")
            held["pointer"] = value.data.ptr
        else:
            held["value"] = number(value)
        return held

    return convert


class Kernel:
    """A CUDA kernel: `kernel(blocks, arguments, shared=bytes, threads=..., **types_and_constants)` launches it on CuPy's current stream.

    name      of the `extern "C" __global__` function in `text`
    threads   of a block; blocks and threads are numbers, or tuples of up to three
    variants  the types and constants it is made for, types by C name: [dict(Operand="bfloat16", N=16), ...]

    A keyword that is an array, a NumPy type or a C name becomes `typedef TYPE KEYWORD`, one that is an int `constexpr int KEYWORD`. `Compute` is
    double if any of the types is, else float. Each argument is converted to the type that the C signature declares; None is a null pointer.
    """

    KERNELS = []

    def __init__(self, name, text, threads=256, variants=({},)):
        self.name, self.text, self.threads, self.variants, self._compiled = name, text, threads, list(variants), {}
        signature = re.search(rf"\b{name}\s*\(([^)]*)\)\s*\{{", text)
        if not signature:
            raise ValueError(f"no kernel {name} in its source")
        parameters = re.sub(
            r"\b(const|__restrict__|__grid_constant__)\b",
            " ",
            re.sub(r"//[^\n]*|/\*.*?\*/", " ", signature[1], flags=re.S),
        )
        self.parameters = [
            re.fullmatch(r"\s*(.*?)\s*\b(\w+)\s*", one, re.S).groups() for one in parameters.split(",") if one.strip()
        ]
        Kernel.KERNELS.append(self)

    def code(self, **types):
        """The whole source for these types and constants."""
        named = {
            name: value if isinstance(value, (int, np.integer)) else _c_name(value) for name, value in types.items()
        }
        lines = [
            f"constexpr int {name} = {int(value)};" if not isinstance(value, str) else f"typedef {value} {name};"
            for name, value in named.items()
        ]
        compute = "double" if "double" in named.values() else "float"
        return "\n".join((PRELUDE, f"typedef {compute} Compute;", *lines, self.text))

    def converters(self, **types):
        """One function for each parameter of the C signature, from what Python passes to what CuPy takes."""
        types = {name: _c_name(value) for name, value in types.items() if not isinstance(value, (int, np.integer))}
        types["Compute"] = "double" if "double" in types.values() else "float"

        def dtype_of(c_type):
            c_type = " ".join(c_type.split())
            c_type = types.get(c_type, SAME.get(c_type, c_type))
            if c_type not in TYPES:
                raise TypeError(f"{self.name}: parameters of type {c_type} are not known")
            return TYPES[c_type]

        made = []
        for c_type, name in self.parameters:
            what = f"{self.name}'s {name}"
            if c_type.endswith("*"):
                made.append(_array(dtype_of(c_type[:-1]), what))
            elif c_type.startswith("Scalar"):
                made.append(_scalar(dtype_of(c_type[c_type.index("<") + 1 : c_type.rindex(">")]), what))
            else:
                made.append(_number(dtype_of(c_type), what))
        return made

    def __call__(self, blocks, arguments, shared=0, threads=None, **types):
        import cupy  # first needed here, so that these kernels can be read without CuPy

        key = (
            cupy,
            *(
                (name, value if isinstance(value, (int, str, np.integer)) else getattr(value, "dtype", value))
                for name, value in types.items()
            ),
        )
        if key not in self._compiled:
            module = cupy.RawModule(code=self.code(**types), backend="nvrtc", options=OPTIONS)
            self._compiled[key] = [module.get_function(self.name), self.converters(**types), MOST_SHARED]
        compiled = self._compiled[key]
        function, converters, most_shared = compiled
        if len(arguments) != len(converters):
            raise TypeError(f"{self.name} takes {len(converters)} arguments, not {len(arguments)}")
        if shared > most_shared:
            function.max_dynamic_shared_size_bytes = compiled[2] = shared
        threads = self.threads if threads is None else threads
        function(
            blocks if isinstance(blocks, tuple) else (blocks,),
            threads if isinstance(threads, tuple) else (threads,),
            tuple([convert(value) for convert, value in zip(converters, arguments)]),
            shared_mem=shared,
        )

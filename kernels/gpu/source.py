"""How CUDA source becomes a callable `Kernel`, and the CUDA helpers that every source may use (`PRELUDE`).

A kernel's CUDA source is a string beside the Python function that launches it. NVRTC compiles it through CuPy at its
first launch, once per combination of types and constants. The source includes no header of the CUDA toolkit, so the
driver and CuPy's libraries are enough. CuPy flushes float32 values below 2^-126 to zero (`-ftz=true`).

Names of types in the sources: `Real` is an array's float32 or float64, `Storage` may also be a 16-bit type, and
`Accum` is the type of arithmetic and sums.
"""

import operator
import re

import numpy as np

from slm_np.dtypes import BF16

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")  # what the tests compile all kernels for: T4, A100, H100 and H200
OPTIONS = ("-std=c++17",)

PRELUDE = r"""
#define INF __int_as_float(0x7f800000)

// Storage types: only bits. Arithmetic is in float.
struct bfloat16 { unsigned short bits; };
struct half { unsigned short bits; };

template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

#ifdef __CUDA_ARCH__  // PTX; the tests' emulator has these functions in C++
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

// D += A B by one warp: A (16, 16), B (16, 8), D (16, 8). An unsigned holds two elements, the first in its low half.
// Lane 4 i + j has
//   a[0] = A[i, 2j..], a[1] = A[i+8, 2j..], a[2] = A[i, 2j+8..], a[3] = A[i+8, 2j+8..]
//   b[0] = B[2j.., i], b[1] = B[2j+8.., i]
//   d[0], d[1] = D[i, 2j], D[i, 2j+1]        d[2], d[3] = D[i+8, 2j], D[i+8, 2j+1]
template <class T> __device__ void mma(float d[4], const unsigned a[4], const unsigned b[2]);
#if TENSOR_CORES
template <>
__device__ __forceinline__ void mma<bfloat16>(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma<half>(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#endif

// Rounds to nearest, ties to even. NaN stays NaN.
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

// A value that may change from step to step: passed by value, or by pointer, so that a captured graph reads it at each
// replay.
template <class T> struct Scalar {
    const T* pointer;
    T value;
    __device__ __forceinline__ T operator()() const { return pointer ? *pointer : value; }
};

__device__ __forceinline__ float exp_(float v) { return expf(v); }
__device__ __forceinline__ double exp_(double v) { return exp(v); }
template <class T> __device__ __forceinline__ T sigmoid(T v) { return T(1) / (T(1) + exp_(-v)); }

// Sums and maxima over a warp or a block, returned to every lane or thread. Blocks have whole warps.
// The order of additions is fixed. Maxima propagate NaN.
template <class T> __device__ __forceinline__ T larger(T a, T b) { return a > b || b != b ? a : b; }

template <class T> __device__ __forceinline__ T warp_sum(T v) {
    for (int lane = 16; lane; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
    return v;
}
template <class T> __device__ __forceinline__ T warp_max(T v) {
    for (int lane = 16; lane; lane /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, lane));
    return v;
}

__device__ __forceinline__ unsigned thread_in_block() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ __forceinline__ unsigned threads_in_block() { return blockDim.x * blockDim.y * blockDim.z; }

// `shared` has 32 elements, one per warp. It may be reused as soon as the function returns.
template <class T> __device__ __forceinline__ T block_sum(T v, T* shared) {
    const unsigned thread = thread_in_block(), lane = thread % 32;
    v = warp_sum(v);
    if (lane == 0) shared[thread / 32] = v;
    __syncthreads();
    v = warp_sum(lane < threads_in_block() / 32 ? shared[lane] : T(0));
    __syncthreads();
    return v;
}
template <class T> __device__ __forceinline__ T block_max(T v, T* shared) {
    const unsigned thread = thread_in_block(), lane = thread % 32;
    v = warp_max(v);
    if (lane == 0) shared[thread / 32] = v;
    __syncthreads();
    v = warp_max(shared[lane < threads_in_block() / 32 ? lane : 0]);
    __syncthreads();
    return v;
}

// Dropout's 32 random bits for (key, index), the same as in kernels/cpu/dropout.py.
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

# C types and the NumPy types of the arrays and values passed for them.
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
ALIASES = {
    "unsigned int": "unsigned",
    "unsigned long long": "size_t",
    "uint16_t": "bfloat16",
    "unsigned short": "bfloat16",
}
DEFAULT_SHARED = 48 * 1024  # bytes of dynamic shared memory that a kernel may use unless its limit is raised


def grid(elements, threads=256, limit=4096):
    """Number of blocks for a grid-stride loop, one element per thread. At most `limit`, which fills the largest GPU."""
    return max(1, min(-(-int(elements) // threads), limit))


def _c_name(value):
    """The C type of an array, a NumPy type or a C name."""
    if isinstance(value, str):
        return ALIASES.get(value, value)
    return C_NAMES[np.dtype(getattr(value, "dtype", value))]


def _value_converter(dtype, what):
    """A function from a number to `dtype`. It raises OverflowError out of range, TypeError for a non-number."""
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
                raise OverflowError(f"{what}: {value} does not fit in {dtype}")
            return dtype.type(value)

    return convert


def _array_converter(dtype, what):
    """A function for a pointer parameter: it takes an array of `dtype`, or None for a null pointer."""

    def convert(value):
        if value is None:
            return np.uint64(0)
        if value.dtype != dtype:
            raise TypeError(f"{what} takes an array of {dtype}, not of {value.dtype}")
        return value

    return convert


def _scalar_converter(dtype, what):
    """A function for a `Scalar` parameter: it takes a number, or a device array that holds one."""
    struct, convert_value = (
        np.dtype([("pointer", np.uint64), ("value", dtype)], align=True),
        _value_converter(dtype, what),
    )

    def convert(value):
        scalar = np.zeros(1, struct)  # CuPy passes a NumPy array of one element by value
        if hasattr(value, "data") and hasattr(value.data, "ptr"):
            if value.dtype != dtype or value.size != 1:
                raise TypeError(f"{what} takes one element of {dtype}, not {value.size} of {value.dtype}")
            scalar["pointer"] = value.data.ptr
        else:
            scalar["value"] = convert_value(value)
        return scalar

    return convert


class Kernel:
    """A CUDA kernel.

    `kernel(blocks, arguments, shared=bytes, threads=..., **types_and_constants)` launches it on CuPy's current stream.

    name      of the `extern "C" __global__` function in `text`
    threads   per block. Blocks and threads are numbers, or tuples of up to three.
    variants  the types and constants it is made for, types by C name: [dict(Storage="bfloat16", N=16), ...]

    A keyword whose value is an array, a NumPy type or a C name becomes `typedef TYPE KEYWORD`; an int becomes
    `constexpr int KEYWORD`. `Accum` is double if any of the types is double, else float. Arguments are converted to the
    types in the C signature, None to a null pointer.
    """

    KERNELS = []  # all kernels of the imported modules

    def __init__(self, name, text, threads=256, variants=({},)):
        self.name, self.text, self.threads, self.variants, self._compiled = name, text, threads, list(variants), {}
        signature = re.search(rf"\b{name}\s*\(([^)]*)\)\s*\{{", text)
        if not signature:
            raise ValueError(f"the source defines no kernel {name}")
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
        accum = "double" if "double" in named.values() else "float"
        return "\n".join((PRELUDE, f"typedef {accum} Accum;", *lines, self.text))

    def converters(self, **types):
        """One function per parameter of the C signature, from the Python argument to what CuPy passes."""
        types = {name: _c_name(value) for name, value in types.items() if not isinstance(value, (int, np.integer))}
        types["Accum"] = "double" if "double" in types.values() else "float"

        def dtype_of(c_type):
            c_type = " ".join(c_type.split())
            c_type = types.get(c_type, ALIASES.get(c_type, c_type))
            if c_type not in TYPES:
                raise TypeError(f"{self.name}: parameters of type {c_type} are not supported")
            return TYPES[c_type]

        converters = []
        for c_type, name in self.parameters:
            what = f"{self.name}'s {name}"
            if c_type.endswith("*"):
                converters.append(_array_converter(dtype_of(c_type[:-1]), what))
            elif c_type.startswith("Scalar"):
                inner = c_type[c_type.index("<") + 1 : c_type.rindex(">")]
                converters.append(_scalar_converter(dtype_of(inner), what))
            else:
                converters.append(_value_converter(dtype_of(c_type), what))
        return converters

    def __call__(self, blocks, arguments, shared=0, threads=None, **types):
        import cupy  # imported at the first launch: the sources can be read without CuPy

        key = (
            cupy,
            *(
                (name, value if isinstance(value, (int, str, np.integer)) else getattr(value, "dtype", value))
                for name, value in types.items()
            ),
        )
        if key not in self._compiled:
            module = cupy.RawModule(code=self.code(**types), backend="nvrtc", options=OPTIONS)
            self._compiled[key] = [module.get_function(self.name), self.converters(**types), DEFAULT_SHARED]
        compiled = self._compiled[key]
        function, converters, shared_limit = compiled
        if len(arguments) != len(converters):
            raise TypeError(f"{self.name} takes {len(converters)} arguments, not {len(arguments)}")
        if shared > shared_limit:
            function.max_dynamic_shared_size_bytes = compiled[2] = shared
        threads = self.threads if threads is None else threads
        function(
            blocks if isinstance(blocks, tuple) else (blocks,),
            threads if isinstance(threads, tuple) else (threads,),
            tuple([convert(value) for convert, value in zip(converters, arguments)]),
            shared_mem=shared,
        )

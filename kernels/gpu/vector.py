"""Vectorized access: a thread reads and writes up to 16 bytes at once, which loops bound by memory bandwidth need.

A kernel with vectorized access has the constant VEC, the elements of one access (`vector_size`), and strides by it.
"""

VECTOR = r"""
template <class T> struct alignas(VEC * sizeof(T)) Vector { T at[VEC]; };
template <class T> __device__ __forceinline__ Vector<T>& vector(T* x) { return *(Vector<T>*)x; }
template <class T> __device__ __forceinline__ const Vector<T>& vector(const T* x) { return *(const Vector<T>*)x; }

// A grid-stride loop over vectors: its first element and its stride in elements.
__device__ __forceinline__ size_t first_element() { return VEC * (blockIdx.x * (size_t)blockDim.x + threadIdx.x); }
__device__ __forceinline__ size_t element_stride() { return VEC * (gridDim.x * (size_t)blockDim.x); }
"""
FULL = {"double": 2, "float": 4, "bfloat16": 8, "half": 8}  # elements of a type in 16 bytes


def vector_size(width, *arrays):
    """VEC for rows of `width` elements in each of `arrays` (None is skipped): 16 bytes of the widest type, else 1.

    It is 1 where `width` is no multiple of the vector or an array is not aligned to it.
    """
    arrays = [x for x in arrays if x is not None]
    full = 16 // max([x.dtype.itemsize for x in arrays])
    return 1 if width % full or any(x.data.ptr % (full * x.dtype.itemsize) for x in arrays) else full


def variants(**types):
    """The two variants of a kernel for these types (C names) and constants: with vectorized access and without."""
    return [dict(types, VEC=n) for n in (min(FULL[t] for t in types.values() if t in FULL), 1)]


def threads_for_row(accesses, limit=256):
    """Threads of a block that makes so many accesses per row: whole warps, few of them idle."""
    return min(limit, -(-max(1, accesses) // 32) * 32)

"""Numbers that a thread takes at once: 16 bytes of the widest type, as loops bound by memory want each thread to ask for that much at a time.

A kernel that uses them has the constant COUNT, which `count` answers, and strides by it.
"""

SEVERAL = r"""
template <class T> struct alignas(COUNT * sizeof(T)) Several { T at[COUNT]; };
template <class T> __device__ __forceinline__ Several<T>& several(T* x) { return *(Several<T>*)x; }
template <class T> __device__ __forceinline__ const Several<T>& several(const T* x) { return *(const Several<T>*)x; }
__device__ __forceinline__ size_t first_number() { return COUNT * (blockIdx.x * (size_t)blockDim.x + threadIdx.x); }
__device__ __forceinline__ size_t next_numbers() { return COUNT * (gridDim.x * (size_t)blockDim.x); }
"""
FIT = {"double": 2, "float": 4, "bfloat16": 8, "half": 8}  # of a type in 16 bytes


def count(width, *arrays):
    """How many numbers of each of `arrays` (None is no array) a thread may take at once: 2, 4 or 8, so that the widest fill 16 bytes, or 1, if
    rows of `width` numbers do not divide into so many or an array does not begin at a multiple of them."""
    arrays = [x for x in arrays if x is not None]
    most = 16 // max([x.dtype.itemsize for x in arrays])
    return 1 if width % most or any(x.data.ptr % (most * x.dtype.itemsize) for x in arrays) else most


def variants(**types):
    """The two variants of a kernel that is made for these types (C names) and constants: several at once, and one."""
    return [dict(types, COUNT=n) for n in (min(FIT[t] for t in types.values() if t in FIT), 1)]


def threads_of_row(n, most=256):
    """Threads of a block that takes n numbers, or several at a time: whole warps, and few idle ones."""
    return min(most, -(-max(1, n) // 32) * 32)

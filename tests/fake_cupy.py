"""A stand-in for CuPy on NumPy, so that code for GPUs can be tested where there is none. Kernels run on tests/cuda_emulator.py.

It has CuPy's names and, as far as this engine meets them, its rules: arrays do not mix with NumPy's and are not converted unasked; a kernel is
launched with what CuPy would pass it; while a stream is captured nothing runs, and what waits for the device or allocates raises. It is stricter in
two points: NumPy's functions refuse its arrays altogether, and new memory holds NaN. `counts` says how often the host waited, memory was taken,
kernels were launched, parts of arrays were copied, and how many of all these took a kernel of CuPy's own, which it compiles with headers of CUDA's.

`install()` puts it in the place of `cupy`; the fixture `cupy` does so for one test, or gives the real one where there is a device.
"""

import contextlib
import ctypes
import functools
import importlib.machinery
import os
import sys
import time
import weakref
from types import ModuleType, SimpleNamespace

import cuda_emulator
import numpy as np
import pytest
from cuda_emulator import LaunchError, Memory, Program

counts = SimpleNamespace(synchronisations=0, allocations=0, launches=0, copies=0, own=0)
TOTAL = 16 << 30  # bytes of the device's memory
UNSUPPORTED, INVALIDATED = (
    900,
    901,
)  # CUDA's words for: not permitted while a stream is captured; the capture has failed
NAMES = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    UNSUPPORTED: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    INVALIDATED: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, what=""):
        self.status = status
        super().__init__(NAMES.get(status, str(status)) + (f" ({what})" if what else ""))


class OutOfMemoryError(MemoryError):
    pass


class CUBLASError(RuntimeError):
    def __init__(self, status):
        self.status = status
        super().__init__(_state.cublas_error or status)
        _state.cublas_error = None


# Streams and graphs


class Stream:
    """Work runs when it is submitted; while the stream is captured it is kept for the graph instead."""

    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr, self._work, self._before = (0 if null else id(self)), None, []

    def use(self):
        _state.stream = self
        return self

    def __enter__(self):
        self._before.append(_state.stream)
        return self.use()

    def __exit__(self, *error):
        _state.stream = self._before.pop()

    def is_capturing(self):
        return self._work is not None

    def begin_capture(self, mode=None):
        if self is Stream.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.is_capturing():
            raise CUDARuntimeError(1, "the stream is captured already")
        self._work, self._failed = [], False
        _state.capturing.append(self)

    def end_capture(self):
        if not self.is_capturing():
            raise RuntimeError("cannot end capture on a stream that is not being captured")
        work, self._work = self._work, None
        _state.capturing.remove(self)
        if self._failed:
            raise CUDARuntimeError(INVALIDATED)
        return Graph(work)

    def synchronize(self):
        _wait("Stream.synchronize", self)

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        pass

    @property
    def done(self):
        return True


_state = SimpleNamespace(stream=None, capturing=[], used=0, limit=0, pointer_mode=0, math_mode=0, cublas_error=None)
Stream.null = _state.stream = Stream(null=True)


class Graph:
    """Work that was submitted to a stream while it was captured: addresses and values as they were then."""

    def __init__(self, work):
        self._work = work

    def launch(self, stream=None):
        stream = stream or _state.stream
        if stream.is_capturing():
            stream._work.extend(self._work)
            return
        for work in self._work:
            work()

    def upload(self, stream=None):
        pass


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._time = None

    def record(self, stream=None):
        self._time = time.perf_counter()

    def synchronize(self):
        _wait("Event.synchronize", None)

    done = True


def get_elapsed_time(start, end):
    """Milliseconds between two events."""
    return (end._time - start._time) * 1e3


def _submit(work, stream=None):
    """Run `work`, or keep it for the graph of a stream that is captured."""
    stream = stream or _state.stream
    if stream.is_capturing():
        stream._work.append(work)
    else:
        work()


def _refuse(what, stream):
    """Fail as CUDA does where a captured stream (any, if `stream` is None) may not do `what`."""
    for captured in _state.capturing:
        if stream is None or stream is captured:
            captured._failed = True
            raise CUDARuntimeError(UNSUPPORTED, what)


def _wait(what, stream):
    """The host waits for the device."""
    _refuse(what, stream)
    counts.synchronisations += 1


def _stream_of(pointer):
    """The stream that a number stands for."""
    return next((s for s in (*_state.capturing, _state.stream, Stream.null) if s.ptr == pointer), Stream.null)


# Memory


def _allocated(nbytes):
    _refuse("memory is allocated", _state.stream)
    if _state.used + nbytes > (_state.limit or TOTAL):
        raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes (allocated so far: {_state.used:,} bytes).")
    memory = Memory(nbytes)
    counts.allocations += 1
    _state.used += nbytes
    weakref.finalize(memory, _freed, nbytes)
    return memory


def _freed(nbytes):
    _state.used -= nbytes


def _holding(address, nbytes, what):
    """The memory in which these bytes of the device lie."""
    for start, memory in list(Memory.live.items()):
        if start <= address and address + nbytes <= start + memory.nbytes:
            return memory
    raise LaunchError(f"{what}: {nbytes} bytes at {address:#x} are not within one array of the device")


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr, self.device_id = mem, mem.address + offset, 0

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.ptr - self.mem.address + offset)


class MemoryPool:
    def used_bytes(self):
        return _state.used

    total_bytes = used_bytes

    def free_bytes(self):
        return 0

    def free_all_blocks(self, stream=None):
        pass

    def set_limit(self, size=None, fraction=None):
        _state.limit = size if size is not None else int((fraction or 0) * TOTAL)

    def get_limit(self):
        return _state.limit


class PinnedMemoryPointer(bytearray):
    """Memory of the host that the device may read while the host goes on; a buffer."""

    @property
    def ptr(self):
        return ctypes.addressof((ctypes.c_char * max(1, len(self))).from_buffer(self)) if len(self) else 0

    def size(self):
        return len(self)


# Arrays


def _own(x):
    """NumPy's array behind an argument: arrays of the device, numbers, sequences of these. NumPy's own arrays are refused as CuPy refuses them."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(_own(one) for one in x)
    return x


def _arrays(x):
    if isinstance(x, ndarray):
        yield x
    elif isinstance(x, (list, tuple)):
        for one in x:
            yield from _arrays(one)


def _made(result, sources=()):
    """A result of NumPy's as arrays of the device: views of `sources` where it is one, else new memory."""
    if isinstance(result, (list, tuple)):
        return type(result)(_made(one, sources) for one in result)
    result = np.asanyarray(result)
    for source in sources:
        if result.size and isinstance(result.base, np.ndarray) and np.may_share_memory(result, source._a):
            return ndarray._of(result, source._memory, source)
    array = ndarray(result.shape, result.dtype, order="F" if result.flags.fnc else "C")
    array._a[...] = result
    return array


def _apply(function):
    """A function of NumPy's as one of CuPy's."""

    @functools.wraps(function)
    def applied(*arguments, out=None, **named):
        if out is not None:
            if not isinstance(out, ndarray):
                raise TypeError(f"out must be an array of the device, not {type(out)}")
            views, named = [_own(x) for x in arguments], {name: _own(x) for name, x in named.items()}
            counts.own += 1
            _submit(lambda: function(*views, out=out._a, **named))
            return out
        sources = [*_arrays(arguments), *_arrays(list(named.values()))]
        views = [_own(x) for x in arguments]
        shaped = function in VIEWS
        if not shaped:
            _refuse(f"{function.__name__} allocates", _state.stream)
            counts.own += 1
        with np.errstate(all="ignore"):
            return _made(function(*views, **{name: _own(x) for name, x in named.items()}), sources if shaped else ())

    return applied


class Flags(SimpleNamespace):
    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray:
    """An array of the device: NumPy's behind `_a`, in `_memory`."""

    __array_ufunc__ = None  # NumPy's functions and operators refuse it
    __array_priority__ = 100
    __hash__ = None
    __slots__ = ("_a", "_memory", "base", "__weakref__")

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape, dtype = (int(shape),) if np.ndim(shape) == 0 else tuple(map(int, shape)), np.dtype(dtype)
        if dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {dtype}")
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._memory, self.base = memptr.mem if memptr else _allocated(nbytes), None
        start = memptr.ptr - memptr.mem.address if memptr else 0
        self._a = np.ndarray(shape, dtype, self._memory.buffer, start, strides, "F" if order in ("F", "f") else "C")

    @classmethod
    def _of(cls, view, memory, base=None):
        array = cls.__new__(cls)
        array._a, array._memory, array.base = view, memory, base
        return array

    dtype = property(lambda self: self._a.dtype)
    shape = property(lambda self: self._a.shape)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    ndim = property(lambda self: self._a.ndim)
    strides = property(lambda self: self._a.strides)
    itemsize = property(lambda self: self._a.itemsize)
    T = property(lambda self: self.transpose())
    device = property(lambda self: Device(0))
    flags = property(
        lambda self: Flags(
            c_contiguous=self._a.flags.c_contiguous, f_contiguous=self._a.flags.f_contiguous, owndata=self.base is None
        )
    )
    data = property(
        lambda self: MemoryPointer(self._memory, self._a.__array_interface__["data"][0] - self._memory.address)
    )

    def __array__(self, *arguments, **named):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, function, types, arguments, named):
        raise TypeError(f"{function.__name__} of NumPy does not take arrays of the device")

    # Views
    def _view(self, view):
        return ndarray._of(view, self._memory, self)

    def __getitem__(self, index):
        index = _own(index)
        found = self._a[index]
        if any(isinstance(one, (np.ndarray, list)) for one in (index if isinstance(index, tuple) else (index,))):
            return _made(found)
        return self._view(
            found
            if isinstance(found, np.ndarray)
            else self._a[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        )

    def __setitem__(self, index, value):
        if not isinstance(value, (ndarray, int, float, complex, np.generic)):
            raise TypeError(f"Unsupported type {type(value)}")
        index, value = _own(index), _own(value)
        counts.copies += 1
        target = np.asarray(self._a[index])
        if isinstance(value, np.ndarray):
            self._apart(target, value)
        elif value != 0 or not target.flags.c_contiguous:
            counts.own += 1

        def write():
            with np.errstate(all="ignore"):
                self._a[index] = value

        _submit(write)

    @staticmethod
    def _apart(target, source):
        """A copy by a kernel: CuPy takes memory for its source first where that may lie among its target."""
        alike = target.shape == source.shape and target.strides == source.strides and target.dtype == source.dtype
        if alike and (target.flags.c_contiguous or target.ctypes.data == source.ctypes.data):
            return
        counts.own += 1
        if np.may_share_memory(target, source):  # by their bounds, as CuPy
            _refuse("memory is allocated", _state.stream)
            counts.allocations += 1

    def reshape(self, *shape, order="C"):
        view = self._a.reshape(*shape, order=order)
        return self._view(view) if not view.size or np.may_share_memory(view, self._a) else _made(view)

    def view(self, dtype=None, type=None):
        return self._view(self._a.view() if dtype is None else self._a.view(dtype))

    def transpose(self, *axes):
        return self._view(self._a.transpose(*axes))

    def swapaxes(self, a, b):
        return self._view(self._a.swapaxes(a, b))

    def squeeze(self, axis=None):
        return self._view(self._a.squeeze(axis))

    def ravel(self, order="C"):
        return self.reshape(-1, order=order)

    # Copies
    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):
            return _made(self._a.astype(dtype, order=order))

    def copy(self, order="C"):
        return _made(self._a.copy(order))

    def flatten(self, order="C"):
        return _made(self._a.flatten(order))

    def fill(self, value):
        value = _own(value)
        counts.own += bool(value != 0 or not self._a.flags.c_contiguous)
        _submit(lambda: self._a.fill(value))

    def get(self, stream=None, order="C", out=None, blocking=True):
        _wait("get", stream or _state.stream)
        if out is None:
            return self._a.copy(order)
        if out.dtype != self.dtype or out.shape != self.shape:
            raise ValueError(f"out is {out.dtype} {out.shape}, not {self.dtype} {self.shape}")
        out[...] = self._a
        return out

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self._a.flags.c_contiguous or self._a.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        if stream is None:
            _wait("set", _state.stream)
        else:
            _refuse("pageable memory is copied", stream)
        self._a[...] = arr

    def item(self, *index):
        return self.get().item(*index)

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __bool__(self):
        return bool(self.item())

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        return repr(self._a)

    def __format__(self, form):
        return format(self.item(), form) if not self.ndim else repr(self)


def _named(names, where=None):
    """{name: what this file calls so}, or what `where` calls so."""
    return {name: globals()[name] if where is None else getattr(where, name) for name in names.split()}


# Functions that return views where they can; those that compute, with out= where NumPy has it; those of shapes; reductions, which give arrays of no axes
VIEWS = tuple(
    _named(
        "reshape ravel transpose broadcast_to squeeze expand_dims swapaxes moveaxis split array_split flip diagonal", np
    ).values()
)
COMPUTED = """add subtract multiply divide true_divide floor_divide power mod remainder negative absolute abs sqrt square reciprocal exp exp2 expm1 log
              log1p log2 sin cos tan tanh arctan2 hypot maximum minimum fmax fmin greater less greater_equal less_equal equal not_equal logical_and
              logical_or logical_not bitwise_and bitwise_or bitwise_xor invert left_shift right_shift isnan isfinite isinf sign floor ceil rint clip
              where dot matmul outer tensordot einsum sum max min amax amin mean var std prod any all argmax argmin count_nonzero cumsum sort argsort
              concatenate stack repeat tile take take_along_axis roll tril triu searchsorted nan_to_num ldexp""".split()


def _operator(name, function, swapped=False, inplace=False):
    def operate(self, other):
        if not isinstance(other, (ndarray, int, float, complex, np.generic)):
            if isinstance(other, np.ndarray):
                raise TypeError(f"Unsupported type {type(other)}")
            return NotImplemented
        if inplace:
            view, other = self._a, _own(other)
            counts.own += 1

            def work():
                with np.errstate(all="ignore"):
                    function(view, other, out=view, casting="same_kind")

            _submit(work)
            return self
        return _apply(function)(*((other, self) if swapped else (self, other)))

    setattr(ndarray, name, operate)


for _name, _function in dict(
    add=np.add,
    sub=np.subtract,
    mul=np.multiply,
    truediv=np.true_divide,
    floordiv=np.floor_divide,
    mod=np.mod,
    pow=np.power,
    matmul=np.matmul,
    lshift=np.left_shift,
    rshift=np.right_shift,
    xor=np.bitwise_xor,
    **{"and": np.bitwise_and, "or": np.bitwise_or},
).items():
    _operator(f"__{_name}__", _function)
    _operator(f"__r{_name}__", _function, swapped=True)
    if _name != "matmul":
        _operator(f"__i{_name}__", _function, inplace=True)
for _name, _function in dict(
    lt=np.less, le=np.less_equal, gt=np.greater, ge=np.greater_equal, eq=np.equal, ne=np.not_equal
).items():
    _operator(f"__{_name}__", _function)
for _name, _function in dict(neg=np.negative, abs=np.absolute, invert=np.invert, pos=np.positive).items():
    setattr(ndarray, f"__{_name}__", lambda self, function=_function: _apply(function)(self))
for _name in "sum max min mean var std prod any all argmax argmin cumsum dot take repeat clip argsort round".split():
    setattr(
        ndarray,
        _name,
        lambda self, *arguments, function=getattr(np, _name), **named: _apply(function)(self, *arguments, **named),
    )


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def full(shape, fill_value, dtype=None, order="C"):
    array = ndarray(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order=order)
    array.fill(fill_value)
    return array


def zeros(shape, dtype=float, order="C"):
    return full(shape, 0, dtype, order)


def ones(shape, dtype=float, order="C"):
    return full(shape, 1, dtype, order)


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    return empty(prototype.shape if shape is None else shape, prototype.dtype if dtype is None else dtype)


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    return full(a.shape if shape is None else shape, fill_value, a.dtype if dtype is None else dtype)


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return full_like(a, 0, dtype, shape=shape)


def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    return full_like(a, 1, dtype, shape=shape)


def arange(*arguments, dtype=None):
    return _made(np.arange(*arguments, dtype=dtype))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """A copy on the device of an array of the host or the device, or of a sequence."""
    if isinstance(obj, ndarray):
        obj = obj._a
    elif isinstance(obj, (list, tuple)):
        obj = np.array(_own(obj))
    _refuse("an array is copied from the host", _state.stream)
    with np.errstate(all="ignore"):
        return _made(np.array(obj, dtype=dtype, order=order, ndmin=ndmin))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype, order=order or "K")


def ascontiguousarray(a, dtype=None):
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous and a.ndim else _made(np.ascontiguousarray(a._a))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out)
    return np.asarray(a)


def copyto(dst, src, casting="same_kind", where=None):
    if not isinstance(dst, ndarray):
        raise TypeError(f"dst must be an array of the device, not {type(dst)}")
    dst[...] = src


def get_array_module(*arrays):
    return install.module if any(isinstance(x, ndarray) for x in arrays) else np


def shares_memory(a, b, max_work=None):
    return np.shares_memory(_own(a), _own(b))


# Kernels


@functools.lru_cache(maxsize=None)
def _program(code):
    return Program(code)


def _shared_of_block():
    return cuda_emulator.MOST_SHARED if cuda_emulator.settings.tensor_cores else 64 * 1024


class RawModule:
    def __init__(
        self,
        *,
        code=None,
        path=None,
        options=(),
        backend="nvrtc",
        translate_cucomplex=False,
        enable_cooperative_groups=False,
        name_expressions=None,
        jitify=False,
    ):
        if not isinstance(code, str) or path is not None:
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if not isinstance(options, tuple):
            raise TypeError("options must be a tuple")
        self.code = code

    def get_function(self, name):
        return RawKernel(self.code, name)

    def compile(self, log_stream=None):
        _program(self.code)._compiled()


class RawKernel:
    def __init__(self, code, name, options=(), backend="nvrtc", **named):
        self.code, self.name, self._most_shared = code, name, 48 * 1024

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, n):
        if n > _shared_of_block():
            raise CUDARuntimeError(
                1,
                f"{self.name}: a block of this device has at most {_shared_of_block()} bytes of shared memory, not {n}",
            )
        self._most_shared = n

    def __call__(self, grid, block, args, *, shared_mem=0):
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block must be tuples")
        if shared_mem > self._most_shared:
            raise CUDARuntimeError(
                1,
                f"{self.name}: {shared_mem} bytes of shared memory, {self._most_shared} allowed: set max_dynamic_shared_size_bytes",
            )
        program, values, memories = _program(self.code), [], []
        for x in args:
            if x is None:
                x = np.uint64(0)
            elif isinstance(x, ndarray):
                memories.append(x._memory)
                x = np.uint64(x.data.ptr)
            elif isinstance(x, MemoryPointer):
                memories.append(x.mem)
                x = np.uint64(x.ptr)
            elif isinstance(x, np.ndarray):
                if x.size != 1:
                    raise TypeError(f"You are trying to pass a numpy.ndarray of shape {x.shape} as a kernel parameter.")
                x = x.copy()
                memories += [held for held in [_pointed(x)] if held]
            elif not isinstance(x, (np.generic, bool, int, float)):
                raise TypeError(f"Unsupported type {type(x)}")
            values.append(x)
        counts.launches += 1
        alive = [weakref.ref(memory) for memory in memories]  # a graph holds addresses, not arrays
        del memories

        def launch():
            memories = [one() for one in alive]
            if None in memories:
                raise LaunchError(f"{self.name}: a graph uses an array that is gone")
            program.launch(
                self.name, tuple(max(1, n) for n in grid), tuple(max(1, n) for n in block), values, shared_mem, memories
            )

        _submit(launch)


def _pointed(struct):
    """The memory that a struct passed by value points into (a `Scalar` by array)."""
    if struct.dtype.names and "pointer" in struct.dtype.names and int(struct["pointer"].item()):
        return _holding(int(struct["pointer"].item()), 1, "an argument")
    return None


# cuBLAS, which counts in columns

TYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
    14: np.dtype(np.uint16),
}  # cudaDataType; 14 is bfloat16
KNOWN = {
    (0, 0, 68),
    (1, 1, 70),
    (2, 2, 68),
    (2, 0, 68),
    (14, 14, 68),
    (14, 0, 68),
    (0, 0, 69),
    (0, 0, 77),
}  # types of A and B, of C, and of the sums


def _matrix(address, rows, columns, leading, batch, stride, kind, what):
    """(batch, rows, columns): a matrix in columns that lie `leading` numbers apart, `batch` times."""
    dtype = TYPES[kind]
    if leading < max(1, rows):
        raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE")
    last = (batch - 1) * abs(stride) + (columns - 1) * leading + rows
    memory = _holding(address, max(0, last) * dtype.itemsize, f"cuBLAS' {what}")
    whole = memory.buffer[address - memory.address :][: memory.nbytes // dtype.itemsize * dtype.itemsize]
    whole = whole[: len(whole) // dtype.itemsize * dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(
        whole, (batch, rows, columns), [dtype.itemsize * n for n in (stride, 1, leading)]
    )


def _wide(x, dtype):
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(dtype)


def _bfloat16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FFF, (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _gemm(
    stream,
    transa,
    transb,
    m,
    n,
    k,
    alpha,
    A,
    Atype,
    lda,
    strideA,
    B,
    Btype,
    ldb,
    strideB,
    beta,
    C,
    Ctype,
    ldc,
    strideC,
    batch,
    compute,
):
    if Atype != Btype or (Atype, Ctype, compute) not in KNOWN:
        raise CUBLASError("CUBLAS_STATUS_NOT_SUPPORTED")
    if Atype == 14 and not cuda_emulator.settings.tensor_cores:
        raise CUBLASError("CUBLAS_STATUS_ARCH_MISMATCH")
    if min(m, n, k) < 0 or batch < 0 or {transa, transb} - {0, 1}:
        raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE")
    if 0 in (m, n, batch):
        return
    sums = np.dtype(np.float64 if compute == 70 else np.float32)
    number = ctypes.c_double if compute == 70 else ctypes.c_float
    of_host = _state.pointer_mode == 0
    factors = [number.from_address(address).value for address in (alpha, beta)] if of_host else None
    if not of_host:
        for address in (alpha, beta):
            _holding(address, sums.itemsize, "cuBLAS' alpha or beta")
    a = _matrix(A, *((k, m) if transa else (m, k)), lda, batch, strideA, Atype, "A")
    b = _matrix(B, *((n, k) if transb else (k, n)), ldb, batch, strideB, Btype, "B")
    c = _matrix(C, m, n, ldc, batch, strideC, Ctype, "C")
    counts.launches += 1

    def product():
        scale, keep = factors or [number.from_address(address).value for address in (alpha, beta)]
        with np.errstate(all="ignore"):
            result = sums.type(scale) * np.matmul(
                _wide(a.swapaxes(1, 2) if transa else a, sums), _wide(b.swapaxes(1, 2) if transb else b, sums)
            )
            if keep:
                result += sums.type(keep) * _wide(c, sums)
            c[...] = _bfloat16(result) if Ctype == 14 else result

    _submit(product, stream)


def _stream_of_cupy():
    """The current stream, which CuPy gives to cuBLAS with each call, unless it is captured: that it refuses, though cuBLAS would not."""
    if _state.stream.is_capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    return _state.stream


def gemmEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, computeType, algo
):
    _gemm(
        _stream_of_cupy(),
        transa,
        transb,
        m,
        n,
        k,
        alpha,
        A,
        Atype,
        lda,
        0,
        B,
        Btype,
        ldb,
        0,
        beta,
        C,
        Ctype,
        ldc,
        0,
        1,
        computeType,
    )


def gemmStridedBatchedEx(
    handle,
    transa,
    transb,
    m,
    n,
    k,
    alpha,
    A,
    Atype,
    lda,
    strideA,
    B,
    Btype,
    ldb,
    strideB,
    beta,
    C,
    Ctype,
    ldc,
    strideC,
    batchCount,
    computeType,
    algo,
):
    _gemm(
        _stream_of_cupy(),
        transa,
        transb,
        m,
        n,
        k,
        alpha,
        A,
        Atype,
        lda,
        strideA,
        B,
        Btype,
        ldb,
        strideB,
        beta,
        C,
        Ctype,
        ldc,
        strideC,
        batchCount,
        computeType,
    )


# cuBLAS' C interface, as a library that calls back

SHIM = r"""
typedef int Gemm(void*, int, int, int, int, int, const void*, const void*, int, int, long long, const void*, int, int, long long, const void*, void*, int, int, long long, int, int, int);
typedef int Set(int, void*, void*, unsigned long);
static Gemm* gemm;
static Set* set;
extern "C" {
void fake_cublas(void* g, void* s) { gemm = (Gemm*)g, set = (Set*)s; }
int cublasSetStream_v2(void* handle, void* stream) { return set(0, handle, stream, 0); }
int cublasSetWorkspace_v2(void* handle, void* room, unsigned long size) { return set(1, handle, room, size); }
int cublasSetMathMode(void* handle, int mode) { return set(2, handle, 0, mode); }
int cublasGemmStridedBatchedEx(void* h, int p, int q, int m, int n, int k, const void* x, const void* a, int s, int i, long long u, const void* b, int t, int j, long long v,
                               const void* y, void* c, int r, int l, long long w, int batch, int sums, int way) {
    return gemm(h, p, q, m, n, k, x, a, s, i, u, b, t, j, v, y, c, r, l, w, batch, sums, way);
}
int cublasGemmEx(void* h, int p, int q, int m, int n, int k, const void* x, const void* a, int s, int i, const void* b, int t, int j, const void* y, void* c, int r, int l, int sums, int way) {
    return gemm(h, p, q, m, n, k, x, a, s, i, 0, b, t, j, 0, y, c, r, l, 0, 1, sums, way);
}
}"""
_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_handles = {}  # of which stream each is, and whether it has a workspace


def _guarded(function):
    """As a callback: what it raises, `CUBLASError` will tell."""

    def guarded(*arguments):
        try:
            function(*arguments)
        except Exception as error:
            _state.cublas_error = error
            return getattr(error, "status", None) if isinstance(getattr(error, "status", None), int) else 14
        return 0

    return guarded


@ctypes.CFUNCTYPE(
    _int,
    _pointer,
    *[_int] * 5,
    _pointer,
    *[_pointer, _int, _int, _long] * 2,
    _pointer,
    _pointer,
    _int,
    _int,
    _long,
    _int,
    _int,
    _int,
)
@_guarded
def _called(
    handle,
    transa,
    transb,
    m,
    n,
    k,
    alpha,
    A,
    Atype,
    lda,
    strideA,
    B,
    Btype,
    ldb,
    strideB,
    beta,
    C,
    Ctype,
    ldc,
    strideC,
    batch,
    compute,
    algo,
):
    stream, roomy = _handles[handle]
    if stream.is_capturing() and not roomy:
        _refuse("cuBLAS allocates its workspace", stream)
    _gemm(
        stream,
        transa,
        transb,
        m,
        n,
        k,
        alpha,
        A or 0,
        Atype,
        lda,
        strideA,
        B or 0,
        Btype,
        ldb,
        strideB,
        beta,
        C or 0,
        Ctype,
        ldc,
        strideC,
        batch,
        compute,
    )


@ctypes.CFUNCTYPE(_int, _int, _pointer, _pointer, ctypes.c_ulong)
@_guarded
def _set(what, handle, pointer, size):
    if what == 0:
        _handles[handle] = _stream_of(pointer or 0), False  # its workspace is the library's again
    elif what == 1:
        _holding(pointer, size, "cuBLAS' workspace")
        _handles[handle] = _handles[handle][0], True


@functools.lru_cache(maxsize=None)
def _shim():
    """Where the library lies."""
    path = str(cuda_emulator._library(SHIM, "-O1"))
    ctypes.CDLL(path).fake_cublas(ctypes.cast(_called, _pointer), ctypes.cast(_set, _pointer))
    return path


def _create():
    _refuse("cuBLAS is opened", _state.stream)
    handle = len(_handles) + 2
    _handles[handle] = Stream.null, False
    return handle


# The device and the runtime


class Device:
    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)
        if self.id:
            raise CUDARuntimeError(101)

    compute_capability = property(lambda self: "90" if cuda_emulator.settings.tensor_cores else "75")
    mem_info = property(lambda self: memGetInfo())
    cublas_handle = property(lambda self: 1)
    attributes = property(
        lambda self: {
            "MultiProcessorCount": 132,
            "MaxSharedMemoryPerBlockOptin": _shared_of_block(),
            "MaxSharedMemoryPerBlock": 48 * 1024,
            "WarpSize": 32,
            "MaxThreadsPerBlock": 1024,
            "ComputeCapabilityMajor": int(self.compute_capability[0]),
            "ComputeCapabilityMinor": int(self.compute_capability[1]),
        }
    )

    def use(self):
        pass

    def synchronize(self):
        _wait("Device.synchronize", None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


def memGetInfo():
    """(free, total) bytes."""
    return TOTAL - _state.used, TOTAL


def getDeviceProperties(device):
    Device(device)
    major, minor = map(int, Device(0).compute_capability)
    return {
        "name": b"emulated GPU",
        "major": major,
        "minor": minor,
        "multiProcessorCount": 132,
        "totalGlobalMem": TOTAL,
        "sharedMemPerBlock": 48 * 1024,
        "sharedMemPerBlockOptin": _shared_of_block(),
        "sharedMemPerMultiprocessor": _shared_of_block() + 1024,
        "maxThreadsPerBlock": 1024,
        "warpSize": 32,
        "regsPerBlock": 65536,
        "l2CacheSize": 50 << 20,
        "clockRate": 1980000,
        "memoryClockRate": 3201000,
        "memoryBusWidth": 6144,
    }


def deviceGetAttribute(attribute, device):
    major, minor = map(int, Device(device).compute_capability)
    return {16: 132, 97: _shared_of_block(), 8: 48 * 1024, 10: 32, 75: major, 76: minor}[attribute]


def memcpyAsync(dst, src, size, kind, stream):
    """kind 1: from the host, 2: to the host, 3: within the device."""
    if kind not in (1, 2, 3):
        raise CUDARuntimeError(1, "the fake wants to be told the direction")
    if size:
        for address in {1: (dst,), 2: (src,), 3: (dst, src)}[kind]:
            _holding(address, size, "memcpyAsync")
    counts.copies += 1
    _submit(lambda: ctypes.memmove(dst, src, size), _stream_of(stream))


def memcpy(dst, src, size, kind):
    _wait("memcpy", None)
    memcpyAsync(dst, src, size, kind, 0)


def memsetAsync(ptr, value, size, stream):
    _holding(ptr, size, "memsetAsync")
    _submit(lambda: ctypes.memset(ptr, value, size), _stream_of(stream))


def _module(name, **members):
    module = ModuleType(name)
    module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None, is_package=True), []
    vars(module).update(members)
    return module


def _modules():
    """The modules by name."""
    runtime = _module(
        "cupy.cuda.runtime",
        **_named("CUDARuntimeError memGetInfo getDeviceProperties deviceGetAttribute memcpyAsync memcpy memsetAsync"),
        is_hip=False,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        setDevice=lambda device: Device(device).use(),
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
        deviceSynchronize=lambda: _wait("deviceSynchronize", None),
        streamSynchronize=lambda stream: _wait("streamSynchronize", _stream_of(stream)),
        memcpyHostToHost=0,
        memcpyHostToDevice=1,
        memcpyDeviceToHost=2,
        memcpyDeviceToDevice=3,
        memcpyDefault=4,
        CUDA_R_32F=0,
        CUDA_R_64F=1,
        CUDA_R_16F=2,
        CUDA_R_16BF=14,
        streamCaptureModeGlobal=0,
        streamCaptureModeThreadLocal=1,
        streamCaptureModeRelaxed=2,
        cudaDevAttrMultiProcessorCount=16,
        cudaDevAttrMaxSharedMemoryPerBlockOptin=97,
        cudaDevAttrMaxSharedMemoryPerBlock=8,
        cudaDevAttrWarpSize=10,
        cudaDevAttrComputeCapabilityMajor=75,
        cudaDevAttrComputeCapabilityMinor=76,
    )
    cublas = _module(
        "cupy_backends.cuda.libs.cublas",
        **_named("CUBLASError gemmEx gemmStridedBatchedEx"),
        __file__=_shim(),
        create=_create,
        setStream=lambda handle, stream: None,
        setPointerMode=lambda handle, mode: setattr(_state, "pointer_mode", mode),
        getPointerMode=lambda handle: _state.pointer_mode,
        setMathMode=lambda handle, mode: setattr(_state, "math_mode", mode),
        getMathMode=lambda handle: _state.math_mode,
        CUBLAS_OP_N=0,
        CUBLAS_OP_T=1,
        CUBLAS_POINTER_MODE_HOST=0,
        CUBLAS_POINTER_MODE_DEVICE=1,
        CUBLAS_GEMM_DEFAULT=-1,
        CUBLAS_GEMM_DEFAULT_TENSOR_OP=99,
        CUBLAS_COMPUTE_32F=68,
        CUBLAS_COMPUTE_32F_PEDANTIC=69,
        CUBLAS_COMPUTE_64F=70,
        CUBLAS_COMPUTE_32F_FAST_TF32=77,
        CUBLAS_DEFAULT_MATH=0,
        CUBLAS_PEDANTIC_MATH=2,
        CUBLAS_TF32_TENSOR_OP_MATH=3,
    )
    handle, current, capability = lambda: 1, lambda device_id=-1: _state.stream, lambda: Device().compute_capability
    parts = dict(
        runtime=runtime,
        cublas=cublas,
        memory=_module("cupy.cuda.memory", **_named("OutOfMemoryError MemoryPointer MemoryPool")),
        device=_module(
            "cupy.cuda.device",
            Device=Device,
            get_cublas_handle=handle,
            get_device_id=lambda: 0,
            get_compute_capability=capability,
        ),
        nvrtc=_module("cupy.cuda.nvrtc", getVersion=lambda: (12, 9)),
        stream=_module("cupy.cuda.stream", **_named("Stream Event get_elapsed_time"), get_current_stream=current),
    )
    cuda = _module(
        "cupy.cuda",
        **parts,
        **_named("Device Stream Event Graph MemoryPointer MemoryPool PinnedMemoryPointer get_elapsed_time"),
        get_cublas_handle=handle,
        get_device_id=lambda: 0,
        get_current_stream=current,
        alloc_pinned_memory=lambda size: PinnedMemoryPointer(size),
        is_available=lambda: True,
        alloc=lambda size: MemoryPointer(_allocated(size), 0),
    )
    pool = MemoryPool()
    cupy = _module(
        "cupy",
        __version__="14.2.0",
        cuda=cuda,
        linalg=_module("cupy.linalg", norm=_apply(np.linalg.norm)),
        **_named(
            "ndarray RawModule RawKernel empty zeros ones full empty_like zeros_like ones_like full_like arange array asarray ascontiguousarray asnumpy copyto"
        ),
        **_named("get_array_module shares_memory"),
        may_share_memory=shares_memory,
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pool,
        **_named(
            "dtype newaxis pi inf nan float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_ generic floating integer",
            np,
        ),
        **{function.__name__: _apply(function) for function in VIEWS},
        **{name: _apply(getattr(np, name)) for name in COMPUTED},
    )

    def pinned(shape, dtype=float, order="C"):
        return np.zeros(shape, dtype, order)

    backends = {
        name: _module(name)
        for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs", "cupy_backends.cuda.api")
    }
    backends["cupy_backends"].cuda = backends["cupy_backends.cuda"]
    backends["cupy_backends.cuda"].libs, backends["cupy_backends.cuda"].api = (
        backends["cupy_backends.cuda.libs"],
        backends["cupy_backends.cuda.api"],
    )
    backends["cupy_backends.cuda.libs"].cublas, backends["cupy_backends.cuda.api"].runtime = cublas, runtime
    return {
        "cupy": cupy,
        "cupy.cuda": cuda,
        "cupy.linalg": cupy.linalg,
        "cupyx": _module("cupyx", empty_pinned=pinned, zeros_pinned=pinned),
        **backends,
        "cupy_backends.cuda.libs.cublas": cublas,
        "cupy_backends.cuda.api.runtime": runtime,
        **{f"cupy.cuda.{name}": module for name, module in parts.items() if name != "cublas"},
    }


@functools.lru_cache(maxsize=None)
def real():
    """The real CuPy, where it is installed and finds a device, else None."""
    try:
        import cupy

        if os.environ.get("SLM_NP_NO_POOL"):
            cupy.cuda.set_allocator(None)  # so that compute-sanitizer knows where each array ends
        return cupy if cupy.cuda.runtime.getDeviceCount() else None
    except Exception:  # not installed, no driver, no libraries: each fails in its own way
        return None


@functools.lru_cache(maxsize=None)
def modules():
    return _modules()


def install():
    """Put the fake in the place of `cupy`, unless the real one finds a device; returns the module."""
    found = real()
    if found is None:
        if cuda_emulator.missing():
            raise RuntimeError(cuda_emulator.missing())
        sys.modules.update(modules())
        found = modules()["cupy"]
    install.module = found
    return found


install.module = None


@contextlib.contextmanager
def installed():
    """`install` for the duration."""
    names = [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupyx", "cupy_backends")]
    before = {name: sys.modules[name] for name in names}
    try:
        yield install()
    finally:
        if real() is None:
            for name in modules():
                sys.modules.pop(name, None)
            sys.modules.update(before)


@pytest.fixture
def cupy():
    """CuPy where there is a device, else the fake for the duration of a test."""
    if real() is None and cuda_emulator.missing():
        pytest.skip(cuda_emulator.missing())
    with installed() as module:
        yield module

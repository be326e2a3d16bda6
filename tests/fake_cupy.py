"""A fake CuPy on NumPy, so that code for GPUs can be tested without one. Kernels run on tests/cuda_emulator.py.

It has CuPy's names and, as far as the engine meets them, its rules: arrays do not mix with NumPy's and are not
converted implicitly; a kernel is launched with what CuPy would pass it; a captured stream runs nothing, and calls
that synchronize or allocate raise. It is stricter in two points: NumPy's functions refuse its arrays altogether, and
new memory contains NaN. `counts` says how often the host synchronized, and so on (tests/fake_cuda.py).

`install()` replaces the module `cupy`. The fixture `cupy` does so for one test, or returns the real CuPy where there is
a GPU.
"""

import contextlib
import functools
import importlib.machinery
import os
import sys
import weakref
from types import ModuleType, SimpleNamespace

import cuda_emulator
import fake_cublas
import fake_cuda
import numpy as np
import pytest
from cuda_emulator import LaunchError, Program
from fake_cuda import (
    CUDARuntimeError,
    Device,
    MemoryPointer,
    MemoryPool,
    PinnedMemoryPointer,
    allocate,
    counts,
    memory_at,
    refuse,
    shared_per_block,
    state,
    submit,
    synchronize,
)

# Arrays


def unwrap(x):
    """The NumPy array of a device array, also within sequences. Raises TypeError for a NumPy array, as CuPy does."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(unwrap(one) for one in x)
    return x


def _arrays(x):
    if isinstance(x, ndarray):
        yield x
    elif isinstance(x, (list, tuple)):
        for one in x:
            yield from _arrays(one)


def wrap(result, sources=()):
    """A result of NumPy as device arrays: views if they are views of `sources`, else new memory."""
    if isinstance(result, (list, tuple)):
        return type(result)(wrap(one, sources) for one in result)
    result = np.asanyarray(result)
    for source in sources:
        if result.size and isinstance(result.base, np.ndarray) and np.may_share_memory(result, source._a):
            return ndarray._of(result, source._memory, source)
    array = ndarray(result.shape, result.dtype, order="F" if result.flags.fnc else "C")
    array._a[...] = result
    return array


def _apply(function):
    """A function of NumPy as one of CuPy."""

    @functools.wraps(function)
    def applied(*arguments, out=None, **named):
        if out is not None:
            if not isinstance(out, ndarray):
                raise TypeError(f"out must be a device array, not {type(out)}")
            views, named = [unwrap(x) for x in arguments], {name: unwrap(x) for name, x in named.items()}
            counts.cupy_kernels += 1
            submit(lambda: function(*views, out=out._a, **named))
            return out
        sources = [*_arrays(arguments), *_arrays(list(named.values()))]
        views = [unwrap(x) for x in arguments]
        may_be_view = function in VIEWS
        if not may_be_view:
            refuse(f"{function.__name__} allocates", state.stream)
            counts.cupy_kernels += 1
        with np.errstate(all="ignore"):
            return wrap(
                function(*views, **{name: unwrap(x) for name, x in named.items()}), sources if may_be_view else ()
            )

    return applied


class Flags(SimpleNamespace):
    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray:
    """A device array: a NumPy array `_a` in `_memory`."""

    __array_ufunc__ = None  # NumPy's functions and operators refuse it
    __array_priority__ = 100
    __hash__ = None
    __slots__ = ("_a", "_memory", "base", "__weakref__")

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape, dtype = (int(shape),) if np.ndim(shape) == 0 else tuple(map(int, shape)), np.dtype(dtype)
        if dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {dtype}")
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._memory, self.base = memptr.mem if memptr else allocate(nbytes), None
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
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, function, types, arguments, named):
        raise TypeError(f"NumPy's {function.__name__} does not take device arrays")

    # Views
    def _view(self, view):
        return ndarray._of(view, self._memory, self)

    def __getitem__(self, index):
        index = unwrap(index)
        found = self._a[index]
        if any(isinstance(one, (np.ndarray, list)) for one in (index if isinstance(index, tuple) else (index,))):
            return wrap(found)
        return self._view(
            found
            if isinstance(found, np.ndarray)
            else self._a[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        )

    def __setitem__(self, index, value):
        if not isinstance(value, (ndarray, int, float, complex, np.generic)):
            raise TypeError(f"Unsupported type {type(value)}")
        index, value = unwrap(index), unwrap(value)
        counts.copies += 1
        target = np.asarray(self._a[index])
        if isinstance(value, np.ndarray):
            self._copy_by_kernel(target, value)
        elif value != 0 or not target.flags.c_contiguous:
            counts.cupy_kernels += 1

        def write():
            with np.errstate(all="ignore"):
                self._a[index] = value

        submit(write)

    @staticmethod
    def _copy_by_kernel(target, source):
        """Count a copy that CuPy makes by a kernel; it first copies the source if the two may overlap."""
        alike = target.shape == source.shape and target.strides == source.strides and target.dtype == source.dtype
        if alike and (target.flags.c_contiguous or target.ctypes.data == source.ctypes.data):
            return
        counts.cupy_kernels += 1
        if np.may_share_memory(target, source):  # compares bounds, as CuPy does
            refuse("memory is allocated", state.stream)
            counts.allocations += 1

    def reshape(self, *shape, order="C"):
        view = self._a.reshape(*shape, order=order)
        return self._view(view) if not view.size or np.may_share_memory(view, self._a) else wrap(view)

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
            return wrap(self._a.astype(dtype, order=order))

    def copy(self, order="C"):
        return wrap(self._a.copy(order))

    def flatten(self, order="C"):
        return wrap(self._a.flatten(order))

    def fill(self, value):
        value = unwrap(value)
        counts.cupy_kernels += bool(value != 0 or not self._a.flags.c_contiguous)
        submit(lambda: self._a.fill(value))

    def get(self, stream=None, order="C", out=None, blocking=True):
        synchronize("get", stream or state.stream)
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
            synchronize("set", state.stream)
        else:
            refuse("pageable memory is copied", stream)
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


def members(names, where=None):
    """{name: member} of a module, by default of this one."""
    return {name: globals()[name] if where is None else getattr(where, name) for name in names.split()}


# Functions that return views where possible
VIEWS = tuple(
    members(
        "reshape ravel transpose broadcast_to squeeze expand_dims swapaxes moveaxis split array_split flip diagonal", np
    ).values()
)
# Functions that compute
COMPUTED = """
    add subtract multiply divide true_divide floor_divide power mod remainder negative absolute abs sqrt square
    reciprocal exp exp2 expm1 log log1p log2 sin cos tan tanh arctan2 hypot maximum minimum fmax fmin greater less
    greater_equal less_equal equal not_equal logical_and logical_or logical_not bitwise_and bitwise_or bitwise_xor
    invert left_shift right_shift isnan isfinite isinf sign floor ceil rint clip where dot matmul outer tensordot
    einsum sum max min amax amin mean var std prod any all argmax argmin count_nonzero cumsum sort argsort concatenate
    stack repeat tile take take_along_axis roll tril triu searchsorted nan_to_num ldexp
""".split()


def _operator(name, function, swapped=False, inplace=False):
    def operate(self, other):
        if not isinstance(other, (ndarray, int, float, complex, np.generic)):
            if isinstance(other, np.ndarray):
                raise TypeError(f"Unsupported type {type(other)}")
            return NotImplemented
        if inplace:
            view, other = self._a, unwrap(other)
            counts.cupy_kernels += 1

            def work():
                with np.errstate(all="ignore"):
                    function(view, other, out=view, casting="same_kind")

            submit(work)
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
    return wrap(np.arange(*arguments, dtype=dtype))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """A copy on the device of an array or a sequence."""
    if isinstance(obj, ndarray):
        obj = obj._a
    elif isinstance(obj, (list, tuple)):
        obj = np.array(unwrap(obj))
    refuse("an array is copied from the host", state.stream)
    with np.errstate(all="ignore"):
        return wrap(np.array(obj, dtype=dtype, order=order, ndmin=ndmin))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype, order=order or "K")


def ascontiguousarray(a, dtype=None):
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous and a.ndim else wrap(np.ascontiguousarray(a._a))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out)
    return np.asarray(a)


def copyto(dst, src, casting="same_kind", where=None):
    if not isinstance(dst, ndarray):
        raise TypeError(f"dst must be a device array, not {type(dst)}")
    dst[...] = src


def get_array_module(*arrays):
    return install.module if any(isinstance(x, ndarray) for x in arrays) else np


def shares_memory(a, b, max_work=None):
    return np.shares_memory(unwrap(a), unwrap(b))


# Kernels


@functools.lru_cache(maxsize=None)
def _program(code):
    return Program(code)


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
        self.code, self.name, self._shared_limit = code, name, 48 * 1024

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._shared_limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, n):
        if n > shared_per_block():
            raise CUDARuntimeError(
                1,
                f"{self.name}: a block of this device has at most {shared_per_block()} bytes of shared memory, not {n}",
            )
        self._shared_limit = n

    def __call__(self, grid, block, args, *, shared_mem=0):
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block must be tuples")
        if shared_mem > self._shared_limit:
            raise CUDARuntimeError(
                1,
                f"{self.name}: {shared_mem} bytes of shared memory, {self._shared_limit} allowed: "
                "set max_dynamic_shared_size_bytes",
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
                memories += [memory for memory in [memory_of_struct(x)] if memory]
            elif not isinstance(x, (np.generic, bool, int, float)):
                raise TypeError(f"Unsupported type {type(x)}")
            values.append(x)
        counts.launches += 1
        references = [weakref.ref(memory) for memory in memories]  # a graph holds addresses, not arrays
        del memories

        def launch():
            memories = [reference() for reference in references]
            if None in memories:
                raise LaunchError(f"{self.name}: a graph uses an array that has been freed")
            program.launch(
                self.name, tuple(max(1, n) for n in grid), tuple(max(1, n) for n in block), values, shared_mem, memories
            )

        submit(launch)


def memory_of_struct(struct):
    """The memory that a `Scalar` passed by value points to, or None."""
    if struct.dtype.names and "pointer" in struct.dtype.names and int(struct["pointer"].item()):
        return memory_at(int(struct["pointer"].item()), 1, "an argument")
    return None


def _module(name, **members):
    module = ModuleType(name)
    module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None, is_package=True), []
    vars(module).update(members)
    return module


def _modules():
    """The fake modules for sys.modules, by name."""
    runtime = _module(
        "cupy.cuda.runtime",
        **members(
            "CUDARuntimeError memGetInfo getDeviceProperties deviceGetAttribute memcpyAsync memcpy memsetAsync",
            fake_cuda,
        ),
        is_hip=False,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        setDevice=lambda device: Device(device).use(),
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
        deviceSynchronize=lambda: synchronize("deviceSynchronize", None),
        streamSynchronize=lambda stream: synchronize("streamSynchronize", fake_cuda.stream_of(stream)),
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
        CUBLASError=fake_cublas.CUBLASError,
        __file__=fake_cublas.library_path(),
        create=fake_cublas.create,
    )
    handle, current, capability = lambda: 1, lambda device_id=-1: state.stream, lambda: Device().compute_capability
    parts = dict(
        runtime=runtime,
        cublas=cublas,
        memory=_module("cupy.cuda.memory", **members("OutOfMemoryError MemoryPointer MemoryPool", fake_cuda)),
        device=_module(
            "cupy.cuda.device",
            Device=Device,
            get_cublas_handle=handle,
            get_device_id=lambda: 0,
            get_compute_capability=capability,
        ),
        nvrtc=_module("cupy.cuda.nvrtc", getVersion=lambda: (12, 9)),
        stream=_module(
            "cupy.cuda.stream", **members("Stream Event get_elapsed_time", fake_cuda), get_current_stream=current
        ),
    )
    cuda = _module(
        "cupy.cuda",
        **parts,
        **members("Device Stream Event Graph MemoryPointer MemoryPool PinnedMemoryPointer get_elapsed_time", fake_cuda),
        get_cublas_handle=handle,
        get_device_id=lambda: 0,
        get_current_stream=current,
        alloc_pinned_memory=lambda size: PinnedMemoryPointer(size),
        is_available=lambda: True,
        alloc=lambda size: MemoryPointer(allocate(size), 0),
    )
    pool = MemoryPool()
    cupy = _module(
        "cupy",
        __version__="14.2.0",
        cuda=cuda,
        linalg=_module("cupy.linalg", norm=_apply(np.linalg.norm)),
        **members(
            "ndarray RawModule RawKernel empty zeros ones full empty_like zeros_like ones_like full_like arange array"
        ),
        **members("asarray ascontiguousarray asnumpy copyto get_array_module shares_memory"),
        may_share_memory=shares_memory,
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pool,
        **members("dtype newaxis pi inf nan float16 float32 float64 int8 int16 int32 int64", np),
        **members("uint8 uint16 uint32 uint64 bool_ generic floating integer", np),
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
    """The real CuPy if it is installed and finds a GPU, else None."""
    try:
        import cupy

        if os.environ.get("SLM_NP_NO_POOL"):
            cupy.cuda.set_allocator(None)  # so that compute-sanitizer sees where each array ends
        return cupy if cupy.cuda.runtime.getDeviceCount() else None
    except Exception:  # not installed, no driver or no libraries: each raises another exception
        return None


@functools.lru_cache(maxsize=None)
def modules():
    return _modules()


def install():
    """Replace the module `cupy` by the fake, unless the real one finds a GPU. Returns the module."""
    module = real()
    if module is None:
        if cuda_emulator.missing():
            raise RuntimeError(cuda_emulator.missing())
        sys.modules.update(modules())
        module = modules()["cupy"]
    install.module = module
    return module


install.module = None


@contextlib.contextmanager
def installed():
    """`install` as a context."""
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
    """CuPy where there is a GPU, else the fake for the duration of a test."""
    if real() is None and cuda_emulator.missing():
        pytest.skip(cuda_emulator.missing())
    with installed() as module:
        yield module

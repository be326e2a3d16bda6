"""A fake CUDA runtime for tests: streams, captured graphs, events and device memory, with CUDA's rules about them.

Work runs when it is submitted. While a stream is captured, nothing runs: the work is stored for the graph, and calls
that synchronize or allocate fail as in CUDA. `counts` records what happened.
"""

import ctypes
import time
import weakref
from types import SimpleNamespace

import cuda_emulator
from cuda_emulator import LaunchError, Memory

# How often the host synchronized, memory was allocated, kernels were launched, and parts of arrays were copied.
# cupy_kernels: how many operations use a kernel of CuPy's own, which CuPy compiles with the headers of the CUDA
# toolkit.
counts = SimpleNamespace(synchronizations=0, allocations=0, launches=0, copies=0, cupy_kernels=0)
TOTAL = 16 << 30  # bytes of device memory
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901
NAMES = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    CAPTURE_UNSUPPORTED: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    CAPTURE_INVALIDATED: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, what=""):
        self.status = status
        super().__init__(NAMES.get(status, str(status)) + (f" ({what})" if what else ""))


class OutOfMemoryError(MemoryError):
    pass


# Streams and graphs


class Stream:
    """A stream: it runs work when it is submitted, or stores it while being captured."""

    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr, self._work, self._before = (0 if null else id(self)), None, []

    def use(self):
        state.stream = self
        return self

    def __enter__(self):
        self._before.append(state.stream)
        return self.use()

    def __exit__(self, *error):
        state.stream = self._before.pop()

    def is_capturing(self):
        return self._work is not None

    def begin_capture(self, mode=None):
        if self is Stream.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.is_capturing():
            raise CUDARuntimeError(1, "the stream is already being captured")
        self._work, self._failed = [], False
        state.capturing.append(self)

    def end_capture(self):
        if not self.is_capturing():
            raise RuntimeError("cannot end capture on a stream that is not being captured")
        work, self._work = self._work, None
        state.capturing.remove(self)
        if self._failed:
            raise CUDARuntimeError(CAPTURE_INVALIDATED)
        return Graph(work)

    def synchronize(self):
        synchronize("Stream.synchronize", self)

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        pass

    @property
    def done(self):
        return True


state = SimpleNamespace(stream=None, capturing=[], used=0, limit=0)
Stream.null = state.stream = Stream(null=True)


class Graph:
    """Work that was submitted to a stream while it was captured, with the addresses and values of that moment."""

    def __init__(self, work):
        self._work = work

    def launch(self, stream=None):
        stream = stream or state.stream
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
        synchronize("Event.synchronize", None)

    done = True


def get_elapsed_time(start, end):
    """Milliseconds between two events."""
    return (end._time - start._time) * 1e3


def submit(work, stream=None):
    """Run `work`, or store it if the stream is being captured."""
    stream = stream or state.stream
    if stream.is_capturing():
        stream._work.append(work)
    else:
        work()


def refuse(what, stream):
    """Fail as CUDA does if `stream` (None for any) is being captured: it does not permit `what` then."""
    for captured in state.capturing:
        if stream is None or stream is captured:
            captured._failed = True
            raise CUDARuntimeError(CAPTURE_UNSUPPORTED, what)


def synchronize(what, stream):
    """The host waits for the device."""
    refuse(what, stream)
    counts.synchronizations += 1


def stream_of(pointer):
    """The stream of a pointer."""
    return next((s for s in (*state.capturing, state.stream, Stream.null) if s.ptr == pointer), Stream.null)


# Memory


def allocate(nbytes):
    """A `Memory`. Raises OutOfMemoryError beyond the limit."""
    refuse("memory is allocated", state.stream)
    if state.used + nbytes > (state.limit or TOTAL):
        raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes (allocated so far: {state.used:,} bytes).")
    memory = Memory(nbytes)
    counts.allocations += 1
    state.used += nbytes
    weakref.finalize(memory, _free, nbytes)
    return memory


def _free(nbytes):
    state.used -= nbytes


def memory_at(address, nbytes, what):
    """The memory that contains these bytes. Raises LaunchError if they are not within one array."""
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
        return state.used

    total_bytes = used_bytes

    def free_bytes(self):
        return 0

    def free_all_blocks(self, stream=None):
        pass

    def set_limit(self, size=None, fraction=None):
        state.limit = size if size is not None else int((fraction or 0) * TOTAL)

    def get_limit(self):
        return state.limit


class PinnedMemoryPointer(bytearray):
    """Host memory that the device can copy from asynchronously; a buffer."""

    @property
    def ptr(self):
        return ctypes.addressof((ctypes.c_char * max(1, len(self))).from_buffer(self)) if len(self) else 0

    def size(self):
        return len(self)


# The device and the runtime


def shared_per_block():
    """Bytes of shared memory that a block may have."""
    return cuda_emulator.MAX_SHARED if cuda_emulator.settings.tensor_cores else 64 * 1024


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
            "MaxSharedMemoryPerBlockOptin": shared_per_block(),
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
        synchronize("Device.synchronize", None)

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
    return TOTAL - state.used, TOTAL


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
        "sharedMemPerBlockOptin": shared_per_block(),
        "sharedMemPerMultiprocessor": shared_per_block() + 1024,
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
    return {16: 132, 97: shared_per_block(), 8: 48 * 1024, 10: 32, 75: major, 76: minor}[attribute]


def memcpyAsync(dst, src, size, kind, stream):
    """kind: 1 from the host, 2 to the host, 3 within the device"""
    if kind not in (1, 2, 3):
        raise CUDARuntimeError(1, "the fake requires a direction")
    if size:
        for address in {1: (dst,), 2: (src,), 3: (dst, src)}[kind]:
            memory_at(address, size, "memcpyAsync")
    counts.copies += 1
    submit(lambda: ctypes.memmove(dst, src, size), stream_of(stream))


def memcpy(dst, src, size, kind):
    synchronize("memcpy", None)
    memcpyAsync(dst, src, size, kind, 0)


def memsetAsync(ptr, value, size, stream):
    memory_at(ptr, size, "memsetAsync")
    submit(lambda: ctypes.memset(ptr, value, size), stream_of(stream))

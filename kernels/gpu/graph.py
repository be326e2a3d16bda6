"""CUDA graphs: launches captured once and replayed, and the host's values that a replayed graph reads."""

import itertools
import math
import sys

import numpy as np

ALIGN = 256  # bytes


class Inputs:
    """Named arrays in one block of the device. `fill` copies to it from one of two such blocks of the host, which take turns.

    shapes: {name: (shape, NumPy type)}.   device: {name: array}
    """

    def __init__(self, cupy, shapes):
        self.runtime, self.current_stream, size, places = cupy.cuda.runtime, cupy.cuda.get_current_stream, 0, {}
        for name, (shape, dtype) in shapes.items():
            places[name] = size, shape, np.dtype(dtype)
            size += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGN) * ALIGN

        def views(block):
            return {
                name: block[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
                for name, (start, shape, dtype) in places.items()
            }

        self.block = cupy.zeros(size, np.uint8)
        self.device = views(self.block)
        blocks = [np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size) for _ in range(2)]
        self.turns = itertools.cycle([(block, views(block), cupy.cuda.Event(disable_timing=True)) for block in blocks])

    def fill(self, **values):
        """Hand over new values; the kernels launched so far still see the old ones. Waits for no kernel that reads the last ones."""
        block, views, copied = next(self.turns)
        if not copied.done:
            copied.synchronize()  # what it held the time before last has left it
        for name, value in values.items():
            views[name][...] = value
        stream = self.current_stream()
        self.runtime.memcpyAsync(
            self.block.data.ptr, block.ctypes.data, block.size, self.runtime.memcpyHostToDevice, stream.ptr
        )
        copied.record(stream)


class Replayed:
    """Calls of a function that launches the same kernels on the same memory every time. The first runs it, the second captures it, and those after
    replay what was captured. Where that fails it says so once, and goes on by running it.

    The function comes with each call: kept here, as a method of who keeps this, it would keep that one's memory until garbage is looked for.
    """

    def __init__(self, cupy):
        self.current_stream, self.calls, self.graph, self.captures = cupy.cuda.get_current_stream, 0, None, True

    def __call__(self, function):
        self.calls += 1
        if self.calls > 1 and self.graph is None and self.captures:
            self.graph = self.captured(function)
        if self.graph is None:
            function()
        else:
            self.graph.launch()

    def captured(self, function):
        """The graph, or None."""
        stream = self.current_stream()
        try:
            stream.begin_capture()
            try:
                function()
            finally:
                graph = stream.end_capture()
            return graph
        except RuntimeError as error:  # of which CUDA's errors are
            self.captures = False
            error = error.__context__ or error  # the end of a capture that failed says only that it did
            print(
                f"a step cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); its kernels are launched one by one",
                file=sys.stderr,
                flush=True,
            )

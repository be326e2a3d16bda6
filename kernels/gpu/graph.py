"""CUDA graphs: kernel launches captured once and replayed, and the host's values that a replayed graph reads."""

import itertools
import math
import sys

import numpy as np

ALIGN = 256  # bytes


class HostInputs:
    """Named device arrays in one block of memory, filled from the host by one copy.

    shapes: {name: (shape, NumPy type)}.   device: {name: array}, the arrays that a captured graph reads

    The copy is asynchronous. Two blocks of pinned host memory take turns, so the host writes one while the other is
    copied.
    """

    def __init__(self, cupy, shapes):
        self.runtime, self.current_stream, size, layout = cupy.cuda.runtime, cupy.cuda.get_current_stream, 0, {}
        for name, (shape, dtype) in shapes.items():
            layout[name] = size, shape, np.dtype(dtype)
            size += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGN) * ALIGN

        def views(block):
            return {
                name: block[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
                for name, (start, shape, dtype) in layout.items()
            }

        self.block = cupy.zeros(size, np.uint8)
        self.device = views(self.block)
        blocks = [np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size) for _ in range(2)]
        self.turns = itertools.cycle([(block, views(block), cupy.cuda.Event(disable_timing=True)) for block in blocks])

    def fill(self, **values):
        """Set arrays by name. Kernels launched earlier still read the old values, kernels launched later the new ones.

        The host synchronizes only when the copy from two calls ago has not finished.
        """
        block, views, copied = next(self.turns)
        if not copied.done:
            copied.synchronize()
        for name, value in values.items():
            views[name][...] = value
        stream = self.current_stream()
        self.runtime.memcpyAsync(
            self.block.data.ptr, block.ctypes.data, block.size, self.runtime.memcpyHostToDevice, stream.ptr
        )
        copied.record(stream)


class CapturedGraph:
    """Calls of a function that launches the same kernels on the same memory every time.

    The first call runs the function, the second captures its launches, and later calls replay them. If capturing fails,
    a message says so once and every call runs the function.

    The function is passed to each call and not stored: a bound method stored here would form a reference cycle with its
    object, and the object's memory would live until garbage collection.
    """

    def __init__(self, cupy):
        self.current_stream, self.calls, self.graph, self.captures = cupy.cuda.get_current_stream, 0, None, True

    def __call__(self, function):
        self.calls += 1
        if self.calls > 1 and self.graph is None and self.captures:
            self.graph = self.capture(function)
        if self.graph is None:
            function()
        else:
            self.graph.launch()

    def capture(self, function):
        """The graph of the function's launches, or None if capturing failed."""
        stream = self.current_stream()
        try:
            stream.begin_capture()
            try:
                function()
            finally:
                graph = stream.end_capture()
            return graph
        except RuntimeError as error:  # CUDA's errors are RuntimeErrors
            self.captures = False
            error = error.__context__ or error  # end_capture only says that the capture failed; the context says why
            print(
                f"a step cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); "
                "its kernels are launched one by one",
                file=sys.stderr,
                flush=True,
            )

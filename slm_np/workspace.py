"""The arena: all activations in one block of memory, planned once for (B, T) and frozen.

Three lifetimes: `saved` lives until its layer's backward, `stream` is the one gradient of the residual stream, `scratch` is one
set that all layers share. The storage type is a property of this plan, not of an op.
"""
import math
from typing import NamedTuple

import numpy as np

ALIGN = 64  # bytes: a cache line, and a vector register of the widest kind
LIFETIMES = ("saved", "stream", "scratch")


class Request(NamedTuple):
    """An array a layer wants: name, shape, lifetime."""
    name: str
    shape: tuple
    lifetime: str


def planned_bytes(requests, itemsize):
    """Bytes of an arena for these requests, each array rounded up to whole cache lines; nothing is allocated."""
    sizes = {r.name: math.prod(r.shape) * itemsize for r in requests}
    return sum((size + ALIGN - 1) // ALIGN * ALIGN for size in sizes.values())


class Workspace:
    """Arrays by name in one block. Requests of the same name share memory and must agree in shape."""

    def __init__(self, requests, dtype=np.float32):
        self.plan = {}
        for request in requests:
            known = self.plan.setdefault(request.name, request)
            if known != request:
                raise ValueError(f"{request.name} is planned as {known.shape} {known.lifetime} and as {request.shape} {request.lifetime}")
        self.dtype = np.dtype(dtype)
        self.n_bytes = planned_bytes(self.plan.values(), self.dtype.itemsize)
        block = np.empty(self.n_bytes + ALIGN, np.uint8)
        start = -block.ctypes.data % ALIGN
        self.arrays = {}
        for request in self.plan.values():
            n = math.prod(request.shape)
            self.arrays[request.name] = block[start:start + n * self.dtype.itemsize].view(self.dtype).reshape(request.shape)
            start += planned_bytes([request], self.dtype.itemsize)

    def __getitem__(self, name):
        return self.arrays[name]

    def fill(self, value):
        """Set every array to `value`: tests prefill with NaN to show that nothing stale is read."""
        for array in self.arrays.values():
            array.fill(value)

    def table(self):
        """The plan as text: name, shape, lifetime, MiB, the layers' arrays of one name in one line."""
        groups = {}
        for request in self.plan.values():
            parts = request.name.split(".")
            key = (".".join("*" if p.isdigit() else p for p in parts), request.shape, request.lifetime)
            groups[key] = groups.get(key, 0) + 1
        lines = []
        for lifetime in LIFETIMES:
            for (name, shape, life), n in groups.items():
                if life == lifetime:
                    size = n * planned_bytes([Request(name, shape, life)], self.dtype.itemsize) / 2**20
                    lines.append(f"{name:<28} {f'{n} x ' if n > 1 else ''}{' x '.join(map(str, shape)):<22} {life:<8} {size:9.2f} MiB")
        return "\n".join(lines + [f"{'activations':<60} {self.n_bytes / 2**20:9.2f} MiB"])

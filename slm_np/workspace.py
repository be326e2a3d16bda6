"""The arena: all activations in one block of memory, planned once for (B, T) and frozen.

Three lifetimes: `saved` lives until its layer's backward, `stream` is the one gradient of the residual stream, `scratch` is one
set that all layers share and that the parts of a block lay on top of each other's. The storage type is a property of this plan, not of an op.
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


def room(request):
    """Requests of one room lie side by side, rooms of scratch on top of each other: the parts of a block work one after another, so the
    scratch of `attention.`, of `feed_forward.` and of `head.` is never in use together. Everything else has a place of its own."""
    return request.name.split(".")[0] if request.lifetime == "scratch" and "." in request.name else ""


def layout(requests, itemsize):
    """({name: first byte}, bytes of the arena), each array on whole cache lines; nothing is allocated."""
    requests = {r.name: r for r in requests}.values()
    start, ends = {}, {"": 0}
    for r in sorted(requests, key=lambda r: room(r) != ""):
        start[r.name] = ends.setdefault(room(r), ends[""])
        ends[room(r)] += (math.prod(r.shape) * itemsize + ALIGN - 1) // ALIGN * ALIGN
    return start, max(ends.values())


def planned_bytes(requests, itemsize):
    """Bytes of an arena for these requests."""
    return layout(requests, itemsize)[1]


class Workspace:
    """Arrays by name in one block. Requests of the same name are one array and must agree in shape."""

    def __init__(self, requests, dtype=np.float32):
        self.plan = {}
        for request in requests:
            known = self.plan.setdefault(request.name, request)
            if known != request:
                raise ValueError(f"{request.name} is planned as {known.shape} {known.lifetime} and as {request.shape} {request.lifetime}")
        self.dtype = np.dtype(dtype)
        starts, self.n_bytes = layout(self.plan.values(), self.dtype.itemsize)
        block = np.empty(self.n_bytes + ALIGN, np.uint8)
        block = block[-block.ctypes.data % ALIGN:]
        self.arrays = {}
        for name, request in self.plan.items():
            end = starts[name] + math.prod(request.shape) * self.dtype.itemsize
            self.arrays[name] = block[starts[name]:end].view(self.dtype).reshape(request.shape)

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

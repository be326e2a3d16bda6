"""The arena: all activations in one block of memory, planned once for (B, T) and frozen.

Three lifetimes: `saved` lives until its layer's backward, `stream` is the one gradient of the residual stream, `scratch` is one
set that all layers share and that the parts of a block lay on top of each other's. The storage type is a property of this plan, not of an op:
numbers that are added up (the stream, statistics, losses) are of one type, what only feeds products may be of a shorter one.
"""

import math
from typing import NamedTuple

import numpy as np

from slm_np.dtypes import BF16, BF16_NAN
from slm_np.ops.device import memory

ALIGN = 64  # bytes: a cache line, and a vector register of the widest kind
LIFETIMES = ("saved", "stream", "scratch")


class Request(NamedTuple):
    """An array a layer wants: name, shape, lifetime, and its type.

    number: what is added up.   operand: what only feeds products.   rounded: an operand of which there is a number as well; it exists only
    where the two types differ.
    """

    name: str
    shape: tuple
    lifetime: str
    type: str = "number"


def room(request):
    """Requests of one room lie side by side, rooms of scratch on top of each other: the parts of a block work one after another, so the
    scratch of `attention.`, of `feed_forward.` and of `head.` is never in use together. Everything else has a place of its own."""
    return request.name.split(".")[0] if request.lifetime == "scratch" and "." in request.name else ""


class Types(NamedTuple):
    """The types of an arena: of numbers, and of operands."""

    number: np.dtype
    operand: np.dtype

    def of(self, request):
        return self.number if request.type == "number" else self.operand

    def exists(self, request):
        return request.type != "rounded" or self.operand != self.number


def types_of(dtype, operand=None):
    """`Types` of numbers `dtype` and operands of the same or another type."""
    return Types(np.dtype(dtype), np.dtype(dtype if operand is None else operand))


def layout(requests, types):
    """({name: first byte}, bytes of the arena), each array on whole cache lines; nothing is allocated."""
    requests = {r.name: r for r in requests if types.exists(r)}.values()
    start, ends = {}, {"": 0}
    for r in sorted(requests, key=lambda r: room(r) != ""):
        start[r.name] = ends.setdefault(room(r), ends[""])
        ends[room(r)] += (math.prod(r.shape) * types.of(r).itemsize + ALIGN - 1) // ALIGN * ALIGN
    return start, max(ends.values())


def planned_bytes(requests, dtype, operand=None):
    """Bytes of an arena for these requests."""
    return layout(requests, types_of(dtype, operand))[1]


class Workspace:
    """Arrays by name in one block of the module `arrays`. Requests of the same name are one array and must agree in shape.

    operand: type of what feeds products.
    """

    def __init__(self, requests, dtype=np.float32, operand=None, arrays=np):
        self.plan, self.types = {}, types_of(dtype, operand)
        for request in filter(self.types.exists, requests):
            known = self.plan.setdefault(request.name, request)
            if known != request:
                raise ValueError(
                    f"{request.name} is planned as {known.shape} {known.lifetime} and as {request.shape} {request.lifetime}"
                )
        starts, self.n_bytes = layout(self.plan.values(), self.types)
        block = memory(arrays, self.n_bytes, ALIGN)
        self.arrays = {}
        for name, request in self.plan.items():
            end = starts[name] + math.prod(request.shape) * self.types.of(request).itemsize
            self.arrays[name] = block[starts[name] : end].view(self.types.of(request)).reshape(request.shape)

    def fill(self, value):
        """Set every array to 0 or NaN: tests prefill with NaN to show that nothing stale is read."""
        for array in self.arrays.values():
            array.fill(BF16_NAN if array.dtype == BF16 and math.isnan(value) else value)

    def table(self):
        """The plan as text: name, shape, lifetime, MiB, the layers' arrays of one name in one line."""
        groups = {}
        for request in self.plan.values():
            parts = request.name.split(".")
            key = (".".join("*" if p.isdigit() else p for p in parts), request.shape, request.lifetime, request.type)
            groups[key] = groups.get(key, 0) + 1
        lines = []
        for lifetime in LIFETIMES:
            for (name, shape, life, kind), n in groups.items():
                if life == lifetime:
                    size = n * layout([Request(name, shape, life, kind)], self.types)[1] / 2**20
                    lines.append(
                        f"{name:<28} {f'{n} x ' if n > 1 else ''}{' x '.join(map(str, shape)):<22} {life:<8} {size:9.2f} MiB"
                    )
        return "\n".join(lines + [f"{'activations':<60} {self.n_bytes / 2**20:9.2f} MiB"])

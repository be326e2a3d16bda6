"""The arena: all activations in one block of memory, planned once for (B, T) and then frozen.

Four lifetimes: `saved` lives until its layer's backward. `block` lives from the forward of a block to its backward, and
`scratch` within a part of a block: all layers share this memory. `residual` is the gradient of the residual branch.
The dtype is a property of this plan, not of an op: what is summed (the residual branch, statistics, losses) has the
accumulation dtype, what only feeds matmuls may have a shorter compute dtype.
"""

import math
from typing import NamedTuple

import numpy as np

from slm_np.dtypes import BF16, BF16_NAN
from slm_np.ops.device import CPU

ALIGN = 64  # bytes: a cache line, and the widest vector register
LIFETIMES = ("saved", "block", "residual", "scratch")


class Request(NamedTuple):
    """An array that a layer needs: name, shape, lifetime and kind of dtype.

    accumulation  what is summed
    compute       what only feeds matmuls
    cast          a copy in the compute dtype of an array that also exists in the accumulation dtype; only where the
                  two differ
    """

    name: str
    shape: tuple
    lifetime: str
    kind: str = "accumulation"


def group(request):
    """Requests of one group lie side by side, and groups of scratch on top of each other.

    The parts of a block run one after another, so the scratch of `attention.`, of `feed_forward.` and of `head.` is
    never in use at the same time. Everything else has memory of its own.
    """
    return request.name.split(".")[0] if request.lifetime == "scratch" and "." in request.name else ""


class Dtypes(NamedTuple):
    """The two dtypes of an arena."""

    accumulation: np.dtype
    compute: np.dtype

    @classmethod
    def of(cls, dtype, compute_dtype=None):
        return cls(np.dtype(dtype), np.dtype(dtype if compute_dtype is None else compute_dtype))

    def dtype(self, request):
        return self.accumulation if request.kind == "accumulation" else self.compute

    def exists(self, request):
        return request.kind != "cast" or self.compute != self.accumulation


def layout(requests, dtypes):
    """({name: first byte}, bytes of the arena), every array on whole cache lines. Nothing is allocated."""
    requests = {r.name: r for r in requests if dtypes.exists(r)}.values()
    start, ends = {}, {"": 0}
    for r in sorted(requests, key=lambda r: group(r) != ""):
        start[r.name] = ends.setdefault(group(r), ends[""])
        ends[group(r)] += (math.prod(r.shape) * dtypes.dtype(r).itemsize + ALIGN - 1) // ALIGN * ALIGN
    return start, max(ends.values())


def planned_bytes(requests, dtype, compute_dtype=None):
    """Bytes of an arena for these requests."""
    return layout(requests, Dtypes.of(dtype, compute_dtype))[1]


class Arena:
    """Arrays by name in one block of a device's memory.

    Requests of the same name are one array and must agree in shape.
    """

    def __init__(self, requests, dtype=np.float32, compute_dtype=None, device=CPU):
        self.plan, self.dtypes = {}, Dtypes.of(dtype, compute_dtype)
        for request in filter(self.dtypes.exists, requests):
            known = self.plan.setdefault(request.name, request)
            if known != request:
                raise ValueError(
                    f"{request.name} is planned as {known.shape} {known.lifetime} "
                    f"and as {request.shape} {request.lifetime}"
                )
        starts, self.n_bytes = layout(self.plan.values(), self.dtypes)
        block = device.allocate(self.n_bytes, ALIGN)
        self.arrays = {}
        for name, request in self.plan.items():
            dtype = self.dtypes.dtype(request)
            stop = starts[name] + math.prod(request.shape) * dtype.itemsize
            self.arrays[name] = block[starts[name] : stop].view(dtype).reshape(request.shape)

    def fill(self, value):
        """Set every array to 0 or NaN. Tests prefill with NaN to prove that nothing stale is read."""
        for array in self.arrays.values():
            array.fill(BF16_NAN if array.dtype == BF16 and math.isnan(value) else value)

    def table(self):
        """The plan as text: name, shape, lifetime, MiB. Arrays that every layer has share a line."""
        groups = {}
        for request in self.plan.values():
            parts = request.name.split(".")
            name = ".".join("*" if part.isdigit() else part for part in parts)
            key = name, request.shape, request.lifetime, request.kind
            groups[key] = groups.get(key, 0) + 1
        lines = []
        for lifetime in LIFETIMES:
            for (name, shape, life, kind), n in groups.items():
                if life == lifetime:
                    size = n * layout([Request(name, shape, life, kind)], self.dtypes)[1] / 2**20
                    dimensions = (f"{n} x " if n > 1 else "") + " x ".join(map(str, shape))
                    lines.append(f"{name:<28} {dimensions:<24} {life:<8} {size:9.2f} MiB")
        return "\n".join(lines + [f"{'activations':<62} {self.n_bytes / 2**20:9.2f} MiB"])

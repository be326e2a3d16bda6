"""What the kernel benchmarks share: cases, engines in turns, one table.

Each `kernel_*.py` yields the cases of one family at a shape's sizes. Ours is `slm_np.ops`; NumPy is the plain formula with BLAS on all cores;
PyTorch, where it is installed, goes forward building its graph as in training, and backward through `autograd.grad` on a graph kept.
Where ours does more than PyTorch, such as adding to the stream's gradient, it is not spared. The machine's ceiling, a large copy or a square
product, is measured in the same turns: quote ratios and shares. Arrays that fit the caches may exceed the copy.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from measure import alternate, large_copy, square_product, write_json  # noqa: E402
from shapes import SHAPES, names_of, shape  # noqa: E402

from slm_np.errors import exit_with_sentence  # noqa: E402
from slm_np.nn.gradient_check import shrunk  # noqa: E402

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = F = None

RNG = np.random.default_rng(0)
ENGINES = "slm_np", "NumPy", "PyTorch"


class Case(NamedTuple):
    """An op in one direction. `work`: bytes that ours must read and write (unit GB/s), or operations (unit GFLOP/s), per call.

    Each engine's function does the work once and returns its results, the same in number and order where engines can be compared.
    """

    op: str
    direction: str
    size: str
    unit: str
    work: float
    ours: Callable
    numpy: Callable
    torch: Optional[Callable]


def pair(op, size, unit, work, ours, numpy, torch, directions=("forward", "backward")):
    """Two cases: `work` and the engines hold one entry per direction."""
    return [
        Case(op, direction, size, unit, *fields) for direction, *fields in zip(directions, work, ours, numpy, torch)
    ]


def call(op, results, *arguments):
    """An op as a function without arguments that returns the first `results` arguments: outputs come first."""

    def run():
        op(*arguments)
        return arguments[:results]

    return run


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def empty_like(*arrays):
    """Outputs of the arrays' shapes, zero, so that those which accumulate begin there."""
    return [np.zeros_like(x) for x in arrays]


def autograd(function, inputs, dout, both=False):
    """(forward, backward) of a function in PyTorch on the given arrays, gradients for the real ones; (None, None) without PyTorch.

    both: backward runs forward again first, and returns the gradients, then the output.
    """
    if torch is None:
        return None, None
    inputs = [torch.as_tensor(x).requires_grad_() if x.dtype.kind == "f" else torch.as_tensor(x).long() for x in inputs]
    wanted, dout = [x for x in inputs if x.requires_grad], torch.as_tensor(dout)

    def forward():
        return [function(*inputs)]

    def forward_backward():
        out = forward()
        return [*torch.autograd.grad(out, wanted, [dout]), *out]

    if both:
        return forward, forward_backward
    out = forward()
    return forward, lambda: torch.autograd.grad(out, wanted, [dout], retain_graph=True)


@functools.cache
def numpy_turn():
    """What makes the context of NumPy's turns: BLAS on all cores, which slm_np holds at one thread; PyTorch gets as many."""
    import numba
    from threadpoolctl import ThreadpoolController

    import slm_np.kernels.cpu  # noqa: F401  holds BLAS at one thread from here on

    cores, pools = numba.config.NUMBA_NUM_THREADS, ThreadpoolController()
    if torch is not None:
        torch.set_num_threads(cores)
    return lambda: pools.limit(limits=cores, user_api="blas")


@functools.cache
def ceiling(unit):
    """(function, its work) that the cases of this unit are held against."""
    return large_copy() if unit == "GB/s" else square_product(1024)


def measure(case, rounds=5, seconds=0.04):
    """The case's row: the ceiling's rate; of every engine the median ms, the rate, its share of the ceiling, and its time / ours."""
    limit, limit_work = ceiling(case.unit)
    functions = {
        name: function
        for name, function in zip(("ceiling", *ENGINES), (limit, case.ours, case.numpy, case.torch))
        if function
    }
    times = alternate(functions, rounds, seconds, {"NumPy": numpy_turn()})
    best = limit_work / times.pop("ceiling")
    return dict(
        op=case.op,
        direction=case.direction,
        size=case.size,
        unit=case.unit,
        ceiling=1e-9 * best,
        ms={name: 1e3 * t for name, t in times.items()},
        rate={name: 1e-9 * case.work / t for name, t in times.items()},
        share={name: case.work / t / best for name, t in times.items()},
        ratio={name: t / times["slm_np"] for name, t in times.items() if name != "slm_np"},
    )


HEADER = (
    f"{'op':<14}{'direction':<10}{'size':<22}{'ceiling':>14}"
    + "".join(f"{name + ' ms':>12}{'rate':>7}{'share':>7}" for name in ENGINES)
    + f"{'x NumPy':>10}{'x PyTorch':>10}"
)


def line(row):
    """The row as text below HEADER; the last columns say how many times as fast as the others ours is."""
    engines = "".join(
        f"{row['ms'][name]:>12.3f}{row['rate'][name]:>7.1f}{100 * row['share'][name]:>5.0f} %"
        if name in row["ms"]
        else f"{'-':>26}"
        for name in ENGINES
    )
    ratios = "".join(f"{row['ratio'][name]:>10.2f}" if name in row["ratio"] else f"{'-':>10}" for name in ENGINES[1:])
    return f"{row['op']:<14}{row['direction']:<10}{row['size']:<22}{row['ceiling']:>6.1f} {row['unit']:<7}{engines}{ratios}"


def bench(cases, argv=None):
    """The command of one kernel_*.py: `cases(config, batch)` of every shape, each size once, as a table and as JSON rows."""
    exit_with_sentence(lambda argv: table(cases, argv))(argv)


def table(cases, argv):
    about = sys.modules[cases.__module__].__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    args = parser.parse_args(argv)
    shapes = [shape(name) for name in names_of(args.shapes)]
    if torch is None:
        print("PyTorch is not installed: its columns stay empty")
    numpy_turn()  # now, for it sets the number of PyTorch's threads
    rows, seen = [], set()
    print(about.splitlines()[0], HEADER, sep="\n")
    for config, batch in shapes:
        for case in cases(shrunk(config), 2) if args.quick else cases(config, batch):
            if case[:3] in seen:
                continue
            seen.add(case[:3])
            rows.append(measure(case, 1, 0) if args.quick else measure(case))
            print(line(rows[-1]), flush=True)
            if args.json:
                write_json(args.json, rows)

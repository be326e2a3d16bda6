"""Kernels alone: every op family beside its peak, the NumPy kernels and PyTorch.

    python benchmarks/kernel_bench.py [FAMILY ...] [--shapes char,slim,...] [--quick] [--json FILE]

The families are in kernel_families.py. The engines take turns: slm_np's compiled kernels, its NumPy kernels with the
BLAS on all cores, and PyTorch, where it is installed. Where slm_np does more than PyTorch, such as accumulating into
the residual's gradient, that counts against it. The machine's peak, a large copy or a square matmul, takes turns with
them: quote ratios and shares. Arrays that fit into the caches may exceed the copy.
"""

import argparse
import contextlib
import functools

import checkout  # noqa: F401
from kernel_families import FAMILIES, kernel_set, torch
from measure import alternate, large_copy, square_matmul, write_json
from shapes import SHAPES, names_of, shape

from slm_np.errors import UserError, command, near
from slm_np.nn.gradient_check import shrunk

ENGINES = "slm_np", "NumPy", "PyTorch"


@functools.cache
def blas_controller():
    """Controller of the BLAS, which slm_np limits to one thread."""
    from threadpoolctl import ThreadpoolController

    import slm_np.kernels.cpu  # noqa: F401  sets that limit

    return ThreadpoolController()


@contextlib.contextmanager
def numpy_turn():
    """Within, ops use the NumPy kernels and the BLAS has all cores."""
    import numba

    with blas_controller().limit(limits=numba.config.NUMBA_NUM_THREADS, user_api="blas"), kernel_set("numpy"):
        yield


@functools.cache
def peak(unit):
    """(function, its work): what the cases of this unit are compared with."""
    return large_copy() if unit == "GB/s" else square_matmul(1024)


def measure(case, rounds=5, seconds=0.04):
    """The row of a case: the peak's rate; for each engine the median ms, the rate, its share, its time / slm_np's."""
    reference, reference_work = peak(case.unit)
    functions = dict(zip(("peak", *ENGINES), (reference, case.numba, case.numpy, case.torch)))
    functions = {name: function for name, function in functions.items() if function}
    times = alternate(functions, rounds, seconds, {"NumPy": numpy_turn})
    highest = reference_work / times.pop("peak")
    return dict(
        op=case.op,
        direction=case.direction,
        size=case.size,
        unit=case.unit,
        peak=1e-9 * highest,
        ms={name: 1e3 * t for name, t in times.items()},
        rate={name: 1e-9 * case.work / t for name, t in times.items()},
        share={name: case.work / t / highest for name, t in times.items()},
        ratio={name: t / times["slm_np"] for name, t in times.items() if name != "slm_np"},
    )


HEADER = (
    f"{'op':<14}{'direction':<10}{'size':<22}{'peak':>14}"
    + "".join(f"{name + ' ms':>12}{'rate':>7}{'share':>7}" for name in ENGINES)
    + f"{'x NumPy':>10}{'x PyTorch':>10}"
)


def line_of(row):
    """A row as text below HEADER. The last columns say how many times as fast as the others slm_np is."""
    engines = "".join(
        f"{row['ms'][name]:>12.3f}{row['rate'][name]:>7.1f}{100 * row['share'][name]:>5.0f} %"
        if name in row["ms"]
        else f"{'-':>26}"
        for name in ENGINES
    )
    ratios = "".join(f"{row['ratio'][name]:>10.2f}" if name in row["ratio"] else f"{'-':>10}" for name in ENGINES[1:])
    peak = f"{row['peak']:>6.1f} {row['unit']:<7}"
    return f"{row['op']:<14}{row['direction']:<10}{row['size']:<22}{peak}{engines}{ratios}"


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Kernels alone, beside their peak, the NumPy kernels and PyTorch.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{', '.join(FAMILIES)} (default: all)")
    parser.add_argument(
        "--shapes", default=",".join(SHAPES), help="shapes to take sizes from, separated by commas (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args(argv)
    for name in args.families:
        if name not in FAMILIES:
            raise UserError(f"the family {name!r} is unknown; {near(name, FAMILIES)}")
    configs = [shape(name) for name in names_of(args.shapes)]
    if torch is None:
        print("PyTorch is not installed: its columns stay empty")
    else:
        import numba

        torch.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    print(HEADER)
    rows, seen = [], set()
    for family in args.families or FAMILIES:
        for config, batch in configs:
            for case in FAMILIES[family](shrunk(config), 2) if args.quick else FAMILIES[family](config, batch):
                if case[:3] in seen:
                    continue
                seen.add(case[:3])
                rows.append(measure(case, 1, 0) if args.quick else measure(case))
                print(line_of(rows[-1]), flush=True)
                if args.json:
                    write_json(args.json, rows)


if __name__ == "__main__":
    main()

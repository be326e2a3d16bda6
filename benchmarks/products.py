"""Matmuls alone, of the shapes of a training step: slm_np in bfloat16 and float32, beside oneDNN through PyTorch.

    python benchmarks/products.py [--shapes char,char10m,slim,smallm]

All of them take turns. The columns are GFLOP/s. `x W`, `dout W^T` and `x^T dout` are the three matmuls of a linear
layer, with the weight's cast copy made beforehand. Outputs have the type of the inputs, except that the gradient of a
weight accumulates in float32.
"""

import argparse
import importlib.util

import checkout  # noqa: F401
import numpy as np
from measure import alternate
from shapes import matmuls, names_of, shape

from slm_np import ops
from slm_np.dtypes import BF16
from slm_np.errors import command
from slm_np.ops.device import CPU, whole_lines

KINDS = "x W", "dout W^T", "x^T dout"
HEAD_BYTES = 16 << 20  # of the logits that are computed at once


def engine(m, k, n, dtype):
    """{kind: function} of slm_np. dtype: fp32 or bf16"""
    kernels, rng = CPU.kernels, np.random.default_rng(0)
    x, dout, w = (rng.standard_normal(size, dtype=np.float32) for size in ((m, k), (m, n), (k, n)))
    dw, out, dx = np.zeros_like(w), np.empty_like(dout), np.empty_like(x)
    if dtype == "bf16":
        dout = np.pad(dout, ((0, 0), (0, whole_lines(n) - n)))  # as a model stores the gradient of its logits
        w = kernels.cast_copy(w)
        kernels.update_cast_copy(w)
        x, dout, out, dx = (in_bfloat16(a) for a in (x, dout, out, dx))
    functions = (
        lambda: ops.linear_forward(out, x, w, None, None),
        lambda: ops.linear_backward_input(dx, dout, w),
        lambda: ops.linear_backward_weight(dw, None, dout, x),
    )
    return dict(zip(KINDS, functions))


def in_bfloat16(x):
    out = np.empty(x.shape, BF16)
    ops.convert(out, x)
    return out


def onednn(m, k, n):
    """{kind: function} of PyTorch in bfloat16."""
    import torch

    x, dout, w = (torch.randn(*size, dtype=torch.bfloat16) for size in ((m, k), (m, n), (k, n)))
    out, dx, dw = torch.empty_like(dout), torch.empty_like(x), torch.empty_like(w)
    functions = (
        lambda: torch.matmul(x, w, out=out),
        lambda: torch.matmul(dout, w.T, out=dx),
        lambda: torch.matmul(x.T, dout, out=dw),
    )
    return dict(zip(KINDS, functions))


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Matmuls alone, in bfloat16 and float32.")
    parser.add_argument(
        "--shapes",
        default="char,char10m,slim,smallm",
        help="shapes to take matmuls from, separated by commas (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    with_torch = importlib.util.find_spec("torch") is not None
    header = f"{'m x k x n':<22}{'matmul':<10}{'bf16':>8}{'fp32':>8}{'ratio':>7}"
    print(header + (f"{'oneDNN bf16':>13}{'ratio':>8}" if with_torch else ""))
    sizes = {}
    for name in names_of(args.shapes):
        for m, k, n, _ in matmuls(*shape(name)):
            rows = min(m, max(512, HEAD_BYTES // (4 * n)))  # of a large matmul as many rows as the head takes at once
            sizes[rows, k, n] = None
    for m, k, n in sizes:
        measure(m, k, n, with_torch)


def measure(m, k, n, with_torch):
    """Print a line for each of the three matmuls of a linear layer."""
    engines = {"bf16": engine(m, k, n, "bf16"), "fp32": engine(m, k, n, "fp32")}
    if with_torch:
        engines["oneDNN"] = onednn(m, k, n)
    for kind in KINDS:
        seconds = alternate({name: functions[kind] for name, functions in engines.items()}, rounds=5, seconds=0.05)
        rate = {name: 2e-9 * m * k * n / s for name, s in seconds.items()}
        size = f"{m} x {k} x {n}"
        line = f"{size:<22}{kind:<10}{rate['bf16']:>8.0f}{rate['fp32']:>8.0f}{rate['bf16'] / rate['fp32']:>7.2f}"
        if with_torch:
            line += f"{rate['oneDNN']:>13.0f}{rate['bf16'] / rate['oneDNN']:>8.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()

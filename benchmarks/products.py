"""Products alone, of the shapes of a training step: bfloat16 and float32 here, beside PyTorch's oneDNN and NumPy's BLAS.

    python benchmarks/products.py [--shapes char,char10m,slim,smallm]

All run in turns. A number is GFLOP/s; `x W`, `dy W^T` and `x^T dy` are the three products of a linear layer, the first two with the weight
packed or stored beforehand, outputs of the operands' type but for the weight's gradient, which is added to float32.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from measure import alternate  # noqa: E402
from shapes import names_of, products, shape  # noqa: E402

from slm_np.errors import exit_with_sentence  # noqa: E402

KINDS = "x W", "dy W^T", "x^T dy"


def ours(m, k, n, rounded):
    """{kind: function}"""
    import numpy as np

    from slm_np import ops
    from slm_np.dtypes import BF16
    from slm_np.ops.device import CPU, whole_lines

    kernels, rng = CPU.kernels, np.random.default_rng(0)
    x, dy, w = (rng.standard_normal(size, dtype=np.float32) for size in ((m, k), (m, n), (k, n)))
    dw, y, dx = np.zeros_like(w), np.empty_like(dy), np.empty_like(x)
    if rounded:
        dy = np.pad(dy, ((0, 0), (0, whole_lines(n) - n)))  # as a model keeps the gradient of its logits
        w = kernels.cast_copy(w)
        kernels.update_cast_copy(w)
        arrays = []
        for a in (x, dy, y, dx):
            arrays.append(np.empty(a.shape, BF16))
            kernels.convert(arrays[-1], a)
        x, dy, y, dx = arrays
    return dict(
        zip(
            KINDS,
            (
                lambda: ops.linear_forward(y, x, w, None, None),
                lambda: ops.linear_backward_input(dx, dy, w),
                lambda: ops.linear_backward_weight(dw, None, dy, x),
            ),
        )
    )


def torchs(m, k, n):
    import torch

    x, dy, w = (torch.randn(*size, dtype=torch.bfloat16) for size in ((m, k), (m, n), (k, n)))
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)
    return dict(
        zip(
            KINDS,
            (
                lambda: torch.matmul(x, w, out=y),
                lambda: torch.matmul(dy, w.T, out=dx),
                lambda: torch.matmul(x.T, dy, out=dw),
            ),
        )
    )


@exit_with_sentence
def main(argv=None):
    parser = argparse.ArgumentParser(description="Products alone, bfloat16 and float32.")
    parser.add_argument(
        "--shapes", default="char,char10m,slim,smallm", help="which, separated by commas (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        import torch  # noqa: F401
    except ImportError:
        torch = None
    done = set()
    print(
        f"{'m x k x n':<22}{'product':<9}{'bf16':>8}{'fp32':>8}{'gain':>7}"
        + (f"{'oneDNN bf16':>13}{'ratio':>8}" if torch else "")
    )
    for name in names_of(args.shapes):
        for m, k, n, _ in products(*shape(name)):
            m = min(m, max(512, (16 << 20) // (4 * n)))  # as many rows of a large product as are computed at once
            if (m, k, n) in done:
                continue
            done.add((m, k, n))
            sets = {"bf16": ours(m, k, n, True), "fp32": ours(m, k, n, False)} | (
                {"oneDNN": torchs(m, k, n)} if torch else {}
            )
            for kind in KINDS:
                seconds = alternate(
                    {engine: functions[kind] for engine, functions in sets.items()}, rounds=5, seconds=0.05
                )
                rate = {engine: 2e-9 * m * k * n / s for engine, s in seconds.items()}
                print(
                    f"{f'{m} x {k} x {n}':<22}{kind:<9}{rate['bf16']:>8.0f}{rate['fp32']:>8.0f}{rate['bf16'] / rate['fp32']:>7.2f}"
                    + (f"{rate['oneDNN']:>13.0f}{rate['bf16'] / rate['oneDNN']:>8.2f}" if torch else ""),
                    flush=True,
                )


if __name__ == "__main__":
    main()

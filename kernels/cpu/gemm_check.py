"""Verify a matmul by a random projection: compare C r with A (B r), two matrix-vector products instead of a matmul.

Source: R. Freivalds, Probabilistic machines can use less running time, IFIP Congress 1977; here with a tolerance for
rounding errors.
"""

import numpy as np

FALSE_ALARM = 1e-12  # probability that a correct matmul is reported as wrong
UNIT = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-126  # AMX flushes smaller values to zero
BLOCK = 1 << 18  # elements converted to float64 at a time


def projection(c, seed):
    """C r in float64, where r holds n random signs        C (m, n)   seed: an integer or a tuple of integers"""
    signs, out = _signs(c.shape[1], seed), np.empty(len(c))
    for rows in _blocks(c):
        out[rows] = c[rows].astype(np.float64) @ signs
    return out


def projection_error(c, a, b, seed, before=None):
    """max_i |C r - A (B r)|_i / tolerance_i        C (m, n) = A (m, k) B (k, n).   A value above 1 means C is wrong.

    C is float32. A and B are the operands: floats representable in bfloat16, or int32 pairs along k, A (m, k/2) and
    B (k/2, n). Transposed views are allowed. If the matmul was added to C, `before` is C's earlier `projection` with
    the same seed.

        tolerance_i = t g s_i,   t = (2 ln(2 m / FALSE_ALARM))^(1/2),   g = (18 + k/32) 2^-24,
        s_i = |a_i| |B|_F,   or 2 |a_i| |B|_F + |c_i| if the matmul was added to C

    Why: a term passes through at most 16 fused steps, the sum of both halves of the pairs and k/32 additions to C, each
    with a rounding error. So the error of an element of C is at most e_ij = g sum_p |a_ip b_pj| <= g |a_i| |b_j|, where
    b_j is a column of B. Signs independent of these errors sum them to more than t (sum_j e_ij^2)^(1/2) with a
    probability of at most 2 exp(-t^2 / 2) (Hoeffding), and sum_j |b_j|^2 = |B|_F^2. Flushing denormal values adds a
    small term. The check itself rounds in float64, which is negligible.

    A single wrong element cannot cancel. 16 zeros side by side in C cause an error of about
    8e6 / ((18 + k/32) (n k)^(1/2)) tolerances, because its elements are about |a_i| |b_j| / k^(1/2): 77 for
    n = k = 1536. Rows where A (B r) is NaN or infinite are skipped. NaN or infinity in any other row of C gives an
    infinite error.
    """
    signs, parts = _signs(b.shape[1], seed), len(_halves(b[:0]))
    norms, expected = np.empty(len(a)), np.empty(len(a))  # (m,) |a_i|; A (B r)
    projected, squares = np.empty((len(b), parts)), 0.0  # B r, (k,) once flat; |B|_F^2
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in _blocks(b):
            for half, values in enumerate(_halves(b[rows])):
                projected[rows, half] = values @ signs
                squares += np.vdot(values, values)
        projected = projected.reshape(-1)
        for rows in _blocks(a):
            halves = _halves(a[rows])
            expected[rows] = sum(values @ projected[half :: len(halves)] for half, values in enumerate(halves))
            norms[rows] = np.sqrt(sum(map(_row_squares, halves)))
        norm_b, k = np.sqrt(squares), len(projected)
        scale = norms * norm_b  # s
        if before is not None:
            expected += before
            scale *= 2
            for rows in _blocks(c):
                scale[rows] += np.sqrt(_row_squares(c[rows].astype(np.float64)))
        flushed = 4 * TINY * k * len(signs) * (1 + norms + norm_b)
        tolerance = np.sqrt(2 * np.log(2 * len(a) / FALSE_ALARM)) * (18 + k / 32) * UNIT * scale + flushed
        error = np.abs(projection(c, seed) - expected) / tolerance
    error = np.where(np.isnan(error), np.inf, error)
    return float(error[np.isfinite(expected)].max(initial=0.0))


def _signs(n, seed):
    return np.random.default_rng(seed).integers(0, 2, n) * 2.0 - 1.0


def _blocks(x):
    """Slices of rows with about BLOCK elements each."""
    rows = max(1, BLOCK // max(1, x.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def _halves(x):
    """[x in float64]; or, of pairs, [all first elements, all second elements]."""
    if x.dtype != np.int32:
        return [x.astype(np.float64)]
    return [half.view(np.float32).astype(np.float64) for half in (x << 16, x & -65536)]


def _row_squares(x):
    """Sum of squares of each row."""
    return np.einsum("ij,ij->i", x, x)

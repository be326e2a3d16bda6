"""Whether a product on tiles came out right, told by a random projection: C r beside A (B r), two matrix-vector products instead of a product.

Source: R. Freivalds, Probabilistic machines can use less running time, IFIP Congress 1977; here with a tolerance for rounding.
"""

import numpy as np

DOUBT = 1e-12  # the chance that a right product is taken for a wrong one
UNIT = 2.0**-24  # of rounding to float32
TINY = 2.0**-126  # what tiles flush to zero is smaller
BLOCK = 1 << 18  # numbers taken to float64 at once


def projection(c, seed):
    """C r in float64, r of n signs drawn from `seed`, an integer or a tuple of them        C (m, n)"""
    signs, out = _signs(c.shape[1], seed), np.empty(len(c))
    for rows in _blocks(c):
        out[rows] = c[rows].astype(np.float64) @ signs
    return out


def projection_error(c, a, b, seed, before=None):
    """max_i |C r - A (B r)|_i / tolerance_i        C (m, n) = A (m, k) B (k, n): above 1 the product is wrong, whatever its numbers.

    C is float32. A and B are what was multiplied: floats that bfloat16 holds, or int32 pairs along k, A (m, k/2), B (k/2, n); transposed
    views will do. Where the product was added to C, `before` is C's `projection` with the same seed from before that.

    tolerance_i = t g s_i,   t = (2 ln(2 m / DOUBT))^(1/2),   g = (18 + k/32) 2^-24,   s_i = |a_i| |B|_F   (2 |a_i| |B|_F + |c_i| where C was added to)

    A term passes through at most 16 fused steps, the sum of both halves of the pairs and k/32 additions to C, each rounded, so a number of C
    is wrong by at most e_ij = g sum_p |a_ip b_pj| <= g |a_i| |b_j|, b_j a column of B. Signs that know nothing of these errors sum them to more than
    t (sum_j e_ij^2)^(1/2) with a probability of at most 2 exp(-t^2 / 2) (Hoeffding), and sum_j |b_j|^2 = |B|_F^2. To that comes what
    flushing denormal numbers can change; the check's own rounding, in float64, is far below.

    No sign hides a single wrong number. 16 zeros side by side in C are some 8e6 / ((18 + k/32) (n k)^(1/2)) tolerances, as its numbers are about
    |a_i| |b_j| / k^(1/2): 77 where n = k = 1536. A row of A (B r) that is NaN or infinite tells nothing and is left out; NaN or infinity
    in any other row of C makes the error infinite.
    """
    signs, tall, lengths, expected = _signs(b.shape[1], seed), len(_halves(b[:0])), np.empty(len(a)), np.empty(len(a))
    projected, squares = np.empty((len(b), tall)), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in _blocks(b):
            for half, numbers in enumerate(_halves(b[rows])):
                projected[rows, half] = numbers @ signs
                squares += np.vdot(numbers, numbers)
        projected = projected.reshape(-1)
        for rows in _blocks(a):
            halves = _halves(a[rows])
            expected[rows] = sum(numbers @ projected[half :: len(halves)] for half, numbers in enumerate(halves))
            lengths[rows] = np.sqrt(sum(map(_squares, halves)))
        size, k = np.sqrt(squares), len(projected)
        spread = lengths * size
        if before is not None:
            expected += before
            spread *= 2
            for rows in _blocks(c):
                spread[rows] += np.sqrt(_squares(c[rows].astype(np.float64)))
        tolerance = np.sqrt(2 * np.log(2 * len(a) / DOUBT)) * (18 + k / 32) * UNIT * spread + 4 * TINY * k * len(
            signs
        ) * (1 + lengths + size)
        error = np.abs(projection(c, seed) - expected) / tolerance
    told = np.isfinite(expected)
    return float(np.where(np.isnan(error), np.inf, error)[told].max(initial=0.0))


def _signs(n, seed):
    return np.random.default_rng(seed).integers(0, 2, n) * 2.0 - 1.0


def _blocks(x):
    rows = max(1, BLOCK // max(1, x.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def _halves(x):
    """[x in float64], or of pairs [all first numbers, all second ones]."""
    if x.dtype != np.int32:
        return [x.astype(np.float64)]
    return [half.view(np.float32).astype(np.float64) for half in (x << 16, x & -65536)]


def _squares(x):
    """Each row's sum of squares."""
    return np.einsum("ij,ij->i", x, x)

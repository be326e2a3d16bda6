"""The cumulative distribution function of the standard normal distribution, which GELU multiplies by.

Rational Chebyshev approximations: W. J. Cody, Rational Chebyshev approximations for the error function, Math. Comp. 23,
1969, with the coefficients of his function ANORM in SPECFUN (Algorithm 715, ACM TOMS 19, 1993). Relative error 4e-16.
"""

import math

import numpy as np

BLOCK = 1 << 15  # elements at a time: the temporaries stay in a second-level cache

# Numerator and denominator, highest power first, for |x| up to 0.67449, up to sqrt(32), and above.
NEAR = (
    (
        0.065682337918207449113,
        2.2352520354606839287,
        161.02823106855587881,
        1067.6894854603709582,
        18154.981253343561249,
    ),
    (1, 47.20258190468824187, 976.09855173777669322, 10260.932208618978205, 45507.789335026729956),
)
MIDDLE = (
    (
        1.0765576773720192317e-8,
        0.39894151208813466764,
        8.8831497943883759412,
        93.506656132177855979,
        597.27027639480026226,
        2494.5375852903726711,
        6848.1904505362823326,
        11602.651437647350124,
        9842.7148383839780218,
    ),
    (
        1,
        22.266688044328115691,
        235.38790178262499861,
        1519.377599407554805,
        6485.558298266760755,
        18615.571640885098091,
        34900.952721145977266,
        38912.003286093271411,
        19685.429676859990727,
    ),
)
FAR = (
    (
        0.02307344176494017303,
        0.21589853405795699,
        0.1274011611602473639,
        0.022235277870649807,
        0.001421619193227893466,
        2.9112874951168792e-5,
    ),
    (
        1,
        1.28426009614491121,
        0.468238212480865118,
        0.0659881378689285515,
        0.00378239633202758244,
        7.29751555083966205e-5,
    ),
)


def ratio(coefficients, x):
    numerator, denominator = coefficients
    return np.polyval(numerator, x) / np.polyval(denominator, x)


def gaussian(y):
    """e^(-y^2 / 2) for y >= 0: the square of y's first bits is exact, so that no rounding error is multiplied by y."""
    first = np.trunc(16 * y) / 16
    return np.exp(-first * first / 2) * np.exp(-(y - first) * (y + first) / 2)


def block_cdf(x):
    """P(X <= x) for float64."""
    size, out = np.abs(x), np.empty(x.shape)
    near, far = size <= 0.67448975, size > math.sqrt(32)
    middle = ~(near | far)  # with NaN

    y = x[near]
    out[near] = 0.5 + y * ratio(NEAR, y * y)

    y = size[middle]
    out[middle] = gaussian(y) * ratio(MIDDLE, y)

    y = np.minimum(size[far], 40)  # e^-800 is 0
    s = 1 / (y * y)
    out[far] = gaussian(y) * (1 / math.sqrt(2 * math.pi) - s * ratio(FAR, s)) / y

    return np.where(~near & (x > 0), 1 - out, out)


def normal_cdf(x):
    """P(X <= x) = (1 + erf(x / sqrt 2)) / 2 of a standard normal X, elementwise, computed in float64."""
    x = np.asarray(x)
    flat, out = x.reshape(-1), np.empty(x.size, x.dtype)
    for start in range(0, x.size, BLOCK):
        out[start : start + BLOCK] = block_cdf(flat[start : start + BLOCK].astype(np.float64))
    return out.reshape(x.shape)

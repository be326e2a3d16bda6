"""Elementary functions for compiled loops: polynomials that vectorize in float32, the C library in float64.

Numba calls the C library once per element for `exp` and `erf`, so loops over them do not vectorize. Only this file
treats the two types differently; the gradient check in float64 runs the same kernels as training.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .jit import float_of_bits

f = np.float32
LOG2_E, LN2_HIGH, LN2_LOW = f(1.44269504), f(0.693359375), f(-2.12194440e-4)
EXP_LOW, EXP_HIGH, POWER_LOW = f(-87.0), f(88.0), f(-126.0)
# 2^r on [-1/2, 1/2]: a minimax fit in float64, relative error 2e-9.
P0, P1, P2, P3, P4, P5, P6 = (
    f(c) for c in (1.0, 0.6931472057, 0.2402264689, 0.05550328778, 0.009618489107, 0.001339993099, 0.0001534577162)
)
# erfc(z) exp(z^2) as a polynomial in 1 / (1 + 0.4 z), z >= 0, error 5e-9.
Q = (
    0.00016888084177674574,
    0.22249969807264108,
    0.25157140483586604,
    0.08774346992556781,
    0.5171673758306252,
    -0.5152355270448831,
    0.7969013106143578,
    -0.4447080022044648,
    0.0838913839993934,
)
Q0, Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8 = (f(c) for c in Q)
# log(1 + u) = s (2 + s^2 L(s^2)), s = u / (2 + u), 0 <= u <= 1, relative error 4e-9.
L0, L1, L2, L3 = (f(c) for c in (0.6666641628, 0.400215273, 0.2800180411, 0.2801199302))
ONE, TWO, HALF, Z_SCALE, INV_SQRT_2PI, INV_SQRT_2 = (
    f(1),
    f(2),
    f(0.5),
    f(0.4 / math.sqrt(2)),
    f(1 / math.sqrt(2 * math.pi)),
    1 / math.sqrt(2),
)

# Only contraction: reordering would undo the two-part subtraction of ln 2.
EXACT = {"fastmath": {"contract"}, "error_model": "numpy"}


def exp(x):
    """e^x. In float32 the relative error is below 2e-7, and arguments are clamped to [-87, 88]; NaN stays NaN."""
    return math.exp(x)


@overload(exp, jit_options=EXACT)
def _exp(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp32(x):
        x = EXP_LOW if x < EXP_LOW else x
        x = EXP_HIGH if x > EXP_HIGH else x
        whole = np.floor(x * LOG2_E + HALF)
        rest = (x - whole * LN2_HIGH - whole * LN2_LOW) * LOG2_E
        power = P0 + rest * (P1 + rest * (P2 + rest * (P3 + rest * (P4 + rest * (P5 + rest * P6)))))
        return power * float_of_bits(np.int32(np.int32(whole) + np.int32(127)) << np.int32(23))

    return exp32


def exp_scaled(x, scale):
    """e^(scale x) for scale x up to 88; below -87.3 it is 2^-126, and NaN stays NaN.

    In float32 it is cheaper than `exp`: the rounding of the exponent is not compensated, so the relative error is
    2e-7 + 1.2e-7 |scale x|. That is no more than what the rounding of x itself causes.
    """
    return math.exp(scale * x)


@overload(exp_scaled, jit_options=EXACT)
def _exp_scaled(x, scale):
    if x != types.float32:
        return lambda x, scale: math.exp(scale * x)

    def exp32(x, scale):
        x = x * (scale * LOG2_E)
        x = POWER_LOW if x < POWER_LOW else x
        whole = np.floor(x + HALF)
        rest = x - whole
        power = P0 + rest * (P1 + rest * (P2 + rest * (P3 + rest * (P4 + rest * (P5 + rest * P6)))))
        return power * float_of_bits(np.int32(np.int32(whole) + np.int32(127)) << np.int32(23))

    return exp32


@intrinsic
def maximum(typingctx, a, b):
    """The larger of two floats, NaN if one is NaN.

    Python's max keeps or drops a NaN depending on the argument's position, so a loop over it does not vectorize.
    """
    if a != b or a not in (types.float32, types.float64):
        return None

    def codegen(context, builder, signature, args):
        kind = args[0].type
        name = f"llvm.maximum.{'f32' if a == types.float32 else 'f64'}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
        return builder.call(function, args, fastmath=("nsz",))

    return a(a, b), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a b + c, rounded once: the bits are the same in the vectorized body of a loop and in its remainder."""
    if not a == b == c or a not in (types.float32, types.float64):
        return None

    def codegen(context, builder, signature, args):
        kind = args[0].type
        name = f"llvm.fma.{'f32' if a == types.float32 else 'f64'}"
        return builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name), args
        )

    return a(a, a, a), codegen


def sigmoid(x):
    """1 / (1 + e^-x)"""
    return 1 / (1 + math.exp(-x))


@overload(sigmoid, jit_options=EXACT)
def _sigmoid(x):
    def of_type(x):
        one = type_one(x)
        return one / (one + exp(-x))

    return of_type


def softplus(x):
    """(log(1 + e^x), its derivative sigmoid(x)), from one exponential."""
    return max(x, 0) + math.log1p(math.exp(-abs(x))), 1 / (1 + math.exp(-x))


@overload(softplus, jit_options=EXACT)
def _softplus(x):
    if x != types.float32:
        return lambda x: (maximum(x, 0.0) + math.log1p(math.exp(-abs(x))), sigmoid(x))

    def softplus32(x):
        u = exp(-abs(x))
        s = u / (TWO + u)
        z = s * s
        r = ONE / (ONE + u)
        return maximum(x, f(0)) + s * (TWO + z * (L0 + z * (L1 + z * (L2 + z * L3)))), (u * r if x < f(0) else r)

    return softplus32


def type_one(x):
    return x.dtype.type(1)


@overload(type_one)
def _type_one(x):
    one = f(1) if x == types.float32 else np.float64(1)
    return lambda x: one


def normal(x):
    """(cdf, pdf) of the standard normal distribution at x."""
    return 0.5 * math.erfc(-x * INV_SQRT_2), math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@overload(normal, jit_options=EXACT)
def _normal(x):
    if x != types.float32:
        return lambda x: (0.5 * math.erfc(-x * INV_SQRT_2), math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))

    def normal32(x):
        e = exp(-HALF * x * x)
        t = ONE / (ONE + Z_SCALE * abs(x))
        tail = HALF * e * (Q0 + t * (Q1 + t * (Q2 + t * (Q3 + t * (Q4 + t * (Q5 + t * (Q6 + t * (Q7 + t * Q8))))))))
        return (ONE - tail if x > f(0) else tail), INV_SQRT_2PI * e

    return normal32

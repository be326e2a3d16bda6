"""bfloat16: a float32's first sixteen bits, kept as uint16, as NumPy has no such type. `read` and `write` let one loop serve arrays of any type.

What feeds a product works on pairs: an int32 holds two numbers that are neighbours along the summed axis, the first in its low half. So rows
(n, k) of bfloat16 are rows (n, k / 2) of pairs, and every panel, copy and transpose of four-byte numbers serves them.
"""

import numpy as np
from llvmlite import binding, ir
from numba import prange, types
from numba.extending import intrinsic, overload

from slm_np.dtypes import BF16

from .jit import BLOCK, kernel, row
from .processor import FEATURES

WORD, HALF = ir.IntType(32), ir.IntType(16)
# The processor rounds to bfloat16 and multiplies pairs of it, and LLVM knows the type; before, its instructions took integers.
NATIVE = bool(FEATURES.get("avx512bf16") and FEATURES.get("avx512f") and binding.llvm_version_info >= (18,))


class BFloat(ir.Type):
    """LLVM's type, which its Python binding does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash(BFloat)


def nearest(builder, x):
    """Emit the bits of the bfloat16 nearest to x, a float32 or a vector of them: by one instruction, or by carrying half of the last place."""

    def like(kind, value):
        return (
            ir.Constant(ir.VectorType(kind, x.type.count), [value] * x.type.count)
            if isinstance(x.type, ir.VectorType)
            else ir.Constant(kind, value)
        )

    if NATIVE:
        return builder.bitcast(builder.fptrunc(x, like(BFloat(), 0).type), like(HALF, 0).type)
    bits = builder.bitcast(x, like(WORD, 0).type)
    odd = builder.and_(builder.lshr(bits, like(WORD, 16)), like(WORD, 1))
    carried = builder.lshr(builder.add(bits, builder.add(odd, like(WORD, 0x7FFF))), like(WORD, 16))
    carried = builder.select(builder.fcmp_unordered("uno", x, x), like(WORD, 0x7FC0), carried)
    return builder.trunc(carried, like(HALF, 0).type)


@intrinsic
def rounded(typingctx, x):
    """The bfloat16 nearest to a float32, the even one of two; NaN stays NaN, and what is smaller than 2^-126 may become zero."""
    if x != types.float32:
        return None

    def codegen(context, builder, signature, args):
        return nearest(builder, args[0])

    return types.uint16(x), codegen


@intrinsic
def widened(typingctx, x):
    """The float32 that a bfloat16 is."""
    if x != types.uint16:
        return None

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], WORD), ir.Constant(WORD, 16)), ir.FloatType())

    return types.float32(x), codegen


@intrinsic
def pair(typingctx, low, high):
    """Two bfloat16 side by side."""
    if not low == high == types.uint16:
        return None

    def codegen(context, builder, signature, args):
        return builder.or_(builder.zext(args[0], WORD), builder.shl(builder.zext(args[1], WORD), ir.Constant(WORD, 16)))

    return types.int32(low, high), codegen


def read(x, i):
    """Number i of an array, of bfloat16 as float32."""


@overload(read, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _read(x, i):
    if x.dtype == types.uint16:
        return lambda x, i: widened(x[i])
    return lambda x, i: x[i]


def write(x, i, value):
    """x[i] = value, rounded where x is of bfloat16."""


@overload(write, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _write(x, i, value):
    if x.dtype == types.uint16:

        def put(x, i, value):
            x[i] = rounded(value)
    else:

        def put(x, i, value):
            x[i] = value

    return put


def type_of(x):
    """The type that numbers of x are computed in."""
    return np.float32 if x.dtype == BF16 else x.dtype.type


@overload(type_of, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _type_of(x):
    if x.dtype == types.float64:
        return lambda x: np.float64
    return lambda x: np.float32


@row
def convert_block(out, x):
    for i in range(out.size):
        write(out, i, read(x, i))


@kernel
def _convert(out, x):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
        convert_block(out[part], x[part])


def convert(out, x):
    _convert(out.reshape(-1), x.reshape(-1))

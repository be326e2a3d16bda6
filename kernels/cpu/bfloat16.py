"""bfloat16 arrays: the upper 16 bits of each float32, stored as uint16 because NumPy has no bfloat16.

`read` and `write` convert elements, so that one loop serves arrays of any type.

Matmuls work on pairs: an int32 holds two bfloat16 neighbors along the summed axis, the first in its low half. So rows
(n, k) of bfloat16 are rows (n, k / 2) of pairs in memory, and the panels, copies and transposes of four-byte elements
work on them too.
"""

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, overload

from slm_np.dtypes import BF16

from .jit import BLOCK, blocks_of, kernel, row
from .processor import FEATURES

WORD, HALF = ir.IntType(32), ir.IntType(16)
# Whether the processor has instructions that round to bfloat16 and multiply pairs, and LLVM has the type. Before LLVM
# 18, these instructions took integers.
NATIVE = bool(FEATURES.get("avx512bf16") and FEATURES.get("avx512f") and binding.llvm_version_info >= (18,))


class BFloat(ir.Type):
    """LLVM's type `bfloat`, which llvmlite lacks."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash(BFloat)


def nearest(builder, x):
    """Emit code for the bits of the bfloat16 nearest to x, a float32 or a vector of float32.

    This is one instruction if the processor has it. Otherwise, half a unit in the last place is added to the bits of x,
    which are then truncated. Ties go to even, and NaN becomes 0x7FC0.
    """

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
    rounded_bits = builder.lshr(builder.add(bits, builder.add(odd, like(WORD, 0x7FFF))), like(WORD, 16))
    rounded_bits = builder.select(builder.fcmp_unordered("uno", x, x), like(WORD, 0x7FC0), rounded_bits)
    return builder.trunc(rounded_bits, like(HALF, 0).type)


@intrinsic
def rounded(typingctx, x):
    """x, a float32, rounded to the nearest bfloat16, ties to even. NaN stays NaN. Denormals may become zero."""
    if x != types.float32:
        return None

    def codegen(context, builder, signature, args):
        return nearest(builder, args[0])

    return types.uint16(x), codegen


@intrinsic
def widened(typingctx, x):
    """x, a bfloat16, as float32."""
    if x != types.uint16:
        return None

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], WORD), ir.Constant(WORD, 16)), ir.FloatType())

    return types.float32(x), codegen


@intrinsic
def pair(typingctx, low, high):
    """The pair of two bfloat16, `low` in the low half."""
    if not low == high == types.uint16:
        return None

    def codegen(context, builder, signature, args):
        return builder.or_(builder.zext(args[0], WORD), builder.shl(builder.zext(args[1], WORD), ir.Constant(WORD, 16)))

    return types.int32(low, high), codegen


def read(x, i):
    """x[i], as float32 if x is bfloat16."""


@overload(read, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _read(x, i):
    if x.dtype == types.uint16:
        return lambda x, i: widened(x[i])
    return lambda x, i: x[i]


def write(x, i, value):
    """x[i] = value, rounded if x is bfloat16."""


@overload(write, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _write(x, i, value):
    if x.dtype == types.uint16:

        def assign(x, i, value):
            x[i] = rounded(value)
    else:

        def assign(x, i, value):
            x[i] = value

    return assign


def type_of(x):
    """The type in which to compute with elements of x."""
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
def _convert(block, out, x):
    part = slice(block * BLOCK, min(x.size, block * BLOCK + BLOCK))
    convert_block(out[part], x[part])


def convert(out, x):
    _convert(blocks_of(x), out.reshape(-1), x.reshape(-1))

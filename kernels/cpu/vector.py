"""Explicit SIMD vectors for compiled loops that the compiler does not vectorize by itself, such as recurrences.

A vector holds LANES elements of float32 or float64 and exists in compiled functions only. `a * b`, `a + b` and `a - b`
act on each lane.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from .microkernel_f32 import LANES
from .pointer import element_pointer

f = np.float32
# 2^r on [-1/2, 1/2]: a minimax fit in float64 with 2^0 = 1 exactly. The relative error is 9e-8, and far less near 0,
# where a state decays slowly and errors would accumulate.
COEFFICIENTS = (1.0, 0.6931469776, 0.2402224208, 0.05550733744, 0.009671512786, 0.001326472725)
LOWEST = -126.0  # arguments are clamped: 2^x of less is not a normal float32


class Vector(types.Type):
    """LANES elements of the float type `real`."""

    def __init__(self, real):
        self.real = real
        super().__init__(f"vector of {real}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, vector_type(kind.real))


def vector_type(real):
    return ir.VectorType(ir.FloatType() if real == types.float32 else ir.DoubleType(), LANES)


def vector_pointer(context, builder, array_type, array, offset):
    """Pointer to the LANES elements from element `offset` of an array."""
    return builder.bitcast(
        element_pointer(context, builder, array_type, array, offset), vector_type(array_type.dtype).as_pointer()
    )


def broadcast(builder, value, kind):
    """Emit a vector with one value in all lanes."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


@intrinsic
def load(typingctx, array, offset):
    """array[offset : offset + LANES]"""

    def codegen(context, builder, signature, args):
        return builder.load(
            vector_pointer(context, builder, signature.args[0], args[0], args[1]), align=array.dtype.bitwidth // 8
        )

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx, array, offset, vector):
    """array[offset : offset + LANES] = vector"""

    def codegen(context, builder, signature, args):
        builder.store(
            args[2],
            vector_pointer(context, builder, signature.args[0], args[0], args[1]),
            align=array.dtype.bitwidth // 8,
        )
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


def masked(context, builder, array_type, array, offset, count):
    """(pointer, mask of the first `count` lanes, type suffix): the operands of a masked load or store."""
    mask_type, i64 = ir.VectorType(ir.IntType(1), LANES), ir.IntType(64)
    active_lanes = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(mask_type, [i64, i64]), f"llvm.get.active.lane.mask.v{LANES}i1.i64"
    )
    return (
        vector_pointer(context, builder, array_type, array, offset),
        builder.call(active_lanes, [ir.Constant(i64, 0), count]),
        f"v{LANES}f{array_type.dtype.bitwidth}.p0",
    )


@intrinsic
def load_some(typingctx, array, offset, count):
    """array[offset : offset + count], and zeros in the other lanes"""

    def codegen(context, builder, signature, args):
        pointer, mask, suffix = masked(context, builder, signature.args[0], *args)
        kind = vector_type(array.dtype)
        load = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [pointer.type, ir.IntType(32), mask.type, kind]),
            f"llvm.masked.load.{suffix}",
        )
        return builder.call(
            load,
            [pointer, ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8), mask, ir.Constant(kind, [0.0] * LANES)],
        )

    return Vector(array.dtype)(array, types.intp, types.intp), codegen


@intrinsic
def store_some(typingctx, array, offset, vector, count):
    """array[offset : offset + count] = the first `count` lanes of the vector"""

    def codegen(context, builder, signature, args):
        pointer, mask, suffix = masked(context, builder, signature.args[0], args[0], args[1], args[3])
        store = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [args[2].type, pointer.type, ir.IntType(32), mask.type]),
            f"llvm.masked.store.{suffix}",
        )
        builder.call(store, [args[2], pointer, ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8), mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), codegen


@intrinsic
def spread(typingctx, array, offset):
    """array[offset] in every lane"""

    def codegen(context, builder, signature, args):
        return broadcast(
            builder,
            builder.load(element_pointer(context, builder, signature.args[0], args[0], args[1])),
            vector_type(array.dtype),
        )

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a b + c, rounded once"""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        return builder.call(
            cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{LANES}f{a.real.bitwidth}"
            ),
            args,
        )

    return a(a, a, a), codegen


@intrinsic
def total(typingctx, a):
    """The sum of the lanes, by halves: the order is fixed."""

    def codegen(context, builder, signature, args):
        value, n = args[0], LANES
        while n > 1:
            n //= 2
            none = ir.Constant(value.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(
                    value, none, ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(start, start + n)))
                )
                for start in (0, n)
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return a.real(a), codegen


@intrinsic
def power(typingctx, a):
    """2^a for a <= 0: float32 by a polynomial, float64 by the C library, one lane at a time."""

    def codegen(context, builder, signature, args):
        x, kind = args[0], args[0].type
        if a.real == types.float64:
            return builder.call(
                cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), f"llvm.exp2.v{LANES}f64"),
                [x],
            )

        def constant(value):
            return ir.Constant(kind, [float(f(value))] * LANES)

        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.v{LANES}f32")
        x = builder.select(builder.fcmp_ordered("<", x, constant(LOWEST)), constant(LOWEST), x)  # NaN stays
        nearest = builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), f"llvm.rint.v{LANES}f32"), [x]
        )
        rest = builder.fsub(x, nearest)
        value = constant(COEFFICIENTS[-1])
        for c in COEFFICIENTS[-2::-1]:
            value = builder.call(fma, [value, rest, constant(c)])
        whole = ir.VectorType(ir.IntType(32), LANES)
        exponent = builder.shl(builder.fptosi(nearest, whole), ir.Constant(whole, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(value, whole), exponent), kind)

    return a(a), codegen


def lanewise(name):
    """An intrinsic that applies LLVM's instruction `name` to each lane of two vectors."""

    @intrinsic
    def act(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, name)(*args)

        return a(a, b), codegen

    return act


multiplied, added, subtracted = lanewise("fmul"), lanewise("fadd"), lanewise("fsub")


@overload(operator.mul)
def _mul(a, b):
    if isinstance(a, Vector) and a == b:
        return lambda a, b: multiplied(a, b)


@overload(operator.add)
def _add(a, b):
    if isinstance(a, Vector) and a == b:
        return lambda a, b: added(a, b)


@overload(operator.sub)
def _sub(a, b):
    if isinstance(a, Vector) and a == b:
        return lambda a, b: subtracted(a, b)

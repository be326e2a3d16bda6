"""Numbers side by side in one register, for loops that keep a recurrence there while time passes: what the compiler would not find by itself.

A vector holds LANES numbers of one type, float32 or float64; it exists within compiled functions only. `a * b`, `a + b`, `a - b` act on each lane.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from .blas import element_pointer
from .microkernel_f32 import LANES

f = np.float32
# 2^r on [-1/2, 1/2], relative error 9e-8 and far less near 0, where a state decays slowly and errors would pile up (least maximum error, fitted in
# float64 under the condition that 2^0 is 1).
COEFFICIENTS = (1.0, 0.6931469776, 0.2402224208, 0.05550733744, 0.009671512786, 0.001326472725)
LOWEST = -126.0  # 2^x of less is no normal float32; to a state it is all the same


class Vector(types.Type):
    """LANES numbers of the float type `real`."""

    def __init__(self, real):
        self.real = real
        super().__init__(f"vector of {real}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, vector_type(kind.real))


def vector_type(real):
    return ir.VectorType(ir.FloatType() if real == types.float32 else ir.DoubleType(), LANES)


def place_of(context, builder, array_type, array, offset):
    """Where the LANES numbers from element `offset` of an array lie."""
    return builder.bitcast(
        element_pointer(context, builder, array_type, array, offset), vector_type(array_type.dtype).as_pointer()
    )


def broadcast(builder, value, kind):
    """One number in all lanes."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


@intrinsic
def load(typingctx, array, offset):
    """The vector of array[offset:offset + LANES]."""

    def codegen(context, builder, signature, args):
        return builder.load(
            place_of(context, builder, signature.args[0], args[0], args[1]), align=array.dtype.bitwidth // 8
        )

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx, array, offset, vector):
    """array[offset:offset + LANES] = the vector"""

    def codegen(context, builder, signature, args):
        builder.store(
            args[2], place_of(context, builder, signature.args[0], args[0], args[1]), align=array.dtype.bitwidth // 8
        )
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


def masked(context, builder, array_type, array, offset, count):
    """(place, lanes below `count`, suffix of the type) for what reaches past an array's end."""
    lanes, i32 = ir.VectorType(ir.IntType(1), LANES), ir.IntType(64)
    mask = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(lanes, [i32, i32]), f"llvm.get.active.lane.mask.v{LANES}i1.i64"
    )
    return (
        place_of(context, builder, array_type, array, offset),
        builder.call(mask, [ir.Constant(i32, 0), count]),
        f"v{LANES}f{array_type.dtype.bitwidth}.p0",
    )


@intrinsic
def load_some(typingctx, array, offset, count):
    """The vector of array[offset:offset + count], zeros in the other lanes."""

    def codegen(context, builder, signature, args):
        place, lanes, suffix = masked(context, builder, signature.args[0], *args)
        kind = vector_type(array.dtype)
        load = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [place.type, ir.IntType(32), lanes.type, kind]),
            f"llvm.masked.load.{suffix}",
        )
        return builder.call(
            load,
            [place, ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8), lanes, ir.Constant(kind, [0.0] * LANES)],
        )

    return Vector(array.dtype)(array, types.intp, types.intp), codegen


@intrinsic
def store_some(typingctx, array, offset, vector, count):
    """array[offset:offset + count] = the vector's first lanes"""

    def codegen(context, builder, signature, args):
        place, lanes, suffix = masked(context, builder, signature.args[0], args[0], args[1], args[3])
        store = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [args[2].type, place.type, ir.IntType(32), lanes.type]),
            f"llvm.masked.store.{suffix}",
        )
        builder.call(store, [args[2], place, ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8), lanes])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), codegen


@intrinsic
def spread(typingctx, array, offset):
    """array[offset] in every lane."""

    def codegen(context, builder, signature, args):
        return broadcast(
            builder,
            builder.load(element_pointer(context, builder, signature.args[0], args[0], args[1])),
            vector_type(array.dtype),
        )

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a b + c, rounded once."""

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
    """The sum of the lanes, by halves: always in the same order."""

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
    """2^a, a <= 0: float32 by a polynomial, float64 by the C library, a lane at a time."""

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

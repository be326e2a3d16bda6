"""One tile of a bfloat16 matmul: bfloat16 pairs in, float32 out.

The tile is computed by AMX if it is available and passes its self-test, and otherwise in vector registers: by the
AVX512-BF16 instruction that multiplies and adds pairs or, without it, by splitting the pairs and multiplying in
float32. The three agree up to the rounding of sums.
"""

from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import amx, jit
from .amx import TILES, configure_tiles, multiply_tile, release_tiles
from .bfloat16 import NATIVE, BFloat, nearest
from .jit import row
from .microkernel_f32 import COLUMNS, LANES, multiply_added, multiply_tile_of
from .microkernel_f32 import ROWS as REGISTER_ROWS
from .pointer import element_pointer
from .processor import FEATURES, compiled_name

AMX, AMX_REASON = amx.available()
ROWS = amx.ROWS if AMX else REGISTER_ROWS
STEP = amx.PAIRS if AMX else 1  # the summed axis is a multiple of this many pairs
if AMX:
    jit.VARIANT = "amx"  # the machine code of kernels from here on differs
    assert COLUMNS == amx.COLUMNS


class Unit(NamedTuple):
    """Whether bfloat16 matmuls are faster than float32 on this processor, and the reason as a clause."""

    fast: bool
    reason: str


def bfloat16_unit():
    """The `Unit` of this processor.

    AMX multiplies bfloat16 about ten times as fast as float32. An AVX512-BF16 instruction does twice the work of an
    AVX-512 multiply-add: sixteen pairs instead of sixteen elements. Intel's processors run it at half the rate, so
    they gain nothing.
    """
    if AMX:
        return Unit(True, AMX_REASON)
    if not NATIVE:
        return Unit(False, AMX_REASON if FEATURES.get("amx-bf16") else "this processor has no instruction for bfloat16")
    if compiled_name().startswith("znver"):
        return Unit(True, "this processor multiplies bfloat16 twice as fast as float32, by AVX512-BF16")
    return Unit(False, "on this processor AVX512-BF16 is no faster than float32")


def add_pair_products(builder, total, factor, b):
    """total + the dot product of each pair of `factor` with the pair of `b` in the same lane."""
    lanes, word = total.type.count, ir.VectorType(ir.IntType(32), total.type.count)
    if NATIVE:
        pairs = ir.VectorType(BFloat(), 2 * lanes)
        add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(total.type, [total.type, pairs, pairs]),
            f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}",
        )
        return builder.call(add, [total, builder.bitcast(factor, pairs), builder.bitcast(b, pairs)])
    for half in (
        lambda x: builder.shl(x, ir.Constant(word, [16] * lanes)),
        lambda x: builder.and_(x, ir.Constant(word, [0xFFFF0000] * lanes)),
    ):
        total = multiply_added(
            builder, total, builder.bitcast(half(factor), total.type), builder.bitcast(half(b), total.type)
        )
    return total


multiply_register_tile = multiply_tile_of(
    lambda c, a, b: c == types.float32 and a == b == types.int32, add_pair_products
)


@row
def multiply_pairs(
    c,
    c_offset,
    c_row,
    a,
    a_offset,
    a_row,
    b,
    b_offset,
    b_step,
    k,
    accumulate,
):
    """C (ROWS, COLUMNS) = A (ROWS, k) B (k, COLUMNS), or += if `accumulate` is not 0. k > 0: pairs, a multiple of STEP

    C is float32, A and B are int32 pairs. Each matrix starts `offset` elements into its array, and its rows are `row`
    or `step` elements apart. The arrays must hold the whole tile. A thread calls `begin_tiles` before its first matmul
    and `end_tiles` after its last.
    """
    multiply_chosen_tile(
        c,
        c_offset,
        c_row,
        a,
        a_offset,
        a_row,
        1,
        b,
        b_offset,
        b_step,
        k,
        accumulate,
    )


# LLVM cannot generate AMX instructions for a processor without AMX, so the choice is made before compilation.
if AMX:
    multiply_chosen_tile = multiply_tile

    @row
    def begin_tiles():
        """Configure the calling thread's AMX tiles."""
        configure_tiles(TILES)

    @row
    def end_tiles():
        """Release the calling thread's AMX tiles, which makes its context switches cheaper."""
        release_tiles()
else:
    multiply_chosen_tile = multiply_register_tile

    @row
    def begin_tiles():
        """Do nothing: vector registers need no setup."""

    end_tiles = begin_tiles


def store_sums_of(add_bias, add_residual):
    """Make an intrinsic that stores COLUMNS elements of a row: out = sums (+ bias) (+ residual).

    Each array is read or written from its own offset. The results are rounded to the type of `out`.
    """

    @intrinsic
    def store_sums(
        typingctx,
        out,
        out_offset,
        sums,
        sums_offset,
        bias,
        bias_offset,
        residual,
        residual_offset,
    ):
        if sums.dtype != types.float32 or bias.dtype != types.float32:
            return None

        def codegen(context, builder, signature, args):
            array_types, vector = signature.args, ir.VectorType(ir.FloatType(), LANES)
            halves, words = (ir.VectorType(ir.IntType(bits), LANES) for bits in (16, 32))

            def at(argument, vector_type, v):
                """The address of vector v of an argument, which an offset follows."""
                pointer = builder.gep(
                    element_pointer(context, builder, array_types[argument], args[argument], args[argument + 1]),
                    [ir.Constant(ir.IntType(64), v * LANES)],
                )
                return builder.bitcast(pointer, vector_type.as_pointer())

            for v in range(COLUMNS // LANES):
                total = builder.load(at(2, vector, v), align=4)
                if add_bias:
                    total = builder.fadd(total, builder.load(at(4, vector, v), align=4))
                if add_residual and array_types[6].dtype == types.uint16:
                    bits = builder.zext(builder.load(at(6, halves, v), align=2), words)
                    total = builder.fadd(
                        total, builder.bitcast(builder.shl(bits, ir.Constant(words, [16] * LANES)), vector)
                    )
                elif add_residual:
                    total = builder.fadd(total, builder.load(at(6, vector, v), align=4))
                if array_types[0].dtype == types.uint16:
                    builder.store(nearest(builder, total), at(0, halves, v), align=2)
                else:
                    builder.store(total, at(0, vector, v), align=4)
            return context.get_dummy_value()

        i = types.intp
        return types.void(out, i, sums, i, bias, i, residual, i), codegen

    return store_sums


store_sums, store_sums_with_bias, store_sums_with_residual, store_sums_with_both = (
    store_sums_of(*choice) for choice in ((False, False), (True, False), (False, True), (True, True))
)


@intrinsic
def prefetch_tile(typingctx, out, offset, row):
    """Prefetch the first cache line of each of ROWS rows, `row` elements apart, for writing."""

    def codegen(context, builder, signature, args):
        out, offset, row = args
        first, byte, flag = (
            element_pointer(context, builder, signature.args[0], out, offset),
            ir.IntType(8).as_pointer(),
            ir.IntType(32),
        )
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        for r in range(ROWS):
            pointer = builder.gep(first, [builder.mul(row, ir.Constant(ir.IntType(64), r))])
            builder.call(
                prefetch, [builder.bitcast(pointer, byte), *(ir.Constant(flag, choice) for choice in (1, 3, 1))]
            )  # for writing, into the nearest cache, data
        return context.get_dummy_value()

    return types.void(out, types.intp, types.intp), codegen


def interleave_panel_of(width):
    """Make an intrinsic that packs a panel of pairs (terms, `width`) from neighboring rows of a bfloat16 matrix x.

    Element (t, c) of the panel is the pair x[2 t, c], x[2 t + 1, c]. x starts at an offset, its rows `x_row` apart.
    """

    @intrinsic
    def interleave_panel(typingctx, panel, panel_offset, x, x_offset, x_row, terms):
        if panel.dtype != types.int32 or x.dtype != types.uint16:
            return None

        def codegen(context, builder, signature, args):
            panel, panel_offset, x, x_offset, x_row, terms = args
            array_types, word = signature.args, ir.IntType(64)
            vector, pairs = ir.VectorType(ir.IntType(16), width), ir.VectorType(ir.IntType(16), 2 * width)
            order = ir.Constant(
                ir.VectorType(ir.IntType(32), 2 * width), [lane for i in range(width) for lane in (i, width + i)]
            )
            source, target = (
                element_pointer(context, builder, array_types[2], x, x_offset),
                element_pointer(context, builder, array_types[0], panel, panel_offset),
            )
            with cgutils.for_range(builder, terms) as loop:
                even = builder.gep(source, [builder.mul(builder.mul(loop.index, ir.Constant(word, 2)), x_row)])
                rows = [
                    builder.load(builder.bitcast(pointer, vector.as_pointer()), align=2)
                    for pointer in (even, builder.gep(even, [x_row]))
                ]
                pointer = builder.gep(target, [builder.mul(loop.index, ir.Constant(word, width))])
                interleaved = builder.shuffle_vector(*rows, order)
                builder.store(interleaved, builder.bitcast(pointer, pairs.as_pointer()), align=4)
            return context.get_dummy_value()

        i = types.intp
        return types.void(panel, i, x, i, i, i), codegen

    return interleave_panel


interleave_panel = interleave_panel_of(COLUMNS)


@intrinsic
def copy_pairs(typingctx, pairs, offset, x, x_offset, count):
    """pairs[offset : offset + count] = x[x_offset : x_offset + 2 count]

    x is bfloat16. Two neighbors in memory already have the bits of a pair, so this is a memory copy.
    """
    if pairs.dtype != types.int32 or x.dtype != types.uint16:
        return None

    def codegen(context, builder, signature, args):
        pairs, offset, x, x_offset, count = args
        source, target = (
            element_pointer(context, builder, signature.args[2], x, x_offset),
            element_pointer(context, builder, signature.args[0], pairs, offset),
        )
        cgutils.raw_memcpy(builder, target, builder.bitcast(source, target.type), count, 4, align=2)
        return context.get_dummy_value()

    i = types.intp
    return types.void(pairs, i, x, i, i), codegen

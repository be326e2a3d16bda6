"""The tile of a bfloat16 product: pairs in, float32 out. AMX's where the processor has them and they are right; else of registers, by an
instruction that adds the products of sixteen pairs or, without it, by taking pairs apart and multiplying float32: the same up to rounding of sums.
"""

from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import amx, jit
from .amx import TILES, configure_tiles, multiply_tile, release_tiles
from .bfloat16 import NATIVE, BFloat, nearest
from .blas import element_pointer
from .jit import row
from .microkernel_f32 import COLUMNS, LANES, multiply_added, multiply_tile_of
from .microkernel_f32 import ROWS as REGISTER_ROWS
from .processor import FEATURES, compiled_name

AMX, AMX_REASON = amx.available()
ROWS = amx.ROWS if AMX else REGISTER_ROWS
STEP = amx.PAIRS if AMX else 1  # pairs of which the summed axis must be a multiple
if AMX:
    jit.CACHE = jit.CACHE / "amx"  # what is compiled from here on differs
    assert COLUMNS == amx.COLUMNS


class Unit(NamedTuple):
    """What multiplies bfloat16 here: whether it is faster than float32, and a reason to print."""

    fast: bool
    reason: str


def bfloat16_unit():
    """The `Unit` of this processor. AMX multiplies bfloat16 some ten times as fast as float32. AVX512-BF16 adds sixteen pairs where an
    AVX-512 multiply-add adds sixteen numbers, twice the work; Intel's processors have it at half the rate, and so gain nothing."""
    if AMX:
        return Unit(True, AMX_REASON)
    if not NATIVE:
        return Unit(False, AMX_REASON if FEATURES.get("amx-bf16") else "this processor has no instruction for bfloat16")
    if compiled_name().startswith("znver"):
        return Unit(True, "this processor multiplies bfloat16 twice as fast as float32, by AVX512-BF16")
    return Unit(False, "on this processor AVX512-BF16 is no faster than float32")


def pairs_added(builder, total, factor, b):
    """total + the products of two vectors of pairs, lane by lane."""
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


multiply_register_tile = multiply_tile_of(lambda c, a, b: c == types.float32 and a == b == types.int32, pairs_added)


@row
def multiply_pairs(c, c_offset, c_row, a, a_offset, a_row, b, b_offset, b_step, k, accumulate):
    """C (ROWS, COLUMNS) = A (ROWS, k) B (k, COLUMNS), or += where `accumulate` is not 0; k > 0 pairs, a multiple of STEP.

    C is of float32, A and B of pairs, int32. Each operand starts `offset` elements into its array, its rows `row` or `step` elements apart.
    Everything the tile covers must exist. A thread calls `begin_tiles` before its first and `end_tiles` after its last.
    """
    multiply_chosen_tile(c, c_offset, c_row, a, a_offset, a_row, 1, b, b_offset, b_step, k, accumulate)


# Code with AMX instructions cannot even be generated for a processor without them.
if AMX:
    multiply_chosen_tile = multiply_tile

    @row
    def begin_tiles():
        """Tiles belong to a thread, and it has none until it asks."""
        configure_tiles(TILES)

    @row
    def end_tiles():
        """A thread with tiles has more to save whenever another runs."""
        release_tiles()
else:
    multiply_chosen_tile = multiply_register_tile

    @row
    def begin_tiles():
        """Registers are there for everyone."""

    end_tiles = begin_tiles


def put_row_of(on_bias, on_residual):
    """An intrinsic: COLUMNS numbers of a row of `out` = sums (+ bias) (+ residual), each starting at an offset; rounded where `out` is of bfloat16."""

    @intrinsic
    def put_row(typingctx, out, out_offset, sums, sums_offset, bias, bias_offset, residual, residual_offset):
        if sums.dtype != types.float32 or bias.dtype != types.float32:
            return None

        def codegen(context, builder, signature, args):
            kinds, vector = signature.args, ir.VectorType(ir.FloatType(), LANES)
            halves, words = (ir.VectorType(kind, LANES) for kind in (ir.IntType(16), ir.IntType(32)))

            def at(place, kind, v):
                pointer = builder.gep(
                    element_pointer(context, builder, kinds[place], args[place], args[place + 1]),
                    [ir.Constant(ir.IntType(64), v * LANES)],
                )
                return builder.bitcast(pointer, kind.as_pointer())

            for v in range(COLUMNS // LANES):
                total = builder.load(at(2, vector, v), align=4)
                if on_bias:
                    total = builder.fadd(total, builder.load(at(4, vector, v), align=4))
                if on_residual and kinds[6].dtype == types.uint16:
                    bits = builder.zext(builder.load(at(6, halves, v), align=2), words)
                    total = builder.fadd(
                        total, builder.bitcast(builder.shl(bits, ir.Constant(words, [16] * LANES)), vector)
                    )
                elif on_residual:
                    total = builder.fadd(total, builder.load(at(6, vector, v), align=4))
                if kinds[0].dtype == types.uint16:
                    builder.store(nearest(builder, total), at(0, halves, v), align=2)
                else:
                    builder.store(total, at(0, vector, v), align=4)
            return context.get_dummy_value()

        i = types.intp
        return types.void(out, i, sums, i, bias, i, residual, i), codegen

    return put_row


put_row, put_row_on_bias, put_row_on_residual, put_row_on_both = (
    put_row_of(*choice) for choice in ((False, False), (True, False), (False, True), (True, True))
)


@intrinsic
def prefetch_tile(typingctx, out, offset, row):
    """The first line of each of ROWS rows, `row` elements apart, is to be written soon."""

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
            place = builder.gep(first, [builder.mul(row, ir.Constant(ir.IntType(64), r))])
            builder.call(
                prefetch, [builder.bitcast(place, byte), *(ir.Constant(flag, choice) for choice in (1, 3, 1))]
            )  # to write, near, data
        return context.get_dummy_value()

    return types.void(out, types.intp, types.intp), codegen


def interleave_panel_of(width):
    """An intrinsic: panel (terms, width) of pairs: row t holds x[2t, ...] and x[2t + 1, ...] side by side, `width` columns from an offset on, x's rows `x_row` apart."""

    @intrinsic
    def interleave_panel(typingctx, panel, panel_offset, x, x_offset, x_row, terms):
        if panel.dtype != types.int32 or x.dtype != types.uint16:
            return None

        def codegen(context, builder, signature, args):
            panel, panel_offset, x, x_offset, x_row, terms = args
            kinds, word = signature.args, ir.IntType(64)
            vector, pairs = ir.VectorType(ir.IntType(16), width), ir.VectorType(ir.IntType(16), 2 * width)
            order = ir.Constant(
                ir.VectorType(ir.IntType(32), 2 * width), [place for i in range(width) for place in (i, width + i)]
            )
            source, target = (
                element_pointer(context, builder, kinds[2], x, x_offset),
                element_pointer(context, builder, kinds[0], panel, panel_offset),
            )
            with cgutils.for_range(builder, terms) as loop:
                even = builder.gep(source, [builder.mul(builder.mul(loop.index, ir.Constant(word, 2)), x_row)])
                rows = [
                    builder.load(builder.bitcast(place, vector.as_pointer()), align=2)
                    for place in (even, builder.gep(even, [x_row]))
                ]
                place = builder.gep(target, [builder.mul(loop.index, ir.Constant(word, width))])
                builder.store(builder.shuffle_vector(*rows, order), builder.bitcast(place, pairs.as_pointer()), align=4)
            return context.get_dummy_value()

        i = types.intp
        return types.void(panel, i, x, i, i, i), codegen

    return interleave_panel


interleave_panel = interleave_panel_of(COLUMNS)


@intrinsic
def copy_pairs(typingctx, pairs, offset, x, x_offset, count):
    """pairs[offset : offset + count] = the 2 count bfloat16 from x_offset on, wherever that is: two neighbours are a pair as they lie."""
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

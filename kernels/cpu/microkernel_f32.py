"""The microkernel of float32 and float64 matmuls: a tile of C stays in registers while its terms are added.

The size of the tile follows from the processor's registers: the tile, a row of B and one element of A fill them. The
file also holds what packs operands for tiles: copies of panels, and the transpose of a square that fits the registers.
"""

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .jit import row
from .pointer import element_pointer
from .processor import FEATURES

# Of float32. A float64 tile has the same size, and the compiler splits it into more registers.
ROWS, COLUMNS, LANES = (
    (8, 32, 16)
    if FEATURES.get("avx512f")
    else (6, 16, 8)
    if FEATURES.get("avx2") and FEATURES.get("fma")
    else (8, 8, 4)
)
QUERIES = 64 // ROWS * ROWS  # of attention at a time: whole tiles
LINE = 64  # bytes of a cache line
# What a matmul adds its sums to: nothing, C as it is, or what C is prefilled with.
NOTHING, ADD, BIAS, RESIDUAL, BIAS_AND_RESIDUAL = range(5)


def multiply_tile_of(fits, add):
    """An intrinsic: C (ROWS, COLUMNS) = A (ROWS, k) B (k, COLUMNS), or += where `accumulate` is not 0; k > 0.

    Each operand starts `offset` elements into its array. Rows of C lie `c_row` elements apart, rows of A `a_row` and
    its columns `a_step`, so that A may be a transpose; rows of B lie `b_step` apart. The arrays must hold whole tiles.
    fits  function (types of C, A and B) -> whether the intrinsic takes them
    add   emits total + factor b for vectors, total of C's type, the others of A's
    """

    @intrinsic
    def multiply_tile(typingctx, c, c_offset, c_row, a, a_offset, a_row, a_step, b, b_offset, b_step, k, accumulate):
        if not fits(c.dtype, a.dtype, b.dtype):
            return None

        def codegen(context, builder, signature, args):
            c, c_offset, c_row, *operands, accumulate = args
            kinds = signature.args
            rows = tile_rows(builder, element_pointer(context, builder, kinds[0], c, c_offset), c_row)
            sums = tile_sums(context, builder, kinds[0].dtype, kinds[3:], operands, add)
            size = element_bytes(kinds[0].dtype)
            with builder.if_else(builder.icmp_signed("!=", accumulate, accumulate.type(0))) as (add_to, overwrite):
                with add_to:
                    store_tile_sums(builder, rows, sums, [rows], size)
                with overwrite:
                    store_tile_sums(builder, rows, sums, [], size)
            return context.get_dummy_value()

        i = types.intp
        return types.void(c, i, i, a, i, i, i, b, i, i, i, i), codegen

    return multiply_tile


def tile_sums(context, builder, real, kinds, operands, add):
    """Emit the loop over the terms of a tile, and return its sums: vectors [ROWS][COLUMNS / LANES] of type `real`.

    operands  a, a_offset, a_row, a_step, b, b_offset, b_step, k: see `multiply_tile_of`
    kinds     their types
    """
    a, a_offset, a_row, a_step, b, b_offset, b_step, k = operands
    word, size = ir.IntType(64), element_bytes(kinds[0].dtype)
    vectors = range(COLUMNS // LANES)
    sums_type, terms = (ir.VectorType(context.get_value_type(kind), LANES) for kind in (real, kinds[0].dtype))
    spread, first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES), ir.Constant(ir.IntType(32), 0)
    undefined, zero = ir.Constant(terms, ir.Undefined), ir.Constant(sums_type, [0.0] * LANES)
    a0 = element_pointer(context, builder, kinds[0], a, a_offset)
    b0 = element_pointer(context, builder, kinds[4], b, b_offset)
    a_rows = tile_rows(builder, a0, a_row)
    before, loop, after = builder.block, builder.append_basic_block("terms"), builder.append_basic_block("terms.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    i = builder.phi(word)
    i.add_incoming(ir.Constant(word, 0), before)
    sums = [[builder.phi(sums_type) for _ in vectors] for _ in range(ROWS)]
    b_row = builder.gep(b0, [builder.mul(i, b_step)])
    b_vectors = [builder.load(vector_at(builder, b_row, v, terms), align=size) for v in vectors]
    for r in range(ROWS):
        scalar = builder.load(builder.gep(a_rows[r], [builder.mul(i, a_step)]), align=size)
        factor = builder.shuffle_vector(builder.insert_element(undefined, scalar, first), undefined, spread)
        for v in vectors:
            total = sums[r][v]
            total.add_incoming(zero, before)
            sums[r][v] = add(builder, total, factor, b_vectors[v])
            total.add_incoming(sums[r][v], loop)
    following = builder.add(i, ir.Constant(word, 1))
    i.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, k), loop, after)
    builder.position_at_end(after)
    return sums


def store_tile_sums(builder, rows, sums, prefills, size):
    """Emit rows = (prefills added in turn) + sums. rows, and each of prefills: pointers to ROWS rows"""
    for r in range(ROWS):
        for v in range(COLUMNS // LANES):
            kind = sums[r][v].type
            loaded = [builder.load(vector_at(builder, prefill[r], v, kind), align=size) for prefill in prefills]
            total = functools.reduce(builder.fadd, [*loaded, sums[r][v]])
            builder.store(total, vector_at(builder, rows[r], v, kind), align=size)


def prefetch(builder, rows, for_writing, size):
    """Emit prefetches of the cache lines of ROWS rows of C: they arrive while the sums are computed."""
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
    )
    choices = [flag(int(for_writing)), flag(3), flag(1)]  # into the nearest cache, data
    for first in rows:
        for offset in range(0, COLUMNS, LINE // size):
            pointer = builder.gep(first, [ir.Constant(ir.IntType(64), offset)])
            builder.call(function, [builder.bitcast(pointer, byte), *choices])


def tile_rows(builder, first, step):
    """Emit pointers to ROWS rows, `step` elements apart."""
    return [builder.gep(first, [builder.mul(step, step.type(r))]) for r in range(ROWS)]


def vector_at(builder, row, v, kind):
    """Emit a pointer to vector v of a row."""
    return builder.bitcast(builder.gep(row, [ir.Constant(ir.IntType(64), v * LANES)]), kind.as_pointer())


def element_bytes(real):
    return 8 if real == types.float64 else 4


def multiply_added(builder, total, factor, b):
    """total + factor b, for floats"""
    name = f"llvm.fmuladd.v{total.type.count}f{64 if total.type.element == ir.DoubleType() else 32}"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, ir.FunctionType(total.type, [total.type] * 3), name),
        [factor, b, total],
    )


multiply_tile = multiply_tile_of(lambda c, a, b: c == a == b, multiply_added)


@intrinsic
def multiply_prefilled_tile(
    typingctx,
    c,
    c_offset,
    c_row,
    a,
    a_offset,
    a_row,
    a_step,
    b,
    b_offset,
    b_step,
    k,
    prefill,
    bias,
    bias_offset,
    residual,
):
    """C (ROWS, COLUMNS) = prefill + A B: as `multiply_tile`, with the prefill (NOTHING, ADD, ...) added in the store.

    The bias starts at `bias_offset`. The residual lies in its array as C does in its own.
    """
    if not c.dtype == a.dtype == b.dtype == bias.dtype == residual.dtype:
        return None

    def codegen(context, builder, signature, args):
        c, c_offset, c_row, *operands, prefill, bias, bias_offset, residual = args
        kinds, size = signature.args, element_bytes(signature.args[0].dtype)
        bias_row = element_pointer(context, builder, kinds[12], bias, bias_offset)
        rows, residual_rows = (
            tile_rows(builder, element_pointer(context, builder, kinds[i], array, c_offset), c_row)
            for i, array in ((0, c), (14, residual))
        )
        prefetch(builder, rows, True, size)
        with builder.if_then(builder.icmp_signed(">=", prefill, prefill.type(RESIDUAL))):
            prefetch(builder, residual_rows, False, size)
        sums = tile_sums(context, builder, kinds[0].dtype, kinds[3:], operands, multiply_added)
        bias_rows = [bias_row] * ROWS
        done = builder.append_basic_block("stored")
        choice = builder.switch(prefill, done)
        for value, prefills in (
            (NOTHING, []),
            (ADD, [rows]),
            (BIAS, [bias_rows]),
            (RESIDUAL, [residual_rows]),
            (BIAS_AND_RESIDUAL, [residual_rows, bias_rows]),
        ):
            block = builder.append_basic_block("store")
            choice.add_case(prefill.type(value), block)
            with builder.goto_block(block):
                store_tile_sums(builder, rows, sums, prefills, size)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    i = types.intp
    return types.void(c, i, i, a, i, i, i, b, i, i, i, i, bias, i, residual), codegen


@intrinsic
def transpose_tile(typingctx, out, out_offset, out_row, x, x_offset, x_row):
    """out (LANES, LANES) = x^T, rows `out_row` and `x_row` elements apart.

    Interleaving the first half of the rows with the second, log2(LANES) times, moves the bits of a number's row into
    its column.
    """
    if out.dtype != x.dtype:
        return None

    def codegen(context, builder, signature, args):
        out, out_offset, out_row, x, x_offset, x_row = args
        kinds, word = signature.args, ir.IntType(64)
        size, vector = (
            4 if kinds[0].dtype == types.float32 else 8,
            ir.VectorType(context.get_value_type(kinds[0].dtype), LANES),
        )

        def pointer(base, step, r):
            return builder.bitcast(builder.gep(base, [builder.mul(step, ir.Constant(word, r))]), vector.as_pointer())

        def interleave(a, b, first):
            order = [lane for i in range(first, first + LANES // 2) for lane in (i, LANES + i)]
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))

        source, target = (
            element_pointer(context, builder, kinds[3], x, x_offset),
            element_pointer(context, builder, kinds[0], out, out_offset),
        )
        rows = [builder.load(pointer(source, x_row, r), align=size) for r in range(LANES)]
        for _ in range(LANES.bit_length() - 1):
            rows = [
                interleave(rows[r], rows[r + LANES // 2], first) for r in range(LANES // 2) for first in (0, LANES // 2)
            ]
        for r in range(LANES):
            builder.store(rows[r], pointer(target, out_row, r), align=size)
        return context.get_dummy_value()

    i = types.intp
    return types.void(out, i, i, x, i, i), codegen


def copy_panel_of(width):
    """An intrinsic: panel (terms, width) = `terms` rows of x, `width` columns each, from element `x_offset` on.

    Rows of x lie `x_row` elements apart.
    """

    @intrinsic
    def copy_panel(typingctx, panel, panel_offset, x, x_offset, x_row, terms):
        if panel.dtype != x.dtype:
            return None

        def codegen(context, builder, signature, args):
            panel, panel_offset, x, x_offset, x_row, terms = args
            kinds, size = signature.args, 4 if signature.args[0].dtype == types.float32 else 8
            vector = ir.VectorType(context.get_value_type(kinds[0].dtype), width)
            source, target = (
                element_pointer(context, builder, kinds[2], x, x_offset),
                element_pointer(context, builder, kinds[0], panel, panel_offset),
            )
            with cgutils.for_range(builder, terms) as loop:
                row = builder.load(
                    builder.bitcast(builder.gep(source, [builder.mul(loop.index, x_row)]), vector.as_pointer()),
                    align=size,
                )
                builder.store(
                    row,
                    builder.bitcast(
                        builder.gep(target, [builder.mul(loop.index, ir.Constant(ir.IntType(64), width))]),
                        vector.as_pointer(),
                    ),
                    align=size,
                )
            return context.get_dummy_value()

        i = types.intp
        return types.void(panel, i, x, i, i, i), codegen

    return copy_panel


copy_row_panel, copy_column_panel = copy_panel_of(ROWS), copy_panel_of(COLUMNS)


@intrinsic
def copy_element(typingctx, out, out_offset, x, x_offset):
    """out[out_offset] = x[x_offset], counted over contiguous arrays of any shape."""

    def codegen(context, builder, signature, args):
        source, target = (element_pointer(context, builder, signature.args[i], args[i], args[i + 1]) for i in (2, 0))
        builder.store(builder.load(source), target)
        return context.get_dummy_value()

    return types.void(out, types.intp, x, types.intp), codegen


@register_jitable
def padded(size, multiple):
    return (size + multiple - 1) // multiple * multiple


@row
def multiply(c, c_offset, c_row, a, a_offset, a_row, a_step, b, b_offset, b_step, rows, columns, k, accumulate):
    """`multiply_tile` over all tiles of C (rows, columns). The operands must reach to multiples of ROWS and COLUMNS."""
    for j in range(0, columns, COLUMNS):
        for i in range(0, rows, ROWS):
            multiply_tile(
                c,
                c_offset + i * c_row + j,
                c_row,
                a,
                a_offset + i * a_row,
                a_row,
                a_step,
                b,
                b_offset + j,
                b_step,
                k,
                accumulate,
            )


@row
def transpose(out, out_row, x, x_offset, x_row, rows, columns):
    """out (columns, rows) = x^T, from x (rows, columns) at `x_offset`; out starts its array."""
    for r in range(0, rows, LANES):
        for c in range(0, columns, LANES):
            if r + LANES <= rows and c + LANES <= columns:
                transpose_tile(out, c * out_row + r, out_row, x, x_offset + r * x_row + c, x_row)
            else:
                for i in range(r, min(rows, r + LANES)):
                    for j in range(c, min(columns, c + LANES)):
                        copy_element(out, j * out_row + i, x, x_offset + i * x_row + j)

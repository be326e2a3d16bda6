"""The dense linear recurrence H_t = U_t + H_(t-1) A, in place, and the change between batch-major and time-major.

One step is a small matmul, for example 16 rows by a 512 x 512 matrix: too little work to share out and synchronize. But
sequences are independent, so each thread runs the time loop of its own sequences and never waits for another. A is
packed once into the panels that register tiles read, which stay in the second-level or third-level cache.

Sizes: T steps, B sequences, S state width, C = COLUMNS columns of a panel. ROWS sequences form a block.
"""

from typing import Any, NamedTuple

import numba
from numba.extending import register_jitable

from .bfloat16 import convert_block, read, write
from .gemm_f32 import TERMS, copy_panel, even_share
from .jit import kernel, row
from .microkernel_f32 import COLUMNS, ROWS, multiply_tile, padded, transpose
from .norm import add_to
from .scratch import carve, elements_of


class Scratch(NamedTuple):
    """Flat views.

    panels  (S / C, S, C)   A or A^T
    rows    (ROWS, S)       the last block's rows if it is not full, padded with zeros
    tiles   (B / ROWS, ROWS, C)   a tile per block, for blocks that are not full and for A's last columns
    """

    panels: Any
    rows: Any
    tiles: Any


@register_jitable
def layout(memory, batch, width):
    """The scratch, and the rest of the memory."""
    panels, memory = carve(memory, (padded(width, COLUMNS) * width,))
    rows, memory = carve(memory, (ROWS * width,))
    tiles, memory = carve(memory, (padded(batch, ROWS) * COLUMNS,))
    return Scratch(panels, rows, tiles), memory


def linear_recurrence_scratch(batch, width):
    """Elements of scratch."""
    return elements_of(layout, batch, width)


@kernel
def _pack_panels(panel, scratch, batch, weight, flat_weight, transposed):
    """panels (S / C, S, C) of A, or of its transpose; columns past the last are zeros"""
    width, j = len(weight), panel * COLUMNS
    panels = layout(scratch, batch, width)[0].panels
    if transposed:
        target = panels[j * width : (j + COLUMNS) * width]
        if j + COLUMNS > width:
            target[:] = 0
        transpose(target, COLUMNS, flat_weight, j * width, width, min(COLUMNS, width - j), width)
    else:
        copy_panel(panels, j * width, weight, flat_weight, 0, width, j, COLUMNS)


@row
def step_blocks(
    states,
    source_step,
    target_step,
    batch,
    width,
    start,
    stop,
    panels,
    rows,
    tiles,
):
    """states[target_step] += states[source_step] A for the blocks start ... stop; a step is the offset of its rows."""
    full_blocks, terms = batch // ROWS, even_share(width, TERMS)
    if stop > full_blocks:  # a tile reads ROWS rows
        source = source_step + full_blocks * ROWS * width
        convert_block(rows[: (batch - full_blocks * ROWS) * width], states[source : source_step + batch * width])
    for j in range(0, width, COLUMNS):
        columns = min(COLUMNS, width - j)
        for k in range(0, width, terms):
            count, panel = min(terms, width - k), j * width + k * COLUMNS
            for block in range(start, stop):
                source = source_step + block * ROWS * width + k
                target = target_step + block * ROWS * width + j
                tile = block * ROWS * COLUMNS
                if block < full_blocks and columns == COLUMNS:
                    multiply_tile(
                        states,
                        target,
                        width,
                        states,
                        source,
                        width,
                        1,
                        panels,
                        panel,
                        COLUMNS,
                        count,
                        1,
                    )
                    continue
                if block < full_blocks:
                    multiply_tile(
                        tiles,
                        tile,
                        COLUMNS,
                        states,
                        source,
                        width,
                        1,
                        panels,
                        panel,
                        COLUMNS,
                        count,
                        0,
                    )
                else:
                    multiply_tile(
                        tiles,
                        tile,
                        COLUMNS,
                        rows,
                        k,
                        width,
                        1,
                        panels,
                        panel,
                        COLUMNS,
                        count,
                        0,
                    )
                for r in range(min(ROWS, batch - block * ROWS)):
                    add_to(
                        states[target + r * width : target + r * width + columns],
                        tiles[tile + r * COLUMNS : tile + r * COLUMNS + columns],
                    )


@kernel
def _time_loop(task, states, start, stride, steps, batch, width, scratch, tasks):
    """`steps` steps from the rows at offset `start`, each `stride` elements further. A task owns some blocks."""
    blocks, s = (batch + ROWS - 1) // ROWS, layout(scratch, batch, width)[0]
    if task == tasks - 1:  # it owns the block that is not full
        s.rows[:] = 0
    for t in range(steps):
        source_step = start + t * stride
        step_blocks(
            states,
            source_step,
            source_step + stride,
            batch,
            width,
            task * blocks // tasks,
            (task + 1) * blocks // tasks,
            s.panels,
            s.rows,
            s.tiles,
        )


def recurrence(states, scratch, weight, backward):
    """states[t + 1] += states[t] A for t = 0, 1, ...

    Or backward: states[t] += states[t + 1] A^T for t = T - 1, T - 2, ...
    """
    steps, batch, width = len(states) - 1, *states.shape[1:]
    _pack_panels(-(-width // COLUMNS), scratch, batch, weight, weight.reshape(-1), backward)
    start, stride = (steps * batch * width, -batch * width) if backward else (0, batch * width)
    tasks = min(numba.get_num_threads(), (batch + ROWS - 1) // ROWS)
    _time_loop(tasks, states.reshape(-1), start, stride, steps, batch, width, scratch, tasks)


def linear_recurrence_forward(states, scratch, weight):
    recurrence(states, scratch, weight, False)


def linear_recurrence_backward(dstates, scratch, weight):
    recurrence(dstates, scratch, weight, True)


@kernel
def _time_major(t, out, x, start):
    """out[t, b] = x[b, start + t]        out (T, B, D)   x (B, ., D)"""
    for b in range(out.shape[1]):
        convert_block(out[t, b], x[b, start + t])


@kernel
def _batch_major(t, out, x, residual, has_residual, start):
    """out[b, start + t] = x[t, b] (+ residual[b, start + t])        out, residual (B, ., D)   x (T, B, D)"""
    for b in range(x.shape[1]):
        target, source, other = out[b, start + t], x[t, b], residual[b, start + t]
        if has_residual:
            for d in range(target.size):
                write(target, d, read(source, d) + read(other, d))
        else:
            convert_block(target, source)


def time_major(out, x, start):
    _time_major(len(out), out, x.reshape(out.shape[1], -1, out.shape[2]), start)


def batch_major(out, x, residual, start):
    shape = x.shape[1], -1, x.shape[2]  # (B, ., D)
    has_residual = residual is not None
    residual = residual if has_residual else out
    _batch_major(len(x), out.reshape(shape), x, residual.reshape(shape), has_residual, start)

"""The dense linear recurrence, H_t = U_t + H_(t-1) A, walked through time in place; and the order of rows it wants, time before batch.

A step of 16 rows by a square of 512 is too short to be shared out and waited for. But no text needs another: a thread owns some texts and
walks all of time alone, so that threads never meet. A is laid out once as the panels that register tiles read; they stream from the
second-level cache, or the third, as fast as the tiles multiply.
"""

import numba
from numba import prange

from .bfloat16 import convert_block, read, write
from .gemm_f32 import TERMS, even_share, take_panel
from .jit import kernel, row
from .microkernel_f32 import COLUMNS, ROWS, multiply_tile, padded, transpose
from .norm import add_to


def rooms(batch, width):
    """Numbers of scratch for: A's panels; the rows of a block that is not full; a tile for each block, where A's last columns do not fill one."""
    return padded(width, COLUMNS) * width, ROWS * width, (batch + ROWS - 1) // ROWS * ROWS * COLUMNS


def linear_recurrence_scratch(batch, width):
    return sum(rooms(batch, width))


@kernel
def lay_panels(panels, weight, flat, transposed):
    """Panels (S, COLUMNS) of A, or of its transpose, one after another, zeros past the last column."""
    width = len(weight)
    for panel in prange((width + COLUMNS - 1) // COLUMNS):
        j = panel * COLUMNS
        if transposed:
            part = panels[j * width : (j + COLUMNS) * width]
            if j + COLUMNS > width:
                part[:] = 0
            transpose(part, COLUMNS, flat, j * width, width, min(COLUMNS, width - j), width)
        else:
            take_panel(panels, j * width, weight, flat, 0, width, j, COLUMNS)


@row
def step_blocks(states, before, after, batch, width, first, last, panels, rows, tiles):
    """states[after] += states[before] A for the blocks first ... last of a batch; `before` and `after` are where the step's rows begin."""
    whole, terms = batch // ROWS, even_share(width, TERMS)
    if last > whole:  # a tile reads ROWS rows: those past the batch are zeros
        source = before + whole * ROWS * width
        rows[: (batch - whole * ROWS) * width] = states[source : before + batch * width]
    for j in range(0, width, COLUMNS):
        columns = min(COLUMNS, width - j)
        for k in range(0, width, terms):
            count = min(terms, width - k)
            for block in range(first, last):
                source, target, tile = (
                    before + block * ROWS * width + k,
                    after + block * ROWS * width + j,
                    block * ROWS * COLUMNS,
                )
                if block < whole and columns == COLUMNS:
                    multiply_tile(
                        states,
                        target,
                        width,
                        states,
                        source,
                        width,
                        1,
                        panels,
                        j * width + k * COLUMNS,
                        COLUMNS,
                        count,
                        1,
                    )
                    continue
                if block < whole:
                    multiply_tile(
                        tiles,
                        tile,
                        COLUMNS,
                        states,
                        source,
                        width,
                        1,
                        panels,
                        j * width + k * COLUMNS,
                        COLUMNS,
                        count,
                        0,
                    )
                else:
                    multiply_tile(
                        tiles, tile, COLUMNS, rows, k, width, 1, panels, j * width + k * COLUMNS, COLUMNS, count, 0
                    )
                for r in range(min(ROWS, batch - block * ROWS)):
                    add_to(
                        states[target + r * width : target + r * width + columns],
                        tiles[tile + r * COLUMNS : tile + r * COLUMNS + columns],
                    )


@kernel
def walk(states, first, stride, steps, batch, width, panels, rows, tiles, parts):
    """`steps` steps from the rows at `first`, each to the rows `stride` numbers on."""
    blocks = (batch + ROWS - 1) // ROWS
    for part in prange(parts):
        for t in range(steps):
            before = first + t * stride
            step_blocks(
                states,
                before,
                before + stride,
                batch,
                width,
                part * blocks // parts,
                (part + 1) * blocks // parts,
                panels,
                rows,
                tiles,
            )


def recur(states, scratch, weight, backwards):
    """states[t + 1] += states[t] A for t = 0, 1, ...; or backwards, states[t] += states[t + 1] A^T for t = T - 1, T - 2, ..."""
    steps, batch, width = len(states) - 1, *states.shape[1:]
    n_panels, n_rows, n_tiles = rooms(batch, width)
    panels, rows, tiles = (
        scratch[:n_panels],
        scratch[n_panels : n_panels + n_rows],
        scratch[n_panels + n_rows : n_panels + n_rows + n_tiles],
    )
    rows.fill(0)
    lay_panels(panels, weight, weight.reshape(-1), backwards)
    first, stride = (steps * batch * width, -batch * width) if backwards else (0, batch * width)
    walk(
        states.reshape(-1),
        first,
        stride,
        steps,
        batch,
        width,
        panels,
        rows,
        tiles,
        min(numba.get_num_threads(), (batch + ROWS - 1) // ROWS),
    )


def linear_recurrence_forward(states, scratch, weight):
    recur(states, scratch, weight, False)


def linear_recurrence_backward(dstates, scratch, weight):
    recur(dstates, scratch, weight, True)


@kernel
def _time_major(out, x, first):
    """out (T, B, D) from x (B, ., D), from its step `first` on"""
    for t in prange(len(out)):
        for b in range(out.shape[1]):
            convert_block(out[t, b], x[b, first + t])


@kernel
def _batch_major(out, x, residual, adds, first):
    """out (B, ., D), from its step `first` on, from x (T, B, D)"""
    for t in prange(len(x)):
        for b in range(x.shape[1]):
            target, one, other = out[b, first + t], x[t, b], residual[b, first + t]
            if adds:
                for d in range(target.size):
                    write(target, d, read(one, d) + read(other, d))
            else:
                convert_block(target, one)


def time_major(out, x, first):
    _time_major(out, x.reshape(out.shape[1], -1, out.shape[2]), first)


def batch_major(out, x, residual, first):
    shape = x.shape[1], -1, x.shape[2]
    _batch_major(
        out.reshape(shape), x, (out if residual is None else residual).reshape(shape), residual is not None, first
    )

"""Token embedding: forward gathers rows of a table, backward adds to them.

A task of backward owns a block of columns and adds the rows in their order, so the bits do not depend on the threads.
"""

from .jit import inlined, kernel
from .norm import add_to

COLUMNS = 32  # of a task of backward


@inlined
def embedding_row(out, r, weight, token, positions, position, has_positions):
    """out[r] = weight[token] (+ positions[position])"""
    if has_positions:
        for c in range(out.shape[1]):
            out[r, c] = weight[token, c] + positions[position, c]
    else:
        for c in range(out.shape[1]):
            out[r, c] = weight[token, c]


@kernel
def _embedding_forward(r, out, tokens, weight, positions, has_positions):
    embedding_row(out, r, weight, tokens[r], positions, r % len(positions), has_positions)


@kernel
def _embedding_backward(block, dweight, dpositions, has_positions, dout, tokens):
    rows, width = dout.shape
    part = slice(block * COLUMNS, min(width, block * COLUMNS + COLUMNS))
    for r in range(rows):
        add_to(dweight[tokens[r], part], dout[r, part])
        if has_positions:
            add_to(dpositions[r % dpositions.shape[0], part], dout[r, part])


def embedding_forward(out, tokens, weight, positions):
    _embedding_forward(
        len(out), out, tokens.reshape(-1), weight, weight if positions is None else positions, positions is not None
    )


def embedding_backward(dweight, dpositions, dout, tokens):
    _embedding_backward(
        -(-dout.shape[1] // COLUMNS),
        dweight,
        dweight if dpositions is None else dpositions,
        dpositions is not None,
        dout,
        tokens.reshape(-1),
    )

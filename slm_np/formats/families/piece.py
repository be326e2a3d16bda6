"""A tensor of another program, and where it lies in one of ours."""

from typing import NamedTuple


class Piece(NamedTuple):
    """Their tensor `theirs` is a block of columns of our tensor `ours`, perhaps transposed or with rows in another order.

    theirs      name in Hugging Face's files
    ours        name in `nn.model.parameters`
    columns     slice of our last axis; None: all of it
    transposed  their matrix is (out, in), ours (in, out)
    shape       of their tensor
    order       for fused queries, keys and values: (heads, parts, width) of their output axis where ours is
                (parts, heads, width); None elsewhere
    """

    theirs: str
    ours: str
    shape: tuple
    columns: slice | None = None
    transposed: bool = False
    order: tuple | None = None

    def read(self, array):
        """Their array in our layout: what belongs into `ours[..., columns]`."""
        raise NotImplementedError

    def write(self, array):
        """Our whole tensor, or its gradient, as theirs: contiguous."""
        raise NotImplementedError

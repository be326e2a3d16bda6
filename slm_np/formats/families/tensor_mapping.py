"""How the tensors of another program map to ours."""

from typing import NamedTuple

import numpy as np

from slm_np.nn.model import parameters


class TensorMapping(NamedTuple):
    """A tensor of another program: a block of columns of one of ours, perhaps transposed or with columns reordered.

    theirs      name in Hugging Face's files
    ours        name in `nn.model.parameters`; "" for a bias that our model lacks: their tensor is all zeros
    shape       of their tensor
    columns     slice of our last axis; None: all of it
    part        name of these columns: q, k or v of attention.qkv, gate or up of feed_forward.input; "" elsewhere
    transposed  their matrix is (out, in), ours (in, out)
    order       for fused queries, keys and values: (heads, parts, width) of their output axis, where ours is
                (parts, heads, width); None elsewhere
    """

    theirs: str
    ours: str
    shape: tuple
    columns: slice | None = None
    part: str = ""
    transposed: bool = False
    order: tuple | None = None

    @property
    def module(self):
        """The name of the module in their model that has the tensor, for instance transformer.h.0.mlp.c_fc."""
        return self.theirs.rpartition(".")[0]

    @property
    def our_module(self):
        """The name of the module in our model. A part has its own: layers.0.attention.q of layers.0.attention.qkv."""
        module = self.ours.rpartition(".")[0]
        return f"{module.rpartition('.')[0]}.{self.part}" if self.part else module

    @property
    def is_linear(self):
        """Whether the tensor is the matrix of a linear layer other than the head."""
        return self.ours.startswith("layers.") and self.ours.endswith(".weight") and len(self.shape) == 2

    def read(self, array):
        """Their array in our layout, to be stored in `ours[..., columns]`."""
        if self.transposed:
            array = array.reshape(len(array), -1).T  # the kernel of a convolution has an axis of length 1
        if self.order:
            heads, parts, width = self.order
            axes = array.reshape(*array.shape[:-1], heads, parts, width)
            array = axes.swapaxes(-3, -2).reshape(array.shape)
        return array

    def write(self, array):
        """Our whole tensor, or its gradient, in their layout, contiguous. Zeros for a bias that our model lacks."""
        if not self.ours:
            return np.zeros(self.shape, np.float32)
        block = array if self.columns is None else array[..., self.columns]
        if self.order:
            heads, parts, width = self.order
            axes = block.reshape(*block.shape[:-1], parts, heads, width)
            block = axes.swapaxes(-3, -2).reshape(block.shape)
        return np.ascontiguousarray(block.T if self.transposed else block).reshape(self.shape)


def linear(theirs, ours, shape, *, bias="both", columns=None, part="", transposed=True, order=None):
    """Yield the mappings of a linear layer, or of a part of ours.

    theirs, ours  names of the layers
    shape         (in, out) of the part
    bias          "both", "neither", or "theirs" if only their layer has one
    The other parameters are fields of `TensorMapping`.
    """
    more = dict(columns=columns, part=part, order=order)
    yield TensorMapping(
        f"{theirs}.weight", f"{ours}.weight", shape[::-1] if transposed else shape, transposed=transposed, **more
    )
    if bias == "both":
        yield TensorMapping(f"{theirs}.bias", f"{ours}.bias", shape[1:], **more)
    elif bias == "theirs":
        yield TensorMapping(f"{theirs}.bias", "", shape[1:])


def norm(theirs, ours, width, bias="neither"):
    """Yield the mappings of a norm. bias: see `linear`"""
    yield TensorMapping(f"{theirs}.weight", f"{ours}.weight", (width,))
    if bias != "neither":
        yield TensorMapping(f"{theirs}.bias", f"{ours}.bias" if bias == "both" else "", (width,))


def joined_columns(widths):
    """{part: slice} of parts that are adjacent blocks of columns, from {part: width}."""
    slices, start = {}, 0
    for part, width in widths.items():
        slices[part] = slice(start, start + width)
        start += width
    return slices


def qkv_columns(config):
    """{part: slice} of our attention.qkv."""
    queries, keys = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    return joined_columns(dict(q=queries, k=keys, v=keys))


def to_ours(config, mappings, read):
    """Yield (name, array) of all tensors of our model, float32, one after another.

    read: function (TensorMapping) -> their array, of a floating-point type of NumPy
    """
    found = by_our_name(mappings)
    for tensor in parameters(config):
        out = np.empty(tensor.shape, np.float32)
        for mapping in found[tensor.name]:
            out[..., slice(None) if mapping.columns is None else mapping.columns] = mapping.read(read(mapping))
        yield tensor.name, out


def to_theirs(mappings, tensors):
    """Yield (TensorMapping, array) of all their tensors, one after another.

    tensors: (name, array) of all of ours, or their gradients
    """
    found = by_our_name(mappings)
    for name, array in tensors:
        for mapping in found[name]:
            yield mapping, mapping.write(array)
    for mapping in found.get("", ()):
        yield mapping, mapping.write(None)


def in_their_layout(mappings, tensors):
    """({name: shape}, iterator of (name, array)) of all their tensors, one after another.

    mappings: a list.   tensors: see `to_theirs`
    """
    shapes = {mapping.theirs: mapping.shape for mapping in mappings}
    return shapes, ((mapping.theirs, array) for mapping, array in to_theirs(mappings, tensors))


def by_our_name(mappings):
    """{name of our tensor: its mappings}"""
    found = {}
    for mapping in mappings:
        found.setdefault(mapping.ours, []).append(mapping)
    return found

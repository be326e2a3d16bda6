"""Pointers to array elements, for intrinsics."""


def element_pointer(context, builder, array_type, array, offset):
    """Emit a pointer to element `offset` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])

"""What ranks send each other of their weights: all bits, or the change since the last round in bfloat16 or int8."""

import numpy as np

BLOCK = 256  # values that share a scale in int8


def round_bfloat16(x):
    """Round the float32 array x, in place, to the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32)
    last = (bits >> np.uint32(16)) & np.uint32(1)
    finite = np.isfinite(x)
    np.add(bits, last + np.uint32(0x7FFF), out=bits, where=finite)
    bits &= np.uint32(0xFFFF0000)


def bfloat16_bits(x):
    """The upper 16 bits of each element of the float32 array x, as uint16. x is rounded to bfloat16."""
    return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def from_bfloat16_bits(upper):
    """The float32 array with these upper bits; the others are 0."""
    return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)


class Exact:
    """The weights themselves."""

    @staticmethod
    def encoded(before, after):
        return after

    @staticmethod
    def decoded(before, content):
        return content.view(before.dtype)


class BFloat16:
    """The change, rounded to the nearest bfloat16."""

    @staticmethod
    def encoded(before, after):
        change = (before - after).astype(np.float32)
        round_bfloat16(change)
        return bfloat16_bits(change)

    @staticmethod
    def decoded(before, content):
        return before - from_bfloat16_bits(content.view(np.uint16))


class Int8:
    """The change x in blocks of 256 values: q = round(x / s) with s = max |x| / 127, a byte per value and 4 per block.

    Values that are not finite are lost, as their block has no scale.
    """

    @staticmethod
    def encoded(before, after):
        blocks = np.zeros((-(-len(before) // BLOCK), BLOCK), np.float32)
        blocks.reshape(-1)[: len(before)] = before - after
        scales = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
        values = np.divide(blocks, scales, out=np.zeros_like(blocks), where=(scales > 0) & np.isfinite(scales))
        return np.concatenate(
            [scales.reshape(-1).view(np.uint8), np.rint(values).astype(np.int8).reshape(-1).view(np.uint8)]
        )

    @staticmethod
    def decoded(before, content):
        n, blocks = len(before), -(-len(before) // BLOCK)
        scales, values = np.split(content.view(np.uint8), [4 * blocks])
        change = values.view(np.int8).reshape(blocks, BLOCK) * scales.view(np.float32)[:, None]
        return before - change.reshape(-1)[:n].astype(before.dtype)


CODECS = {"fp32": Exact, "bf16": BFloat16, "int8": Int8}

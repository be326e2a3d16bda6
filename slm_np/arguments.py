"""Checks of the arguments that a program gives: each returns the value as the package computes with it.

A value of the wrong type, shape or range raises UserError, which names the argument, what was given and what is right.
NumPy scalars become Python's numbers, lists become arrays, paths become strings. A bool is not a number.
"""

import os
import reprlib
from collections.abc import Mapping, Sequence

from slm_np.errors import UserError, near

SEEDS = (1 << 64) - 1  # the largest key and counter of Philox


def shown(value):
    """A value in an error message: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"an array of shape {tuple(shape)} and type {getattr(value, 'dtype', 'unknown')}"
    return reprlib.repr(value)


def refusal(name, value, right):
    """The UserError that an argument is not what it must be."""
    return UserError(f"{name} is {shown(value)}; it must be {right}")


def plain(value):
    """A NumPy scalar, or an array without axes, as Python's bool, int, float or str. Anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def limits(low, high):
    """The range of a number in words."""
    parts = [f"at least {low}"] if low is not None else []
    parts += [f"at most {high}"] if high is not None else []
    return " and ".join(parts)


def whole(name, value, low=0, high=None):
    """An int with low <= value <= high."""
    found = plain(value)
    if not isinstance(found, int) or isinstance(found, bool):
        raise refusal(name, value, "a whole number")
    if found < low or high is not None and found > high:
        raise refusal(name, found, limits(low, high))
    return int(found)


def real(name, value, low=None, high=None):
    """A finite float with low <= value <= high."""
    found = plain(value)
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        raise refusal(name, value, "a number")
    if not -1e300 < found < 1e300:  # also NaN, and integers that no float can hold
        raise refusal(name, found, "a finite number")
    if low is not None and found < low or high is not None and found > high:
        raise refusal(name, found, limits(low, high))
    return float(found)


def wholes(name, value, low=0):
    """A tuple of at least one int, each at least `low`."""
    found = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)) or not found:
        raise refusal(name, value, "whole numbers, such as (seed, step)")
    return tuple(whole(name, one, low) for one in found)


def dtype(name, value, known):
    """One of the NumPy dtypes `known`."""
    import numpy as np

    from slm_np.dtypes import BF16

    try:
        found = None if value is None else np.dtype(value)
    except (TypeError, ValueError):
        found = None
    known = [np.dtype(one) for one in known]
    if found is None or found not in known:  # NumPy compares None as float64
        names = ["slm_np.dtypes.BF16" if one == BF16 else one.name for one in known]
        raise refusal(name, value, " or ".join(names) + ", on this device")
    return found


def truth(name, value):
    """A bool."""
    found = plain(value)
    if not isinstance(found, bool):
        raise refusal(name, value, "True or False")
    return found


def choice(name, value, choices):
    """One of several strings."""
    found = plain(value)
    if not isinstance(found, str) or found not in choices:
        known = [one for one in choices if one]
        hint = near(found, known) if isinstance(found, str) else f"known are {', '.join(known)}"
        raise UserError(f"{name} {shown(value)} is unknown; {hint}")
    return found


def instance(name, value, *kinds):
    """An object of one of the classes."""
    if not isinstance(value, kinds):
        raise refusal(name, value, f"of type {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def function(name, value):
    """A function, or None."""
    if value is not None and not callable(value):
        raise refusal(name, value, "a function or None")
    return value


def settings(name, value):
    """A new dict {field: value} of a mapping with strings as keys; {} for None."""
    found = {} if value is None else value
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise refusal(name, value, "a dict of settings")
    return dict(found)


def path(name, value, optional=False):
    """The path of a file or folder, as a string that is not empty. optional: None and "" give ""."""
    if optional and (value is None or isinstance(value, str) and not value):
        return ""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise refusal(name, value, "a path")
    found = os.fsdecode(value)
    if not found or "\0" in found:
        raise refusal(name, value, "a path that is not empty and has no NUL character")
    return str(found)


def paths(name, value, optional=False):
    """What `--data` means: a string as it is, a path, or a list of them, joined by commas. optional: None gives ""."""
    if isinstance(value, str):
        return str(value)
    if optional and value is None:
        return ""
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    found = [path(name, one) for one in value] if several else [path(name, value)]
    if not found or len(found) > 1 and any("," in one for one in found):
        raise refusal(name, value, "at least one path; names in a list have no commas, which separate them")
    return ",".join(found)


def text(name, value):
    """A string."""
    found = plain(value)
    if not isinstance(found, str):
        raise refusal(name, value, "a string")
    return found


def encoded(name, value):
    """Bytes: a str becomes UTF-8, the surrogates of `surrogateescape` in it the bytes that they stand for."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, str):
        raise refusal(name, value, "str or bytes")
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        raise UserError(f"{name} contains U+{half:04X}, half of a surrogate pair; remove it") from None


def strings(name, value):
    """A tuple of strings; a string alone is one of them."""
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(one, str) for one in found):
        raise refusal(name, value, "a string or a list of strings")
    return tuple(found)


def fits(found, wanted):
    """Whether a shape is the one wanted, in which a letter is any length above 0."""
    return len(found) == len(wanted) and all(
        length == other or isinstance(other, str) and length > 0 for length, other in zip(found, wanted)
    )


def axes(shape):
    """A shape in words."""
    free = any(isinstance(length, str) for length in shape)
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})" + " with at least one element" * free


def ids(name, value, vocab_size, shape, arrays=None, masked=False, also=None):
    """Token ids as a contiguous int32 array, from any integer array or nested lists of integers.

    vocab_size  V: ids must be at least 0 and below V
    shape       its axes: a length, or a letter for any length above 0
    arrays      the array module of a device, whose arrays are taken as they are; None is NumPy
    masked      whether -1 is allowed too, a masked target
    also        another shape of as many elements, from which the array becomes `shape`
    """
    import numpy as np

    given, arrays = value, arrays or np
    if arrays is np or not isinstance(value, arrays.ndarray):
        try:
            value = np.asarray(value)
        except (ValueError, TypeError, OverflowError):  # rows of different lengths, or no numbers at all
            raise refusal(name, given, "an array of integers") from None
    if also is not None and value.shape == also:
        value = value.reshape(shape)
    if not fits(value.shape, shape):
        raise refusal(name, value if value.ndim else given, f"an array of integers of shape {axes(shape)}")
    if value.dtype.kind not in "iu":
        raise refusal(name, value, "an array of integers")
    lowest, highest = int(value.min()), int(value.max())
    if lowest < (-1 if masked else 0) or highest >= vocab_size:
        raise UserError(
            f"{name} has ids from {lowest} to {highest}, which are not all in the vocabulary of {vocab_size}; "
            + ("give ids of its tokens, or -1 to mask a target" if masked else "encode text with the model's tokenizer")
        )
    if isinstance(value, np.ndarray):
        return np.require(value, np.int32, "CAW")  # the kernels are compiled for writable arrays in rows
    return value.astype(np.int32, order="C", copy=False)


def integers(name, value):
    """An int64 array (N,) of an integer, or of all integers in an array or nested lists; it may be empty."""
    import numpy as np

    try:
        found = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise refusal(name, value, "an array of integers") from None
    if found.dtype.kind not in "iu" and found.size or found.dtype.kind in "USO":
        raise refusal(name, value, "an array of integers")
    return found.astype(np.int64, copy=False).reshape(-1)


def output(name, value, shape):
    """A NumPy array of int32 or int64 to be overwritten. shape: as for `ids`."""
    import numpy as np

    right = "a writable NumPy array of int32, of shape "
    if not isinstance(value, np.ndarray) or value.dtype not in (np.int32, np.int64) or not fits(value.shape, shape):
        raise refusal(name, value, right + axes(shape))
    if not value.flags.writeable:
        raise UserError(f"{name} is a read-only array; give {right}{axes(shape)}")
    return value


def apart(names, value, other):
    """Two arrays to be overwritten, which must not overlap."""
    import numpy as np

    if np.shares_memory(value, other):
        raise UserError(f"{names} overlap in memory, so one would overwrite the other; give two arrays")


class Fixed:
    """An object whose attributes in `FIXED`, once set, keep their objects: kernels read memory that was planned so."""

    FIXED = ()

    def __setattr__(self, name, value):
        if name in self.FIXED and getattr(self, name, value) is not value:  # x += 1 sets the same array again
            kind = type(self).__name__
            raise UserError(
                f"{name} of a {kind} cannot be replaced, since kernels use its memory; "
                f"write into it ({name}[...] = values), or make a new {kind}"
            )
        object.__setattr__(self, name, value)

"""What a chat template may make, at most: it is a program that comes with a downloaded model."""

import re
from collections.abc import Collection, Mapping

SECONDS = 10.0  # of one rendering
LARGEST = 10_000_000  # characters of a value
ELEMENT = 10  # characters that a number or an element of a list counts as
MULTIPLYING = ("translate", "join", "indent", "expandtabs", "tojson")  # whose results have that many parts
WIDTHS = re.compile(r"\d{5}|\*|\{[^{}]*\{")  # in a format string: a width that is large or comes from a value


class TemplateLimit(Exception):
    """A template takes too long, or makes something too large."""


class TemplateRefusal(Exception):
    """A template called `raise_exception` with this message."""


def size(value):
    """The number of characters in a value and the values inside it, about. `TemplateLimit` above `LARGEST`."""
    total, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if hasattr(value, "_Namespace__attrs"):  # of Jinja's `namespace`, which is printed with its values
            value = value._Namespace__attrs
        is_text, is_collection = isinstance(value, (str, bytes)), isinstance(value, Collection)
        total += len(value) if is_text else ELEMENT
        check(total)
        if is_collection and not is_text:
            waiting.extend([*value, *value.values()] if isinstance(value, Mapping) else value)
    return total


def check(n):
    """`TemplateLimit` if n characters are too many."""
    if not n <= LARGEST:
        raise TemplateLimit(f"it makes more than {LARGEST:,} characters")


def check_result(name, value, others):
    """`TemplateLimit` if the filter or the method of a string called `name` may make too much of a value.

    others: its other arguments. A number is a width.
    """
    n = size(value)
    if name == "replace" and len(others) > 1:
        old, new, *_ = map(size, others)
        check(n + (n // max(1, old) + 1) * new)
        return
    for other in others:
        if isinstance(other, int):
            n = n * max(1, abs(other)) if name in MULTIPLYING else n + abs(other)
        elif name in MULTIPLYING:
            n *= max(1, size(other))
        check(n)


def check_format(text):
    """`TemplateLimit` if a format string asks for a large width, or for one that it takes from a value."""
    if isinstance(text, str) and WIDTHS.search(text):
        raise TemplateLimit("it formats with a large width")

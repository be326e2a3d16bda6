"""How sentences write a count and a path."""

import os
import shlex

IRREGULAR = {"entry": "entries"}


def counted(n, noun):
    """'1 document', '2,000 documents', '1 bit of text', '2 bits of text': a number and its noun."""
    first, space, rest = noun.partition(" of ")
    words = first.split(" ")
    if n != 1:
        words[-1] = IRREGULAR.get(words[-1], f"{words[-1]}s")
    return f"{n:,} {' '.join(words)}{space}{rest}"


def quoted(path):
    """A path as one word of a command line, which no program takes for a flag or for a home folder."""
    path = str(path)
    path = f"./{path}" if path[:1] in ("-", "~") else path
    if os.name == "nt":
        return f'"{path}"' if not path or set(path) & set(" \t&()[]{}^=;!'+,`~%") else path
    return shlex.quote(path)

"""The vocabulary of characters in nanoGPT's meta.pkl, read without unpickling: nothing in the file is executed.

meta.pkl is a pickle of dict(vocab_size, stoi {character: id}, itos {id: character}). Of a pickle's instructions, those
that make dicts, lists, strings and numbers are followed here. Any other is refused.
"""

import pickletools

from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.files import opened

LARGEST = 8 << 20  # bytes. A vocabulary of all characters is smaller
VALUES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
MARK = object()


def tokenizer_of(path):
    """The `CharTokenizer` of a meta.pkl, or None if it contains anything but a vocabulary of single characters."""
    with opened(path) as file:
        data = file.read(LARGEST + 1)
    try:
        ids = _read(data)["stoi"] if len(data) <= LARGEST else {}
        characters = sorted(ids, key=ids.get)
        in_order = [ids[character] for character in characters] == [*range(len(ids))]
        "".join(characters).encode()  # raises for half of a surrogate pair
        if not characters or not in_order or any(len(character) != 1 for character in characters):
            return None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return CharTokenizer("".join(characters))


def _read(data):
    """The object in a pickle of dicts, lists, strings, numbers, True, False and None. Otherwise it raises ValueError,
    or what malformed instructions cause.
    """
    stack, memo = [], {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            stack.append(MARK)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS"):
            values = _popped(stack, {"SETITEM": 2, "APPEND": 1}.get(name))
            if name.startswith("SET"):
                stack[-1].update(zip(values[::2], values[1::2]))
            else:
                stack[-1].extend(values)
        elif name == "STOP":
            return stack.pop()
        else:
            raise ValueError(f"the pickle contains {name}")
    raise ValueError("the pickle has no end")


def _popped(stack, n):
    """The last `n` values of the stack, which are removed. None means those after the last mark, which goes, too."""
    if n is not None:
        return [stack.pop() for _ in range(n)][::-1]
    values = []
    while (value := stack.pop()) is not MARK:
        values.append(value)
    return values[::-1]

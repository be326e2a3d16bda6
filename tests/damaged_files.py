"""Damage to files: flipped bits, cut ends, and JSON whose fields are anything but what they should be."""

import json
import random

ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    10**9,
    10**18,
    10**400,
    -(10**400),
    float("nan"),
    float("inf"),
    1e308,
    "",
    "x",
    "1",
    "\udcff",
    "a\0b",
    "x" * 5000,
    [],
    [1, 2],
    [[[]]],
    {},
    {"a": 1},
    [10**400, None],
]


def flips(size, n, seed):
    """(byte, bit) of n flips in a file of so many bytes."""
    draw = random.Random(seed)
    return [(draw.randrange(size), draw.randrange(8)) for _ in range(n)]


def changed(raw, seed, n, cuts):
    """The bytes `raw` with one bit flipped, n times, and cut short, `cuts` times."""
    for byte, bit in flips(len(raw), n, seed):
        yield raw[:byte] + bytes([raw[byte] ^ 1 << bit]) + raw[byte + 1 :]
    for length in random.Random(seed).sample(range(len(raw)), min(cuts, len(raw))):
        yield raw[:length]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def mutated(fields, draw):
    """A copy of a JSON object with one field, at any depth, replaced, removed, renamed or added."""
    fields = json.loads(json.dumps(fields))
    part = fields
    while True:
        inner = [value for value in part.values() if isinstance(value, dict) and value]
        if not inner or draw.random() < 0.4:
            break
        part = draw.choice(inner)
    name, value = draw.choice([*part]), draw.choice([*ODD, nested(60), nested(900)])
    kind = draw.choice(["replace"] * 5 + ["remove", "rename", "add"])
    if kind in ("remove", "rename"):
        kept = part.pop(name)
    if kind != "remove":
        part[{"replace": name, "rename": f"{name}x", "add": "new"}[kind]] = kept if kind == "rename" else value
    return fields


def broken(raw, draw):
    """The bytes of a JSON file that is none."""
    return draw.choice(
        [b"", b"\xff\xfe" + raw, raw[: len(raw) // 2], b"[" * 100_000, b"null", b"[]", raw + b"}", b"\0" * len(raw)]
    )

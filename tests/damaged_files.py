"""Damage to files: flipped bits, truncation, and JSON with wrong fields."""

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
    """n random positions (byte, bit) in a file of `size` bytes."""
    draw = random.Random(seed)
    return [(draw.randrange(size), draw.randrange(8)) for _ in range(n)]


def changed(raw, seed, n, cuts):
    """Yield n copies of the bytes `raw` with one bit flipped, then `cuts` truncated copies."""
    for byte, bit in flips(len(raw), n, seed):
        yield raw[:byte] + bytes([raw[byte] ^ 1 << bit]) + raw[byte + 1 :]
    for length in random.Random(seed).sample(range(len(raw)), min(cuts, len(raw))):
        yield raw[:length]


def edit_json(path, **changes):
    """Change fields of a JSON file. Fields that are ... are removed."""
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}), encoding="utf-8")


def nested(depth):
    """Lists nested `depth` levels deep."""
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
    """Bytes that are not a JSON object, in place of the JSON file `raw`."""
    return draw.choice(
        [b"", b"\xff\xfe" + raw, raw[: len(raw) // 2], b"[" * 100_000, b"null", b"[]", raw + b"}", b"\0" * len(raw)]
    )

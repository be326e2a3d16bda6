"""Mutated settings files: each is refused in one sentence, or the commands that read it work.

Mutated are the JSON of a run, of a checkpoint, of tokens and of a chat template, most with their checksums repaired or
removed, and a TOML file of settings: values of other types and ranges, missing, additional and doubled keys, deep
nesting, encodings, cuts, binary content. Never a traceback, a hang or more than 2 GiB.
"""

import contextlib
import json
import random

from fault_campaign import children, fixtures
from fault_campaign.judges import FAILED, check_end, require

TRIES = 500
INPUTS = ("text.txt", "chat.jsonl", "half", "tuned", "base=run", "tokens", "rows", "cache")
GENERATE = "generate --model half -n 8 --seed 3"
RESUME = f"train --resume half --max-iters {fixtures.HALF + 1}"
CHAT = "chat --model tuned -n 8 --seed 3"
SMALL = f"--tokenizer char --kernels numpy --threads 1 --eval-iters 1 --batch-size 2 {fixtures.MODEL}"
READERS = {  # file: the commands that read it
    "half/run.json": (GENERATE, "info half", RESUME),
    "half/generation_config.json": (GENERATE, "info half"),
    "half/config.json": (GENERATE, RESUME),  # for other programs
    "half/tokenizer.json": (GENERATE, "info half/tokenizer.json"),
    "half/checkpoint-7/trainer_state.json": (RESUME,),
    "tuned/chat_template.json": (CHAT,),
    "tokens/meta.json": ("info tokens", f"train --data tokens {SMALL.replace('--tokenizer char', '')} --max-iters 1"),
    "rows/meta.json": ("info rows", f"train --data rows {SMALL.replace('--tokenizer char', '')} --max-iters 1"),
    "run.toml": ("train --config run.toml --data text.txt --max-iters 1 --threads 1 --out-dir new",),
}
TOML = """# a small model
preset = "stories"
tokenizer = "char"
kernels = "numpy"
n-layer = 1
n-head = 2
n-embd = 16
n-hidden = 24
block-size = 16
batch-size = 2
learning-rate = 3e-3
min-lr = 1e-4
warmup-iters = 1
eval-iters = 1
dropout = 0.0
seed = 3
"""
LARGE = 2**31, 2**63, 10**30, 10**400, -(10**20), 1e308, 1e-320, float("nan"), float("inf"), float("-inf")
ODD = (
    *(None, True, False, 0, -1, 1, 7, 0.5, -0.5, "", "a", "12", "nan", "\0", "\ud800", "x" * 100_000),
    *("\u202f\U0001f999", "a/b", "/dev/null/x", [], {}, [[]], {"": None}, [1, "a"], *LARGE),
)


def cases(context):
    files = list(READERS)
    return [f"{files[i % len(files)]} mutation {i}" for i in range(TRIES)]


def attempt(case, context, folder):
    name, _, _ = case.split()
    fixtures.place(context.fixtures, folder, INPUTS)
    (folder / "run.toml").write_text(TOML, encoding="utf-8")
    draw = random.Random(f"{context.seed} {case}")
    mutate = mutated_toml if name.endswith(".toml") else mutated_json
    raw = mutate((folder / name).read_bytes(), draw)
    if draw.random() < 0.2 or name.endswith(".toml"):
        (folder / name).write_bytes(raw)
    else:
        accept(folder, name, raw)
    for line in READERS[name]:
        verb, *words = line.split()
        result = children.forked(verb, *words, cwd=folder, stdin=b"a cat?\n", limit=20)
        what = f"{verb} with {shown(raw)}"
        if result.late and verb == "train":  # it was asked for work without end: it must stop when told to
            require(result.status == 143, FAILED, f"{what} does not stop: {result.tail()}")
            result.late, result.status = False, 0
        check_end(result, what)


def shown(raw):
    """What distinguishes a mutated file, short."""
    return repr(raw[:60])


def accept(folder, name, raw):
    """Write a mutated file so that its reader takes it: with a checksum that is right, or without any."""
    from slm_np.data.files import checksummed
    from slm_np.formats.checksum import with_checksum

    path = folder / name
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):  # no JSON, or no object
        fields = json.loads(raw)
        fields.pop("crc32" if path.name != "meta.json" else "checksum", None)
        if path.name == "trainer_state.json":
            raw = with_checksum(fields, fields)
        else:
            raw = json.dumps(checksummed(fields) if path.name == "meta.json" else fields).encode()
    if path.name in ("tokenizer.json", "chat_template.json"):  # run.json has its checksum, and checkpoints a copy
        config = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key not in ("crc32", "files")}
        (path.parent / "run.json").write_text(json.dumps(config), encoding="utf-8")
        for copy in path.parent.glob(f"checkpoint-*/{path.name}"):
            copy.unlink()
    path.write_bytes(raw)


def places(value, path=()):
    """The paths to all values in parsed JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutated_json(raw, draw):
    """The bytes of a JSON file with one to three mutations of its values, or one of its text."""
    if draw.random() < 0.25:
        return mutated_text(raw, draw)
    value = json.loads(raw)
    for _ in range(draw.choice((1, 1, 2, 3))):
        paths = [path for path in places(value) if path]
        if not paths:
            break
        *before, last = draw.choice(paths)
        parent = value
        for key in before:
            parent = parent[key]
        how = draw.choice(("odd", "odd", "odd", "remove", "rename", "wrap", "near"))
        if how == "remove":
            del parent[last]
        elif how == "rename" and isinstance(parent, dict):
            parent[f"{last}{draw.choice('s_ x')}"] = parent.pop(last)
        elif how == "wrap":
            parent[last] = draw.choice(([parent[last]], {"a": parent[last]}, str(parent[last])))
        elif how == "near" and type(parent[last]) in (int, float):
            parent[last] = parent[last] * draw.choice((-1, 0, 2, 3, 1000)) + draw.choice((-1, 0, 1))
        else:
            parent[last] = draw.choice(ODD)
    return json.dumps(value).encode()


def mutated_text(raw, draw):
    """The bytes of a settings file as an editor, a disk or a stranger might leave it."""
    text = raw.decode("utf-8", "replace")
    return draw.choice(
        (
            b"",
            b"\n",
            b"null",
            b"[]",
            b"{}",
            b'"text"',
            b"[" * 100_000,
            b'{"a":' * 50_000,
            raw[: draw.randrange(len(raw))],
            b"\xef\xbb\xbf" + raw,
            text.encode("utf-16"),
            raw + raw,
            raw.replace(b",", b",,", 1),
            raw.replace(b"\n", b"\r"),
            raw.replace(b'"', b"'"),
            b"// settings\n" + raw,
            draw.randbytes(200),
            raw + draw.randbytes(8),
            raw.replace(b"1", b"1" * 5000, 1),
            raw.replace(b":", b": 1e999999 ,", 1),
        )
    )


def mutated_toml(raw, draw):
    """The bytes of a TOML file with one to three of its lines changed, or its text."""
    if draw.random() < 0.25:
        return mutated_text(raw, draw)
    lines = raw.decode().splitlines()
    values = [
        *(
            "0",
            "-1",
            "1e400",
            "nan",
            "inf",
            "true",
            '""',
            '"a"',
            "'\\x00'",
            "[]",
            "[1, 2]",
            "{}",
            "{a = 1}",
            "1979-05-27",
        ),
        *("0x10", "0b1", "1_000", "9" * 400, "9" * 5000, '"\\u202f"', "'''a\nb'''", "07:32:00", "[" * 5000, "", "3e-3"),
    ]
    for _ in range(draw.choice((1, 1, 2, 3))):
        i = draw.randrange(len(lines))
        name, _, value = lines[i].partition(" = ")
        lines[i] = draw.choice(
            (
                f"{name} = {draw.choice(values)}",
                f"{name} = {draw.choice(values)}",
                f"{name}x = {value}",
                f"{name.replace('-', '_')} = {value}",
                f"{name} = {value}\n{name} = {value}",
                f"[{name}]\n{name} = {value}",
                f"{name}.{name} = {value}",
                f'max-time = "10s"\n{name} = {value}',
                f"{name} {value}",
                "",
            )
        )
    return "\n".join(lines).encode()

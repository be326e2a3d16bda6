"""Files and small corpora that the tests of data share."""

import json
import os
from pathlib import Path

import numpy as np

from slm_np.data.token_store import load_corpus
from slm_np.data.tokens import Tokens

LONG_AGO = 1_600_000_000  # an mtime that the index of hashes trusts
MARKER = "<|endoftext|>"
END = 256  # the end-of-text id of the byte tokenizer


def old_file(path, data):
    """Write a text or bytes at `path`, with an mtime that the index trusts. Returns the path as a str."""
    Path(path).write_bytes(data if isinstance(data, bytes) else data.encode())
    os.utime(path, (LONG_AGO, LONG_AGO))
    return str(path)


def text_file(folder, data, name="t.txt"):
    """`old_file` in a folder."""
    return old_file(folder / name, data)


def token_file(path, ids, dtype="<u2"):
    """Write a .bin file of token ids. Returns the path as a str."""
    return old_file(path, np.asarray(ids, dtype).tobytes())


def tokens(ids, split="train"):
    return Tokens(split, np.asarray(ids, np.uint16))


def load(*arguments, progress=False, **options):
    """`load_corpus` without progress."""
    return load_corpus(*arguments, progress=progress, **options)


def byte_ids(documents):
    """The ids of documents under the byte tokenizer, with an end-of-text id after each."""
    return [id for document in documents for id in [*document.encode(), END]]


def stories(n):
    """n different documents."""
    return [f"Story {i} of a café.\nIt ends." for i in range(n)]


def marked(documents):
    """Documents as one text, with a marker line after each."""
    return "".join(f"{document}\n{MARKER}\n" for document in documents)


def conversation(*contents):
    """A row of messages of user and assistant in turn."""
    roles = ("user", "assistant") * len(contents)
    return dict(messages=[dict(role=role, content=content) for role, content in zip(roles, contents)])


def jsonl(rows):
    """Rows as the text of a .jsonl file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def mixed_corpus(folder, n=150):
    """A `--data` string of texts and rows: characters of all widths, empty documents, some longer than small shards."""
    text = (
        marked(f"{'Lily and Ben 漢字 🙂, naïve. ' * (1 + i % 7 * 9)}{i}" for i in range(n))
        + f"end\n\n{MARKER}\n{MARKER}\n\nlast"
    )
    rows = jsonl(conversation(f"Who is {i}?", "Ünï " * (i % 5) + "x") for i in range(n))
    files = {"a.txt": text, "b.jsonl": rows, "c.txt": text * 2}
    return ",".join(old_file(folder / name, data) for name, data in files.items())


def contents(folder):
    """{name: bytes} of the files in a folder."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def without_checksums(folder):
    """Make the meta.json of a prepared folder that of an earlier version, which had no checksums."""
    path = Path(folder) / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    del meta["crc32"], meta["checksum"]
    path.write_text(json.dumps(meta), encoding="utf-8")

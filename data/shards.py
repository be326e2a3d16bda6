"""Shards: the units in which a text is tokenized. Any process can do any shard, and a rerun keeps the finished ones."""

import contextlib
import errno
import json
import os
import re
import shutil
from itertools import chain, takewhile
from pathlib import Path

import numpy as np

from slm_np.data.documents import END, PLAIN, ROWS, next_start, rows
from slm_np.data.documents import split as split_documents
from slm_np.data.embedded import EmbeddedText
from slm_np.data.files import read_json_or_empty
from slm_np.data.text_files import BLOCK, Text
from slm_np.errors import UserError

SHARD = 16 << 20  # bytes of text per shard, about. It is the same on every machine, so the ids are too
SEEN = 1 << 16  # bytes of ids after which the first shard of a split shows them to readers
SEARCHED = 1 << 16  # bytes before the end of a shard in which a word's end is searched
_WORD_END = re.compile(rb"[!-~](?=[ \n])")
COUNTS = ("tokens", "targets", "documents", "bytes", "target_bytes")  # what is counted of each shard


def shard_ranges(text, start, stop, documents, separated):
    """[(kind, start, stop), ...]: the bytes [start, stop) of a `Text` in shards.

    A shard ends with a document. If nothing separates documents (`separated` false), it ends after a word, where
    GPT-2's pre-tokenization always splits, so no token crosses the boundary.
    """
    found = []
    for kind, segment_start, segment_stop in text.segments(documents):
        at, limit = max(segment_start, start), min(segment_stop, stop)
        while at < limit:
            end = limit
            if at + SHARD < limit and separated:
                end = next_start(text, at + SHARD, at, limit, kind) or limit
            elif at + SHARD < limit:
                end = max(at + 1, _word_end(text, at + SHARD))
            found.append((kind if separated else PLAIN, at, end))
            at = end
    return found


def _word_end(text, position):
    near = max(0, position - SEARCHED)
    matches = [*_WORD_END.finditer(b"".join(text.blocks(near, position + 1)))]
    return near + matches[-1].end() if matches else text.character_start(position)


def content(text, start, stop, documents, separated):
    """Yield the bytes [start, stop) of a `Text` that are tokenized: without separators, and rows as their text."""
    for kind, segment_start, segment_stop in text.segments(documents):
        at, limit = max(segment_start, start), min(segment_stop, stop)
        if at >= limit:
            continue
        if not separated:
            yield from text.blocks(at, limit)
        elif kind == ROWS:
            yield from (span for _, spans in rows(text, at, limit) for span, _ in spans)
        else:
            yield from (block for block in split_documents(text.blocks(at, limit), kind) if block is not END)


def tokenize(staging, plan, number, tokenizer, report):
    """Tokenize shard `number` of a plan (see store_builder.py) into the folder `staging`/shards.

    Writes NUMBER.bin (ids), for rows NUMBER.mask (a byte per token, 1 for a target), and at the end NUMBER.json
    (`COUNTS`). The ids of a split's first shard go directly to `staging`/SPLIT.bin, so they can be read while they are
    written.
    report: function (n), called when n more bytes have been read.   UserError for text that cannot be tokenized.
    """
    split, kind, start, stop = plan["shards"][number]
    text, counts = text_of(plan, split), dict.fromkeys(COUNTS, 0)
    part, is_first = staging / "shards" / f"{number}.{os.getpid()}", numbers_of(plan, split)[0] == number
    ids_path = staging / f"{split}.bin" if is_first else Path(f"{part}.bin")

    def read():
        for block in text.blocks(start, stop):
            yield block
            report(len(block))

    def counted(blocks, target):
        for block in blocks:
            counts["bytes"] += len(block)
            counts["target_bytes"] += len(block) * target
            yield block

    def put(ids, target):
        ids_file.write(ids.astype(ids.dtype.newbyteorder("<"), copy=False).data)
        counts["tokens"] += len(ids)
        counts["targets"] += len(ids) * target
        if mask_file:
            mask_file.write(bytes([target]) * len(ids))

    def write(blocks, target=True, begins=True):
        for ids in tokenizer.encode_blocks(counted(blocks, target), begins):
            put(ids, target)

    def end_document(target=True, blank_line=b"\n\n"):
        if tokenizer.end_of_text is not None:
            put(np.array([tokenizer.end_of_text], tokenizer.dtype), target)
        else:
            with contextlib.suppress(UserError):  # a vocabulary of characters may lack the newline
                put(tokenizer.encode(blank_line, begins=False), target)
        counts["documents"] += 1

    with (
        open(ids_path, "wb", SEEN if is_first else BLOCK) as ids_file,
        open(f"{part}.mask", "wb") if kind == ROWS else contextlib.nullcontext() as mask_file,
    ):
        if kind == PLAIN:  # one text, however many shards it has
            write(read(), begins=is_first)
        elif kind == ROWS:
            for size, spans in rows(text, start, stop):
                for i, (span, target) in enumerate(spans):
                    write([span], target, begins=i == 0)
                if spans:
                    last, target = spans[-1]
                    # Without an end-of-text token, a blank line does not say that the conversation is over: no target.
                    target = target and (tokenizer.end_of_text is not None or len(spans) == 1)
                    end_document(target, b"\n" if last.endswith(b"\n") else b"\n\n")
                report(size)
        else:
            blocks = split_documents(read(), kind)
            for first in blocks:
                write(chain([first], iter(lambda: next(blocks), END)))
                end_document()
        written = os.fstat(ids_file.fileno())
    if not os.path.samestat(written, os.stat(ids_path)):
        raise OSError(errno.ESTALE, "another process has begun it again")  # this one outlived its parent
    for suffix in (".bin",) * (not is_first) + (".mask",) * (kind == ROWS):
        os.replace(f"{part}{suffix}", staging / "shards" / f"{number}{suffix}")
    Path(f"{part}.json").write_text(json.dumps(counts), encoding="utf-8")
    os.replace(f"{part}.json", staging / "shards" / f"{number}.json")


def join(staging, plan, split, id_size, start=(0, 0)):
    """Append finished shards of a split to SPLIT.bin, in order, up to the first one that is not finished.

    id_size: bytes per id.   start: (shards, bytes) that an earlier call has appended.   Returns these two numbers now.
    A shard is removed once its bytes are on disk. A rerun derives from the file size which shards were appended, so a
    kill loses nothing.
    """
    numbers = numbers_of(plan, split)[start[0] :]
    counts = list(takewhile(bool, (finished(staging, number) for number in numbers)))
    if not counts and (numbers or (staging / f"{split}.bin").exists()):
        return start
    size = _append(staging, f"{split}.bin", ".bin", id_size, list(zip(numbers, counts)), start[1])
    return start[0] + len(counts), size


def join_masks(staging, plan, split):
    """Append the masks of a split to SPLIT.mask.bin if not all tokens are targets. Returns the sums of `COUNTS`.

    All shards are finished, and a kill loses nothing, as in `join`.
    """
    counts = [(number, finished(staging, number)) for number in numbers_of(plan, split)]
    totals = {key: sum(count[key] for _, count in counts) for key in COUNTS}
    if totals["targets"] < totals["tokens"]:
        _append(staging, f"{split}.mask.bin", ".mask", 1, counts)
    return totals


def _append(staging, file, suffix, width, counts, at=0):
    """Append shards from the byte `at` of `file` on, unless they are there. counts: [(number, `COUNTS`), ...].

    The file never becomes shorter than what readers may have mapped.
    """
    (staging / file).touch()
    with open(staging / file, "r+b") as out:
        for number, count in counts:
            size, shard = count["tokens"] * width, staging / "shards" / f"{number}{suffix}"
            if out.seek(0, os.SEEK_END) < at + size:
                out.seek(at)
                if shard.exists():
                    with open(shard, "rb") as source:
                        shutil.copyfileobj(source, out, BLOCK)
                else:  # a shard without a mask: all of its tokens are targets
                    out.write(b"\1" * size)
                out.flush()
                os.fsync(out.fileno())
            with contextlib.suppress(OSError):
                shard.unlink()
            at += size
        out.truncate(at)
        out.flush()
        os.fsync(out.fileno())
    return at


def clean(staging, plan, id_size):
    """Remove the unfinished shards that an interrupted build has left. The lock of the store is held."""
    for split in plan["texts"]:
        ids, number = staging / f"{split}.bin", next(iter(numbers_of(plan, split)), None)
        first, parts = finished(staging, number), staging / "shards"
        if not first:
            ids.unlink(missing_ok=True)
        elif not (parts / f"{number}.bin").exists():
            if not ids.exists() or ids.stat().st_size < first["tokens"] * id_size:  # after a power cut
                (parts / f"{number}.json").unlink()
    for path in (staging / "shards").glob("*.*.*"):  # NUMBER.PROCESS.SUFFIX
        path.unlink()


def finished(staging, number):
    """The `COUNTS` of a finished shard. {} if it is not finished."""
    return read_json_or_empty(staging / "shards" / f"{number}.json")


def documents_of(counts, separated):
    """The number of documents that `COUNTS` of a split mean: a text without separators is one."""
    return counts["documents"] if separated else int(counts["tokens"] > 0)


def numbers_of(plan, split):
    """The numbers of the shards of a split, in the order of its text."""
    return [number for number, shard in enumerate(plan["shards"]) if shard[0] == split]


def text_of(plan, split):
    """The `Text` of a split in a plan."""
    files = tuple((Path(path), size, mtime) for path, size, mtime in plan["texts"][split])
    name = plan.get("embedded", {}).get(split)
    return EmbeddedText(files, embedded=name) if name else Text(files)

"""Shards: the units in which a text is tokenized. Any process can do any shard, and a rerun keeps the finished ones."""

import contextlib
import json
import os
import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np

from slm_np.data.documents import END, PLAIN, ROWS, next_start, rows
from slm_np.data.documents import split as split_documents
from slm_np.data.files import read_json_or_empty
from slm_np.data.text_files import BLOCK, Text
from slm_np.errors import UserError

SHARD = 16 << 20  # bytes of text per shard, about. It is the same on every machine, so the ids are too
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
    (`COUNTS`).
    report: function (n), called when n more bytes have been read.   UserError for text that cannot be tokenized.
    """
    split, kind, start, stop = plan["shards"][number]
    text, counts = text_of(plan, split), dict.fromkeys(COUNTS, 0)
    part = staging / "shards" / f"{number}.{os.getpid()}"

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
        open(f"{part}.bin", "wb", BLOCK) as ids_file,
        open(f"{part}.mask", "wb") if kind == ROWS else contextlib.nullcontext() as mask_file,
    ):
        if kind == PLAIN:  # one text, however many shards it has
            write(read(), begins=number == 0 or plan["shards"][number - 1][0] != split)
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
    for suffix in (".bin", ".mask") if kind == ROWS else (".bin",):
        os.replace(f"{part}{suffix}", staging / "shards" / f"{number}{suffix}")
    Path(f"{part}.json").write_text(json.dumps(counts), encoding="utf-8")
    os.replace(f"{part}.json", staging / "shards" / f"{number}.json")


def join(staging, plan, split, id_size):
    """Append the shards of a split to SPLIT.bin, and to SPLIT.mask.bin if not all tokens are targets.

    id_size: bytes per id.   Returns the sums of `COUNTS`.   A shard is removed once its bytes are on disk. A rerun
    derives from the file sizes which shards were appended, so a kill loses nothing.
    """
    numbers = [number for number, shard in enumerate(plan["shards"]) if shard[0] == split]
    counts = {number: finished(staging, number) for number in numbers}
    totals = {key: sum(count[key] for count in counts.values()) for key in COUNTS}
    files = [(f"{split}.bin", ".bin", id_size)]
    if totals["targets"] < totals["tokens"]:
        files.append((f"{split}.mask.bin", ".mask", 1))
    for file, suffix, width in files:
        with open(staging / file, "ab") as out:
            at = 0
            for number in numbers:
                size, shard = counts[number]["tokens"] * width, staging / "shards" / f"{number}{suffix}"
                if out.seek(0, os.SEEK_END) < at + size:
                    out.truncate(at)
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
    return totals


def finished(staging, number):
    """The `COUNTS` of a finished shard. {} if it is not finished."""
    return read_json_or_empty(staging / "shards" / f"{number}.json")


def text_of(plan, split):
    """The `Text` of a split in a plan."""
    return Text(tuple((Path(path), size, mtime) for path, size, mtime in plan["texts"][split]))

"""Shards: the units in which a text is tokenized. Any process can do any shard, and a rerun keeps the finished ones."""

import contextlib
import errno
import json
import os
import re
import secrets
import zlib
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from slm_np.data.chat_template import DEFAULT
from slm_np.data.documents import END, PLAIN, ROWS, next_start, rows
from slm_np.data.documents import split as split_documents
from slm_np.data.embedded import EmbeddedText
from slm_np.data.files import checksummed, read_json_or_empty, verified
from slm_np.data.templates import restored
from slm_np.data.text_files import BLOCK, Text
from slm_np.data.tokenizer import encode_spans
from slm_np.data.tokens import WITHIN
from slm_np.errors import UserError

SHARD = 16 << 20  # bytes of text per shard, about. It is the same on every machine, so the ids are too
SEEN = 1 << 16  # bytes of ids after which the first shard of a split shows them to readers
BUILD = "build"  # the file in the folder of the shards that names the current build
SEARCHED = 1 << 16  # bytes before the end of a shard in which a word's end is searched
_WORD_END = re.compile(rb"[!-~](?=[ \n])")
COUNTS = ("tokens", "targets", "documents", "bytes", "target_bytes")  # what is counted of each shard
CHECKSUMS = ("ids_crc32", "mask_crc32")  # of the bytes in NUMBER.bin and NUMBER.mask


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


def content(text, start, stop, documents, separated, written=DEFAULT.spans):
    """Yield the bytes [start, stop) of a `Text` that are tokenized: without separators, and rows as their text.

    written: as in `documents.rows`
    """
    for kind, segment_start, segment_stop in text.segments(documents):
        at, limit = max(segment_start, start), min(segment_stop, stop)
        if at >= limit:
            continue
        if not separated:
            yield from text.blocks(at, limit)
        elif kind == ROWS:
            parts = (part for _, spans in rows(text, at, limit, written) for part, _ in spans)
            yield from (part for part in parts if isinstance(part, bytes))
        else:
            yield from (block for block in split_documents(text.blocks(at, limit), kind) if block is not END)


def begin_build(staging):
    """Let only this process and its workers write shards from now on. The lock of the store is held."""
    (staging / "shards" / BUILD).write_text(secrets.token_hex(8), encoding="utf-8")


def current_build(staging):
    """A random name of the build that was begun last. "" if there is none."""
    with contextlib.suppress(OSError):
        return (staging / "shards" / BUILD).read_text(encoding="utf-8")
    return ""


def tokenize(staging, plan, number, tokenizer, report, build=None):
    """Tokenize shard `number` of a plan (see store_builder.py) into the folder `staging`/shards.

    Writes NUMBER.bin (ids), for rows NUMBER.mask (a byte per token, see `tokens.TARGET`), and at the end NUMBER.json
    (`COUNTS` and `CHECKSUMS`). The ids of a split's first shard go directly to `staging`/SPLIT.bin, so they can be
    read while they are written.
    report: function (n), called when n more bytes have been read.   build: the `current_build` that a worker works for;
    None in the process that holds the lock.
    UserError for text that cannot be tokenized. OSError if another process has begun the build again, as this worker
    has outlived its parent. It then changes nothing that the other one keeps.
    """

    def check_build():
        if build is not None and build != current_build(staging):
            raise OSError(errno.ESTALE, "another process has begun it again")

    split, kind, start, stop = plan["shards"][number]
    text, counts = text_of(plan, split), dict.fromkeys((*COUNTS, *CHECKSUMS), 0)
    part, is_first = staging / "shards" / f"{number}.{os.getpid()}", numbers_of(plan, split)[0] == number
    ids_path = staging / f"{split}.bin" if is_first else Path(f"{part}.bin")

    def read():
        for block in text.blocks(start, stop):
            yield block
            report(len(block))

    def count(block, target):
        counts["bytes"] += len(block)
        counts["target_bytes"] += len(block) * target
        return block

    def put(ids, target, flags=0):
        written, mask = ids.astype(ids.dtype.newbyteorder("<"), copy=False).data, bytes([target | flags]) * len(ids)
        ids_file.write(written)
        counts["ids_crc32"] = zlib.crc32(written, counts["ids_crc32"])
        counts["mask_crc32"] = zlib.crc32(mask, counts["mask_crc32"])
        counts["tokens"] += len(ids)
        counts["targets"] += len(ids) * target
        if mask_file:
            mask_file.write(mask)

    def write(blocks, target=True, begins=True):
        for ids in tokenizer.encode_blocks((count(block, target) for block in blocks), begins):
            put(ids, target)

    def write_row(spans):
        for (part, target), (ids, _) in zip(spans, encode_spans(tokenizer, spans)):
            if isinstance(part, bytes):
                count(part, target)
            put(ids, target, WITHIN * (part == tokenizer.end_of_text))

    def end_document(target=True, blank_line=b"\n\n"):
        if tokenizer.end_of_text is not None:
            put(np.array([tokenizer.end_of_text], tokenizer.dtype), target)
        else:
            with contextlib.suppress(UserError):  # a vocabulary of characters may lack the newline
                put(tokenizer.encode(blank_line, begins=False), target)
        counts["documents"] += 1

    with (
        # Nothing is truncated before the check. A build begins before it removes the file that an old one has opened.
        open(ids_path, "ab" if is_first else "wb", SEEN if is_first else BLOCK) as ids_file,
        open(f"{part}.mask", "wb") if kind == ROWS else contextlib.nullcontext() as mask_file,
    ):
        check_build()
        if kind == PLAIN:  # one text, however many shards it has
            write(read(), begins=is_first)
        elif kind == ROWS:
            template = restored(plan.get("template"))
            for size, spans in rows(text, start, stop, partial(template.spans, tokenizer=tokenizer)):
                write_row(spans)
                if spans:
                    last, target = spans[-1]
                    # A special token has ended the reply. Without an end-of-text token, a blank line does not say that
                    # the conversation is over. Neither is a target.
                    ended = isinstance(last, int) or tokenizer.end_of_text is None and len(spans) > 1
                    is_line = isinstance(last, bytes) and last.endswith(b"\n")
                    end_document(target and not ended, b"\n" if is_line else b"\n\n")
                report(size)
        else:
            blocks = split_documents(read(), kind)
            for first in blocks:
                write(chain([first], iter(lambda: next(blocks), END)))
                end_document()
    check_build()
    for suffix in (".bin",) * (not is_first) + (".mask",) * (kind == ROWS):
        os.replace(f"{part}{suffix}", staging / "shards" / f"{number}{suffix}")
    Path(f"{part}.json").write_text(json.dumps(checksummed(counts)), encoding="utf-8")
    os.replace(f"{part}.json", staging / "shards" / f"{number}.json")


def finished(staging, number):
    """The `COUNTS` and `CHECKSUMS` of a finished shard. {} if it is not finished, or its NUMBER.json is damaged."""
    return verified(read_json_or_empty(staging / "shards" / f"{number}.json"))


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

"""Files that are not plain text, converted once into the cache: compressed, in UTF-16, JSON, CSV, Parquet.

`readable` looks at the first bytes of each file, whatever its name. What is plain text is read where it is. What can be
converted becomes CACHE/converted/HASH/rows.jsonl, a row of JSON per line, or text.txt; beside it origin.json names the
file it came from, for messages. Anything else is refused.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from dataclasses import replace

from slm_np.data import file_kinds, tables
from slm_np.data.chat_template import parse_row
from slm_np.data.files import checksummed, read_json_or_empty, sha256_of, verified
from slm_np.data.json_values import values
from slm_np.data.meter import metered
from slm_np.data.row_check import check_rows
from slm_np.data.text_files import BLOCK, CONVERTED, JUST_WRITTEN, ORIGIN, ROW_SUFFIXES, Text, origin
from slm_np.data.unpacking import decoded, unpacked
from slm_np.errors import UserError
from slm_np.paths import published

FORMAT = 1  # of what is written; it is part of HASH
MTIME = 946_684_800 * 10**9  # ns, of converted files: the year 2000. Whoever writes to one changes it
SPREAD, SAMPLE = 8, 1 << 16  # blocks that are looked at besides the first one, and their bytes
LEVELS = 3  # of compression in compression
LARGE, RATIO = 1 << 30, 500  # a file that expands beyond LARGE bytes and RATIO times its size is not text
AS_TEXT = "or rename it to .txt to read it as text"


def readable(text, documents, cache, progress=True):
    """The `Text` in which every file of `text` is plain text or rows. Its notes say what a user may not expect.

    documents: the value of --documents.   UserError for files that are not text, are damaged, or have malformed rows.
    """
    column = documents.partition(":")[2]

    def look():
        found = ((str(n), _look(file, column)) for n, file in enumerate(text.files))
        return {n: [steps, note] for n, (steps, note) in found if steps or note}

    looks = text.cached(cache, f"contents {FORMAT} {column}", look)
    jobs = [(text.files[int(n)], steps, column) for n, (steps, _) in looks.items() if steps]
    made = {job[0]: _converted(*job, cache, progress) for job in jobs}
    for file, *rest in _damaged([(job, made[job[0]]) for job in jobs], cache):
        made[file] = _converted(file, *rest, cache, progress)
    result = replace(text, files=tuple(made.get(file, file) for file in text.files))
    notes = [note for _, note in looks.values() if note] + result.cached(
        cache, "rows", lambda: check_rows(result, progress)
    )
    return replace(result, notes=tuple(notes))


def _look(file, column):
    """[steps, note] of a file. steps: the names of what has to be done to read it, [] for plain text and rows."""
    path, size, _ = file
    if size == 0:
        return [], ""
    steps, name = [], path
    while True:
        head = _head(file, steps)
        method = file_kinds.compression(head, name.suffix.lower())
        if method is None:
            break
        if len(steps) == LEVELS:
            raise UserError(f"{path} is compressed more than {LEVELS} times; unpack it")
        steps.append(method)
        name = name.with_suffix("") if name.suffix.lower() in file_kinds.SUFFIXES else name
    if head.startswith(file_kinds.PARQUET):
        if steps:
            raise UserError(f"{path} is a compressed Parquet file; unpack it")
        return ["parquet"], ""
    is_json, is_rows = name.suffix.lower() == ".json", name.suffix.lower() in ROW_SUFFIXES
    encoding = file_kinds.encoding(head)
    if encoding and not (encoding == "utf-8-sig" and (is_json or is_rows or column)):
        steps.append(encoding)
        head = _head(file, steps)
    _check_text(file, head, spread=not steps)
    if is_json or is_rows:
        kind, note = _look_at_json(file, steps, head, is_rows)
    elif column:
        kind, note = "csv", ""
    else:
        kind, note = "", _note(name, path, head)
    if kind or is_rows and steps:
        steps.append(kind or "rows")
    return steps, note


def _head(file, steps):
    """The first `BLOCK` bytes of a file after these steps, or a little more."""
    found = b""
    for block in _blocks(file, steps):
        found += block
        if len(found) >= BLOCK:
            break
    return found


def _blocks(file, steps, blocks=None):
    """The bytes of a file after the steps that unpack and decode it. blocks: those of the file."""
    blocks = Text((file,)).blocks() if blocks is None else blocks
    for step in steps:
        if step in file_kinds.COMPRESSED or step == "lzma":
            blocks = unpacked(blocks, step, file[0])
        elif step == "utf-8-sig":
            blocks = _without_mark(blocks)
        elif step in file_kinds.ENCODINGS.values():
            blocks = decoded(blocks, step, file[0])
    return blocks


def _without_mark(blocks):
    start = b""
    for block in blocks:
        if start is not None:
            block, start = start + block, None if len(start + block) > 2 else start + block
        if start is None:
            yield block.removeprefix(b"\xef\xbb\xbf") if block.startswith(b"\xef\xbb\xbf") else block


def _check_text(file, head, spread):
    """UserError if the first bytes of a file, or blocks spread over it, show that it is not text."""
    path, size, _ = file
    text, found = Text((file,)), file_kinds.no_text(head)
    starts = range(len(head), size, max(1, size // SPREAD)) if spread else ()
    for start in starts:
        found = found or file_kinds.no_text(b"".join(text.blocks(start, min(size, start + SAMPLE))), start)
    if found:
        raise UserError(f"{path} is {found[0]}; {found[1]}")


def _look_at_json(file, steps, head, is_rows):
    """(kind, note) of a file of JSON, a .jsonl file if `is_rows`. kind: "json" for what `values` has to read, or ""."""
    path, start = file[0], head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return "json", ""
    if is_rows:
        line, end, _ = start.partition(b"\n")
        try:
            json.loads(line.strip().removesuffix(b","))
        except (ValueError, RecursionError):
            # Rows that lines do not separate: one object over several lines, or several in a line.
            with contextlib.suppress(UserError, StopIteration):
                next(values([start], path))
                return "json", ""
        return "", ""
    try:
        value = next(values(_blocks(file, steps), path), None)
    except UserError as error:
        return "", f"{str(error).partition(';')[0]}; it is read as text"
    if _is_row(value):
        return "json", ""
    if isinstance(value, dict):
        arrays = [
            key for key, entries in value.items() if isinstance(entries, list) and entries and _is_row(entries[0])
        ]
        if arrays:
            raise UserError(
                f"{path} is an object with rows in {', '.join(map(repr, arrays))}; save that array alone, {AS_TEXT}"
            )
    return "", f"{path} has no rows that slm_np knows; it is read as text"


def _is_row(value):
    try:
        parse_row(json.dumps(value), "", 1)
        return True
    except UserError:
        return False


def _note(name, path, head):
    """What to say of a text, or ""."""
    if name.suffix.lower() in (".csv", ".tsv") and (columns := tables.columns(head)):
        return (
            f"{path} is read as text, with its commas and quotes; to read one of its columns, pass --documents "
            f"csv:COLUMN ({', '.join(columns[:5])}{' and more' * (len(columns) > 5)})"
        )
    if head.lstrip()[:1] in (b"[", b"{"):
        with contextlib.suppress(UserError, StopIteration):
            if isinstance(value := next(values([head], path)), dict) and _is_row(value):
                return f"{path} looks like JSON, and is read as text; to read its rows, rename it to .json or .jsonl"
    share = file_kinds.share_not_utf8(head)
    if share > 0:
        return (
            f"{path}: {share:.1%} of its first bytes are not UTF-8 and are read as they are; if it is in another "
            "encoding, save it in UTF-8"
        )
    return ""


def _converted(file, steps, column, cache, progress):
    """(path, size, mtime) of the file in the cache that these steps make of `file`, unless it is there."""
    path, size, mtime = file
    identity = [FORMAT, str(path.absolute()), size, mtime, steps, column]
    if mtime > time.time_ns() - JUST_WRITTEN:  # it may change again without another mtime
        identity.append(Text((file,)).sha256(cache, progress))
    blocks = metered(Text((file,)).blocks(), size, f"reading {path.name}", progress)
    unit, lines = "row", None
    if steps[-1] == "parquet":
        lines = tables.parquet_rows(path, column, path)
    elif steps[-1] == "csv":
        lines = tables.csv_texts(_blocks(file, steps, blocks), column, path)
    elif steps[-1] == "json":
        lines = values(_blocks(file, steps, blocks), path)
    else:
        unit = "line"
    made = _blocks(file, steps, blocks) if lines is None else _json_lines(lines, path)
    name = "text.txt" if lines is None and steps[-1] != "rows" else "rows.jsonl"
    return published_file(identity, name, made, file, unit, cache)


def _json_lines(rows, path):
    """Rows as lines of JSON."""
    for n, row in enumerate(rows, 1):
        try:
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair
            yield json.dumps(row).encode() + b"\n"
        except TypeError as error:
            raise UserError(
                f"{path}, row {n}, has a value that is not text ({error}); save the column as text"
            ) from None


def published_file(identity, name, blocks, file, unit, cache):
    """(path, size, mtime) of the file `name` with these blocks in CACHE/converted/HASH, written unless it is there.

    identity: what HASH depends on.   file: what it is made from.   unit: what messages call its lines.
    """
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = cache / CONVERTED / digest
    exists = folder.exists()  # before the look at it: what another process publishes meanwhile is not removed
    found = _kept(folder, name)
    if found:
        return found
    if exists:
        shutil.rmtree(folder, ignore_errors=True)
    source, size, _ = file
    digest, n = hashlib.sha256(), 0
    with published(folder) as part:
        with open(part / name, "wb") as out:
            for block in blocks:
                out.write(block)
                digest.update(block)
                n += len(block)
                if n > LARGE and n > RATIO * size:
                    raise UserError(f"{source} expands to more than {RATIO} times its size; unpack it yourself")
                if b"\0" in block:
                    raise UserError(f"{source} contains binary data once it is unpacked; give text")
        if n == 0:
            raise UserError(f"{source} contains no text; give a file with text")
        Text((file,)).check_unchanged()
        os.utime(part / name, ns=(MTIME, MTIME))
        about = dict(path=origin(source)["path"], unit=unit, size=n, sha256=digest.hexdigest())
        (part / ORIGIN).write_text(json.dumps(checksummed(about)), encoding="utf-8")
    found = _kept(folder, name)
    if found is None:
        raise UserError(f"{folder} does not contain what was just written to it; check the disk")
    return found


def _kept(folder, name):
    """(path, size, mtime) of a converted file, or None if it is not there or was changed."""
    about = verified(read_json_or_empty(folder / ORIGIN))
    with contextlib.suppress(OSError):
        status = (folder / name).stat()
        if (status.st_size, status.st_mtime_ns) == (about.get("size"), MTIME):
            return folder / name, status.st_size, status.st_mtime_ns
    return None


def _damaged(jobs, cache):
    """The jobs whose converted file has another checksum than when it was written. These files are removed.

    jobs: [(job, (path, size, mtime) of the converted file), ...]. Files that are right are remembered.
    """
    files = Text(tuple(file for _, file in jobs))
    found = []

    def search():
        for job, file in jobs:
            if sha256_of(file[0]) != verified(read_json_or_empty(file[0].parent / ORIGIN)).get("sha256"):
                found.append(job)
                shutil.rmtree(file[0].parent, ignore_errors=True)
        if found:
            raise LookupError
        return True

    with contextlib.suppress(LookupError):
        if jobs:
            files.cached(cache, "undamaged", search)
    return found

"""A corpus tokenised in shards: by several processes, with the same bits as by one, and after a kill a rerun goes on with what is missing."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from itertools import chain
from pathlib import Path
from queue import Empty, Queue

import numpy as np

from slm_np.data import corpus
from slm_np.data.documents import PLAIN, ROWS, next_start, rows
from slm_np.data.documents import split as split_documents
from slm_np.data.tokenizer import load_tokenizer
from slm_np.errors import UserError

SHARD = 16 << 20  # bytes of text in a shard, about. It never depends on the machine, nor then does any id
_WORD_END = re.compile(rb"[!-~](?=[ \n])")


class _Ended(Exception):
    """A worker process is gone."""


def borders(text, start, stop, documents, bordered):
    """[(kind, start, stop), ...]: the bytes [start, stop) of a `Text` in shards. Each ends with a document or, where the text is one
    document (`bordered` false), after a word: there GPT-2's pre-tokenisation always cuts, so that no piece is torn."""
    found = []
    for kind, first, last in text.segments(documents):
        at, last = max(first, start), min(last, stop)
        while at < last:
            cut = last
            if at + SHARD < last:
                cut = (
                    (next_start(text, at + SHARD, at, last, kind) or last)
                    if bordered
                    else max(at + 1, _word_end(text, at + SHARD))
                )
            found.append((kind if bordered else PLAIN, at, cut))
            at = cut
    return found


def _word_end(text, position):
    near = max(0, position - (1 << 16))
    matches = [*_WORD_END.finditer(b"".join(text.blocks(near, position + 1)))]
    return near + matches[-1].end() if matches else text.border(position)


def texts(text, start, stop, documents, bordered):
    """The bytes [start, stop) of a `Text` as they are tokenised, in blocks: without what separates documents, and rows as their text."""
    for kind, first, last in text.segments(documents):
        first, last = max(first, start), min(last, stop)
        if first >= last:
            continue
        if not bordered:
            yield from text.blocks(first, last)
        elif kind == ROWS:
            yield from (piece for _, pieces in rows(text, first, last) for piece, _ in pieces)
        else:
            yield from (block for block in split_documents(text.blocks(first, last), kind) if block is not None)


def build(folder, plan, tokenizer, describe, threads=0, progress=True):
    """Make the store `folder` (train.bin, validation.bin, tokenizer.json, meta.json), which appears only when it is complete.

    plan: what JSON can hold: {"shards": [[split, kind, start, stop], ...], "texts": {split: [[path, size, mtime], ...]}, "bordered",
    ...}; a rerun with the same plan goes on.   tokenizer: function () -> Tokenizer.   describe: function (tokenizer,
    totals {split: counts}) -> meta.   threads: processes, 0 for one per core.   UserError for bad text or a disk that refuses.
    """
    staging = staging_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_name(folder.name + ".lock"), progress):
            if folder.is_dir() and any(folder.iterdir()):
                return  # another process was quicker
            tokenizer = _begun(staging, plan, tokenizer)
            _tokenise_all(staging, plan, tokenizer, threads, progress)
            for files in plan["texts"].values():
                _text(files).check_unchanged()
            totals = {name: _joined(staging, plan, name, tokenizer) for name in plan["texts"]}
            (staging / "meta.json").write_text(
                json.dumps(describe(tokenizer, totals), indent=2) + "\n", encoding="utf-8"
            )
            shutil.rmtree(staging / "shards")
            (staging / "plan.json").unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()  # an empty one, in whose place Windows renames nothing
            os.rename(staging, folder)
    except UserError:
        shutil.rmtree(staging, ignore_errors=True)  # the text is at fault, which must change first
        raise
    except _Ended as error:
        raise UserError(
            f"a process that tokenised ended with status {error}; start again with fewer --threads: what is finished is kept"
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written ({error.strerror}); free some space, or set SLM_NP_CACHE to another folder"
        ) from None


def staging_of(folder):
    """Where the store `folder` is made, until it is complete."""
    return folder.with_name(folder.name + ".part")


def _begun(staging, plan, tokenizer):
    """The tokenizer of a store that was begun with this plan, or a new one in a new folder."""
    with contextlib.suppress(OSError, UserError):
        if (staging / "plan.json").read_text(encoding="utf-8") == json.dumps(plan):
            (staging / "shards").mkdir(exist_ok=True)  # a kill may have come when they had gone already
            return load_tokenizer(staging / "tokenizer.json")
    if staging.exists():
        shutil.rmtree(staging)
    (staging / "shards").mkdir(parents=True)
    made = tokenizer()
    made.save(staging / "tokenizer.json")
    (staging / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return made


def _tokenise_all(staging, plan, tokenizer, threads, progress):
    """Tokenise the shards that are not finished."""
    sizes = [stop - start for _, _, start, stop in plan["shards"]]
    todo = [number for number in range(len(sizes)) if not _counts(staging, number)]
    left = sum(sizes[number] for number in todo)
    workers = min(threads or _cores(), -(-left // SHARD))
    with corpus.Meter(sum(sizes), "tokenising", progress, sum(sizes) - left) as meter:
        if workers > 1:
            _by_processes(staging, todo, workers, meter)
        else:
            for number in todo:
                tokenise(staging, plan, number, tokenizer, meter.update)


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenise(staging, plan, number, tokenizer, report):
    """Write the shard `number`: NUMBER.bin, of rows also NUMBER.mask, and last NUMBER.json with what it holds. report(n): n more bytes were read."""
    name, kind, start, stop = plan["shards"][number]
    text, held = _text(plan["texts"][name]), dict(tokens=0, learnt=0, documents=0, bytes=0, learnt_bytes=0)
    part = staging / "shards" / f"{number}.{os.getpid()}"

    def read():
        for block in text.blocks(start, stop):
            yield block
            report(len(block))

    def measured(blocks, learn):
        for block in blocks:
            held["bytes"] += len(block)
            held["learnt_bytes"] += len(block) * learn
            yield block

    def put(ids, learn):
        ids_file.write(ids.astype(ids.dtype.newbyteorder("<"), copy=False).data)
        held["tokens"] += len(ids)
        held["learnt"] += len(ids) * learn
        if mask_file:
            mask_file.write(bytes([learn]) * len(ids))

    def write(blocks, learn=True, begins=True):
        for ids in tokenizer.encode_blocks(measured(blocks, learn), begins):
            put(ids, learn)

    def end(learn=True, blank_line=b"\n\n"):
        if tokenizer.end_of_text is not None:
            put(np.array([tokenizer.end_of_text], tokenizer.dtype), learn)
        else:
            with contextlib.suppress(UserError):  # characters without a newline can only follow one another
                put(tokenizer.encode(blank_line, begins=False), learn)
        held["documents"] += 1

    with (
        open(f"{part}.bin", "wb", corpus.BLOCK) as ids_file,
        open(f"{part}.mask", "wb") if kind == ROWS else contextlib.nullcontext() as mask_file,
    ):
        if kind == PLAIN:
            write(
                read(), begins=number == 0 or plan["shards"][number - 1][0] != name
            )  # one text, in however many shards
        elif kind == ROWS:
            for size, pieces in rows(text, start, stop):
                for i, (piece, learn) in enumerate(pieces):
                    write([piece], learn, begins=i == 0)
                if pieces:  # where a blank line ends them, the conversation might as well go on: nothing to learn
                    learn = pieces[-1][1] and (tokenizer.end_of_text is not None or len(pieces) == 1)
                    end(learn, b"\n" if pieces[-1][0].endswith(b"\n") else b"\n\n")
                report(size)
        else:
            blocks = split_documents(read(), kind)
            for first in blocks:
                write(chain([first], iter(lambda: next(blocks), None)))
                end()
    for suffix in (".bin", ".mask") if kind == ROWS else (".bin",):
        os.replace(f"{part}{suffix}", staging / "shards" / f"{number}{suffix}")
    Path(f"{part}.json").write_text(json.dumps(held), encoding="utf-8")
    os.replace(f"{part}.json", staging / "shards" / f"{number}.json")


def _joined(staging, plan, name, tokenizer):
    """Put the shards of a split together into NAME.bin, and NAME.mask.bin if there is something not to learn; the sums of their counts.

    A shard goes once it is in the whole on disk. A rerun knows from the sizes which ones are in already, so a kill costs nothing."""
    numbers = [number for number, shard in enumerate(plan["shards"]) if shard[0] == name]
    counts = {number: _counts(staging, number) for number in numbers}
    totals = {
        key: sum(held[key] for held in counts.values())
        for key in ("tokens", "learnt", "documents", "bytes", "learnt_bytes")
    }
    files = [(f"{name}.bin", ".bin", tokenizer.dtype.itemsize)]
    if totals["learnt"] < totals["tokens"]:
        files.append((f"{name}.mask.bin", ".mask", 1))
    for file, suffix, width in files:
        with open(staging / file, "ab") as out:
            at = 0
            for number in numbers:
                size, shard = counts[number]["tokens"] * width, staging / "shards" / f"{number}{suffix}"
                if out.seek(0, os.SEEK_END) < at + size:
                    out.truncate(at)
                    if shard.exists():
                        with open(shard, "rb") as source:
                            shutil.copyfileobj(source, out, corpus.BLOCK)
                    else:  # a shard without rows is learnt whole
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


def _counts(staging, number):
    """What a finished shard holds; an empty dict for one that is not."""
    return corpus.read_json(staging / "shards" / f"{number}.json")


def _text(files):
    return corpus.Text(tuple((Path(path), size, mtime) for path, size, mtime in files))


@contextlib.contextmanager
def _alone(path, progress):
    """Within, no other process works at the same; one that does is waited for. The system frees the lock of a process that ends, however."""
    told = not progress
    while True:
        file = open(path, "a+b")
        while not _lock(file):
            if not told:
                print("another process prepares the same corpus; waiting for it", file=sys.stderr)
            told = True
            time.sleep(0.2)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break  # and not a file that who had it before has removed
        file.close()
    try:
        yield
    finally:
        if (
            os.name == "nt"
        ):  # where an open file cannot be removed; elsewhere it must go before another process can lock it
            file.close()
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _lock(file):
    """Whether the lock of an open file is ours now. True where the disk knows no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


# Worker processes are programs of their own that talk in lines: shard numbers in, JSON out. Nothing is pickled, and the program that
# calls us is not imported again, as `multiprocessing` would.


def _by_processes(staging, todo, n, meter):
    """Tokenise the shards `todo` by `n` processes. UserError for bad text."""
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    environment = dict(
        os.environ, PYTHONPATH=path, PYTHONIOENCODING="utf-8", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1"
    )
    command = [
        sys.executable,
        "-c",
        "import sys; del sys.path[0]; from slm_np.data.shards import work; work()",
        str(staging),
    ]
    waiting, answers = deque(todo), Queue()

    def drive(process):
        try:
            while True:
                process.stdin.write(f"{waiting.popleft()}\n")
                process.stdin.flush()
                for line in process.stdout:
                    answer = json.loads(line)
                    answers.put(answer)
                    if "read" not in answer:
                        break
                else:
                    answers.put(dict(ended=process.wait()))
                    return
        except IndexError:  # nothing waits any more
            process.stdin.close()
            answers.put(dict(finished=True))
        except (OSError, ValueError):
            answers.put(dict(ended=process.wait()))

    processes = []
    try:
        for _ in range(n):
            processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
                )
            )
            threading.Thread(target=drive, args=processes[-1:], daemon=True).start()
        while n:
            try:
                answer = answers.get(timeout=1)  # for ever, it could not be interrupted on Windows
            except Empty:
                continue
            n -= "finished" in answer
            meter.update(answer.get("read", 0))
            if "error" in answer:
                raise UserError(answer["error"])
            if "errno" in answer:
                raise OSError(answer["errno"], answer["refused"])
            if "ended" in answer:
                raise _Ended(answer["ended"])
    finally:
        for process in processes:
            process.kill()  # what is finished stays; what is not is begun anew
        for process in processes:
            process.wait()


def work():
    """The program of a worker process: tokenise the shards whose numbers come on stdin, in the folder that is its argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    staging = Path(sys.argv[1])
    plan, tokenizer = corpus.read_json(staging / "plan.json"), load_tokenizer(staging / "tokenizer.json")
    read = 0

    def say(**answer):
        try:
            print(json.dumps(answer), flush=True)
        except OSError:
            os._exit(1)  # the parent is gone

    def report(n):
        nonlocal read
        read += n
        if read >= corpus.BLOCK:
            say(read=read)
            read = 0

    for line in sys.stdin:
        try:
            tokenise(staging, plan, int(line), tokenizer, report)
            say(done=int(line))
        except UserError as error:
            say(error=str(error))
        except OSError as error:
            say(errno=error.errno, refused=error.strerror)

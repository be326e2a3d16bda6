"""Embedded corpora: text that this program writes itself, kept as files in the cache."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from slm_np.data import dialogues, stories
from slm_np.data.files import checksummed, read_json_or_empty, sha256_of, verified
from slm_np.data.meter import metered
from slm_np.data.stories import home_plots, outdoor_plots, shared, teller, words
from slm_np.data.text_files import Text
from slm_np.errors import UserError
from slm_np.paths import published

SPLIT_BYTES = dict(train=12_000_000, validation=120_000)  # of `stories`, see `size_of`
SEEDS = dict(train=1, validation=2)
TOGETHER = 64  # stories in a block
MTIME = 946_684_800 * 10**9  # ns, of the files: the year 2000, so that it is known before they are written


class Writer(NamedTuple):
    """What writes an embedded corpus."""

    # (n_bytes, seed) -> iterable of (text, bits) until n_bytes are reached; bits is the text's entropy, None if unknown
    write: Callable
    suffix: str  # of the file: .txt, or .jsonl for rows
    modules: tuple  # their source determines the text
    times: int = 1  # the training split is so many times as long as that of `stories`


STORIES = stories, teller, words, shared, home_plots, outdoor_plots
WRITERS = dict(
    stories=Writer(stories.write, ".txt", STORIES),
    # Only answers are learned from, 7 % of the tokens, and one pass over many teaches more than several over a few.
    dialogues=Writer(dialogues.write, ".jsonl", (dialogues, *STORIES), times=4),
)


def size_of(name, split):
    """Bytes of a split of an embedded corpus, at least."""
    return SPLIT_BYTES[split] * (WRITERS[name].times if split == "train" else 1)


class KnownText(NamedTuple):
    """What is known of a text without writing it. It contains no document separator `<|endoftext|>`."""

    size: int  # bytes
    bits: float  # of entropy
    sha256: str


# By the version of the writer, see `_version`. Any other text is written completely before it is read. So whoever
# changes a writer may correct the entry, or remove it.
KNOWN = {
    "8391ade178e43ea4": KnownText(
        12_000_385,
        3017724.9098650897,
        "6ad01cdf0c642f257cca331971dea0f54c860883f42bfde53793fd477b930715",
    ),
    "97e999eca0b818b9": KnownText(
        120_716,
        30202.867768279502,
        "24e28df6e425de5a13b838a0cf61b219862db7e0ba1d46b70aea4b18402c44c4",
    ),
}


class EmbeddedText(Text):
    """A `KnownText` as a file that is written when it is first read."""

    def blocks(self, start=0, stop=None):
        [(path, size, _)] = self.files
        if not path.exists():
            blocks = _written_blocks(*self.embedded, path)
            if start == 0 and stop in (None, size):
                yield from blocks
                return
            for _ in blocks:
                pass
        yield from super().blocks(start, stop)

    def sha256(self, cache, progress=True):
        return KNOWN[_version(*self.embedded)].sha256


def written(name, split, cache, progress=True, write=True):
    """The `Text` of `split` (train or validation) of an embedded corpus, written into the folder `cache` if necessary.

    Its floor is the sum of the entropies over the bytes, if the writer knows them. The folder's name contains a hash of
    the writer's source, so a changed writer writes a new file. A damaged one is found by its SHA-256 and written again.
    write: False leaves a known text to be written when it is read.   UserError if the cache cannot be written.
    """
    version = _version(name, split)
    folder, known = cache / name / f"{split}-{version}", KNOWN.get(version)
    file, floor_file = folder / (name + WRITERS[name].suffix), folder / "floor.json"
    floor = verified(read_json_or_empty(floor_file))
    sha256 = known.sha256 if known else floor.get("sha256")
    if folder.is_dir() and not (sha256 and file.is_file() and sha256_of(file) == sha256):
        print(f"slm_np: {file} is damaged, or of an earlier version; writing it again", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir() and known and not write:
        return EmbeddedText(((file, known.size, MTIME),), known.bits / known.size, (name, split))
    if not folder.is_dir():
        for _ in metered(
            _written_blocks(name, split, file), size_of(name, split), f"writing the {split} {name}", progress
        ):
            pass
        floor = verified(read_json_or_empty(floor_file))
    status = file.stat()
    files = ((file, status.st_size, status.st_mtime_ns),)
    if known:
        return EmbeddedText(files, known.bits / known.size, (name, split))
    return Text(files, None if floor["bits"] is None else floor["bits"] / floor["bytes"])


def _version(name, split):
    """A hash of everything that the text depends on: the writer's source, the number of bytes and the seed."""
    code = b"".join(Path(module.__file__).read_bytes().replace(b"\r\n", b"\n") for module in WRITERS[name].modules)
    return hashlib.sha256(code + repr((size_of(name, split), SEEDS[split])).encode()).hexdigest()[:16]


def _written_blocks(name, split, path):
    """Write a text, and yield it in blocks. It appears as `path`, in a folder with floor.json, after the last block.

    floor.json: dict(bytes, bits, sha256), with bits None if the entropy of a part is unknown.
    """
    floor, digest, parts = dict(bytes=0, bits=0.0), hashlib.sha256(), []
    with published(path.parent) as folder:
        with open(folder / path.name, "wb") as out:

            def block():
                data = "".join(parts).encode()
                parts.clear()
                floor["bytes"] += len(data)
                digest.update(data)
                out.write(data)
                return data

            for text, bits in WRITERS[name].write(size_of(name, split), SEEDS[split]):
                parts.append(text)
                floor["bits"] = None if bits is None or floor["bits"] is None else floor["bits"] + float(bits)
                if len(parts) == TOGETHER:
                    yield block()
            yield block()
        known = KNOWN.get(_version(name, split))
        if known and (floor["bytes"], digest.hexdigest()) != (known.size, known.sha256):
            raise UserError(f"the {split} {name} differ from what embedded.py knows of them; reinstall slm_np")
        os.utime(folder / path.name, ns=(MTIME, MTIME))
        floor["sha256"] = digest.hexdigest()
        (folder / "floor.json").write_text(json.dumps(checksummed(floor)), encoding="utf-8")

"""The token store: a text is tokenized once into memory-mapped files, from which training reads its batches."""

import contextlib
import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_np import arguments
from slm_np.config import check_documents
from slm_np.data import bpe, checksums, lossy, store_builder
from slm_np.data.checksums import Damaged
from slm_np.data.documents import ROWS
from slm_np.data.files import read_json_or_empty
from slm_np.data.growing import Building, GrowingTokens, can_grow
from slm_np.data.shards import content, documents_of, shard_ranges
from slm_np.data.splits import is_separated, read_as_before, split_ranges
from slm_np.data.token_files import (
    EVALUATION,
    TRAINING,
    VALIDATION,
    Tokens,
    check_files,
    check_no_arrays,
    file_in,
    is_token_file,
    largest_id,
    mapped,
    read_token_file,
    token_folder,
)
from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_factory import load_tokenizer, make_tokenizer, with_end_of_text
from slm_np.errors import UserError
from slm_np.paths import cache_dir as usable_cache_dir
from slm_np.paths import expanded_list, sweep
from slm_np.progress import say
from slm_np.words import counted

FORMAT = 4  # of the store. It is part of the fingerprint, so each version has its own stores
FORMAT_BEFORE = 3  # where the documents of a text are those of earlier versions, so that their runs can be resumed
SPLITS = ("train", "validation")
FILES = {"meta.json", "tokenizer.json", *(f"{split}{suffix}" for split in SPLITS for suffix in (".bin", ".mask.bin"))}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Both splits and their tokenizer. While the token store is being built, the splits are `GrowingTokens`."""

    train: Tokens
    validation: Tokens
    tokenizer: Tokenizer | None  # None for token files without a tokenizer.json
    vocab_size: int
    fingerprint: str  # in hexadecimal: equal exactly if contents, splits and tokenizer are equal
    source: str  # the `--data` string
    building: Building | None = None  # None if the corpus is complete


def load_corpus(
    data,
    val_data="",
    tokenizer="byte",
    documents="marker",
    limit_bytes=0,
    cache_dir=None,
    progress=True,
    threads=0,
    out_dir=None,
    whole="",
    wait=True,
    binary=False,
):
    """The `Corpus` of a text, tokenized on first use and memory-mapped from then on.

    data         files, folders and globs separated by commas, or a list of them, or a corpus known by name (see
                 corpus.py); or token files: a .bin file, or a folder with train.bin (see token_files.py)
    val_data     the same for validation. Default: the validation split of a corpus known by name, else the last tenth
                 of the bytes of `data`, from the start of a document on
    tokenizer    byte, char, bpe:N, gpt2, file:PATH, or a `Tokenizer`
    documents    what separates documents: marker, blank-line, line or csv:COLUMN (see documents.py). Rows of JSON are
                 documents
    limit_bytes  take this many bytes of `data`, to the end of a document; 0 takes all
    cache_dir    the folder of the cache (see `paths.cache_dir`)
    progress     whether to show progress on stderr
    threads      number of processes that tokenize, 0 for one per core
    out_dir      a new folder for the token store, in place of CACHE/corpora/FINGERPRINT
    whole        train or validation: take this part of a corpus known by name or of a folder of tokens, or all of any
                 other text, as the split `train`. The split `validation` is then empty
    wait         False returns while the text is still being tokenized, as soon as there is a tokenizer (see growing.py)
    binary       read files byte by byte as they are, and accept binary ones; else see converted.py

    If the text has separators, the end-of-text token follows each document; a blank line does if the `Tokenizer` given
    has no such token. In rows with messages, only the assistant's tokens are targets.
    Checksums are verified: tokens in the cache that are damaged are made again, and those of `prepare` are refused.
    UserError for bad input or a disk that fails.
    """
    data = expanded_list(arguments.paths("data", data))
    val_data = expanded_list(arguments.paths("val_data", val_data, optional=True))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = arguments.text("tokenizer", tokenizer)
    documents, whole = arguments.text("documents", documents), arguments.choice("whole", whole, ("", *SPLITS))
    limit_bytes = arguments.whole("limit_bytes", limit_bytes, 0, 1 << 50)
    threads = arguments.whole("threads", threads, 0, 1024)
    progress, wait = arguments.truth("progress", progress), arguments.truth("wait", wait)
    binary = arguments.truth("binary", binary)
    out_dir = arguments.path("out_dir", out_dir, optional=True)
    cache = usable_cache_dir(arguments.path("cache_dir", cache_dir, optional=True))
    check_documents(documents)
    if whole and val_data:
        raise UserError(f"val_data {val_data} has no effect with whole={whole!r}, which reads one split; leave it out")
    for flag, value in (("--data", data), ("--val-data", val_data)):
        check_no_arrays(value, flag)
    if is_token_file(data) or is_token_file(val_data):
        tokens = data if is_token_file(data) else val_data
        if out_dir:
            raise UserError(f"{tokens} contains tokens already; give a text to prepare")
        if limit_bytes:
            raise UserError(
                f"--limit-bytes {limit_bytes} cannot cut {tokens}, which contains tokens already; "
                "leave it out, or prepare less of the text"
            )
        return _from_token_files(data, val_data, tokenizer, cache, progress, whole)

    given = tokenizer if isinstance(tokenizer, Tokenizer) else None
    known = given or _existing_tokenizer(tokenizer)
    learned = not known and (tokenizer == "char" or tokenizer.startswith("bpe:"))
    write = wait or learned or limit_bytes or documents != "marker"  # else an embedded text is read while it is written
    ranges = split_ranges(data, val_data, documents, limit_bytes, whole, cache, progress, write, binary)
    hashes = {split: part.text.sha256(cache, progress) for split, part in ranges.items()}
    floors = {split: part.text.bits_per_byte_floor for split, part in ranges.items()}
    as_before = all(read_as_before(part, documents, cache, progress) for part in ranges.values())
    version = FORMAT_BEFORE if as_before else FORMAT
    fingerprint = _fingerprint(version, ranges, hashes, documents, known.to_json() if known else tokenizer)
    folder = Path(os.path.abspath(os.path.expanduser(out_dir))) if out_dir else cache / "corpora" / fingerprint

    def opened(tell=True):
        """The `Corpus` in the folder, after its checksums are verified, or None if it is to be made again."""
        try:
            found = _read_store(folder, fingerprint, floors, data)
            checksums.verify(folder, found.checksums, found.checksums, cache, progress)
            return found.corpus
        except Damaged as damaged:
            if out_dir:
                _check_replaceable(folder, out_dir, fingerprint, damaged)
            if tell:
                print(f"slm_np: the tokens in {folder} cannot be used: {damaged}; making them again", file=sys.stderr)
            return None

    def read():
        """The `Corpus` that was just written, which the builder has verified."""
        try:
            return _read_store(folder, fingerprint, floors, data).corpus
        except Damaged as damaged:
            raise UserError(f"{folder} does not contain what was just written to it ({damaged}); check the disk")

    if store_builder.holds_files(folder):
        found = opened(tell=False)  # once more, if necessary, while the lock is held
        if found:
            say_lossy(found.train.lossy, progress)
            return found
    elif out_dir and os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--out-dir {out_dir} is a file; name a directory")

    separated, measured = any(is_separated(part, documents, cache, progress) for part in ranges.values()), []

    def made():
        new = known or _trained_tokenizer(tokenizer, ranges, documents, separated, progress)
        losses(new)  # said before the text is tokenized
        for note in dict.fromkeys(note for part in ranges.values() for note in part.text.notes):
            say(f"slm_np: {note}")
        return with_end_of_text(new) if separated and not given else new

    def losses(used):
        """What the tokenizer loses of the text, measured and said once."""
        if not measured:
            measured.append(lossy.sentence_about(used, plan, documents))
            say_lossy(measured[0], progress)
        return measured[0]

    def described(used, totals):
        name = type(given).__name__ if given else tokenizer
        return _meta(fingerprint, name, used, totals, hashes, floors, separated) | dict(lossy=losses(used))

    if not out_dir and folder.parent.is_dir():
        with contextlib.suppress(OSError):
            os.utime(
                store_builder.staging_of(folder)
            )  # so that `sweep` keeps an old incomplete store, which is resumed below
        sweep(folder.parent)
    plan = _plan(fingerprint, ranges, documents, separated)
    elsewhere = "name another --out-dir" if out_dir else "set SLM_NP_CACHE to another folder"
    build = store_builder.Build(folder, plan, made, described, opened, elsewhere, threads, progress)
    if wait or not can_grow(plan):
        build.run()
        found = read()
    else:
        building = Building(build, read, floors)
        found = building.corpus
    if found is not None:
        if not measured:  # another process has made it
            say_lossy(found.train.lossy, progress)
        return found
    growing = [GrowingTokens(split, building, losses(building.tokenizer)) for split in SPLITS]
    return Corpus(*growing, building.tokenizer, building.tokenizer.vocab_size, fingerprint, data, building)


def _existing_tokenizer(name):
    """The tokenizer of file:PATH, or None for the others, which are made with a store.

    UserError for a bad name. A missing package is reported here too, before the text is downloaded or read.
    """
    if name == "gpt2" or name.startswith("bpe:"):
        bpe.check_packages(name)
    elif name not in ("byte", "char"):
        return make_tokenizer(name, [], False)
    return None


def _trained_tokenizer(name, ranges, documents, separated, progress):
    """The tokenizer `name`, learned from the text of both splits (char) or of the training split."""
    texts = [
        lambda part=ranges[split]: content(*part, documents, separated)
        for split in (SPLITS if name == "char" else SPLITS[:1])
    ]
    return make_tokenizer(name, texts, progress)


def _fingerprint(version, ranges, hashes, documents, tokenizer):
    """A SHA-256 in hexadecimal over everything that the ids depend on.

    version: of the store's format.   tokenizer: its name, or its fields.
    """
    # How a text is divided into files does not matter, except for files of rows.
    row_files = [segment for part in ranges.values() for segment in part.text.segments(documents) if segment[0] == ROWS]
    identity = [[hashes[split], part.start, part.stop] for split, part in ranges.items()]
    identity += [version, documents, row_files, tokenizer]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _plan(fingerprint, ranges, documents, separated):
    """The plan of a `store_builder.Build`."""
    embedded = {split: part.text.embedded for split, part in ranges.items() if part.text.embedded}
    return dict(
        fingerprint=fingerprint,
        separated=separated,
        texts={
            split: [[str(path.absolute()), size, mtime] for path, size, mtime in part.text.files]
            for split, part in ranges.items()
        },
        shards=[
            [split, *shard] for split, part in ranges.items() for shard in shard_ranges(*part, documents, separated)
        ],
        **(dict(embedded=embedded) if embedded else {}),
    )


def _meta(fingerprint, name, tokenizer, totals, hashes, floors, separated):
    """The object in meta.json. Its keys are part of the store's format."""
    masked = any(counts["targets"] < counts["tokens"] for counts in totals.values())
    return dict(
        fingerprint=fingerprint,
        tokenizer=name,
        dtype=tokenizer.dtype.name,
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        separated=separated,
        tokens={split: counts["tokens"] for split, counts in totals.items()},
        learnt={split: counts["targets"] for split, counts in totals.items()},
        documents={split: documents_of(counts, separated) for split, counts in totals.items()},
        bytes={split: counts["target_bytes" if masked else "bytes"] for split, counts in totals.items()},
        bits_per_byte_floor={split: None if separated else floor for split, floor in floors.items()},
        sha256=hashes,
    )


class Store(NamedTuple):
    """What `_read_store` finds."""

    corpus: Corpus
    checksums: dict  # {file name: CRC-32}; {} in a store of an earlier version


def _read_store(folder, fingerprint, floors, source):
    """The `Store` in a folder, before its files are compared with its checksums. `Damaged` if it is none."""
    try:
        meta, tokenizer = (
            checksums.described(read_json_or_empty(folder / "meta.json")),
            load_tokenizer(folder / "tokenizer.json"),
        )
        if meta["fingerprint"] != fingerprint:
            raise Damaged("meta.json has another fingerprint")
        splits = [_read_split(folder, split, meta) for split in SPLITS]
        if any(len(tokens) != meta["tokens"][tokens.split] for tokens in splits):
            raise Damaged("it is cut short")
        if meta["vocab_size"] != tokenizer.vocab_size or meta["dtype"] != tokenizer.dtype.name:
            raise Damaged("meta.json and tokenizer.json do not fit together")
        if "lossy" not in meta and not tokenizer.lossless:
            raise Damaged("an earlier version has made it, which did not measure what its tokenizer loses")
        # The floor comes from the text at hand: the store may have been made from a copy of unknown source.
        if not meta["separated"]:
            splits = [replace(tokens, bits_per_byte_floor=floors[tokens.split]) for tokens in splits]
        corpus = Corpus(*splits, tokenizer, tokenizer.vocab_size, fingerprint, source)
        return Store(corpus, meta.get("crc32", {}))
    except (LookupError, TypeError, OSError, ValueError, UserError, AttributeError):
        raise Damaged("its files are incomplete or malformed") from None


def _check_replaceable(folder, out_dir, fingerprint, damaged):
    """UserError unless a folder holds nothing but a `damaged` token store with this fingerprint."""
    meta = read_json_or_empty(folder / "meta.json")
    if meta.get("fingerprint") == fingerprint and {path.name for path in folder.iterdir()} <= FILES:
        return
    if "meta.json" in os.listdir(folder) and not meta.get("fingerprint"):
        raise UserError(
            f"--out-dir {out_dir} contains a damaged meta.json ({damaged}); remove that directory, or name a new one"
        )
    raise UserError(f"--out-dir {out_dir} contains something else; name a new directory")


def _read_split(folder, split, meta):
    """The `Tokens` of one split in a store, without the floor. A damaged store raises what `_read_store` catches."""
    ids = mapped(folder / f"{split}.bin", np.dtype(meta["dtype"]))
    mask = None
    if meta["learnt"][split] < meta["tokens"][split]:
        mask = mapped(folder / f"{split}.mask.bin", np.dtype(np.uint8))
        if len(mask) != len(ids):
            raise ValueError("the mask has another length than the ids")
    return Tokens(
        split,
        ids,
        meta["bytes"][split],
        mask=mask,
        n_targets=meta["learnt"][split],
        n_documents=meta["documents"][split],
        lossy=meta.get("lossy", ""),
    )


def say_lossy(sentence, progress):
    """Print what a tokenizer loses of a text, if it loses anything."""
    if sentence and progress:
        say(sentence)


def _from_token_files(data, val_data, tokenizer, cache, progress, whole):
    """The `Corpus` of one or two token files, or of the folder that contains both.

    Without a file for validation, the last tenth of the tokens is taken. The vocabulary is that of the tokenizer beside
    the files, else the one in meta.json, else as large as the largest id requires.
    """
    source, folder = data, token_folder(data)
    data = file_in(data, EVALUATION if whole == "validation" else TRAINING)
    if whole:
        val_data = ""
    elif val_data:
        val_data = file_in(val_data, EVALUATION)
    else:  # beside a single file only our own name counts
        beside = [Path(data).with_name(name) for name in (VALIDATION if folder else VALIDATION[:1])]
        val_data = next((str(path) for path in beside if path.is_file() and path != Path(data)), "")
        if not val_data and Path(data).name in TRAINING:  # or it is missing
            check_files(Path(data).parent, VALIDATION, cache, progress)

    files = [read_token_file(path, split, cache, progress) for split, path in zip(SPLITS, (data, val_data)) if path]
    known = _common_tokenizer(files, data, val_data, tokenizer)
    pickled = Path(data).with_name("meta.pkl")
    if known is None and pickled.is_file():
        print(
            f"slm_np: {pickled} is no vocabulary of characters that can be read without running its code, so there "
            "are ids and no text; put the tokenizer.json of the tokens beside it to have both",
            file=sys.stderr,
        )
    say_lossy(files[0].lossy, progress)
    if len(files) == 2 or whole:
        splits = [
            Tokens(split, file.ids, file.n_bytes, None, file.mask, file.n_targets, file.n_documents, file.lossy)
            for split, file in zip(SPLITS, files)
        ]
        if whole:
            splits.append(Tokens("validation", files[0].ids[:0]))
    else:
        [file] = files
        cut = len(file.ids) * 9 // 10
        splits = [
            Tokens(split, file.ids[part], mask=None if file.mask is None else file.mask[part], lossy=file.lossy)
            for split, part in zip(SPLITS, (slice(cut), slice(cut, None)))
        ]
    largest = max(
        file.source.cached(
            cache,
            f"largest {file.ids.dtype.name}" + f" from {file.start}" * bool(file.start),
            lambda ids=file.ids: largest_id(ids)[0],
        )
        for file in files
    )
    vocab_size = known.vocab_size if known else max(file.vocab_size or 0 for file in files) or 1 + largest
    if largest >= vocab_size:
        for tokens in splits:
            check_ids(tokens, vocab_size)
    identity = [
        (file.source.sha256(cache, progress), file.ids.dtype.name, *[file.start] * bool(file.start)) for file in files
    ]
    return Corpus(*splits, known, vocab_size, hashlib.sha256(json.dumps(identity).encode()).hexdigest(), source)


def _common_tokenizer(files, data, val_data, tokenizer):
    """The tokenizer of one or two token files: the one beside them, else the argument of `load_corpus`, else None.

    UserError if they have different ones, or another one than the `Tokenizer` given.
    """
    beside = [file.tokenizer for file in files if file.tokenizer]
    if len(beside) == 2 and beside[0].to_json() != beside[1].to_json():
        raise UserError(
            f"--val-data {val_data} was made with another tokenizer than --data {data}; "
            "prepare both with the same tokenizer"
        )
    known = beside[0] if beside else None
    if isinstance(tokenizer, Tokenizer):
        if known and known.to_json() != tokenizer.to_json():
            raise UserError(
                f"{data} was made with another tokenizer ({counted(known.vocab_size, 'token')}) than the model's "
                f"({tokenizer.vocab_size}); give the text itself"
            )
        return tokenizer
    if known is None and (tokenizer == "gpt2" or tokenizer.startswith("file:")):
        return make_tokenizer(tokenizer, [])
    return known


def check_ids(tokens, vocab_size, may_grow=False):
    """UserError if an id of `tokens` is outside a vocabulary of `vocab_size`. Reads all ids.

    may_grow: whether --vocab-size can make the vocabulary larger.
    """
    largest, at = largest_id(tokens.ids)
    if largest >= vocab_size:
        fix = f"use --vocab-size {largest + 1} or more, or" if may_grow else "give"
        raise UserError(
            f"the {tokens.split} tokens contain the id {largest} at position {at}, but the vocabulary has "
            f"{vocab_size}; {fix} tokens of the right tokenizer"
        )


def check_length(tokens, block_size):
    """UserError if `tokens` has fewer than `block_size` + 1 tokens, so that no window fits."""
    n = len(tokens)
    if n <= block_size:
        remedy = "give more text" if tokens.split == "train" else "give a longer text with --val-data"
        lower = f"lower --block-size to {n - 1} or less, or " * (n > 1)
        raise UserError(
            f"the {tokens.split} split has {counted(n, 'token')}, but --block-size {block_size} needs "
            f"{block_size + 1}; {lower}{remedy}"
        )

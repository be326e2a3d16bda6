"""The token store: a text is tokenized once into memory-mapped files, from which training reads its batches."""

import contextlib
import hashlib
import json
import os
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from slm_np import arguments
from slm_np.config import check_documents
from slm_np.data import bpe, checksums, lossy, store_builder
from slm_np.data.chat_template import DEFAULT, Template
from slm_np.data.checksums import Damaged
from slm_np.data.documents import ROWS
from slm_np.data.files import read_json_or_empty
from slm_np.data.growing import Building, GrowingTokens, can_grow
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.data.shards import content, documents_of, shard_ranges
from slm_np.data.splits import is_separated, read_as_before, split_ranges
from slm_np.data.templates import identity_of
from slm_np.data.token_files import check_no_arrays, corpus_of_files, is_token_file
from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_factory import load_tokenizer, make_tokenizer, with_end_of_text
from slm_np.data.tokens import SPLITS, Corpus, Tokens, mapped, say_lossy
from slm_np.errors import UserError
from slm_np.paths import cache_dir as usable_cache_dir
from slm_np.paths import expanded, expanded_list, sweep
from slm_np.progress import say

FORMAT = 4  # of the store. It is part of the fingerprint, so each version has its own stores
FORMAT_BEFORE = 3  # where the documents of a text are those of earlier versions, so that their runs can be resumed
FILES = {"meta.json", "tokenizer.json", *(f"{split}{suffix}" for split in SPLITS for suffix in (".bin", ".mask.bin"))}


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
    template=None,
):
    """The `Corpus` of a text, tokenized on first use and memory-mapped from then on.

    data         files, folders and globs separated by commas, or a list of them, or a corpus known by name (see
                 corpus.py); or token files: a .bin file, or a folder with train.bin (see token_files.py)
    val_data     the same for validation. Default: the validation split of a corpus known by name, else the last tenth
                 of the bytes of `data`, from the start of a document on
    tokenizer    byte, char, stories, bpe:N, gpt2, gpt2-trimmed, file:PATH, or a `Tokenizer`
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
    template     the chat template that writes conversations, which may need the tokenizer that is given; None: the
                 default one

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
    template = arguments.instance("template", DEFAULT if template is None else template, Template, JinjaTemplate)
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
        return corpus_of_files(data, val_data, tokenizer, cache, progress, whole)

    text = TextCorpus(
        data,
        val_data,
        tokenizer,
        documents,
        limit_bytes,
        cache,
        progress,
        threads,
        out_dir,
        whole,
        wait,
        binary,
        template,
    )
    return text.load()


def text_size(data, val_data="", tokenizer="byte", documents="marker", limit_bytes=0, binary=False):
    """Bytes of the text `data` that `load_corpus` takes with these arguments, before a part is held out.

    Files are downloaded and converted into the cache, where `load_corpus` finds them. Same errors.
    """
    check_documents(documents)
    for flag, value in (("--data", data), ("--val-data", val_data)):
        check_no_arrays(value, flag)
    _existing_tokenizer(tokenizer)
    whole = "" if val_data else "train"
    parts = split_ranges(data, val_data, documents, limit_bytes, whole, usable_cache_dir(), True, False, binary)
    return parts["train"].stop


class TextCorpus:
    """A text and its token store. The parameters are those of `load_corpus`; cache: the folder of the cache."""

    def __init__(
        self,
        data,
        val_data,
        tokenizer,
        documents,
        limit_bytes,
        cache,
        progress,
        threads,
        out_dir,
        whole,
        wait,
        binary,
        template,
    ):
        self.source, self.documents, self.cache, self.progress = data, documents, cache, progress
        self.threads, self.out_dir, self.wait = threads, out_dir, wait
        self.given = tokenizer if isinstance(tokenizer, Tokenizer) else None
        self.name = type(tokenizer).__name__ if self.given else tokenizer
        self.known = self.given or _existing_tokenizer(tokenizer)
        learned = not self.known and (tokenizer == "char" or tokenizer.startswith("bpe:"))
        # Otherwise an embedded text is read while it is written.
        write = wait or learned or limit_bytes or documents != "marker"
        self.ranges = split_ranges(data, val_data, documents, limit_bytes, whole, cache, progress, write, binary)
        self.hashes = {split: part.text.sha256(cache, progress) for split, part in self.ranges.items()}
        self.floors = {split: part.text.bits_per_byte_floor for split, part in self.ranges.items()}
        as_before = all(read_as_before(part, documents, cache, progress) for part in self.ranges.values())
        version = FORMAT_BEFORE if as_before else FORMAT
        identity = self.known.to_json() if self.known else tokenizer
        self.template = identity_of(template) if _row_files(self.ranges, documents) else None
        self.fingerprint = _fingerprint(version, self.ranges, self.hashes, documents, identity, self.template)
        self.folder = expanded(out_dir).absolute() if out_dir else cache / "corpora" / self.fingerprint
        self.loss = None  # the sentence about what the tokenizer loses, once it is measured

    def load(self):
        """The `Corpus`: from the store if it is there, else the text is tokenized."""
        if store_builder.holds_files(self.folder):
            found = self.opened(tell=False)  # once more, if necessary, while the lock is held
            if found:
                say_lossy(found.train.lossy, self.progress)
                return found
        elif self.out_dir and os.path.lexists(self.folder) and not self.folder.is_dir():
            raise UserError(f"--out-dir {self.out_dir} is a file; name a directory")
        parts = self.ranges.values()
        self.separated = any(is_separated(part, self.documents, self.cache, self.progress) for part in parts)
        self.plan = _plan(self.fingerprint, self.ranges, self.documents, self.separated, self.template)
        if not self.out_dir and self.folder.parent.is_dir():
            with contextlib.suppress(OSError):  # so that `sweep` keeps an old incomplete store, which is resumed
                os.utime(store_builder.staging_of(self.folder))
            sweep(self.folder.parent)
        return self.built()

    def built(self):
        """The `Corpus` of the text, tokenized now, or by another process that does so already."""
        build = store_builder.Build(
            self.folder,
            self.plan,
            self.made_tokenizer,
            self.described,
            self.opened,
            "name another --out-dir" if self.out_dir else "set SLM_NP_CACHE to another folder",
            self.threads,
            self.progress,
        )
        if self.wait or not can_grow(self.plan):
            build.run()
            found = self.written()
        else:
            building = Building(build, self.written, self.floors)
            found = building.corpus
        if found is not None:
            if self.loss is None:  # another process has made it
                say_lossy(found.train.lossy, self.progress)
            return found
        tokenizer = building.tokenizer
        growing = [GrowingTokens(split, building, self.lossy(tokenizer)) for split in SPLITS]
        return Corpus(*growing, tokenizer, tokenizer.vocab_size, self.fingerprint, self.source, building)

    def opened(self, tell=True):
        """The `Corpus` in the folder, after its checksums are verified, or None if it is to be made again."""
        try:
            found = _read_store(self.folder, self.fingerprint, self.floors, self.source)
            checksums.verify(self.folder, found.checksums, found.checksums, self.cache, self.progress)
            return found.corpus
        except Damaged as damaged:
            if self.out_dir:
                _check_replaceable(self.folder, self.out_dir, self.fingerprint, damaged)
            if tell:
                say(f"slm_np: the tokens in {self.folder} cannot be used: {damaged}; making them again")
            return None

    def written(self):
        """The `Corpus` that was just written, which the builder has verified."""
        try:
            return _read_store(self.folder, self.fingerprint, self.floors, self.source).corpus
        except Damaged as damaged:
            raise UserError(f"{self.folder} does not contain what was just written to it ({damaged}); check the disk")

    def made_tokenizer(self):
        """The tokenizer of a new store. Says before the text is tokenized what the user may not expect."""
        new = self.known or _trained_tokenizer(self.name, self.ranges, self.documents, self.separated, self.progress)
        self.lossy(new)
        for note in dict.fromkeys(note for part in self.ranges.values() for note in part.text.notes):
            say(f"slm_np: {note}")
        return with_end_of_text(new) if self.separated and not self.given else new

    def lossy(self, tokenizer):
        """What the tokenizer loses of the text, measured and said once."""
        if self.loss is None:
            self.loss = lossy.sentence_about(tokenizer, self.plan, self.documents)
            say_lossy(self.loss, self.progress)
        return self.loss

    def described(self, tokenizer, totals):
        """The object in meta.json. totals: {split: counts}."""
        meta = _meta(self.fingerprint, self.name, tokenizer, totals, self.hashes, self.floors, self.separated)
        return meta | dict(lossy=self.lossy(tokenizer))


def _existing_tokenizer(name):
    """The tokenizer of file:PATH, or None for the others, which are made with a store.

    UserError for a bad name. A missing package is reported here too, before the text is downloaded or read.
    """
    if name in ("gpt2", "gpt2-trimmed") or name.startswith("bpe:"):
        bpe.check_packages(name)
    elif name not in ("byte", "char", "stories"):
        return make_tokenizer(name, [], False)
    return None


def _trained_tokenizer(name, ranges, documents, separated, progress):
    """The tokenizer `name`, learned from the text of both splits (char) or of the training split."""
    texts = [
        lambda part=ranges[split]: content(*part, documents, separated)
        for split in (SPLITS if name == "char" else SPLITS[:1])
    ]
    return make_tokenizer(name, texts, progress)


def _row_files(ranges, documents):
    """[(kind, start, stop), ...] of the files of rows."""
    return [segment for part in ranges.values() for segment in part.text.segments(documents) if segment[0] == ROWS]


def _fingerprint(version, ranges, hashes, documents, tokenizer, template):
    """A SHA-256 in hexadecimal over everything that the ids depend on.

    version: of the store's format.   tokenizer: its name, or its fields.   template: its identity, None for the default
    """
    identity = [[hashes[split], part.start, part.stop] for split, part in ranges.items()]
    # How a text is divided into files does not matter, except for files of rows.
    identity += [version, documents, _row_files(ranges, documents), tokenizer]
    identity += [template] * (template is not None)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _plan(fingerprint, ranges, documents, separated, template):
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
        **(dict(template=template) if template else {}),
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
    """The `Store` in a folder, before its files are compared with its checksums. `Damaged` if it is not one."""
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

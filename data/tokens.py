"""From text to batches: a corpus is tokenised once into memory-mapped files of ids, from which every batch is a few slices."""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slm_np.data import corpus, shards
from slm_np.data.documents import ROWS, check_kind, has_borders, lines, next_start
from slm_np.data.tokenizer import Tokenizer, learn, load_tokenizer, with_end_of_text
from slm_np.errors import UserError
from slm_np.paths import cache_dir as usable_cache_dir
from slm_np.paths import sweep

FORMAT = 3  # of the store; part of its name, so that another version makes another store
SPLITS = ("train", "validation")
HELD_OUT = ("validation.bin", "val.bin", "train.bin")  # what to measure with in a folder of token files, the best first
_EPOCHS = 1 << 32  # the Philox purpose of `EpochOrder`, above all that callers of `random_batch` choose


@dataclass(frozen=True, eq=False)
class Tokens:
    """One split. `ids` (N,) read-only, uint16 or uint32, memory-mapped; `n_bytes` of text they stand for (with a mask, of the text that
    is learnt) and the entropy of their source in bits per byte; `mask` (N,) uint8, memory-mapped, 1 where a token is to be learnt as a
    target, or None for all, and `n_learnt`, how many those are; `n_documents`. None where unknown."""

    split: str
    ids: np.ndarray
    n_bytes: int | None = None
    bits_per_byte_floor: float | None = None
    mask: np.ndarray | None = None
    n_learnt: int | None = None
    n_documents: int | None = None

    def __post_init__(self):
        if self.mask is None:
            object.__setattr__(self, "n_learnt", len(self.ids))
        elif self.n_learnt is None:
            object.__setattr__(self, "n_learnt", int(np.count_nonzero(self.mask)))

    def __len__(self):
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Both splits, the tokenizer (None for bare token files), the vocabulary's size, and a `fingerprint` (hexadecimal) that is the
    same exactly when the contents, their split and the tokenizer are. `source` is the `--data` string."""

    train: Tokens
    validation: Tokens
    tokenizer: Tokenizer | None
    vocab_size: int
    fingerprint: str
    source: str


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
):
    """The `Corpus` of the `--data` strings `data` and `val_data` (see `corpus.find`; without the latter, what the corpus brings along, or
    the last tenth of the bytes, from a document's start on).

    tokenizer: a name (byte, char, bpe:N, gpt2, file:PATH) or a `Tokenizer`.   documents: how they are separated, marker or blank-line
    (see data/documents.py); rows of .jsonl files are documents.   limit_bytes: take this much of `data`, to the end of a document; 0 all.
    Of rows with messages only the answers are learnt.   threads: processes, 0 for one per core.
    whole: train or validation, the part of `data` to take undivided, as `train`: of a corpus known by name, or a folder of tokens; of any other
    text all is taken. Then the validation split is empty.

    Where a text has documents, the end-of-text id follows each of them (a blank line, if a given tokenizer has no such id).
    The store {train.bin, validation.bin, meta.json, tokenizer.json}, with NAME.mask.bin if not all is learnt, is written once into
    CACHE/corpora/FINGERPRINT, or `out_dir`, and memory-mapped from then on. Such a folder, or a `.bin`, is taken as `data` too: headerless
    uint16 (nanoGPT's), or what the meta.json beside it says: `dtype` (uint16 or uint32), `bytes` (of text, one number, or one per file's
    stem), `vocab_size`. UserError for bad input.
    """
    cache = usable_cache_dir(cache_dir)
    val_data = val_data or ""
    check_kind(documents)
    if _is_token_file(data) or _is_token_file(val_data):
        if out_dir:
            raise UserError(f"{data} holds tokens already; give a text to prepare")
        if limit_bytes:
            raise UserError(
                f"--limit-bytes {limit_bytes} cannot cut {data}, which holds tokens already; leave it out, or prepare less of the text"
            )
        return _token_files(data, val_data, tokenizer, cache, progress, whole)

    given = tokenizer if isinstance(tokenizer, Tokenizer) else None
    known = given or _read(tokenizer)
    parts = _parts(data, val_data, documents, limit_bytes, whole, cache, progress)
    hashes = {name: part.sha256(cache, progress) for name, (part, _, _) in parts.items()}
    # Text is what it is however it is divided into files; rows are not.
    layout = [segment for part, _, _ in parts.values() for segment in part.segments(documents) if segment[0] == ROWS]
    identity = [[hashes[name], start, stop] for name, (_, start, stop) in parts.items()]
    identity += [FORMAT, documents, layout, known.to_json() if known else tokenizer]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    folder = Path(os.path.abspath(os.path.expanduser(out_dir))) if out_dir else cache / "corpora" / fingerprint
    floors = {name: part.bits_per_byte_floor for name, (part, _, _) in parts.items()}
    if folder.is_dir() and (not out_dir or any(folder.iterdir())):
        found = _stored(folder, fingerprint, floors, data)
        if found:
            return found
        if out_dir:
            raise UserError(f"--out-dir {out_dir} holds something else; name a new directory")
        shutil.rmtree(folder, ignore_errors=True)  # damaged
    elif out_dir and os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--out-dir {out_dir} is a file; name a directory")

    bordered = any(_bordered(part, start, stop, documents, cache) for part, start, stop in parts.values())

    def made():
        made = known or _learnt(tokenizer, parts, documents, bordered, progress)
        return with_end_of_text(made) if bordered and not given else made

    def described(tokenizer, totals):
        masked = any(held["learnt"] < held["tokens"] for held in totals.values())
        return dict(
            fingerprint=fingerprint,
            tokenizer=called,
            dtype=tokenizer.dtype.name,
            vocab_size=tokenizer.vocab_size,
            end_of_text=tokenizer.end_of_text,
            separated=bordered,
            tokens={name: held["tokens"] for name, held in totals.items()},
            learnt={name: held["learnt"] for name, held in totals.items()},
            documents={
                name: held["documents"] if bordered else int(held["tokens"] > 0) for name, held in totals.items()
            },
            bytes={name: held["learnt_bytes" if masked else "bytes"] for name, held in totals.items()},
            bits_per_byte_floor={name: None if bordered else floor for name, floor in floors.items()},
            sha256=hashes,
        )

    called = type(tokenizer).__name__ if given else tokenizer
    plan = dict(
        fingerprint=fingerprint,
        bordered=bordered,
        texts={
            name: [[str(path.absolute()), size, mtime] for path, size, mtime in part.files]
            for name, (part, _, _) in parts.items()
        },
        shards=[
            [name, *shard]
            for name, (part, start, stop) in parts.items()
            for shard in shards.borders(part, start, stop, documents, bordered)
        ],
    )
    if not out_dir and folder.parent.is_dir():
        with contextlib.suppress(OSError):
            os.utime(shards.staging_of(folder))  # however old, it is gone on with
        sweep(folder.parent)
    shards.build(folder, plan, made, described, threads, progress)
    found = _stored(folder, fingerprint, floors, data)
    if found is None:
        raise UserError(f"{folder} does not hold what was just written to it; check the disk")
    return found


def _parts(data, val_data, documents, limit_bytes, whole, cache, progress):
    """{split: (Text, start, stop)}: the bytes of each split."""
    text = corpus.find(data, whole if whole and corpus.named(data) else "train", cache, progress)
    stop = _limited(text, limit_bytes, documents, cache)
    if not val_data and not whole and corpus.named(data) in corpus.OWN_VALIDATION:
        val_data = data
    if whole:
        return dict(train=(text, 0, stop), validation=(text, stop, stop))
    if val_data:
        val_text = corpus.find(val_data, "validation", cache, progress)
        return dict(train=(text, 0, stop), validation=(val_text, 0, val_text.size))
    cut = _tenth(text, stop, documents, cache)
    return dict(train=(text, 0, cut), validation=(text, cut, stop))


def _read(name):
    """The tokenizer in the file that the name says, None for one that is made where a store is. UserError for a wrong name."""
    return None if name in ("byte", "char", "gpt2") or name.startswith("bpe:") else learn(name, [], False)


def _learnt(name, parts, documents, bordered, progress):
    """The tokenizer of that name, learnt from the texts of both splits (char) or of the training split alone."""

    def stream(split):
        text, start, stop = parts[split]
        return lambda: shards.texts(text, start, stop, documents, bordered)

    return learn(name, [stream(split) for split in (SPLITS if name == "char" else SPLITS[:1])], progress)


def _limited(text, limit, documents, cache):
    """Where the first `limit` bytes of a text end, the document that they cut included."""
    if not limit or limit >= text.size:
        return text.size

    def end():
        return _next_document(text, limit, text.size, documents) or (
            text.size if _bordered(text, 0, text.size, documents, cache) else text.border(limit)
        )

    return text.remembered(cache, f"limit {limit} {documents}", end)


def _tenth(text, stop, documents, cache):
    """Where the last tenth of the bytes [0, stop) begins: with the first document in it, or with any character where there is none."""

    def place():
        wanted = stop * 9 // 10
        found = _next_document(text, wanted, stop, documents)
        if found and found < stop:
            return found
        for kind, first, last in text.segments(documents):
            if kind == ROWS and first <= wanted < last:  # a row cannot be cut: the last one that begins before
                at = first
                for line in lines(text.blocks(first, min(last, stop))):
                    if at + len(line) >= min(last, stop):
                        return at
                    at += len(line)
        return text.border(wanted)

    return text.remembered(cache, f"tenth {stop} {documents}", place)


def _next_document(text, position, stop, documents):
    """The first place >= `position` in the bytes [0, stop) where a document begins after another; None if there is none."""
    for kind, first, last in text.segments(documents):
        if first and position <= first < stop:
            return first
        if first <= position < last:
            found = next_start(text, position, first, min(last, stop), kind)
            if found:
                return found
    return None


def _bordered(text, start, stop, documents, cache):
    """Whether the bytes [start, stop) of a text have borders of documents."""

    def look():
        return any(
            kind == ROWS or has_borders(text, max(first, start), min(last, stop), kind)
            for kind, first, last in text.segments(documents)
            if max(first, start) < min(last, stop)
        )

    return text.remembered(cache, f"bordered {start} {stop} {documents}", look)


def _stored(folder, fingerprint, floors, source):
    """The `Corpus` in a store, or None if it is another one or anything in it is damaged."""
    try:
        meta, tokenizer = corpus.read_json(folder / "meta.json"), load_tokenizer(folder / "tokenizer.json")
        splits = [_split(folder, name, meta) for name in SPLITS]
        if any(len(split) != meta["tokens"][split.split] for split in splits) or meta["fingerprint"] != fingerprint:
            return None
        # The floor belongs to the text at hand; the store may have been made from a copy of it whose writer is unknown.
        if not meta["separated"]:
            splits = [replace(split, bits_per_byte_floor=floors[split.split]) for split in splits]
        same = meta["vocab_size"] == tokenizer.vocab_size and meta["dtype"] == tokenizer.dtype.name
        return Corpus(*splits, tokenizer, tokenizer.vocab_size, fingerprint, source) if same else None
    except (LookupError, TypeError, OSError, ValueError, UserError):
        return None


def _split(folder, name, meta):
    """The `Tokens` of one split in a store, without the floor. The errors of a damaged store come through."""
    ids = _mapped(folder / f"{name}.bin", np.dtype(meta["dtype"]))
    mask = None
    if meta["learnt"][name] < meta["tokens"][name]:
        mask = _mapped(folder / f"{name}.mask.bin", np.dtype(np.uint8))
        if len(mask) != len(ids):
            raise ValueError("the mask has another length")
    return Tokens(name, ids, meta["bytes"][name], None, mask, meta["learnt"][name], meta["documents"][name])


def _token_folder(data):
    """The folder of token files that a `--data` string is, ours or nanoGPT's, or None."""
    folder = os.path.expanduser(data.strip())
    return (
        Path(folder)
        if folder and os.path.isfile(os.path.join(folder, "train.bin")) and not corpus.named(data)
        else None
    )


def _token_file(data, names):
    """The first of the files `names` in the folder of token files that `data` is; else `data` itself."""
    folder = _token_folder(data)
    return next(str(folder / name) for name in names if (folder / name).is_file()) if folder else data


def _is_token_file(data):
    return _token_folder(data) is not None or any(
        item.endswith(".bin") and not os.path.isdir(item) for item in corpus.items(data)
    )


def _token_files(data, val_data, tokenizer, cache, progress, whole):
    """The `Corpus` of one or two `.bin` files, or of the folder that holds both. The vocabulary is that of the tokenizer.json beside them,
    or meta.json's, or as large as the largest id asks for."""
    source, folder = data, _token_folder(data)
    data = _token_file(data, HELD_OUT if whole == "validation" else ("train.bin",))
    if whole:
        val_data = ""
    elif not val_data:
        beside = [Path(data).with_name(name) for name in ("validation.bin", "val.bin")[: 2 if folder else 1]]
        val_data = next((str(path) for path in beside if path.is_file() and path != Path(data)), "")
    else:
        val_data = _token_file(val_data, HELD_OUT)
    files, texts, metas, known = [], [], [], None
    for name, value in zip(SPLITS, (data, val_data)):
        if not value:
            continue
        flag = corpus.FLAGS[name]
        text = (
            corpus.find(value, name, cache, progress)
            if _is_token_file(value) and len(corpus.items(value)) == 1
            else None
        )
        if text is None or len(text.files) > 1:
            raise UserError(
                f"{flag} is {value}, but a .bin token file stands alone and its like validates it; "
                "give one .bin to --data and one (or none) to --val-data"
            )
        texts.append(text)
        [(path, size, _)] = texts[-1].files
        metas.append(_token_file_meta(path))
        if size % metas[-1]["dtype"].itemsize:
            raise UserError(
                f"{flag} {path} has {size} bytes, which is no whole number of {metas[-1]['dtype'].name} tokens; "
                'copy it again, or set "dtype" in the meta.json beside it'
            )
        files.append(_mapped(path, metas[-1]["dtype"]))
        wanted = metas[-1]["tokens"]
        if wanted is not None and len(files[-1]) != wanted:
            raise UserError(
                f"{flag} {path} has {len(files[-1])} tokens, but its meta.json says {wanted}: it is half written; copy or prepare it again"
            )
        if (path.parent / "tokenizer.json").is_file():
            beside = load_tokenizer(path.parent / "tokenizer.json")
            if known and known.to_json() != beside.to_json():
                raise UserError(
                    f"--val-data {path} was made with another tokenizer than --data {data}; prepare both with the same"
                )
            known = beside
    if isinstance(tokenizer, Tokenizer):
        if known and known.to_json() != tokenizer.to_json():
            raise UserError(
                f"{data} was made with another tokenizer ({known.vocab_size} pieces) than the model ({tokenizer.vocab_size}); give the text itself"
            )
        known = tokenizer
    elif known is None and (tokenizer == "gpt2" or tokenizer.startswith("file:")):
        known = learn(tokenizer, [])
    if val_data or whole:
        splits = [
            Tokens(name, ids, meta["bytes"], None, _mask_of(text, ids), meta["learnt"], meta["documents"])
            for name, text, ids, meta in zip(SPLITS, texts, files, metas)
        ]
        if whole:
            splits.append(Tokens("validation", files[0][:0]))
    else:
        cut, mask = (
            len(files[0]) * 9 // 10,
            _mask_of(texts[0], files[0]),
        )  # how many bytes each side stands for is not known
        parts = [
            (name, files[0][part], None if mask is None else mask[part])
            for name, part in zip(SPLITS, (slice(cut), slice(cut, None)))
        ]
        splits = [Tokens(name, ids, mask=mask) for name, ids, mask in parts]
    largest = [
        text.remembered(cache, f"largest {meta['dtype'].name}", lambda ids=ids: _largest(ids)[0])
        for text, ids, meta in zip(texts, files, metas)
    ]
    vocab_size = known.vocab_size if known else max(meta["vocab_size"] or 0 for meta in metas) or 1 + max(largest)
    if max(largest) >= vocab_size:
        for split in splits:
            check_ids(split, vocab_size)
    identity = [(text.sha256(cache, progress), meta["dtype"].name) for text, meta in zip(texts, metas)]
    return Corpus(*splits, known, vocab_size, hashlib.sha256(json.dumps(identity).encode()).hexdigest(), source)


def _mask_of(text, ids):
    """The mask beside a token file, or None. UserError if it has another length."""
    [(path, _, _)] = text.files
    path = path.with_suffix(".mask.bin")
    if not path.is_file():
        return None
    mask = _mapped(path, np.dtype(np.uint8))
    if len(mask) != len(ids):
        raise UserError(
            f"{path} has {len(mask)} entries for {len(ids)} tokens; prepare them again, or remove it to learn them all"
        )
    return mask


def _token_file_meta(path):
    """What the meta.json beside a token file says: dtype (uint16 without it), bytes, vocab_size and counts (None without it)."""
    meta_path = path.with_name("meta.json")
    found = corpus.read_json(meta_path)
    if meta_path.exists() and not found:
        raise UserError(f"{meta_path} is not a JSON object; mend or remove it (token files without it are uint16)")
    dtype, n_bytes, vocab_size = found.get("dtype", "uint16"), found.get("bytes"), found.get("vocab_size")
    if isinstance(n_bytes, dict):
        n_bytes = n_bytes.get(path.stem)
    elif len(list(path.parent.glob("*.bin"))) > 1:
        n_bytes = None  # one number cannot stand for several files
    if dtype not in ("uint16", "uint32"):
        raise UserError(f'{meta_path} has "dtype" {dtype!r}; token files are uint16 or uint32')
    counts = {
        key: found[key].get(path.stem) if isinstance(found.get(key), dict) else None
        for key in ("tokens", "learnt", "documents")
    }
    for key, value in (("bytes", n_bytes or None), ("vocab_size", vocab_size)):
        if value is not None and not (type(value) is int and value > 0):
            raise UserError(f'{meta_path} has "{key}" {value!r}; it must be a positive whole number')
    return dict(dtype=np.dtype(dtype), bytes=n_bytes or None, vocab_size=vocab_size, **counts)


def _mapped(path, dtype):
    """The ids in a file, read-only; empty files cannot be mapped."""
    dtype = dtype.newbyteorder("<")
    with corpus.opened(path) as file:
        return np.memmap(file, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _largest(ids):
    """(largest id, its first position), read block by block."""
    largest, at = -1, -1
    for start in range(0, len(ids), corpus.BLOCK):
        block = ids[start : start + corpus.BLOCK]
        if block.max() > largest:
            largest, at = int(block.max()), start + int(block.argmax())
    return largest, at


def check_ids(tokens, vocab_size):
    """UserError if an id of `tokens` lies outside a vocabulary of `vocab_size`; one pass through the file."""
    largest, at = _largest(tokens.ids)
    if largest >= vocab_size:
        raise UserError(
            f"the {tokens.split} tokens hold the id {largest} at position {at}, but the vocabulary has {vocab_size}; "
            f"use --vocab-size {largest + 1} or more, or the tokens of the right tokenizer"
        )


def check_length(tokens, block_size):
    """UserError if `tokens` has fewer than `block_size` + 1 tokens, so that not one window fits."""
    if len(tokens) < block_size + 1:
        mend = "give more text" if tokens.split == "train" else "give a longer text with --val-data"
        raise UserError(
            f"the {tokens.split} split has {len(tokens)} tokens, but --block-size {block_size} needs {block_size + 1}; "
            f"lower --block-size or {mend}"
        )


def gather(x, y, tokens, starts):
    """x[b, t] = ids[starts[b] + t],   y[b, t] = ids[starts[b] + t + 1], or -1 where the mask says that it is not to be learnt.
    x, y (B, T) int32, starts (B,); writes, allocates nothing large."""
    T = x.shape[1]
    for row, start in enumerate(np.asarray(starts).tolist()):
        x[row] = tokens.ids[start : start + T]
        y[row] = tokens.ids[start + 1 : start + T + 1]
        if tokens.mask is not None:
            y[row][tokens.mask[start + 1 : start + T + 1] == 0] = -1


def random_batch(x, y, tokens, seed, purpose, step):
    """`gather` at B independent starts, uniform over all N - T. They depend on `seed`, `purpose` (a small int that keeps uses apart),
    `step` and B only: Philox (Salmon et al. 2011) with key (seed, purpose) and counter from `step`. UserError if no window fits."""
    check_length(tokens, x.shape[1])
    gather(x, y, tokens, _philox(seed, purpose, step, x.shape[0]) % np.uint64(len(tokens) - x.shape[1]))


def _philox(seed, purpose, step, n):
    # Raw words, for their sequence is fixed, while that of NumPy's Generator may change between versions. They are 64 bits wide, so
    # that the remainder by a corpus' length is uniform to one part in millions. The low counter word is left to count the words.
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, step, 0, 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


class EpochOrder:
    """Passes over a split: window w covers the ids [w T, w T + T], w < `n_windows` = (N - 1) // T. Every epoch visits each once, in
    an order of its own that depends on (seed, epoch) only and takes no memory. UserError if no window fits."""

    def __init__(self, tokens, block_size, seed):
        check_length(tokens, block_size)
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.n_windows = (len(tokens) - 1) // block_size

    def batch(self, x, y, index):
        """`gather` the rows index, index + 1, ... of the endless sequence of epochs into x, y (B, T); `index` counts rows so far."""
        rows = np.arange(index, index + x.shape[0])
        gather(x, y, self.tokens, self.windows(rows) * self.block_size)

    def windows(self, rows):
        """The windows (B,) int64 that the rows (B,) of the sequence visit."""
        epochs, places = np.divmod(np.asarray(rows, np.int64), self.n_windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            windows[epochs == epoch] = permute(
                places[epochs == epoch], self.n_windows, _philox(self.seed, _EPOCHS, epoch, 6)
            )
        return windows


class StreamOrder:
    """A split cut into B streams of equal length, each read window by window: row b of batch i is window i of stream b, i taken by its
    remainder by `n_windows`, the windows of a stream. UserError if not one window fits into each."""

    def __init__(self, tokens, block_size, streams):
        check_length(tokens, block_size)
        self.tokens, self.n_windows = tokens, (len(tokens) - 1) // block_size // streams
        if not self.n_windows:
            raise UserError(
                f"the {tokens.split} split has {len(tokens)} tokens, but --carry-state wants --batch-size {streams} streams of at least "
                f"--block-size {block_size}; lower one of them or give more text"
            )
        self.starts = np.arange(streams) * self.n_windows * block_size

    def batch(self, x, y, index):
        """`gather` batch `index` into x, y (B, T)."""
        gather(x, y, self.tokens, self.starts + index % self.n_windows * x.shape[1])


def permute(index, n, keys):
    """A permutation of 0 .. n-1 applied to `index` (B,), with one Feistel round per key (K,) uint64 and no table.

    The network permutes the smallest 4^k >= n; results beyond n are fed through again until they fall below it, which leaves a
    permutation of 0 .. n-1 (cycle walking, Black and Rogaway 2002). The round function is the finaliser of SplitMix64 (Steele et al. 2014).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value = np.array(index, np.uint64)
    walking = np.ones(value.shape, bool)
    while walking.any():
        left, right = value[walking] >> half, value[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        value[walking] = left << half | right
        walking = value >= np.uint64(n)
    return value.astype(np.int64)


def _mixed(word):
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))

"""From text to batches: a corpus is tokenised once into memory-mapped files of ids, from which every batch is a few slices."""
import hashlib
import json
import os
import shutil
from dataclasses import dataclass

import numpy as np

from slm_np.data import corpus
from slm_np.data.tokenizer import TOKENIZERS, ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer
from slm_np.errors import UserError, near
from slm_np.paths import cache_dir as usable_cache_dir, published

FORMAT = 1  # of the store; part of its name, so that another version makes another store
SPLITS = ("train", "validation")
_EPOCHS = 1 << 32  # the Philox purpose of `EpochOrder`, above all that callers of `random_batch` choose


@dataclass(frozen=True, eq=False)
class Tokens:
    """One split. `ids` (N,) read-only, uint16 or uint32, memory-mapped; `n_bytes` of text they stand for and the entropy of their
    source in bits per byte, each None where unknown."""
    split: str
    ids: np.ndarray
    n_bytes: int | None = None
    bits_per_byte_floor: float | None = None

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


def prepare(data, val_data="", tokenizer="byte", cache_dir=None, progress=True):
    """The `Corpus` of the `--data` strings `data` and `val_data` (see `corpus.find`; without the latter, the last tenth of the bytes).

    `tokenizer` is "byte", "char" (its vocabulary is that of both splits) or a `Tokenizer`. The ids are written once into
    CACHE/corpora/FINGERPRINT/{train.bin, validation.bin, meta.json, tokenizer.json} and memory-mapped from then on.
    A `.bin` is taken as token file instead: headerless uint16 (nanoGPT's), or what the meta.json beside it says: `dtype` (uint16 or
    uint32), `bytes` (of text, one number, or one per file's stem), `vocab_size`. UserError for bad input.
    """
    cache = usable_cache_dir(cache_dir)
    val_data = val_data or ""
    if _is_token_file(data) or _is_token_file(val_data):
        return _token_files(data, val_data, cache, progress)
    if isinstance(tokenizer, str) and tokenizer not in TOKENIZERS:
        raise UserError(f"--tokenizer {tokenizer!r} is unknown; {near(tokenizer, TOKENIZERS)}")
    if tokenizer == "byte":
        tokenizer = ByteTokenizer()

    text = corpus.find(data, "train", cache, progress)
    if not val_data and data.strip() == corpus.STORIES:
        val_data = corpus.STORIES
    if val_data:
        val_text = corpus.find(val_data, "validation", cache, progress)
        parts = dict(train=(text, 0, text.size), validation=(val_text, 0, val_text.size))
    else:
        cut = text.border(text.size * 9 // 10)
        parts = dict(train=(text, 0, cut), validation=(text, cut, text.size))

    identity = [(part.sha256(cache, progress), start, stop) for part, start, stop in parts.values()]
    identity += [FORMAT, tokenizer if isinstance(tokenizer, str) else tokenizer.to_json()]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    folder = cache / "corpora" / fingerprint
    if folder.is_dir():
        found = _stored(folder, parts, data)
        if found:
            return found
        shutil.rmtree(folder, ignore_errors=True)  # damaged
    _store(folder, parts, tokenizer, progress)
    return _stored(folder, parts, data)


def _store(folder, parts, tokenizer, progress):
    """Tokenise both parts (text, start, stop) into `folder`, which appears only when it is complete."""
    def blocks(name, what):
        text, start, stop = parts[name]
        return corpus.shown(text.blocks(start, stop), stop - start, f"{what} {name}", progress)

    if tokenizer == "char":
        tokenizer = CharTokenizer.learn(*(blocks(name, "characters of") for name in SPLITS))
    with published(folder) as part:
        counts = {}
        for name in SPLITS:
            with open(part / f"{name}.bin", "wb") as file:
                for ids in tokenizer.encode_blocks(blocks(name, "tokenising")):
                    file.write(ids.astype(ids.dtype.newbyteorder("<"), copy=False).data)
                counts[name] = file.tell() // tokenizer.dtype.itemsize
                file.flush()
                os.fsync(file.fileno())
        for text, _, _ in parts.values():
            text.check_unchanged()
        tokenizer.save(part / "tokenizer.json")
        meta = dict(dtype=tokenizer.dtype.name, vocab_size=tokenizer.vocab_size, tokens=counts,
                    bytes={name: stop - start for name, (_, start, stop) in parts.items()},
                    bits_per_byte_floor={name: text.bits_per_byte_floor for name, (text, _, _) in parts.items()})
        (part / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _stored(folder, parts, source):
    """The `Corpus` in a store, or None if anything in it is damaged."""
    try:
        meta, tokenizer = corpus.read_json(folder / "meta.json"), load_tokenizer(folder / "tokenizer.json")
        splits = []
        for name, (text, start, stop) in parts.items():
            ids = _mapped(folder / f"{name}.bin", np.dtype(meta["dtype"]))
            if len(ids) != meta["tokens"][name]:
                return None
            # The floor belongs to the text at hand; the store may have been made from a copy of it whose writer is unknown.
            splits.append(Tokens(name, ids, stop - start, text.bits_per_byte_floor))
        same = meta["vocab_size"] == tokenizer.vocab_size and meta["dtype"] == tokenizer.dtype.name
        return Corpus(*splits, tokenizer, tokenizer.vocab_size, folder.name, source) if same else None
    except (LookupError, TypeError, OSError, ValueError, UserError):
        return None


def _is_token_file(data):
    return any(item.endswith(".bin") and not os.path.isdir(item) for item in corpus.items(data))


def _token_files(data, val_data, cache, progress):
    """The `Corpus` of one or two `.bin` files. The vocabulary is meta.json's, or as large as the largest id asks for."""
    files, texts, metas = [], [], []
    for name, value in zip(SPLITS, (data, val_data)):
        if not value:
            continue
        flag = corpus.FLAGS[name]
        if not _is_token_file(value) or len(corpus.items(value)) > 1:
            raise UserError(f"{flag} is {value}, but a .bin token file stands alone and its like validates it; "
                            "give one .bin to --data and one (or none) to --val-data")
        texts.append(corpus.find(value, name, cache, progress))
        [(path, size, _)] = texts[-1].files
        metas.append(_token_file_meta(path))
        if size % metas[-1]["dtype"].itemsize:
            raise UserError(f"{flag} {path} has {size} bytes, which is no whole number of {metas[-1]['dtype'].name} tokens; "
                            "copy it again, or set \"dtype\" in the meta.json beside it")
        files.append(_mapped(path, metas[-1]["dtype"]))
    if val_data:
        splits = [Tokens(name, ids, meta["bytes"]) for name, ids, meta in zip(SPLITS, files, metas)]
    else:
        cut = len(files[0]) * 9 // 10  # how many bytes each side stands for is not known
        splits = [Tokens("train", files[0][:cut]), Tokens("validation", files[0][cut:])]
    vocab_size = max(meta["vocab_size"] or 0 for meta in metas) or 1 + max(_largest(split.ids)[0] for split in splits)
    identity = [(text.sha256(cache, progress), meta["dtype"].name) for text, meta in zip(texts, metas)]
    return Corpus(*splits, None, vocab_size, hashlib.sha256(json.dumps(identity).encode()).hexdigest(), data)


def _token_file_meta(path):
    """What the meta.json beside a token file says: dtype (uint16 without it), bytes and vocab_size (None without it)."""
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
        raise UserError(f"{meta_path} has \"dtype\" {dtype!r}; token files are uint16 or uint32")
    for key, value in (("bytes", n_bytes), ("vocab_size", vocab_size)):
        if value is not None and not (type(value) is int and value > 0):
            raise UserError(f"{meta_path} has \"{key}\" {value!r}; it must be a positive whole number")
    return dict(dtype=np.dtype(dtype), bytes=n_bytes, vocab_size=vocab_size)


def _mapped(path, dtype):
    """The ids in a file, read-only; empty files cannot be mapped."""
    dtype = dtype.newbyteorder("<")
    with corpus.opened(path) as file:
        return np.memmap(file, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _largest(ids):
    """(largest id, its first position), read block by block."""
    largest, at = -1, -1
    for start in range(0, len(ids), corpus.BLOCK):
        block = ids[start:start + corpus.BLOCK]
        if block.max() > largest:
            largest, at = int(block.max()), start + int(block.argmax())
    return largest, at


def check_ids(tokens, vocab_size):
    """UserError if an id of `tokens` lies outside a vocabulary of `vocab_size`; one pass through the file."""
    largest, at = _largest(tokens.ids)
    if largest >= vocab_size:
        raise UserError(f"the {tokens.split} tokens hold the id {largest} at position {at}, but the vocabulary has {vocab_size}; "
                        f"use --vocab-size {largest + 1} or more, or the tokens of the right tokenizer")


def check_length(tokens, block_size):
    """UserError if `tokens` has fewer than `block_size` + 1 tokens, so that not one window fits."""
    if len(tokens) < block_size + 1:
        mend = "give more text" if tokens.split == "train" else "give a longer text with --val-data"
        raise UserError(f"the {tokens.split} split has {len(tokens)} tokens, but --block-size {block_size} needs {block_size + 1}; "
                        f"lower --block-size or {mend}")


def gather(x, y, tokens, starts):
    """x[b, t] = ids[starts[b] + t],   y[b, t] = ids[starts[b] + t + 1].   x, y (B, T) int32, starts (B,); writes, allocates nothing large."""
    T = x.shape[1]
    for row, start in enumerate(np.asarray(starts).tolist()):
        x[row] = tokens.ids[start:start + T]
        y[row] = tokens.ids[start + 1:start + T + 1]


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
            windows[epochs == epoch] = permute(places[epochs == epoch], self.n_windows, _philox(self.seed, _EPOCHS, epoch, 6))
        return windows


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


def sequential_windows(tokens, block_size, stride=0):
    """(start, new) of the windows that evaluate a whole split: the last `new` of a window's T targets have not been in one before.

    Windows start `stride` apart (0: T), the last one earlier so that it is whole; each of the N - 1 targets is new exactly once. With a
    stride below T, all but the first window's targets have at least T - stride tokens before them."""
    check_length(tokens, block_size)
    start, last = 0, len(tokens) - 1 - block_size
    yield start, block_size
    while start < last:
        new = min(stride or block_size, last - start)
        start += new
        yield start, new

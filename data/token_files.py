"""Files of token ids: `.bin` files, as this program, nanoGPT and llm.c write them, with what may lie beside them.

NAME.bin         token ids, little-endian uint16 or uint32. llm.c's have a header (see foreign_files.py)
NAME.mask.bin    a byte per token, 1 if the loss counts it as a target; without this file it counts all
meta.json        dtype (uint16 without it), bytes (of text: one number, or {NAME: number}), vocab_size,
                 tokens, learnt (targets) and documents, each {NAME: number}, lossy, a sentence, and the checksums of
                 the files
tokenizer.json   the tokenizer
meta.pkl         nanoGPT's vocabulary of characters (see nanogpt.py), which is used if there is no tokenizer.json
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_np.data import corpus, foreign_files, nanogpt
from slm_np.data.checksums import Damaged, described, verify
from slm_np.data.files import read_json_or_empty
from slm_np.data.text_files import Text
from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_factory import load_tokenizer, make_tokenizer
from slm_np.data.tokens import SPLITS, Corpus, Tokens, check_ids, largest_id, mapped, say_lossy
from slm_np.errors import UserError
from slm_np.words import counted

# Files of a folder in the order of preference, by what they are used for.
TRAINING = ("train.bin",)
VALIDATION = ("validation.bin", "val.bin")
EVALUATION = (*VALIDATION, *TRAINING)


class TokenFile(NamedTuple):
    """One `.bin` file and what lies beside it. Counts are None if meta.json does not give them."""

    source: Text  # the file as bytes, for its hash and cached values
    ids: np.ndarray  # (N,) uint16 or uint32, memory-mapped, read-only
    mask: np.ndarray | None  # (N,) uint8, memory-mapped, read-only; None if all tokens are targets
    tokenizer: Tokenizer | None
    vocab_size: int | None
    n_bytes: int | None  # of text
    n_targets: int | None
    n_documents: int | None
    lossy: str
    start: int  # bytes before the first id


def is_token_file(data):
    """Whether a `--data` string names token files: a folder of them, or items that include a .bin."""
    return token_folder(data) is not None or any(
        item.endswith(".bin") and not os.path.isdir(item) for item in corpus.split_list(data)
    )


def token_folder(data):
    """The folder of token files that a `--data` string names, or None."""
    folder = os.path.expanduser(data.strip())
    files = (os.path.join(folder, name) for name in ("train.bin", "validation.bin"))
    is_folder = folder and any(map(os.path.isfile, files)) and not corpus.named(data)
    return Path(folder) if is_folder else None


def check_no_arrays(data, flag):
    """UserError if an item of a `--data` string, which `flag` named, is a file of NumPy arrays by its name."""
    for item in corpus.split_list(data):
        if item.endswith((".npy", ".npz")) and os.path.isfile(os.path.expanduser(item)):
            raise UserError(f"{flag} {item} is a NumPy array; {foreign_files.NUMPY.format(path=item)}")


def check_given(data, given):
    """UserError if a setting that the user gave has no effect, since a `--data` string names token files.

    given: {field of TrainConfig: value}. A tokenizer is accepted if it is the one that made the tokens, or if it can
    decode the ids of files without one.
    """
    if not is_token_file(data):
        return
    for field, setting in dict(documents=f"--documents {given.get('documents')}", binary="--binary").items():
        if given.get(field):
            raise UserError(
                f"{setting} has no effect on {data}, which contains tokens already; leave it out, or give the text"
            )
    name = given.get("tokenizer")
    path = token_folder(data) or Path(os.path.expanduser(corpus.split_list(data)[0])).parent
    beside = _tokenizer_in(path)
    if name is None or name == read_json_or_empty(path / "meta.json").get("tokenizer"):
        return
    kind, _, file = name.partition(":")
    if beside and not (kind == "file" and load_tokenizer(os.path.expanduser(file)).to_json() == beside.to_json()):
        raise UserError(
            f"--tokenizer {name} has no effect on {data}: the tokens are made already, with the tokenizer beside them; "
            "leave it out, or give the text"
        )
    if not beside and name != "gpt2" and kind != "file":
        raise UserError(
            f"--tokenizer {name} has no effect on {data}: the tokens are made already; leave it out, or name the "
            "tokenizer that made them, as gpt2 or file:PATH"
        )


def file_in(data, names):
    """The file of `names` to read of the folder of token files `data`; `data` itself if it is something else.

    It is the first that exists, or the first of all.
    """
    folder = token_folder(data)
    return (
        str(next((folder / name for name in names if (folder / name).is_file()), folder / names[0])) if folder else data
    )


def read_token_file(data, split, cache, progress=True):
    """The `TokenFile` of the path `data`, which --data (train) or --val-data (validation) named.

    UserError if it is not a single .bin file, or if it and the files beside it do not fit together.
    """
    flag = corpus.FLAGS[split]
    single = is_token_file(data) and len(corpus.split_list(data)) == 1
    file = corpus.find(data, split, cache, progress) if single else None
    if file is None or len(file.files) > 1:
        raise UserError(
            f"{flag} is {data}, but a .bin token file can only be used alone and with token files for validation; "
            "give one .bin to --data and one (or none) to --val-data"
        )
    [(path, size, _)] = file.files
    meta = _meta_of(path, cache, progress)
    dtype, start = foreign_files.layout(path, size, meta["dtype"], flag)
    dtype = np.dtype(dtype)
    if (size - start) % dtype.itemsize:
        raise UserError(
            f"{flag} {path} has {counted(size, 'byte')}, which is not a whole number of {dtype.name} tokens; "
            'copy it again, or set "dtype" in the meta.json beside it'
        )
    ids = mapped(path, dtype, start)
    if meta["tokens"] is not None and len(ids) != meta["tokens"]:
        raise UserError(
            f"{flag} {path} has {counted(len(ids), 'token')}, but its meta.json says {meta['tokens']}, so it is "
            "incomplete; copy or prepare it again"
        )
    tokenizer, mask = _tokenizer_in(path.parent), _mask_of(path, len(ids))
    counts = (meta[key] for key in ("vocab_size", "bytes", "learnt", "documents", "lossy"))
    return TokenFile(file, ids, mask, tokenizer, *counts, start)


def _tokenizer_in(folder):
    """The tokenizer in a folder of token files, or None."""
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder / "tokenizer.json")
    return nanogpt.tokenizer_of(folder / "meta.pkl") if (folder / "meta.pkl").is_file() else None


def _mask_of(path, n_tokens):
    """The mask beside a token file, or None. UserError if its length differs."""
    path = path.with_suffix(".mask.bin")
    if not path.is_file():
        return None
    mask = mapped(path, np.dtype(np.uint8))
    if len(mask) != n_tokens:
        raise UserError(
            f"{path} has {counted(len(mask), 'entry')} for {counted(n_tokens, 'token')}; "
            "prepare both again, or remove it to train on all tokens"
        )
    return mask


def _meta_of(path, cache, progress):
    """dtype, bytes, vocab_size, tokens, learnt, documents and lossy of a token file as its meta.json gives them.

    UserError if meta.json has checksums and the files differ from them.
    """
    meta_path = path.with_name("meta.json")
    found = read_json_or_empty(meta_path)
    if meta_path.exists() and not found:
        raise UserError(f"{meta_path} is not a JSON object; correct it, or remove it if the tokens are uint16")
    found = check_files(path.parent, (path.name, path.with_suffix(".mask.bin").name, "tokenizer.json"), cache, progress)
    dtype, n_bytes, vocab_size = found.get("dtype"), found.get("bytes"), found.get("vocab_size")
    if isinstance(n_bytes, dict):
        n_bytes = n_bytes.get(path.stem)
    elif len(list(path.parent.glob("*.bin"))) > 1:
        n_bytes = None  # one number for several files
    if dtype not in ("uint16", "uint32", None):
        raise UserError(f'{meta_path} has "dtype" {dtype!r}; token files are uint16 or uint32')
    counts = {
        key: found[key].get(path.stem) if isinstance(found.get(key), dict) else None
        for key in ("tokens", "learnt", "documents")
    }
    for key, value in (("bytes", n_bytes or None), ("vocab_size", vocab_size)):
        if value is not None and not (type(value) is int and value > 0):
            raise UserError(f'{meta_path} has "{key}" {value!r}; it must be a positive whole number')
    for key, value in counts.items():
        if value is not None and not (type(value) is int and value >= 0):
            raise UserError(f'{meta_path} has "{key}" {value!r}; it must be a whole number')
    counts["lossy"] = str(found.get("lossy") or "")
    return dict(dtype=dtype, bytes=n_bytes or None, vocab_size=vocab_size, **counts)


def check_files(folder, names, cache, progress=True):
    """The object in the meta.json of a folder, after its checksums of the files `names` are verified, if it has any.

    UserError if a file differs or is missing.
    """
    try:
        meta = described(read_json_or_empty(folder / "meta.json"))
        verify(folder, meta.get("crc32", {}), names, cache, progress)
        return meta
    except Damaged as damaged:
        raise UserError(
            f"the tokens in {folder} are damaged ({damaged}); copy them again, or run the command that prepared them "
            "again"
        ) from None


def corpus_of_files(data, val_data, tokenizer, cache, progress, whole):
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
            f"slm_np: {pickled} cannot be read as a vocabulary without running its code, so the ids cannot be turned "
            "into text; put the tokenizer.json of the tokens beside it",
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

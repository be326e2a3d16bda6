"""Odd corpora through prepare and train: `odd_corpora` of tests/data/odd_corpora.py, which says what each must give.

A corpus that must be refused is refused in the sentence that is expected. Any other gives exactly the documents it was
made from, in `load_corpus` and in the files of `prepare`, and can be trained on. Other documents are undetected damage.
"""

import functools
import json
import re
import sys

import checkout
import numpy as np

from fault_campaign import children
from fault_campaign.judges import FAILED, UNAVAILABLE, UNDETECTED, Fault, check_end, require, sentence

TRIES = 300
TRAIN = "--kernels numpy --threads 1 --n-layer 1 --n-head 2 --n-embd 16 --n-hidden 24 --block-size 8 --batch-size 2"
SHORT = "--max-iters 2 --warmup-iters 1 --eval-iters 1 --eval-interval 1 --save-interval 1 --out-dir run"
TOO_SHORT = r"tokens|short|empty|text|documents"  # what the sentence about a split without a window speaks of


@functools.cache
def corpora(seed):
    """The corpora of the tests. Unavailable without them."""
    folder = str(checkout.ROOT / "tests" / "data")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        from odd_corpora import odd_corpora
    except ModuleNotFoundError as error:
        raise Fault(UNAVAILABLE, f"the module {error.name} is missing") from None
    return list(odd_corpora(TRIES, seed))


def cases(context):
    return [f"corpus {i}" for i in range(TRIES)]


def attempt(case, context, folder):
    odd = corpora(context.seed)[int(case.split()[1])]
    data = folder / "data"
    data.mkdir()
    for name, content in odd.files.items():
        (data / name).write_bytes(content)
    flags = [word for name, value in odd.options.items() for word in (f"--{name.replace('_', '-')}", value)]
    prepared = children.forked("prepare", "data", *flags, "--out-dir", "tokens", cwd=folder)
    trained = children.forked("train", "--data", "data", *flags, *TRAIN.split(), *SHORT.split(), cwd=folder)
    for verb, result in (("prepare", prepared), ("train", trained)):
        check_end(result, f"{verb} of {odd.name}")
    if odd.documents is None:
        for verb, result in (("prepare", prepared), ("train", trained)):
            require(result.status == 2, UNDETECTED, f"{verb} takes {odd.name}")
            said = sentence(result, verb)
            require(re.search(odd.refusal, said), FAILED, f"{verb} of {odd.name} says: {said}")
        return
    loaded = children.forked_call(lambda: print(json.dumps(documents_of("data", odd.options))), folder)
    require(loaded.status == 0, FAILED, f"load_corpus of {odd.name} is refused: {loaded.tail()}")
    found = [document.encode("latin-1") for document in json.loads(loaded.out)]
    require(found == odd.documents, UNDETECTED, f"load_corpus of {odd.name} gives other documents")
    if prepared.status == 0:  # a tenth is held out, perhaps within a document
        texts = [text_in(folder / "tokens" / f"{split}.bin") for split in ("train", "validation")]
        same = without_line_ends(texts) == without_line_ends(odd.documents)
        require(same, UNDETECTED, f"prepare of {odd.name} gives another text")
    for verb, result in (("prepare", prepared), ("train", trained)):
        too_short = result.status == 2 and re.search(TOO_SHORT, sentence(result, verb))
        require(result.status == 0 or too_short, FAILED, f"{verb} of {odd.name} is refused: {result.tail()}")


def documents_of(data, options):
    """The documents of a corpus as `load_corpus` gives them, as latin-1 text."""
    from slm_np import load_corpus

    corpus = load_corpus(data, whole="train", progress=False, **options)
    ids = np.asarray(corpus.train.ids)
    if corpus.tokenizer.end_of_text is None:
        parts = [ids] if len(ids) else []
    else:
        parts = np.split(ids, 1 + np.flatnonzero(ids == corpus.tokenizer.end_of_text))[:-1]
        parts = [part[:-1] for part in parts]
    return [part.astype(np.uint8).tobytes().decode("latin-1") for part in parts]


def without_line_ends(texts):
    """The texts as one. A line end between two splits is part of neither."""
    return b"".join(texts).translate(None, b"\r\n")


def text_in(path):
    """The bytes of a file of byte tokens, without end-of-text."""
    ids = np.fromfile(path, "<u2")
    return ids[ids < 256].astype(np.uint8).tobytes()

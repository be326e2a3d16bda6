"""Tokenize a corpus once, into files that training maps into memory.

`python -m slm_np.prepare CORPUS --tokenizer T --out-dir DIR`
"""

import dataclasses
import sys

from slm_np.cli import flags
from slm_np.config import TrainConfig, check
from slm_np.errors import command
from slm_np.paths import cache_dir
from slm_np.words import counted, quoted

# The settings that this command shares with training.
Settings = dataclasses.make_dataclass(
    "Settings",
    [
        (field.name, field.type, dataclasses.field(default=field.default, metadata=field.metadata))
        for field in dataclasses.fields(TrainConfig)
        if field.name in ("val_data", "tokenizer", "documents", "binary", "limit_bytes", "threads")
    ],
)


def parser():
    p = flags.Parser(
        prog="slm-np prepare",
        description="Tokenize a corpus into DIR: train.bin, validation.bin, tokenizer.json and meta.json. Train on it "
        "with --data DIR.\nAfter an interruption, the same command continues with what is missing.",
    )
    p.add_argument(
        "corpus",
        nargs="+",
        type=flags.path,
        metavar="CORPUS",
        help="what to tokenize: files, folders, globs, or a name such as tinystories",
    )
    p.add_argument("--out-dir", type=flags.path, metavar="DIR", required=True, help="a new directory for the tokens")
    flags.add_settings(p, Settings, "corpus")
    return p


@command
def main(argv=None):
    """Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)
    settings = Settings(**flags.given(args, Settings))
    check(settings)
    from slm_np.data.splits import hint
    from slm_np.data.token_store import load_corpus

    data = flags.joined(TrainConfig.__dataclass_fields__["data"], args.corpus)
    corpus = load_corpus(
        data,
        settings.val_data,
        settings.tokenizer,
        settings.documents,
        settings.limit_bytes,
        threads=settings.threads,
        out_dir=args.out_dir,
        binary=settings.binary,
    )
    if not has_documents(corpus) and not settings.binary:
        more = hint(data, settings.documents, cache_dir())
        print("nothing separates documents, so each split is one document" + f"; {more}" * bool(more), file=sys.stderr)
    print("\n".join(describe(corpus, args.out_dir)))


def has_documents(corpus):
    """Whether the training split has several documents, or one that ends."""
    return corpus.train.n_documents != 1 or corpus.train.ids[-1] == corpus.tokenizer.end_of_text


def describe(corpus, directory):
    """Yield the lines that say what was prepared, and how to train on it."""
    for tokens in (corpus.train, corpus.validation):
        n = tokens.n_documents
        targets = f", of which {counted(tokens.n_targets, 'target')}" if tokens.mask is not None else ""
        counts = counted(n, "document"), counted(tokens.n_bytes, "byte"), counted(len(tokens), "token")
        yield f"{tokens.split}: {', '.join(counts)} ({tokens.ids.dtype.name}){targets}"
    yield f"vocabulary: {counted(corpus.vocab_size, 'token')}"
    yield f"train on it with: python -m slm_np.train --data {quoted(directory)}"


if __name__ == "__main__":
    main()

"""Tokenise a corpus once, into files that training maps into memory: `python -m slm_np.prepare CORPUS --tokenizer T --out-dir DIR`."""

import dataclasses
import sys

from slm_np.cli import flags
from slm_np.config import TrainConfig, check
from slm_np.errors import exit_with_sentence

# The settings of training that this command has too.
Settings = dataclasses.make_dataclass(
    "Settings",
    [
        (field.name, field.type, dataclasses.field(default=field.default, metadata=field.metadata))
        for field in dataclasses.fields(TrainConfig)
        if field.name in ("val_data", "tokenizer", "documents", "limit_bytes", "threads")
    ],
)


def parser():
    p = flags.Parser(
        prog="slm-np prepare",
        description="Tokenise a corpus into DIR: train.bin, validation.bin, tokenizer.json and meta.json. Train on it with --data DIR.\n"
        "After a break the same command goes on with what is missing.",
    )
    p.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help="what to prepare: files, folders, globs, or a name such as tinystories",
    )
    p.add_argument("--out-dir", metavar="DIR", required=True, help="a new directory for the tokens")
    flags.add_settings(p, Settings, "corpus")
    return p


@exit_with_sentence
def main(argv=None):
    """The command. Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)
    settings = Settings(**flags.given(args, Settings))
    check(settings)
    from slm_np.data.token_store import load_corpus

    data = flags.joined(TrainConfig.__dataclass_fields__["data"], args.corpus)
    found = load_corpus(
        data,
        settings.val_data,
        settings.tokenizer,
        settings.documents,
        settings.limit_bytes,
        threads=settings.threads,
        out_dir=args.out_dir,
    )
    if found.train.n_documents == 1 and found.train.ids[-1] != found.tokenizer.end_of_text:
        print(
            "the corpus has no borders of documents, so each split is one document; --documents blank-line finds more",
            file=sys.stderr,
        )
    print("\n".join(described(found, args.out_dir)))


def described(corpus, directory):
    """Lines that say what was prepared, and how to train on it."""
    for tokens in (corpus.train, corpus.validation):
        learnt = f", {tokens.n_targets:,} of them to be learnt" if tokens.mask is not None else ""
        yield (
            f"{tokens.split}: {tokens.n_documents:,} document{'s' * (tokens.n_documents != 1)}, {tokens.n_bytes:,} bytes, {len(tokens):,} tokens "
            f"({tokens.ids.dtype.name}){learnt}"
        )
    yield f"vocabulary: {corpus.vocab_size:,} pieces"
    yield f"train on it with: python -m slm_np.train --data {directory}"


if __name__ == "__main__":
    main()

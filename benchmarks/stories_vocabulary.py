"""Learn the vocabulary of `--tokenizer stories` from the embedded corpora, and write it.

    python benchmarks/stories_vocabulary.py [--size 2304] [--bytes 4000000] [--out FILE]

It is learned from the start of the training splits of `stories` and `dialogues`, the latter under the default chat
template. The most frequent words are tokens. The first merges of byte-pair encoding, at least a 24th of all tokens,
spell other words. Prints how well the vocabulary encodes the validation splits.

FILE is data/stories_vocabulary.txt by default: a token a line in the letters of GPT-2's vocabulary, those that are
merged as "left right". Run it again after each change of a corpus.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import checkout  # noqa: F401
import numpy as np

from slm_np import arguments
from slm_np.data import bpe, dialogues, stories
from slm_np.data.chat_template import DEFAULT
from slm_np.data.embedded import SEEDS, SPLIT_BYTES
from slm_np.data.plain_bpe import LETTERS, VOCABULARY, PlainBPE, words_of
from slm_np.data.tokenizer_json import joined_merges
from slm_np.errors import UserError, command

OTHERS = 257  # tokens that are not learned: the bytes and the end-of-text token
MERGED = 24  # at least one of so many learned tokens is merged


def texts(split, n_bytes):
    """{corpus: documents as bytes} of about `n_bytes` each."""
    conversations, size = [], 0
    for dialogue in dialogues.dialogues(SEEDS[split]):
        if size >= n_bytes:
            break
        conversations.append(b"".join(text for text, _ in DEFAULT.spans(dialogues.messages(dialogue))))
        size += len(conversations[-1])
    return dict(stories=[text.encode() for text, _ in stories.write(n_bytes, SEEDS[split])], dialogues=conversations)


def learned(corpora, size):
    """The tokens of a `PlainBPE` of at most `size` tokens in all. corpora: lists of documents

    No token joins a sign and a line end, so a blank line is the same token after any sign and as a prompt.
    """
    parts = [[part for text in documents for part in re.split(rb"(\n+)", text) if part] for documents in corpora]
    counts, free = words_in(part for documents in parts for part in documents), size - OTHERS
    words = ["".join(LETTERS[byte] for byte in word.encode()) for word, _ in counts.most_common() if len(word) > 1]
    n_merges = max(free // MERGED, free - len(words))
    trained = bpe.train(OTHERS + n_merges, [lambda documents=documents: documents for documents in parts], False)
    merges = joined_merges(trained.to_json()["model"])
    # Signs before a line end are not a whole word, so they need merges.
    merges += [" ".join(word) for word in words if len(word) == 2 and not re.search("[A-Za-z0-9]", word)]
    merges = list(dict.fromkeys(merges))
    names = {merge.replace(" ", "") for merge in merges}
    return merges + [word for word in words if word not in names][: free - len(merges)]


def words_in(texts):
    """A Counter of the words of texts (bytes)."""
    return Counter(word for text in texts for word in words_of(text.decode()))


def figures(tokenizer, documents):
    """A line about the encoding of documents, and the set of ids that occur."""
    ids = np.concatenate([tokenizer.encode(text) for text in documents])
    words = words_in(documents)
    whole = sum(n for word, n in words.items() if len(tokenizer.encode(word)) == 1)
    rate, share = sum(map(len, documents)) / len(ids), whole / words.total()
    return f"{rate:.2f} bytes/token, {share:.2%} of the words are one token", set(ids.tolist())


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Learn the vocabulary of --tokenizer stories.")
    parser.add_argument("--size", type=int, default=2304, help="tokens at most (default: %(default)s)")
    parser.add_argument(
        "--bytes", type=int, default=4_000_000, help="of each corpus to learn from (default: %(default)s)"
    )
    parser.add_argument("--out", default=str(VOCABULARY), metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    arguments.whole("--size", args.size, OTHERS, 1 << 16)
    arguments.whole("--bytes", args.bytes, 1, SPLIT_BYTES["train"])
    tokens = learned(texts("train", args.bytes).values(), args.size)
    try:
        Path(args.out).write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"cannot write --out {args.out}: {error.strerror}; choose another file") from None
    tokenizer, used = PlainBPE(tokens), set()
    for name, documents in texts("validation", SPLIT_BYTES["validation"]).items():
        line, ids = figures(tokenizer, documents)
        used |= ids
        print(f"{name}: {line}")
    print(f"{args.out}: {tokenizer.vocab_size} tokens, of which the validation splits have {len(used)}")


if __name__ == "__main__":
    main()

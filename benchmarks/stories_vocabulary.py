"""Learn the vocabulary of `--tokenizer stories` from the embedded corpora, and write it.

    python benchmarks/stories_vocabulary.py [--size 2048] [--bytes 4000000] [--out FILE]

It is learned from the start of the training splits of `stories` and `dialogues`, the latter under the default chat
template. Bytes are merged until each word is a token. Of these tokens the most frequent ones are kept, with all tokens
that they are merged from, so keeping fewer changes the encoding of no word that stays whole.
Prints how well the vocabulary encodes the validation splits. FILE is data/stories_vocabulary.txt by default: a merge
per line, in the letters and the order of GPT-2's merges.txt. Run it again after each change of a corpus.
"""

import argparse
from collections import Counter
from pathlib import Path

import checkout  # noqa: F401
import numpy as np

from slm_np import arguments
from slm_np.data import bpe, dialogues, stories
from slm_np.data.chat_template import DEFAULT
from slm_np.data.embedded import SEEDS, SPLIT_BYTES
from slm_np.data.plain_bpe import GPT2_WORD, VOCABULARY, PlainBPE
from slm_np.data.tokenizer_json import joined_merges
from slm_np.errors import UserError, command

OTHERS = 257  # tokens that are not merged: the bytes and the end-of-text token


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
    """The merges of at most `size` tokens, `OTHERS` included. corpora: lists of documents"""
    whole = bpe.train(bpe_size(corpora), [lambda documents=documents: documents for documents in corpora], False)
    counts = Counter()
    for documents in corpora:
        for ids in whole.encode_blocks(documents):
            counts.update(ids.tolist())
    fields = whole.to_json()["model"]
    names = {id: name for name, id in fields["vocab"].items()}
    merges = {merge.replace(" ", ""): merge.split(" ") for merge in joined_merges(fields)}  # {token: [left, right]}
    kept = set()
    for id, _ in counts.most_common():
        needed, waiting = set(), [names.get(id, "")]
        while waiting:
            name = waiting.pop()
            if name in merges and name not in kept | needed:
                needed.add(name)
                waiting += merges[name]
        if len(kept | needed) <= size - OTHERS:
            kept |= needed
    return [" ".join(merge) for name, merge in merges.items() if name in kept]


def bpe_size(corpora):
    """A size of a vocabulary that is enough for all words: a merge for each of their bytes."""
    words = {word for documents in corpora for text in documents for word in GPT2_WORD.findall(text.decode())}
    return OTHERS + sum(map(len, words))


def figures(tokenizer, documents):
    """A line about the encoding of documents, and the set of ids that occur."""
    ids = np.concatenate([tokenizer.encode(text) for text in documents])
    words = Counter(word for text in documents for word in GPT2_WORD.findall(text.decode()))
    whole = sum(n for word, n in words.items() if len(tokenizer.encode(word)) == 1)
    rate, share = sum(map(len, documents)) / len(ids), whole / words.total()
    return f"{rate:.2f} bytes/token, {share:.2%} of the words are one token", set(ids.tolist())


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Learn the vocabulary of --tokenizer stories.")
    parser.add_argument("--size", type=int, default=2048, help="tokens at most (default: %(default)s)")
    parser.add_argument(
        "--bytes", type=int, default=4_000_000, help="of each corpus to learn from (default: %(default)s)"
    )
    parser.add_argument("--out", default=str(VOCABULARY), metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    arguments.whole("--size", args.size, OTHERS, 1 << 16)
    arguments.whole("--bytes", args.bytes, 1, SPLIT_BYTES["train"])
    merges = learned(texts("train", args.bytes).values(), args.size)
    try:
        Path(args.out).write_text("".join(f"{merge}\n" for merge in merges), encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"cannot write --out {args.out}: {error.strerror}; choose another file") from None
    tokenizer, used = PlainBPE(merges), set()
    for name, documents in texts("validation", SPLIT_BYTES["validation"]).items():
        line, ids = figures(tokenizer, documents)
        used |= ids
        print(f"{name}: {line}")
    print(f"{args.out}: {tokenizer.vocab_size} tokens, of which the validation splits have {len(used)}")


if __name__ == "__main__":
    main()

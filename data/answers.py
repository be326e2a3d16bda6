"""Windows on a text of which only the answers are learnt: each is read from its document's start on, as it will be when it is asked for."""

import numpy as np

from slm_np.data.tokens import EpochOrder, check_length, gather

BLOCK = 1 << 22


def answer_ends(tokens, end_of_text):
    """(lengths, ends, documents): each answer's length in targets, its last target, and the start of its document, int64. Reads a block at a time."""
    lengths, ends, documents = [], [], []
    open_length, document = 0, 0  # of the answer, and the start of the document, that a block's border cuts
    for start in range(0, len(tokens), BLOCK):
        learnt, last = (
            np.asarray(tokens.mask[start : start + BLOCK]) != 0,
            np.asarray(tokens.ids[start : start + BLOCK]) == end_of_text,
        )
        following = tokens.mask[start + len(learnt)] != 0 if start + len(learnt) < len(tokens) else False
        end = np.flatnonzero(learnt & (last | ~np.append(learnt[1:], following)))
        seen = np.concatenate(([0], np.cumsum(learnt)))[end + 1]
        lengths.append(np.diff(seen, prepend=-open_length))
        open_length = int(learnt.sum()) - int(seen[-1]) if len(end) else open_length + int(learnt.sum())
        begins = np.concatenate(([document], start + np.flatnonzero(last) + 1))
        documents.append(begins[np.searchsorted(begins, start + end, "right") - 1])
        ends.append(start + end)
        document = begins[-1]
    return tuple(
        np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64) for parts in (lengths, ends, documents)
    )


def window_starts(tokens, block_size, end_of_text):
    """The starts (W,) of windows that together hold every target that is learnt, but for a first token of a document, which nothing foretells.

    A window begins with an answer's document or, where the answer would not fit, just so late that it does; an answer longer than the
    context has several.
    """
    check_length(tokens, block_size)
    lengths, ends, documents = answer_ends(tokens, end_of_text)
    parts = np.maximum(1, -(-lengths // block_size))
    back = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    ends, documents = np.repeat(ends, parts) - back * block_size, np.repeat(documents, parts)
    return np.unique(np.clip(np.maximum(documents, ends - block_size), 0, len(tokens) - 1 - block_size))


class AnswerOrder(EpochOrder):
    """Passes over the answers of a split, a window for each, in an order of their own that depends on (seed, epoch) only."""

    def __init__(self, tokens, block_size, seed, end_of_text):
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.starts = window_starts(tokens, block_size, end_of_text)
        self.n_windows = len(self.starts)

    def batch(self, x, y, index):
        gather(x, y, self.tokens, self.starts[self.windows(np.arange(index, index + x.shape[0]))])

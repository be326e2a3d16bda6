"""Windows over conversations, where the loss counts the assistant's tokens only.

Each window contains the end of a reply, and starts with its conversation if that fits. So the model sees in training
what it sees in a chat.
"""

import numpy as np

from slm_np.data.batches import EpochOrder
from slm_np.data.tokens import WITHIN, check_length, targets

BLOCK = 1 << 22  # tokens read at a time


class AssistantOrder(EpochOrder):
    """Shuffled epochs over the windows of `window_starts`. The order depends on (seed, epoch) only."""

    def __init__(self, tokens, block_size, seed, end_of_text):
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.starts = window_starts(tokens, block_size, end_of_text)
        self.n_windows = len(self.starts)

    def starts_of(self, windows):
        return self.starts[windows]


def window_starts(tokens, block_size, end_of_text):
    """The starts (W,) int64 of windows that contain every target, sorted and without duplicates.

    A window starts where the document of its reply starts. If the reply would not fit, the window starts just late
    enough to end with it. A reply longer than the context has several windows. A target that is the first token of its
    document may be left out, since nothing in the document predicts it.
    tokens: Tokens with a mask.   end_of_text: the id that ends a document, or None.   UserError if no window fits.
    """
    check_length(tokens, block_size)
    lengths, ends, documents = replies(tokens, end_of_text)
    parts = np.maximum(1, -(-lengths // block_size))  # windows of each reply
    back = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, ... within each reply
    ends, documents = np.repeat(ends, parts) - back * block_size, np.repeat(documents, parts)
    return np.unique(np.clip(np.maximum(documents, ends - block_size), 0, len(tokens) - 1 - block_size))


def replies(tokens, end_of_text):
    """(lengths, ends, documents) of all replies, each (R,) int64. Reads a block at a time.

    A reply is a run of targets, which also ends at end-of-text.
    lengths: its number of targets.   ends: the position of its last target.   documents: where its document starts.
    """
    lengths, ends, documents = [], [], []
    open_length, document = 0, 0  # of a reply that the end of a block cuts, and where the current document starts
    for start in range(0, len(tokens), BLOCK):
        mask = np.asarray(tokens.mask[start : start + BLOCK])
        target = targets(mask)
        last = (np.asarray(tokens.ids[start : start + BLOCK]) == end_of_text) & (mask & WITHIN == 0)
        following = targets(tokens.mask[start + len(target)]) if start + len(target) < len(tokens) else False
        end = np.flatnonzero(target & (last | ~np.append(target[1:], following)))
        seen = np.concatenate(([0], np.cumsum(target)))[end + 1]
        lengths.append(np.diff(seen, prepend=-open_length))
        open_length = int(target.sum()) - int(seen[-1]) if len(end) else open_length + int(target.sum())
        begins = np.concatenate(([document], start + np.flatnonzero(last) + 1))
        documents.append(begins[np.searchsorted(begins, start + end, "right") - 1])
        ends.append(start + end)
        document = begins[-1]
    return tuple(
        np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64) for parts in (lengths, ends, documents)
    )

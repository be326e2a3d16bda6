"""The tasks of time_to_loss.py: a text, what is held out of it, and the preset whose recipe is to be improved."""

from pathlib import Path
from typing import NamedTuple

import checkout  # noqa: F401
from quality import MODELS

from slm_np.errors import UserError

BLOCK = 4096  # bytes of a block of `blocks`


class Task(NamedTuple):
    preset: str  # of the original recipe
    tokenizer: str
    split: str  # a key of SPLITS, or "" for a corpus that has its own
    unit: str  # of the loss: nats (per token) or bits (per byte)
    updates: int  # of the original recipe in the budget of the task
    model: dict = {}  # changes to the preset: track R keeps them
    train: dict = {}
    original: dict = {}  # further changes, which make it the recipe that the preset started from


def tail(text):
    """nanoGPT's split: the last tenth is held out."""
    start = int(0.9 * len(text))
    return text[:start], text[start:]


def blocks(text):
    """Every tenth block of 4,096 bytes is held out, so that both parts are about the same things."""
    found = [text[start : start + BLOCK] for start in range(0, len(text), BLOCK)]
    held = [block for n, block in enumerate(found) if n % 10 == 9]
    return b"".join(block for n, block in enumerate(found) if n % 10 != 9), b"".join(held)


SPLITS = dict(tail=tail, blocks=blocks)
NANOGPT = dict(
    optimizer="adamw",
    batch_size=12,
    learning_rate=1e-3,
    min_lr=1e-4,
    warmup_iters=100,
    lr_schedule="cosine",
    beta1=0.9,
    beta2=0.99,
    weight_decay=0.1,
)
LONG_RECIPE = dict(
    batch_size=16,
    learning_rate=2e-3,
    min_lr=2e-4,
    warmup_iters=50,
    beta2=0.95,
    weight_decay=0.1,
    decay="matrices",
)

ADAMW_MAMBA = NANOGPT | dict(batch_size=16, learning_rate=2e-3, beta2=0.95)

TASKS = {
    "shakespeare-char": Task("shakespeare-char", "char", "tail", "nats", 2000, original=NANOGPT),
    "shakespeare-char-blocks": Task("shakespeare-char", "char", "blocks", "nats", 2000, original=NANOGPT),
    "shakespeare-bytes": Task("slim", "byte", "tail", "bits", 2600, MODELS["llama"], LONG_RECIPE),
    "tinystories": Task("slim", "bpe:4096", "tail", "bits", 1000, dict(head="tied"), LONG_RECIPE),
    "tinystories-gpt2": Task("gpt2-stories", "gpt2", "tail", "bits", 25),
    "stories": Task("stories", "stories", "", "bits", 2200),
    "mamba-bytes": Task("mamba", "byte", "tail", "bits", 1700, MODELS["mamba"], dict(batch_size=16), ADAMW_MAMBA),
}


def split_text(path, split):
    """(training text, held-out text) of a file, as bytes. UserError if it cannot be read."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a text file") from None
    return SPLITS[split](text)


def split_files(path, split, folder):
    """The paths of files in `folder` with the two parts."""
    paths = Path(folder) / f"{split}-train.txt", Path(folder) / f"{split}-held-out.txt"
    for part, text in zip(paths, split_text(path, split)):
        part.write_bytes(text)
    return paths

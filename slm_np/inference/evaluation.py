"""The loss of a model over a whole text."""

import math
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from slm_np.data import corpus
from slm_np.data.assistant_windows import window_starts
from slm_np.data.token_files import check_given
from slm_np.data.token_store import load_corpus
from slm_np.data.tokens import check_ids, targets
from slm_np.errors import UserError
from slm_np.formats.run_paths import located
from slm_np.nn.arena import planned_bytes
from slm_np.nn.model import plan
from slm_np.ops.device import host
from slm_np.progress import Progress
from slm_np.words import counted

TOKENS = 4096  # in a batch: enough for fast matmuls, little memory
BLOCK = 1 << 16  # ids that are decoded at a time
LINE_S = 10.0  # seconds between the lines of a log
NO_TARGET = "the text has no token to predict; give a longer one, or conversations with answers"


@dataclass(frozen=True)
class Evaluation:
    """The sum of the losses of `tokens` targets in nats, and the bytes of text they stand for.

    bytes: None if unknown, or if the tokenizer loses part of the text, so that the tokens stand for less.
    """

    nats: float
    tokens: int
    bytes: int | None

    @property
    def nats_per_token(self):
        return self.nats / self.tokens

    @property
    def perplexity(self):
        """exp(nats per token)"""
        return math.exp(min(self.nats_per_token, 709.0))

    @property
    def bits_per_byte(self):
        """nats / ln 2 / bytes, which is comparable between models with different tokenizers; None if unknown.

        The loss of end-of-text tokens is included, the bytes of their marker are not.
        """
        return self.nats / math.log(2) / self.bytes if self.bytes else None


def evaluate(model, tokens, tokenizer=None, stride=0, quiet=True, batch=TOKENS):
    """The Evaluation of a model on all targets of a split, `Tokens`.

    stride  from the start of a window of T tokens to the next, and so the number of targets that are new in a window:
            each has at least T - stride tokens before it, except at the start of the text. 0 means T / 2. T is the
            fastest; with a small stride almost all targets have a full context.
    batch   tokens of a batch, at least one window. It affects the memory and not the result.
    If documents end with an end-of-text token, the text starts after one, so that all tokens are targets; otherwise the
    first token is not. If only assistant tokens count, each window starts with their document, whatever the stride.
    Raises UserError for a text without targets, an id outside the vocabulary, a stride beyond the context, or too
    little memory.
    """
    n, context, mask = len(tokens), model.config.block_size, tokens.mask
    if stride > context:
        raise UserError(
            f"--stride {stride} exceeds the model's context of {context} and would skip tokens; give at most {context}"
        )
    check_ids(tokens, model.config.vocab_size)
    end_of_text = tokenizer.end_of_text if tokenizer is not None else None
    after_end = mask is None and n > 0 and end_of_text is not None and tokens.ids[-1] == end_of_text
    n_targets = int(np.count_nonzero(targets(mask[1:]))) if mask is not None else n - (not after_end)
    if n_targets < 1:
        raise UserError(NO_TARGET)
    steps = min(context, n - (not after_end))
    rows = max(1, min(batch // steps, -(-n // steps)))
    requests = plan(model.config, rows, steps, model.device, recompute=True, adapters=model.adapters)
    needed = planned_bytes(requests, model.dtype, model.compute_dtype)
    model.device.check_memory(needed, f"evaluating {rows} x {steps} tokens at once", "use a machine with more")

    x, y = np.zeros((rows, steps), np.int32), np.zeros((rows, steps), np.int32)
    counts = np.zeros((rows, steps), bool)  # which targets are new
    windows = windows_of(tokens, steps, stride or max(1, steps // 2), after_end, end_of_text)
    nats, done, begun = 0.0, 0, time.perf_counter()
    progress = Progress(0.0, quiet, LINE_S, LINE_S)
    try:
        while group := list(islice(windows, rows)):
            counts[:] = False
            for row, (start, new) in enumerate(group):
                stop = start + 1 + steps
                y[row] = tokens.ids[start + 1 : stop]
                x[row, 1:], x[row, 0] = y[row, :-1], tokens.ids[start] if start >= 0 else end_of_text
                counts[row, steps - new :] = True if mask is None else targets(mask[stop - new : stop])
            nats += float(host(model.losses(x, y)).sum(dtype=np.float64, where=counts))
            done += int(counts.sum())
            seconds = time.perf_counter() - begun
            progress.update(
                f"{done:,} of {n_targets:,} tokens",
                done / n_targets,
                f"{nats / max(1, done):.4f} nats/token  {done / seconds:,.0f} tokens/s",
                True,
            )
    finally:
        progress.close()
    if not done:
        raise UserError(NO_TARGET)
    if not math.isfinite(nats):
        raise UserError(f"the loss is {nats}, so the model has diverged; train it with a lower --learning-rate")
    n_bytes = text_bytes(tokens, tokenizer)
    return Evaluation(nats, done, None if n_bytes is None else n_bytes * done / tokens.n_targets)


def windows_of(tokens, steps, stride, after_end, end_of_text):
    """Yield (start, new) of windows: the last `new` targets are in no window before. Every target is new once.

    Start -1 is the end-of-text token before the first token, if the text is read `after_end`.
    """
    if tokens.mask is not None:
        previous = -steps
        for start in window_starts(tokens, steps, end_of_text).tolist():
            yield start, min(steps, start - previous)
            previous = start
        return
    start, last = -1 if after_end else 0, len(tokens) - 1 - steps
    yield start, steps
    while start < last:
        new = min(stride, last - start)
        start += new
        yield start, new


def text_bytes(tokens, tokenizer):
    """Bytes of text that the targets of a split stand for.

    None if neither the split nor a tokenizer tells, or if the tokenizer loses part of the text.
    """
    if tokens.lossy:
        return None
    if tokens.n_bytes or tokenizer is None:
        return tokens.n_bytes
    total = 0
    for block in range(0, len(tokens), BLOCK):
        ids = np.asarray(tokens.ids[block : block + BLOCK])
        counted = np.ones(len(ids), bool) if tokens.mask is None else targets(tokens.mask[block : block + BLOCK])
        borders = np.flatnonzero(np.diff(counted, prepend=False, append=False))
        for start, stop in borders.reshape(-1, 2).tolist():
            before = ids[max(0, start - 1) : start]  # or a tokenizer would omit the space at the start of a text
            total += len(tokenizer.decode(np.concatenate([before, ids[start:stop]]))) - len(tokenizer.decode(before))
    return total


def tokens_of(run, data="", documents="", limit_bytes=0, threads=0, binary=False):
    """The `Tokens` to evaluate a run on: those of `data`, without which what the run validates on.

    Of a corpus known by name or a folder of tokens it is the validation split, if there is one; of text all of it.
    Raises UserError if there is none, or if the run cannot read it.
    """
    train = run.config.train
    if not data and not run.config.data.get("source"):
        raise UserError(f"{run.path} was not trained here, so it has no validation data; name a text with --data")
    if not data and not train.val_data and corpus.named(train.data) in corpus.OWN_VALIDATION:
        data = train.data  # its training split is not needed
    text = data or train.data
    if run.tokenizer is None and not (text.endswith(".bin") or (Path(text) / "train.bin").is_file()):
        raise UserError(
            f"{run.path} has no tokenizer, so its model reads token files only; "
            "give --data FILE.bin, or copy its tokenizer.json into the run"
        )
    check_given(text, {name: value for name, value in dict(documents=documents, binary=binary).items() if value})
    options = dict(
        tokenizer=run.tokenizer or "byte",
        documents=documents or train.documents,
        threads=threads,
        binary=binary or train.binary,
        template=run.template,
    )
    if data:
        return load_corpus(data, limit_bytes=limit_bytes, whole="validation", **options).train
    own = [located(run.path, run.config, field, "name a text with --data") for field in ("data", "val_data")]
    if limit_bytes and own[1]:  # which is a limit on the text that is measured
        return load_corpus(own[1], limit_bytes=limit_bytes, whole="validation", **options).train
    tokens = load_corpus(*own, limit_bytes=limit_bytes or train.limit_bytes, **options).validation
    _, n_tokens = run.config.data.get("tokens") or (0, 0)
    if n_tokens not in (0, len(tokens)) and not (documents or limit_bytes):
        raise UserError(
            f"the validation data of {run.path} have changed: {' and '.join(filter(None, own))} now has "
            f"{counted(len(tokens), 'token')} for validation, and had {n_tokens:,}; restore it, or name a text with "
            "--data"
        )
    return tokens

"""Measure the loss of a model on a whole text: `python -m slm_np.evaluate --model RUN --data TEXT`."""

import json
import math
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from slm_np.cli import flags
from slm_np.cli.loading import add_run, load_run
from slm_np.config import TrainConfig
from slm_np.errors import UserError, command

TOKENS = 4096  # read at once: enough for the products, little in memory
BLOCK = 1 << 16
LINE_S = 10.0  # seconds between the lines of a log
NOTHING = "the text has no token to predict; give a longer one, or rows with answers"


@dataclass(frozen=True)
class Evaluation:
    """`nats` of surprise over `tokens` targets, which stand for `bytes` of text (None where that is not known)."""

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
        """nats / ln 2 / bytes, which models of any tokenizer can be compared by; None where the bytes are not known.

        The nats of end-of-text are among them, the bytes of its marker are not.
        """
        return self.nats / math.log(2) / self.bytes if self.bytes else None


def evaluate(model, tokens, tokenizer=None, stride=0, quiet=True, batch=TOKENS):
    """The `Evaluation` of a model on a split, `Tokens` of data/tokens, from its first target to its last.

    stride  how far a window of T tokens lies from the next, and so how many of its targets are new in it: each has at least T - stride
            tokens before it, once the text has so many. 0 means T / 2; T is quickest, small ones tell the loss with a full context.
    batch   tokens read at once, one window at the least; it takes memory and changes nothing
    Where documents end with an end-of-text the first begins after one, so that all tokens are targets; elsewhere the first is none. If
    only answers are learnt, only they count, each with its document before it, at places of their own whatever the stride.
    UserError for a text without a target, an id outside of the vocabulary, a stride beyond the context, or too little memory.
    """
    from slm_np.data.token_store import check_ids
    from slm_np.nn.arena import planned_bytes
    from slm_np.nn.model import plan
    from slm_np.ops.device import host
    from slm_np.progress import Progress

    n, context, mask = len(tokens), model.config.block_size, tokens.mask
    if stride > context:
        raise UserError(
            f"--stride {stride} is beyond the model's context of {context} and would leave tokens out; give at most that"
        )
    check_ids(tokens, model.config.vocab_size)
    end_of_text = tokenizer.end_of_text if tokenizer is not None else None
    begins = mask is None and n > 0 and end_of_text is not None and tokens.ids[-1] == end_of_text
    targets = int(np.count_nonzero(mask[1:])) if mask is not None else n - (not begins)
    if targets < 1:
        raise UserError(NOTHING)
    steps = min(context, n - (not begins))
    rows = max(1, min(batch // steps, -(-n // steps)))
    model.device.check_memory(
        planned_bytes(plan(model.config, rows, steps, model.device), model.dtype, model.compute_dtype),
        f"evaluating {rows} x {steps} tokens at once",
        "use a machine with more",
    )

    x, y, counts = np.zeros((rows, steps), np.int32), np.zeros((rows, steps), np.int32), np.zeros((rows, steps), bool)
    windows = windows_of(tokens, steps, stride or max(1, steps // 2), begins, end_of_text)
    nats, done, begun, said = 0.0, 0, time.perf_counter(), 0.0
    progress = Progress(0.0, quiet)
    try:
        while batch := list(islice(windows, rows)):
            counts[:] = False
            for row, (start, new) in enumerate(batch):
                y[row] = tokens.ids[start + 1 : start + 1 + steps]
                x[row, 1:], x[row, 0] = y[row, :-1], tokens.ids[start] if start >= 0 else end_of_text
                counts[row, steps - new :] = (
                    True if mask is None else mask[start + 1 + steps - new : start + 1 + steps] != 0
                )
            nats += float(host(model.losses(x, y)).sum(dtype=np.float64, where=counts))
            done += int(counts.sum())
            seconds = time.perf_counter() - begun
            due = seconds - said > LINE_S
            said = seconds if due else said
            progress.update(
                f"{done:,} of {targets:,} tokens",
                done / targets,
                f"{nats / max(1, done):.4f} nats/token  {done / seconds:,.0f} tokens/s",
                due,
            )
    finally:
        progress.close()
    if not done:
        raise UserError(NOTHING)
    if not math.isfinite(nats):
        raise UserError(f"the loss is {nats}, so the model has diverged; use an earlier checkpoint")
    n_bytes = text_bytes(tokens, tokenizer)
    return Evaluation(nats, done, None if n_bytes is None else n_bytes * done / tokens.n_targets)


def windows_of(tokens, steps, stride, begins, end_of_text):
    """(start, new) of windows whose last `new` targets were in none before; together they hold every target. Start -1 is the end-of-text
    that stands before the first token, if the text `begins` after one."""
    if tokens.mask is not None:
        from slm_np.data.assistant_windows import window_starts

        before = -steps
        for start in window_starts(tokens, steps, end_of_text).tolist():
            yield start, min(steps, start - before)
            before = start
        return
    start, last = -1 if begins else 0, len(tokens) - 1 - steps
    yield start, steps
    while start < last:
        new = min(stride, last - start)
        start += new
        yield start, new


def text_bytes(tokens, tokenizer):
    """Bytes of text that a split's tokens stand for, or those of them that are learnt; None where neither its maker nor a tokenizer says."""
    if tokens.n_bytes or tokenizer is None:
        return tokens.n_bytes
    total = 0
    for at in range(0, len(tokens), BLOCK):
        ids = np.asarray(tokens.ids[at : at + BLOCK])
        learnt = np.ones(len(ids), bool) if tokens.mask is None else np.asarray(tokens.mask[at : at + BLOCK]) != 0
        borders = np.flatnonzero(np.diff(learnt, prepend=False, append=False))
        for start, stop in borders.reshape(-1, 2).tolist():
            before = ids[
                max(0, start - 1) : start
            ]  # so that a tokenizer which leaves out a text's first space does not take this for a text
            total += len(tokenizer.decode(np.concatenate([before, ids[start:stop]]))) - len(tokenizer.decode(before))
    return total


def tokens_of(run, data="", documents="", limit_bytes=0, threads=0):
    """The `Tokens` to evaluate a `Run` on: all of the text `data`, or the validation part where a corpus known by name or a folder of tokens
    has one; without `data`, what the run itself validates with. UserError where there is none, or the run cannot read it."""
    from slm_np.data import corpus
    from slm_np.data.token_store import load_corpus

    train = run.config.train
    if not data and not run.config.data.get("source"):
        raise UserError(f"{run.path} was not trained here, so it has no validation text; give one by --data")
    if not data and not train.val_data and corpus.named(train.data) in corpus.OWN_VALIDATION:
        data = train.data  # what it trained on is not needed
    text = data or train.data
    if run.tokenizer is None and not (text.endswith(".bin") or (Path(text) / "train.bin").is_file()):
        raise UserError(
            f"{run.path} has no tokenizer, so its model reads token files alone; give --data FILE.bin, or put its tokenizer.json into the run"
        )
    how = dict(tokenizer=run.tokenizer or "byte", documents=documents or train.documents, threads=threads)
    if data:
        return load_corpus(data, limit_bytes=limit_bytes, whole="validation", **how).train
    return load_corpus(train.data, train.val_data, limit_bytes=limit_bytes or train.limit_bytes, **how).validation


def parser():
    p = flags.Parser(
        prog="slm-np evaluate",
        description="The loss of a model on a whole text: nats per token, bits per byte of the text, and perplexity.",
    )
    group = p.add_argument_group("text")
    group.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="files, folders, globs, the name of a corpus or a folder of prepared tokens, of which the validation part "
        "is read if there is one (default: the validation data of the run)",
    )
    group.add_argument(
        "--stride",
        default="0",
        metavar="INT",
        help="tokens from one window to the next; a small stride gives more tokens a full context and takes longer; "
        "it has no effect on conversations (default: half a context)",
    )
    group.add_argument(
        "--documents",
        choices=TrainConfig.__dataclass_fields__["documents"].metadata["choices"],
        help="what separates documents: a line <|endoftext|>, or a blank line (default: as in training)",
    )
    group.add_argument(
        "--limit-bytes",
        default="0",
        metavar="INT",
        help="use this much of the text, to the end of a document; 0 uses all (default: 0)",
    )
    group = p.add_argument_group("run")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    add_run(group)
    return p


@command
def main(argv=None):
    """Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)
    stride = flags.whole_number(args.stride, "--stride", 0)
    limit = flags.whole_number(args.limit_bytes, "--limit-bytes", 0)
    run, data = load_run(args), ",".join(args.data)
    tokens = tokens_of(run, data, args.documents, limit, int(args.threads))
    data = data or f"the validation part of {run.config.data['source']}"
    begun = time.perf_counter()
    found = evaluate(run.model, tokens, run.tokenizer, stride, quiet=False)
    fields = report(run, data, tokens, found, stride, time.perf_counter() - begun)
    if args.json:
        print(json.dumps(fields))
    else:
        print(describe_text(fields), file=sys.stderr)
        print(describe_loss(fields))


def report(run, data, tokens, found, stride, seconds):
    """The fields that --json prints."""
    context = run.model.config.block_size
    masked = tokens.mask is not None
    return dict(
        model=str(run.path),
        step=run.step,
        data=data,
        documents=tokens.n_documents,
        tokens=found.tokens,
        bytes=None if found.bytes is None else round(found.bytes),
        context=context,
        stride=None if masked else stride or max(1, min(context, len(tokens)) // 2),
        nats_per_token=found.nats_per_token,
        bits_per_byte=found.bits_per_byte,
        perplexity=found.perplexity,
        bits_per_byte_floor=tokens.bits_per_byte_floor,
        answers_only=masked,
        seconds=round(seconds, 3),
    )


def describe_text(fields):
    """The line about the model and its text."""
    n = fields["documents"]
    counts = [f"{fields['bytes']:,} bytes"] if fields["bytes"] else []
    counts += [f"{n:,} document{'s' * (n != 1)}"] if n else []
    counts += [f"{fields['tokens']:,} {'assistant ' * fields['answers_only']}tokens", f"context {fields['context']}"]
    counts += [f"stride {fields['stride']}"] if fields["stride"] else []
    return f"{fields['model']}, weights of step {fields['step']}, on {fields['data']}: {', '.join(counts)}"


def describe_loss(fields):
    """The line about the loss."""
    bits, floor = fields["bits_per_byte"], fields["bits_per_byte_floor"]
    return (
        f"{fields['nats_per_token']:.4f} nats/token, "
        + (f"{bits:.4f} bits/byte, " if bits is not None else "")
        + f"perplexity {fields['perplexity']:,.3f}"
        + (f" (floor {floor:.4f} bits/byte)" if floor else "")
    )


if __name__ == "__main__":
    main()

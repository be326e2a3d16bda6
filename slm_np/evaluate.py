"""Measure the loss of a model on a whole text: `python -m slm_np.evaluate --model MODEL --data TEXT`."""

import json
import sys
import time

from slm_np.cli import flags
from slm_np.cli.loading import add_run, load_run
from slm_np.config import TrainConfig, check_documents
from slm_np.errors import UserError, command
from slm_np.words import counted


def parser():
    p = flags.Parser(
        prog="slm-np evaluate",
        description="The loss of a model on a whole text: nats per token, bits per byte of the text, and perplexity.",
    )
    group = p.add_argument_group("text")
    group.add_argument(
        "--data",
        action="extend",
        nargs="+",
        type=flags.path,
        default=[],
        metavar="TEXT",
        help="files, folders, globs, the name of a corpus or a folder of prepared tokens: its validation split if it "
        "has one (default: the validation data of the run)",
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
        metavar="TEXT",
        help="what separates documents: marker (<|endoftext|>), blank-line, or line (each line is one); csv:COLUMN "
        "reads a column of CSV or Parquet files (default: as in training)",
    )
    group.add_argument(
        "--binary",
        action="store_true",
        help="read all files byte by byte as they are, and accept binary ones (default: as in training)",
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


@command(prints_result=True)
def main(argv=None):
    """Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)

    from slm_np.inference.evaluation import evaluate, tokens_of

    stride = flags.whole_number(args.stride, "--stride", 0)
    limit = flags.whole_number(args.limit_bytes, "--limit-bytes", 0)
    if args.documents:
        check_documents(args.documents)
    run, data = load_run(args), flags.joined(TrainConfig.__dataclass_fields__["data"], args.data)
    tokens = tokens_of(run, data, args.documents, limit, int(args.threads), args.binary)
    if stride and tokens.mask is not None:
        raise UserError(
            f"--stride {stride} has no effect on conversations, since each window starts with a document; leave it out"
        )
    data = data or run.config.train.val_data or f"the validation split of {run.config.data['source']}"
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
        step=None if "converted" in run.config.data else run.step,
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
    counts = [counted(fields["bytes"], "byte")] if fields["bytes"] else []
    counts += [counted(n, "document")] if n else []
    counts += [
        counted(fields["tokens"], "assistant " * fields["answers_only"] + "token"),
        f"context {fields['context']}",
    ]
    counts += [f"stride {fields['stride']}"] if fields["stride"] else []
    step = f", weights of step {fields['step']}" if fields["step"] is not None else ""
    return f"{fields['model']}{step}, on {fields['data']}: {', '.join(counts)}"


def describe_loss(fields):
    """The line about the loss."""
    bits, floor = fields["bits_per_byte"], fields["bits_per_byte_floor"]
    return (
        f"{fields['nats_per_token']:.4f} nats/token, "
        + (f"{bits:.4f} bits/byte, " if bits is not None else "")
        + f"perplexity {fields['perplexity']:,.3f}"
        + (f" (floor {floor:.4f} bits/byte)" if floor and bits is not None else "")
    )


if __name__ == "__main__":
    main()

"""The loss of a model over a whole text: `python -m slm_np.evaluate --model RUN --data TEXT`."""

import json
import sys
import time

from slm_np.cli import flags
from slm_np.errors import exit_with_sentence


def report(run, data, tokens, found, stride, seconds):
    """What --json prints."""
    return dict(
        model=str(run.path),
        step=run.step,
        data=data,
        documents=tokens.n_documents,
        tokens=found.tokens,
        bytes=None if found.bytes is None else round(found.bytes),
        context=run.model.config.block_size,
        stride=stride,
        nats_per_token=found.nats_per_token,
        bits_per_byte=found.bits_per_byte,
        perplexity=found.perplexity,
        bits_per_byte_floor=tokens.bits_per_byte_floor,
        answers_only=tokens.mask is not None,
        seconds=round(seconds, 3),
    )


def parser(prog="slm-np evaluate"):
    from slm_np.data.documents import DOCUMENTS

    p = flags.Parser(
        prog=prog,
        description="The loss of a model over a whole text: nats per token, bits per byte of the text, perplexity.",
    )
    p.add_argument("--model", metavar="RUN", help="directory of a run (default: the newest in runs/)")
    p.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="files, folders, globs, or the name of a corpus or a folder of prepared tokens, of which the validation part is taken if there is one (default: what the run validates with)",
    )
    p.add_argument(
        "--stride",
        default="0",
        metavar="INT",
        help="tokens from one window to the next; small ones give more of them a full context and take longer; where only answers count it changes nothing (default: half a context)",
    )
    p.add_argument(
        "--documents",
        choices=DOCUMENTS,
        help="what stands between documents: a line <|endoftext|>, or a blank line (default: as the run was trained)",
    )
    p.add_argument(
        "--limit-bytes",
        default="0",
        metavar="INT",
        help="take this much of the text, to the end of a document; 0 takes all (default: 0)",
    )
    p.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    p.add_argument(
        "--threads",
        default="0",
        metavar="INT",
        help="threads, and processes to tokenise a text with; 0 means one per core (default: 0)",
    )
    flags.add_device(p)
    return p


@exit_with_sentence
def main(argv=None):
    """The command."""
    from slm_np.generate import count

    args = parser().parse(argv)
    stride, limit, threads = (
        count(getattr(args, name), flags.flag(name), 0) for name in ("stride", "limit_bytes", "threads")
    )
    from slm_np.formats.runs import load, newest_run
    from slm_np.inference.evaluation import evaluate, tokens_of
    from slm_np.ops.device import device

    device(args.device).use_threads(threads)
    run = load(args.model or newest_run(), args.device)
    data, context = ",".join(args.data), run.model.config.block_size
    tokens = tokens_of(run, data, args.documents, limit, threads)
    data, begun = data or f"the validation part of {run.config.data['source']}", time.perf_counter()
    found = evaluate(run.model, tokens, run.tokenizer, stride, quiet=False)
    stride = (
        None if tokens.mask is not None else stride or max(1, min(context, len(tokens)) // 2)
    )  # windows of answers have none
    fields = report(run, data, tokens, found, stride, time.perf_counter() - begun)
    if args.json:
        print(json.dumps(fields))
        return
    size = f"{fields['bytes']:,} bytes, " if fields["bytes"] else ""
    documents = f"{tokens.n_documents:,} document{'s' * (tokens.n_documents != 1)}, " if tokens.n_documents else ""
    print(
        f"{run.path}, weights of step {run.step}, on {data}: {size}{documents}{found.tokens:,} tokens{' of answers' * fields['answers_only']}, "
        f"context {context}" + (f", stride {stride}" if stride else ""),
        file=sys.stderr,
    )
    bits, floor = found.bits_per_byte, tokens.bits_per_byte_floor
    print(
        f"{found.nats_per_token:.4f} nats/token, "
        + (f"{bits:.4f} bits/byte, " if bits is not None else "")
        + f"perplexity {found.perplexity:,.3f}"
        + (f" (floor {floor:.4f} bits/byte)" if floor else "")
    )


if __name__ == "__main__":
    main()

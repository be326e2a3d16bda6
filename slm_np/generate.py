"""Continue a prompt with a trained model: `python -m slm_np.generate --model MODEL --prompt TEXT`."""

import sys

from slm_np.cli import flags
from slm_np.cli.loading import described
from slm_np.cli.text_output import Screen, add_writing, load_writer
from slm_np.errors import command


def parser():
    p = flags.Parser(
        prog="slm-np generate",
        description="Continue a prompt with a trained model. The text is printed while it is generated. "
        "The run has its own defaults of the sampling flags.",
    )
    group = p.add_argument_group("text")
    group.add_argument(
        "-p",
        "--prompt",
        default="",
        metavar="TEXT",
        help="text to continue, as it is; - reads it from standard input, with its line ends",
    )
    group.add_argument("--num-samples", default="1", metavar="INT", help="number of continuations (default: 1)")
    add_writing(p, group)
    return p


@command(prints_result=True)
def main(argv=None):
    """Exit status: 0 done, 2 bad input.

    Several samples are generated as one batch. The first is printed as it is generated, the others at the end.
    """
    args = parser().parse(argv)
    samples = flags.whole_number(args.num_samples, "--num-samples", 1)
    run, sampling, max_tokens, stops = load_writer(args)
    from slm_np.inference.generation import cut, encode_prompt, generate, unread

    # Bytes of standard input that are not UTF-8 reach the model unchanged.
    prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if args.prompt == "-" else args.prompt
    screen, ids, others = Screen(args.show_confidence), encode_prompt(run.tokenizer, prompt), []
    chunks = generate(run.model, run.tokenizer, ids, max_tokens, sampling, stops, samples, screen.style)
    notes = [described(run), cut(run.model, ids), unread(run.tokenizer, prompt)]
    print("\n".join(filter(None, notes)), file=sys.stderr)
    screen.write(prompt)
    for first, *rest in chunks:
        screen.write(first, screen.style is not None)
        others.append(rest)
    for text in map("".join, zip(*others)):
        screen.write("\n" + "-" * 20 + "\n" + prompt)
        screen.write(text, screen.style is not None)
    screen.write("\n")


if __name__ == "__main__":
    main()

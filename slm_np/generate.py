"""Continue a prompt with a trained model: `python -m slm_np.generate --model RUN --prompt TEXT`."""

import dataclasses
import os
import sys

from slm_np.cli import flags
from slm_np.errors import UserError, exit_with_sentence

COLOURS = (
    (0.1, 31),
    (0.5, 33),
    (1.1, 32),
)  # a token less probable than this is shown in this ANSI colour: red, yellow, green


def parser(prog="slm-np generate"):
    p = flags.Parser(
        prog=prog,
        description="Continue a prompt with a trained model; the text is printed as it is made. "
        "Defaults of the sampling flags are the run's own.",
    )
    group = p.add_argument_group("what")
    group.add_argument(
        "-p", "--prompt", default="", metavar="TEXT", help="text to continue; - reads it from standard input"
    )
    group.add_argument("--num-samples", default="1", metavar="INT", help="how many texts to make (default: 1)")
    add_writing(p, group)
    return p


def add_writing(parser, group):
    """The flags of every command in which a run writes: which run, how much, where it ends, how it samples."""
    from slm_np.config import SamplingConfig

    group.add_argument("--model", metavar="RUN", help="directory of a run (default: the newest in runs/)")
    group.add_argument(
        "--max-tokens",
        "--max-new-tokens",
        "-n",
        default="200",
        metavar="INT",
        help="most tokens to make (default: 200)",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end where this text would appear; may be given several times",
    )
    group.add_argument(
        "--show-confidence",
        action="store_true",
        help="in a terminal, colour each token by its probability: red below 0.1, yellow below 0.5, green above",
    )
    group.add_argument("--threads", default="0", metavar="INT", help="threads; 0 means one per core (default: 0)")
    flags.add_device(group)
    flags.add_settings(parser, SamplingConfig, "sampling", aliases={"temp": "--temperature"})


def opened(args):
    """(run, its sampling with the flags' changes, --max-tokens) of flags that `add_writing` added. Bad values are refused before the model is loaded."""
    from slm_np.config import SamplingConfig

    changes = flags.given(args, SamplingConfig)
    max_tokens, threads = count(args.max_tokens, "--max-tokens", 0), count(args.threads, "--threads", 0)
    SamplingConfig(**changes)
    from slm_np.formats.runs import load, newest_run
    from slm_np.ops.device import device

    device(args.device).use_threads(threads)
    run = load(args.model or newest_run(), args.device)
    return run, dataclasses.replace(run.sampling, **changes), max_tokens


def count(text, flag, low):
    """A whole number of at least `low`. UserError otherwise."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise UserError(f"{flag} {text!r} must be a whole number of at least {low}")
    return value


class Screen:
    """Standard output for what a model writes: always UTF-8, on a terminal nothing that would disturb it, and there, where asked for, colours.

    `style` is what `generation.generate` takes: None without colours. They stay off where NO_COLOR is set or the terminal has none.
    """

    def __init__(self, show_confidence=False):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        self.terminal, known = (
            sys.stdout.isatty(),
            os.environ.get("TERM", "") or os.environ.get("WT_SESSION", ""),
        )  # Windows' old console has neither
        colours = show_confidence and self.terminal and not os.environ.get("NO_COLOR") and known not in ("", "dumb")
        self.style = painted if colours else None

    def write(self, text):
        from slm_np.inference.generation import printable

        print(printable(text) if self.terminal and self.style is None else text, end="", flush=True)


def painted(text, probability):
    """The text in the colour of its probability; spaces at its ends stay as they are."""
    from slm_np.inference.generation import printable

    body, colour = text.strip(), next(colour for limit, colour in COLOURS if probability < limit)
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}\033[{colour}m{printable(body)}\033[0m{after}" if body else text


@exit_with_sentence
def main(argv=None):
    """The command. Several samples are made in one batch; the first is printed as it is made, the others when it is over."""
    args = parser().parse(argv)
    samples = count(args.num_samples, "--num-samples", 1)
    run, sampling, max_tokens = opened(args)
    from slm_np.inference.generation import cut, encode_prompt, generate

    # Piped text is read as bytes: what is not UTF-8 goes through as it came.
    prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if args.prompt == "-" else args.prompt
    screen, ids, others = Screen(args.show_confidence), encode_prompt(run.tokenizer, prompt), []
    texts = generate(run.model, run.tokenizer, ids, max_tokens, sampling, args.stop, samples, screen.style)
    print("\n".join(filter(None, [f"{run.path}, weights of step {run.step}", cut(run.model, ids)])), file=sys.stderr)
    print(prompt, end="", flush=True)
    for first, *rest in texts:
        screen.write(first)
        others.append(rest)
    for text in map("".join, zip(*others)):
        print("\n" + "-" * 20 + "\n" + prompt, end="")
        screen.write(text)
    print()


if __name__ == "__main__":
    main()

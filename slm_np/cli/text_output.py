"""What `generate` and `chat` share: the flags of a command that writes text, and the screen it writes to."""

import dataclasses
import os
import sys

from slm_np.cli import flags
from slm_np.cli.loading import add_run, load_run
from slm_np.config import SamplingConfig, check_effect

# (limit, ANSI color): a token less probable than the limit is shown in this color: red, yellow, green.
COLORS = ((0.1, 31), (0.5, 33), (1.1, 32))


def add_writing(parser, group):
    """Add the flags of a command that writes text: how much text, to `group`, which run, and how to sample."""
    group.add_argument(
        "--max-tokens",
        "--max-new-tokens",
        "-n",
        default="200",
        metavar="INT",
        help="number of tokens to generate at most (default: 200)",
    )
    group.add_argument(
        "--stop",
        action="append",
        type=flags.word,
        default=[],
        metavar="TEXT",
        help="stop before this text appears; may be given several times",
    )
    group.add_argument(
        "--show-confidence",
        action="store_true",
        help="in a terminal, color each token by its probability: red below 0.1, yellow below 0.5, green above",
    )
    add_run(parser.add_argument_group("run"))
    flags.add_settings(parser, SamplingConfig, "sampling", aliases={"temp": "--temperature"})


def load_writer(args):
    """(run, its sampling defaults with the given changes, --max-tokens) of the flags of `add_writing`.

    Bad values are refused before the model is loaded.
    """
    changes = flags.given(args, SamplingConfig)
    max_tokens = flags.whole_number(args.max_tokens, "--max-tokens", 0)
    SamplingConfig(**changes)
    run = load_run(args)
    sampling = dataclasses.replace(run.sampling, **changes)
    check_effect(sampling, changes)
    return run, sampling, max_tokens


class Screen:
    """Standard output for the text of a model: UTF-8, and in a terminal only printable characters, in color if wanted.

    `style` is a function (text, probability) -> text for `inference.generation.generate`, or None without colors. There
    are none outside of a terminal, if NO_COLOR is set, or if the terminal does not support them.
    """

    def __init__(self, show_confidence=False):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        self.terminal = sys.stdout.isatty()
        name = os.environ.get("TERM") or os.environ.get("WT_SESSION", "")  # the old console of Windows sets neither
        colors = show_confidence and self.terminal and not os.environ.get("NO_COLOR") and name not in ("", "dumb")
        self.style = color if colors else None

    def write(self, text):
        """Print text. In a terminal, control characters are replaced; `style` has done so already."""
        from slm_np.inference.generation import printable

        print(printable(text) if self.terminal and self.style is None else text, end="", flush=True)


def color(text, probability):
    """The text in the color of its probability. White space at its ends gets none."""
    from slm_np.inference.generation import printable

    body, number = text.strip(), next(number for limit, number in COLORS if probability < limit)
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}\033[{number}m{printable(body)}\033[0m{after}" if body else text

"""What `generate` and `chat` share: the flags of a command that writes text, and the screen it writes to."""

import dataclasses
import io
import os
import re
import sys

from slm_np.cli import flags
from slm_np.cli.loading import add_run, load_run
from slm_np.config import SamplingConfig, check_effect
from slm_np.errors import UserError

# (limit, ANSI color): a token less probable than the limit is shown in this color: red, yellow, green.
COLORS = ((0.1, 31), (0.5, 33), (1.1, 32))
HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of surrogate pairs, except those that stand for a byte


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
        default=[],
        metavar="TEXT",
        help=r"stop before this text appears; \n is a line end, \t a tab, \\ a backslash; may be given several times",
    )
    group.add_argument(
        "--show-confidence",
        action="store_true",
        help="in a terminal, color each token by its probability: red below 0.1, yellow below 0.5, green above",
    )
    add_run(parser.add_argument_group("run"))
    flags.add_settings(parser, SamplingConfig, "sampling", aliases={"temp": "--temperature"})


def load_writer(args):
    """The values of the flags of `add_writing`: (run, its SamplingConfig with the changes, --max-tokens, stop texts).

    Bad values are refused before the model is loaded.
    """
    changes = flags.given(args, SamplingConfig)
    max_tokens = flags.whole_number(args.max_tokens, "--max-tokens", 0)
    SamplingConfig(**changes)
    stops = [unescaped(stop) for stop in args.stop]
    if "" in stops:
        raise UserError("--stop '' is empty; give the text to stop before, or leave the flag out")
    run = load_run(args)
    sampling = dataclasses.replace(run.sampling, **changes)
    check_effect(sampling, changes)
    return run, sampling, max_tokens, stops


def unescaped(text):
    r"""The text with \n, \r, \t and \\ replaced by what they stand for. Other backslashes stay."""
    return re.sub(r"\\([nrt\\])", lambda escape: {"n": "\n", "r": "\r", "t": "\t"}.get(escape[1], "\\"), text)


class Screen:
    """Standard output for text, of the model and of the prompt.

    A file or a pipe gets its bytes as UTF-8, unchanged. A terminal gets what is `printable`, in color if wanted.
    `style` is a function (text, probability) -> text for `inference.generation.generate`, or None without colors. There
    are none outside of a terminal, if NO_COLOR is set, or if the terminal does not support them.
    """

    def __init__(self, show_confidence=False):
        self.line_ends = io.IncrementalNewlineDecoder(None, translate=True)  # \r and \n may come in two calls
        self.terminal = sys.stdout.isatty()
        name = os.environ.get("TERM") or os.environ.get("WT_SESSION", "")  # the old console of Windows sets neither
        colors = show_confidence and self.terminal and not os.environ.get("NO_COLOR") and name not in ("", "dumb")
        self.style = color if colors else None

    def write(self, text, styled=False):
        """Print text at once. styled: `style` was applied, so its control characters are colors."""
        if self.terminal:
            text = self.line_ends.decode(text)
            print(text if styled else without_controls(text), end="", flush=True)
        elif hasattr(sys.stdout, "buffer"):  # not through the text layer, which has another encoding or line ends
            sys.stdout.flush()
            sys.stdout.buffer.write(as_bytes(text))
            sys.stdout.buffer.flush()
        else:  # in a notebook
            print(as_bytes(text).decode("utf-8", "replace"), end="", flush=True)


def as_bytes(text):
    """UTF-8. Bytes that were not UTF-8 when they were read, as in a prompt, become themselves again."""
    return HALVES.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def without_controls(text):
    """The text with `CONTROLS` replaced by U+FFFD."""
    from slm_np.inference.generation import CONTROLS

    return CONTROLS.sub("\ufffd", text)


def color(text, probability):
    """The text in the color of its probability, without control characters. White space at its ends gets no color."""
    text, number = without_controls(text), next(number for limit, number in COLORS if probability < limit)
    body = text.strip()
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}\033[{number}m{body}\033[0m{after}" if body else text

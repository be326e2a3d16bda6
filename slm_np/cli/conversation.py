"""A conversation with a run: messages, answers and commands, in a terminal or through a pipe."""

import contextlib
import json
import os
import sys
from difflib import get_close_matches
from pathlib import Path

from slm_np.cli.text_output import Screen
from slm_np.errors import UserError, near

COMMANDS = {
    "reset": "forget the conversation and start another",
    "help": "show this list",
    "system": "/system TEXT sets the system message, /system removes it",
    "save": "/save FILE writes the conversation as JSONL for finetune (default: chat.jsonl)",
    "exit": "leave; Ctrl-D leaves too, and so does Ctrl-C twice at the prompt",
}
WITH_TEXT = ("system", "save")
# Other names of the commands, which also work without the slash.
SHORT = {
    "r": "reset",
    "clear": "reset",
    "h": "help",
    "q": "exit",
    "quit": "exit",
    "exit": "exit",
}


def list_commands():
    """The commands, one per line, and how to send a message that looks like one."""
    lines = [f"  /{name:<8}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "Any other line is a message, and so is one that starts with a space."])


def is_command(line):
    """Whether a line is `/NAME` or `/NAME TEXT`. Any other line is a message, such as one that starts with a path.

    A name that is similar counts too if it is alone or the command takes a text, so that a typo is reported.
    """
    if line.rstrip() in SHORT or line.rstrip() == "/":
        return True
    word, *text = line.removeprefix("/").split(None, 1)
    names = [*COMMANDS, *(name for name in SHORT if len(name) > 1)]
    if not line.startswith("/") or "/" in word:
        return False
    if text:
        return word in names or bool(get_close_matches(word, WITH_TEXT, cutoff=0.8))
    return word in SHORT or bool(get_close_matches(word, names, cutoff=0.6))


def say(text):
    """Print a line of the program, on stderr; what the model writes goes to stdout."""
    print(text, file=sys.stderr, flush=True)


class Conversation:
    """Messages to and from a run. `read(line)` handles a line of the user.

    run         a `formats.runs.Run`; it answers if it has a chat template, and continues each message otherwise
    sampling    the SamplingConfig
    max_tokens  tokens in an answer at most
    stops       texts at which an answer stops
    screen      where answers are written
    system      the system message
    Raises UserError for a run without a tokenizer, or a system message for a run without a template.
    """

    def __init__(self, run, sampling, max_tokens, stops=(), screen=None, system=""):
        from slm_np.inference.generation import encode_prompt

        encode_prompt(run.tokenizer, "")  # raises UserError without a tokenizer
        self.run, self.sampling, self.max_tokens, self.screen = run, sampling, max_tokens, screen or Screen()
        self.template = run.template
        self.stops = [*stops, *(self.template.stops(run.tokenizer) if self.template else ())]
        self.ends = self.template.ends(run.tokenizer) if self.template else []
        self.answers = 0  # each has its own random numbers, so that a repeated message can get another answer
        self.written = set()  # files that /save may overwrite
        self.system = ""
        self.reset()
        if system:
            self.set_system(system)

    def reset(self):
        """Forget all messages but the system message."""
        self.messages = []
        self.start = 0  # index of the oldest message that the model still reads
        self.overflow_told = False

    def set_system(self, text):
        """Set the system message. Raises UserError for a run without a template."""
        if self.template is None:
            raise UserError(
                "this model has no chat template, so it takes no system message; put it into the message itself"
            )
        self.system = text.strip()

    def prompt(self):
        """Ids (n,) of what the model reads: with a template the conversation, else the last message.

        The oldest messages are left out when the context would not have room for an answer.
        """
        from slm_np.inference.generation import cut, encode_prompt, unread

        if self.template is None:
            ids = encode_prompt(self.run.tokenizer, self.messages[-1]["content"])
        else:
            size = self.run.model.config.block_size
            reserved = min(self.max_tokens, size // 4)
            while True:
                messages = self._system_messages() + self.messages[self.start :]
                ids = encode_prompt(self.run.tokenizer, self.template.prompt(messages, self.run.tokenizer))
                if len(ids) <= size - reserved or self.start == len(self.messages) - 1:
                    break
                self.start += 2
            if self.start and not self.overflow_told:
                self.overflow_told = True
                say(f"the context of {size:,} tokens is full: from here on the oldest messages are left out")
        message = self.messages[-1]["content"]
        for warning in (cut(self.run.model, ids, "the message"), unread(self.run.tokenizer, message, "the message")):
            if warning:
                say(warning)
        return ids

    def _system_messages(self):
        return [dict(role="system", content=self.system)] if self.system else []

    def answer(self, text):
        """Write the model's answer to `text` while it is generated. Returns whether Ctrl-C stopped it.

        Raises UserError if the tokenizer cannot express the text.
        """
        from slm_np.inference.generation import generate

        self.messages.append(dict(role="user", content=text))
        shown, held, interrupted, style = [], "", False, self.screen.style

        def record(chunk, probability):
            shown.append(chunk)  # without its color
            return style(chunk, probability) if style else chunk

        try:
            chunks = generate(
                self.run.model,
                self.run.tokenizer,
                self.prompt(),
                self.max_tokens,
                self.sampling,
                self.stops,
                style=record,
                substream=self.answers,
                ends=self.ends,
            )
            self.answers += 1
            begun = self.template is None
            for (chunk,) in chunks:
                if self.template:  # which adds the white space around an answer
                    chunk = held + chunk if begun else chunk.lstrip()
                    chunk, held = chunk[: len(chunk.rstrip())], chunk[len(chunk.rstrip()) :]
                begun = begun or chunk != ""
                self.screen.write(chunk, style is not None)
        except KeyboardInterrupt:
            interrupted = True
            if not sys.stdin.isatty():
                raise
        finally:
            reply = "".join(shown).strip() if self.template else "".join(shown)
            if reply.strip():
                self.messages.append(dict(role="assistant", content=reply))
            else:
                self.messages.pop()
        self.screen.write("\n")
        if interrupted:
            say("stopped")
        elif not reply.strip():
            say("the model's answer is empty")
        return interrupted

    def save(self, name):
        """Write the conversation as one row of JSONL. Raises UserError if the file exists or cannot be written."""
        from slm_np.formats.files import write_bytes

        path = Path(os.path.expanduser(name or "chat.jsonl"))
        if not self.messages:
            raise UserError("there is no conversation to save yet; write a message first")
        if path.exists() and path.resolve() not in self.written:
            raise UserError(f"{path} already exists; give /save another name")
        row = json.dumps(dict(messages=self._system_messages() + self.messages), ensure_ascii=False) + "\n"
        try:
            path.parent.stat()  # is there: the file's folder is not created
            write_bytes(path, row.encode("utf-8", "surrogateescape"))
        except (OSError, ValueError) as error:  # ValueError: a character that no path may contain
            raise UserError(
                f"{str(path)!r} cannot be written ({getattr(error, 'strerror', error)}); give /save another name"
            ) from None
        self.written.add(path.resolve())
        say(f"saved as {path}")

    def command(self, line):
        """Execute the line `/NAME TEXT`. Returns whether the conversation continues.

        Raises UserError for an unknown command, and if a command fails.
        """
        name, *text = line.strip().removeprefix("/").split(None, 1) or [""]
        name, text = SHORT.get(name, name), "".join(text)
        if name not in COMMANDS:
            raise UserError(f"the command '/{name}' is unknown; {near(name, list(COMMANDS), '/')}")
        if text and name not in WITH_TEXT:
            raise UserError(f"/{name} takes no text; leave it out, or start the line with a space to send it")
        if name == "reset":
            self.reset()
            say("new conversation")
        elif name == "help":
            say(list_commands())
        elif name == "system":
            self.set_system(text)
            say("system message set" if text else "system message removed")
        elif name == "save":
            self.save(text)
        return name != "exit"

    def read(self, line):
        """Handle a line of the user, a message or a command.

        Returns (whether the conversation continues, whether Ctrl-C stopped the answer).
        """
        if not line.strip():
            return True, False
        return (self.command(line), False) if is_command(line) else (True, self.answer(line))


def talk_in_terminal(chat):
    """Read lines from a terminal until the user leaves. An error is printed, and the conversation continues."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` line editing; the console of Windows has its own
    interrupted, going = False, True
    while going:
        try:
            line = input("\n> " if sys.stdout.isatty() else "")
            going, interrupted = chat.read(line)
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            if interrupted:
                say("")
                return
            interrupted = True
            say("\nCtrl-C again, Ctrl-D or /exit leaves")
        except UnicodeDecodeError:
            say("slm_np: the line is not UTF-8; set the terminal to UTF-8 and type it again")
        except UserError as error:
            say(f"slm_np: {error}")


def talk_through_pipe(chat, lines):
    """Read an iterable of lines (bytes). Raises UserError at the first line that cannot be handled."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"line {number} of standard input is not UTF-8; convert it") from None
        if not chat.read(text)[0]:
            return

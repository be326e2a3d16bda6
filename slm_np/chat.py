"""Talk with a trained model in a terminal or through a pipe: `python -m slm_np.chat --model RUN`."""

import contextlib
import json
import os
import sys
from pathlib import Path

from slm_np.cli import flags
from slm_np.errors import UserError, exit_with_sentence, near
from slm_np.generate import Screen, add_writing, opened

COMMANDS = {
    "reset": "forget the conversation and begin another",
    "help": "this list",
    "system": "/system TEXT: what the model is told before the conversation; without TEXT nothing",
    "save": "/save FILE: write the conversation as JSONL that finetune takes (default: chat.jsonl)",
    "exit": "leave; so do Ctrl-D and Ctrl-C at the prompt, twice",
}
SHORT = {
    "r": "reset",
    "clear": "reset",
    "h": "help",
    "q": "exit",
    "quit": "exit",
    "exit": "exit",
}  # with or without the slash


def parser(prog="slm-np chat"):
    p = flags.Parser(
        prog=prog,
        description="Talk with a trained model: interactively, or from a pipe with one message per line. A run that was finetuned on conversations "
        "answers; any other continues the text. Defaults of the sampling flags are the run's own.",
        epilog="commands:\n" + listed(),
    )
    group = p.add_argument_group("what")
    group.add_argument("--system", default="", metavar="TEXT", help="what the model is told before the conversation")
    add_writing(p, group)
    return p


def listed():
    """The commands, one per line."""
    return "\n".join(f"  /{name:<8}{text}" for name, text in COMMANDS.items())


def say(text):
    """A line of the program's own, apart from what the model writes."""
    print(text, file=sys.stderr, flush=True)


class Chat:
    """A conversation with a run. `answer(text)` writes the model's reply, `command(line)` does what a line with a slash asks for."""

    def __init__(self, run, sampling, max_tokens, stops=(), screen=None, system=""):
        from slm_np.data.chat_template import load

        self.run, self.sampling, self.max_tokens, self.screen = run, sampling, max_tokens, screen or Screen()
        self.template = load(run.path)
        self.stops = [*stops, *(self.template.stops(run.tokenizer.end_of_text) if self.template else ())]
        self.turns = 0  # each turn draws from a stream of its own, or the same message would always get the same reply
        self.written = set()  # files that /save may write again
        self.system = ""
        self.reset()
        if system:
            self.instruct(system)

    def reset(self):
        self.messages, self.first, self.told = [], 0, False  # `first`: the oldest message that still fits the context

    def instruct(self, text):
        """Set the system's message. UserError for a run that knows none."""
        if self.template is None:
            raise UserError(
                "this run has no chat template, so it cannot be given a system message; write it into the text itself"
            )
        self.system = text.strip()

    def prompt(self):
        """Ids of what the model reads: the conversation, of which the oldest turns go where the answer would not fit; or the last message alone."""
        from slm_np.inference.generation import cut, encode_prompt

        if self.template is None:
            ids = encode_prompt(self.run.tokenizer, self.messages[-1]["content"])
        else:
            size = self.run.model.config.block_size
            room, system = (
                min(self.max_tokens, size // 4),
                [dict(role="system", content=self.system)] if self.system else [],
            )
            while True:
                ids = encode_prompt(self.run.tokenizer, self.template.prompt(system + self.messages[self.first :]))
                if len(ids) <= size - room or self.first == len(self.messages) - 1:
                    break
                self.first += 2
            if self.first and not self.told:
                self.told = True
                say(f"the context of {size:,} tokens is full: from here on the oldest turns are left out")
        if sentence := cut(self.run.model, ids, "the message"):
            say(sentence)
        return ids

    def answer(self, text):
        """Write the model's reply to `text` as it is made. Returns whether Ctrl-C cut it short; UserError if the text cannot be read."""
        from slm_np.inference.generation import generate

        self.messages.append(dict(role="user", content=text))
        shown, held, interrupted, style = [], "", False, self.screen.style

        def noted(piece, probability):  # the conversation goes on without the colours
            shown.append(piece)
            return style(piece, probability) if style else piece

        try:
            pieces = generate(
                self.run.model,
                self.run.tokenizer,
                self.prompt(),
                self.max_tokens,
                self.sampling,
                self.stops,
                style=noted,
                stream=self.turns,
            )
            self.turns += 1
            begun = self.template is None
            for (piece,) in pieces:
                if self.template:  # spaces around an answer are the template's
                    piece = held + piece if begun else piece.lstrip()
                    piece, held = piece[: len(piece.rstrip())], piece[len(piece.rstrip()) :]
                begun = begun or piece != ""
                self.screen.write(piece)
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
        print(flush=True)
        if interrupted:
            say("stopped")
        elif not reply.strip():
            say("the model has nothing to say to that")
        return interrupted

    def save(self, name):
        path = Path(os.path.expanduser(name or "chat.jsonl"))
        if not self.messages:
            raise UserError("there is no conversation to save yet; say something first")
        if path.exists() and path.resolve() not in self.written:
            raise UserError(f"{path} is already there; give /save another name")
        messages = [dict(role="system", content=self.system)] * bool(self.system) + self.messages
        try:
            path.write_text(
                json.dumps(dict(messages=messages), ensure_ascii=False) + "\n",
                encoding="utf-8",
                errors="surrogateescape",
            )
        except (OSError, ValueError) as error:  # ValueError: a character that no path may have
            raise UserError(
                f"{str(path)!r} cannot be written ({getattr(error, 'strerror', error)}); give /save another name"
            ) from None
        self.written.add(path.resolve())
        say(f"saved as {path}")

    def command(self, line):
        """Do what the line `/NAME TEXT` asks for. Returns whether the conversation goes on; UserError for an unknown command."""
        name, _, text = line.strip().removeprefix("/").partition(" ")
        name, text = SHORT.get(name, name), text.strip()
        if name not in COMMANDS:
            raise UserError(f"the command '/{name}' is unknown; {near(name, list(COMMANDS), '/')}")
        if name == "reset":
            self.reset()
            say("a new conversation")
        elif name == "help":
            say(listed())
        elif name == "system":
            self.instruct(text)
            say("the system message is set" if text else "there is no system message")
        elif name == "save":
            self.save(text)
        return name != "exit"

    def read(self, line):
        """Deal with one line, a message or a command. Returns (whether the conversation goes on, whether Ctrl-C cut the answer short)."""
        if line.startswith("/") or line.strip() in SHORT:
            return self.command(line), False
        return True, bool(line.strip()) and self.answer(line)


def talk(chat):
    """The conversation in a terminal. What cannot be done is said, and it goes on."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` its line editing; Windows' console has its own
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
            say("\nCtrl-C once more, Ctrl-D or /exit leaves")
        except UnicodeDecodeError:
            say("slm_np: that was not UTF-8; set the terminal to it and type it again")
        except UserError as error:
            say(f"slm_np: {error}")


def pipe(chat, lines):
    """The conversation of the lines (bytes): answers go to standard output, the first error ends it."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"line {number} of standard input is not UTF-8; convert it") from None
        if not chat.read(text)[0]:
            return


@exit_with_sentence
def main(argv=None):
    """The command. Exit status 0 however the user leaves; from a pipe 2 at the first message that cannot be answered."""
    args = parser().parse(argv)
    run, sampling, max_tokens = opened(args)
    from slm_np.inference.generation import encode_prompt

    encode_prompt(run.tokenizer, "")  # refuses a run without a tokenizer now, not after the first message
    chat = Chat(run, sampling, max_tokens, args.stop, Screen(args.show_confidence), args.system)
    say(f"{run.path}, weights of step {run.step}" + "; /help lists the commands" * sys.stdin.isatty())
    if chat.template is None:
        say("this run has no chat template: each message is a text of its own, which the model continues")
    talk(chat) if sys.stdin.isatty() else pipe(chat, sys.stdin.buffer)


if __name__ == "__main__":
    main()

"""Chat as its users meet it: in a pseudo-terminal, through a pipe, every command, every error.

The models are constructed, so their answers are known.
"""

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import small
from chain_model import chain, word_chain
from special_tokens import bytes_and

from slm_np.cli.conversation import COMMANDS, Conversation
from slm_np.cli.text_output import Screen, color, unescaped
from slm_np.config import SamplingConfig, TrainConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.chat_template import DEFAULT
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.errors import UserError
from slm_np.formats import checkpoint, files, run_config
from slm_np.formats.generation_config import to_generation_config
from slm_np.formats.run_config import RunConfig
from slm_np.formats.sources import load

pytestmark = pytest.mark.usefixtures("one_thread")
ANSWER = {
    **word_chain([": yes.\n"]),
    "\n": ("Q", 0.999),
}  # the answer after the template's "A:", and then the next question


def saved(folder, follows, template=None, block_size=64, tokenizer=ByteTokenizer(), **sampling):
    """A run in `folder` whose model is `chain(follows)`."""
    model = chain(follows, tokenizer.vocab_size, block_size)
    folder.mkdir()
    run_config.write_config(folder, RunConfig(model.config, TrainConfig()))
    checkpoint.save_best(folder, model.parameters.weight, dict(step=7, val_loss=1.0))
    tokenizer.save(folder / "tokenizer.json")
    files.write_json(
        folder / "generation_config.json", to_generation_config(SamplingConfig(**{"temp": 0.0, **sampling}))
    )
    if template:
        (folder / "chat_template.json").write_bytes(template.to_bytes())
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`answers` has a template, `endless` too and never stops. `continues` has none and is uncertain after a line."""
    folder = tmp_path_factory.mktemp("chats")
    saved(folder / "answers", ANSWER, DEFAULT)
    saved(folder / "endless", {":": ("l", 0.999), "l": ("a", 0.999), "a": ("l", 0.999)}, DEFAULT)
    saved(folder / "continues", word_chain(["? sure.\n"]), min_confidence=0.15)
    return folder


@pytest.fixture
def folder(runs, monkeypatch):
    monkeypatch.chdir(runs)
    yield runs
    (runs / "chat.jsonl").unlink(missing_ok=True)


def conversation(name, max_tokens=30, **options):
    run = load(name)
    return Conversation(run, run.sampling, max_tokens, **options)


def piped(folder, *words, said):
    return subprocess.run(
        [sys.executable, "-m", "slm_np.chat", "--threads", "1", *words],
        cwd=folder,
        env=small.environment(),
        input=said,
        capture_output=True,
        timeout=120,
    )


# Answers


def test_a_run_with_a_template_answers(folder, capsys):
    chat = conversation("answers")
    assert chat.answer("is it?") is False and chat.answer("so?") is False
    assert capsys.readouterr().out == "yes.\nyes.\n"
    assert chat.messages == [
        dict(role=role, content=text)
        for role, text in (("user", "is it?"), ("assistant", "yes."), ("user", "so?"), ("assistant", "yes."))
    ]
    chat.messages.append(dict(role="user", content="well?"))
    assert (
        chat.run.tokenizer.decode(chat.prompt())
        == b"".join(DEFAULT.prompt(chat.messages))
        == b"Q: is it?\nA: yes.\nQ: so?\nA: yes.\nQ: well?\nA:"
    )


def test_a_run_without_a_template_continues_each_message_alone(folder, capsys):
    chat = conversation("continues")
    chat.answer("is it?")
    chat.answer("was it?")
    assert (
        capsys.readouterr().out == " sure.\n\n" * 2
    )  # the model's line end, then the program's; min_confidence stopped the answer
    chat.messages.append(dict(role="user", content="and?"))
    assert chat.run.tokenizer.decode(chat.prompt()) == b"and?"
    with pytest.raises(UserError, match="no chat template"):
        chat.set_system("be kind")


END = "\u0101"  # stands for the id 257, which ends a reply
TURNS = """{% for message in messages %}<|turn|>{{ message.role[0] }}{{ message.content }}<|end|>{% endfor %}\
{% if add_generation_prompt %}<|turn|>a{% endif %}"""


@pytest.fixture
def turns(tmp_path):
    """A function (follows, source, block_size) -> Conversation with a run whose chat template is in Jinja."""
    pytest.importorskip("jinja2", reason="chat templates in Jinja need the package jinja2")
    pytest.importorskip("tokenizers", reason="special tokens need the package tokenizers")
    tokenizer = bytes_and("<|turn|>", "<|end|>", "<|endoftext|>")

    def made(follows, source=TURNS, block_size=64, **options):
        saved(tmp_path / "turns", follows, JinjaTemplate(source), block_size, tokenizer)
        return conversation(tmp_path / "turns", **options)

    return made


def test_a_run_with_a_template_in_jinja_answers_until_its_special_token(turns, capsys):
    chat = turns(word_chain(["ayes." + END]), block_size=128)
    chat.answer("is it<|end|>?")
    chat.answer("<|turn|>")
    assert capsys.readouterr().out == "yes.\nyes.\n"
    assert [message["content"] for message in chat.messages] == ["is it<|end|>?", "yes.", "<|turn|>", "yes."]
    chat.set_system("Be brief.")
    chat.messages.append(dict(role="user", content="well?"))
    texts = ["sBe brief.", "uis it<|end|>?", "ayes.", "u<|turn|>", "ayes.", "uwell?"]
    wanted = [id for text in texts for id in (256, *text.encode(), 257)] + [256, ord("a")]
    assert chat.prompt().tolist() == wanted


def test_a_conversation_with_a_template_in_jinja_keeps_its_newest_messages(turns, capsys):
    chat = turns(word_chain(["ano" + END]), block_size=32, max_tokens=8)
    chat.set_system("Hm.")
    for i in range(4):
        chat.answer(f"Is it {i}?")
    said = capsys.readouterr()
    assert said.out == "no\n" * 4 and said.err.count("the oldest messages are left out") == 1
    wanted = [256, *b"sHm.", 257, 256, *b"uIs it 3?", 257, 256, ord("a")]
    chat.messages.pop()
    assert chat.prompt().tolist() == wanted


def test_a_template_that_refuses_a_system_message_is_an_error(turns, capsys):
    chat = turns(
        word_chain(["ano" + END]),
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + TURNS,
    )
    chat.set_system("Hm.")
    with pytest.raises(UserError, match="chat_template.json refuses the conversation: No system.; change the messages"):
        chat.answer("Is it?")
    assert not chat.messages
    chat.set_system("")
    chat.answer("Is it?")
    assert capsys.readouterr().out == "no\n"


def test_chat_and_generate_agree(folder, capsys):
    assert (
        small.status("generate", "--model", "continues", "-p", "it was?", "--threads", 1, "--seed", 3, "--temp", 1.5)
        == 0
    )
    generated = capsys.readouterr().out
    run = load("continues")
    Conversation(run, dataclasses.replace(run.sampling, seed=3, temp=1.5), 200).answer("it was?")
    assert "it was?" + capsys.readouterr().out == generated
    assert run.sampling.min_confidence == 0.15


def test_a_repeated_message_can_get_another_answer(tmp_path, capsys):
    chat = conversation(saved(tmp_path / "any", {}, temp=1.0, top_k=0, top_p=1.0, min_p=0.0))
    for _ in range(2):
        chat.answer("x")
    texts = [message["content"] for message in chat.messages if message["role"] == "assistant"]
    assert len(texts) == 2 and texts[0] != texts[1]


def test_the_oldest_messages_are_left_out_and_the_system_message_stays(folder, capsys):
    chat = conversation("answers", max_tokens=8, system="be brief")
    for turn in range(6):
        chat.answer(f"question {turn}?")
    said = capsys.readouterr()
    assert (
        said.out == "yes.\n" * 6
        and said.err.count("from here on the oldest messages are left out") == 1
        and "64 tokens" in said.err
    )
    chat.messages.append(dict(role="user", content="last?"))
    ids = chat.prompt()
    assert (
        len(ids) <= 64 - 8
        and chat.run.tokenizer.decode(ids).startswith(b"be brief\nQ: question")
        and len(chat.messages) == 13
    )
    chat.reset()
    assert chat.messages == [] and chat.start == 0 and not chat.overflow_told


def test_a_message_longer_than_the_context(folder, capsys):
    chat = conversation("answers")
    chat.answer("why " * 50 + "?")
    said = capsys.readouterr()
    assert said.out == "yes.\n" and re.search(
        r"the message has \d+ tokens and the context 64; its last 64 tokens are kept", said.err
    )


def test_an_empty_answer_is_not_kept(folder, capsys):
    chat = conversation("answers", max_tokens=0)
    chat.answer("well?")
    assert "answer is empty" in capsys.readouterr().err and chat.messages == []


# Commands


def test_every_command(folder, capsys):
    chat = conversation("answers")
    chat.answer("is it?")
    capsys.readouterr()
    for line in ("/help", "/h", "h"):
        assert chat.read(line) == (True, False)
        listed = capsys.readouterr().err
        assert all(f"/{name} " in listed for name in COMMANDS)
    assert chat.read("/save")[0] and "saved as chat.jsonl" in capsys.readouterr().err
    row = json.loads((folder / "chat.jsonl").read_text(encoding="utf-8"))
    assert row == {"messages": [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "yes."}]}
    assert chat.read("/system be kind") == (True, False) and chat.system == "be kind"
    assert chat.read("/save")[0] and json.loads((folder / "chat.jsonl").read_text(encoding="utf-8"))["messages"][0] == {
        "role": "system",
        "content": "be kind",
    }
    assert chat.read("/system") == (True, False) and chat.system == ""
    for line in ("/reset", "/r", "r", "/clear", "clear"):
        chat.messages = [dict(role="user", content="x")]
        assert chat.read(line) == (True, False) and chat.messages == []
    for line in ("/exit", "exit", "/quit", "quit", "/q", "q"):
        assert chat.read(line) == (False, False)
    assert chat.read("   ") == (True, False) and chat.messages == []
    assert set(COMMANDS) == {"reset", "help", "system", "save", "exit"}


MESSAGES = [
    "/etc/passwd is a file",
    "/etc",
    "/usr/bin/exit",
    "/r is a subreddit prefix",
    "/ and \\ are slashes",
    " /exit",
    " exit",
    "exit is a word",
    "//help",
    "/same thing again?",
    "/\N{GRINNING FACE}",
]


@pytest.mark.parametrize("line", MESSAGES)
def test_a_line_that_is_no_command_is_a_message(folder, line, capsys):
    chat = conversation("answers", max_tokens=3)
    assert chat.read(line)[0] and chat.messages[0] == dict(role="user", content=line)


def test_a_conversation_is_saved_in_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    chat = conversation("answers")
    chat.answer("is it?")
    assert chat.read("/save ~/mine.jsonl")[0] and (tmp_path / "mine.jsonl").exists()


def test_commands_that_fail(folder, tmp_path):
    chat = conversation("answers")
    for line, message in [
        ("/sav", "did you mean /save"),
        ("/sytem be kind", "did you mean /system"),
        ("/exit now", "/exit takes no text"),
        ("/", "'/' is unknown"),
        ("/save", "no conversation to save"),
    ]:
        with pytest.raises(UserError, match=message):
            chat.read(line)
    chat.answer("is it?")
    (tmp_path / "mine.jsonl").write_text("precious", encoding="utf-8")
    for name, message in [
        (tmp_path / "mine.jsonl", "already exists"),
        (tmp_path / "no" / "x", "cannot be written"),
        (tmp_path, "already exists"),
        ("a\0b", "cannot be written"),
    ]:
        with pytest.raises(UserError, match=message):
            chat.read(f"/save {name}")
    assert (tmp_path / "mine.jsonl").read_text(encoding="utf-8") == "precious"


def test_a_conversation_is_saved_as_a_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = conversation(folder / "answers")
    chat.answer("is it?")
    with monkeypatch.context() as full:
        full.setattr("os.fsync", fails)
        with pytest.raises(UserError, match="'chat.jsonl' cannot be written .No space left"):
            chat.read("/save")
    assert not list(tmp_path.glob("chat.jsonl*"))
    assert chat.read("/save")[0] and (tmp_path / "chat.jsonl").exists()


def fails(file):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "words, named",
    [
        (["--model", "nowhere"], "nowhere is not a model"),
        (["--model", "answers", "--max-tokens", "x"], "--max-tokens 'x'"),
        (["--model", "answers", "--samplers", "topk"], "did you mean top-k"),
        (["--model", "answers", "--top-p", 0], "--top-p is 0.0"),
        (["--model", "continues", "--system", "x"], "no chat template"),
        (["--modle", "x"], "did you mean --model"),
    ],
)
def test_bad_flags(folder, capsys, words, named):
    assert small.status("chat", *words) == 2
    said = capsys.readouterr()
    assert named in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_run_without_a_tokenizer(folder, tmp_path, capsys):
    run = saved(tmp_path / "bare", ANSWER)
    (run / "tokenizer.json").unlink()
    assert small.status("chat", "--model", run) == 2 and "has no tokenizer" in capsys.readouterr().err


# Characters

CRLF = word_chain(["a\r\nb\u202f?\r\n".encode().decode("latin-1")])  # a letter for each byte


def test_a_pipe_gets_the_bytes_of_the_text(tmp_path):
    """CR LF stays two bytes, a no-break space itself, and bytes of a prompt that are not UTF-8 too."""
    run = saved(tmp_path / "crlf", CRLF)
    for encoding in ("utf-8", "cp1252", "ascii", "utf-16"):
        done = subprocess.run(
            [sys.executable, "-m", "slm_np.generate", "--model", run, "--threads", "1", "-n", "9", "-p", "-"],
            env=small.environment(PYTHONIOENCODING=encoding),
            input=b"\xff\r\na",
            capture_output=True,
            timeout=120,
        )
        assert done.stdout == b"\xff\r\na" + "\r\nb\u202f?\r\n\n".encode(), done


def test_a_terminal_gets_line_ends_and_characters_as_they_are(tmp_path, capsys, monkeypatch):
    run = saved(tmp_path / "crlf", CRLF)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert small.status("generate", "--model", run, "--threads", 1, "-n", 9, "-p", "\x1b\udcffa") == 0
    assert capsys.readouterr().out == "\ufffd\ufffda\nb\u202f?\n\n"


# Colors


def test_colors_only_in_a_terminal_that_shows_them(monkeypatch, capsys):
    assert (
        color(" word\n", 0.05) == " \033[31mword\033[0m\n"
        and color("a", 0.3) == "\033[33ma\033[0m"
        and color("ß\x1b", 1.0) == "\033[32mß\ufffd\033[0m"
        and color(" \n", 0.0) == " \n"
    )
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Screen(True).style is None  # no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert Screen(True).style is color and Screen(False).style is None
    Screen(False).write("a\x1b[2J\n")
    assert capsys.readouterr().out == "a\ufffd[2J\n"
    screen = Screen(True)
    for text in ("a\r", "\nb\r", "c\x85\x0c", "\r", "\r\n"):  # a token each
        screen.write(color(text, 1.0), styled=True)
    shown = capsys.readouterr().out.replace("\033[0m", "").replace("\033[32m", "")
    assert shown == "a\nb\nc\ufffd\ufffd\n\n"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert Screen(True).style is None


def test_the_end_of_an_answer_may_be_given_with_escapes(folder, capsys):
    words = ["--model", "continues", "--min-confidence", 0, "--threads", 1, "-p", "it was?", "-n", 20]
    assert small.status("generate", *words, "--stop", r"e.\n") == 0
    assert capsys.readouterr().out == "it was? sur\n"
    assert small.status("generate", *words, "--stop", r"\d", "--stop", "\\\\") == 0  # a backslash, and no digit
    assert small.status("generate", *words, "--stop", "") == 2
    assert "--stop '' is empty; give the text to stop before" in capsys.readouterr().err


def test_escapes():
    assert unescaped(r"a\nb\tc\rd\\n\d") == "a\nb\tc\rd\\n\\d" and unescaped("\\") == "\\"


# Through a pipe


def test_through_a_pipe(folder):
    done = piped(
        folder, "--model", "answers", said="\ufeffis it?\r\n\n/help\nund größer?\n/exit\nnever read\n".encode()
    )
    assert (
        done.returncode == 0
        and done.stdout.replace(b"\r", b"") == b"yes.\nyes.\n"
        and b"weights of step 7" in done.stderr
        and b"/save FILE" in done.stderr
    ), done
    done = piped(folder, "--model", "continues", "--show-confidence", said=b"is it?")
    assert (
        done.returncode == 0 and done.stdout.replace(b"\r", b"") == b" sure.\n\n" and b"no chat template" in done.stderr
    )


@pytest.mark.parametrize(
    "said, named",
    [(b"is it?\n\xff\xfe\n", "line 2 of standard input is not UTF-8"), (b"is it?\n/sav\n", "did you mean /save")],
)
def test_a_bad_line_in_a_pipe(folder, said, named):
    done = piped(folder, "--model", "answers", said=said)
    assert (
        done.returncode == 2
        and done.stdout.replace(b"\r", b"") == b"yes.\n"
        and named in done.stderr.decode()
        and b"Traceback" not in done.stderr
    )


# In a terminal


class Terminal:
    """A chat in a pseudo-terminal of its own, as a context manager that ends it."""

    def __init__(self, folder, *words, **environment):
        import fcntl
        import pty
        import termios

        def set_up():  # in the child
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job inherits that it is ignored

        self.side, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "slm_np.chat", "--threads", "1", *words],
            cwd=folder,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env=small.environment(TERM="xterm", **environment),
            preexec_fn=set_up,
        )
        os.close(other)
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.side)

    def until(self, pattern, seconds=100):
        """What is shown before the pattern. Both are removed from what was seen."""
        import select

        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, self.seen
            if select.select([self.side], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.side, 4096).decode("utf-8", "replace")
                except OSError:  # the chat has ended
                    assert re.search(pattern, self.seen), self.seen
        before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
        return before

    def type(self, text):
        os.write(self.side, text.encode())

    def interrupt(self):
        """Ctrl-C at a prompt. While readline still draws the prompt, it handles a signal only with the next key."""
        time.sleep(0.5)
        self.type("\x03")

    def exit_status(self):
        return self.process.wait(30)


needs_pty = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")


@needs_pty
def test_in_a_terminal(folder):
    with Terminal(folder, "--model", "answers") as terminal:
        terminal.until("weights of step 7; /help lists the commands")
        terminal.until("> ")
        terminal.type("is itX\x7f?\n")  # backspace
        assert "yes." in terminal.until("\n> ")
        terminal.type("/sav\n")
        assert "slm_np: the command '/sav' is unknown; did you mean /save?" in terminal.until("\n> ")
        terminal.type("/help\n")
        assert "/system TEXT" in terminal.until("\n> ")
        terminal.interrupt()
        terminal.until("Ctrl-C again, Ctrl-D or /exit leaves")
        terminal.until("> ")
        terminal.type("and now?\n")
        assert "yes." in terminal.until("\n> ")
        terminal.type("\x04")
        assert terminal.exit_status() == 0


@needs_pty
def test_ctrl_c_stops_the_answer_and_not_the_program(folder):
    with Terminal(folder, "--model", "endless", "-n", "1000000") as terminal:
        terminal.until("> ")
        terminal.type("sing!\n")
        terminal.until("lalala")  # in the middle of a million tokens
        terminal.type("\x03")
        terminal.until("stopped")
        terminal.until("> ")
        terminal.type("/save endless.jsonl\n")
        terminal.until("saved as endless.jsonl")
        sung = json.loads((folder / "endless.jsonl").read_text(encoding="utf-8"))["messages"]
        assert sung[0]["content"] == "sing!" and re.fullmatch("(la)+l?", sung[1]["content"])
        terminal.until("> ")
        terminal.type("again!\n")
        terminal.until("lalala")
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.until("stopped")
        terminal.until("> ")
        terminal.interrupt()  # the second in a row, at the prompt
        assert terminal.exit_status() == 0


@needs_pty
def test_confidence_is_shown_in_color_in_a_terminal(folder):
    for environment, shown in ((dict(NO_COLOR=""), r"\x1b\[32my\x1b\[0m\x1b\[32me"), (dict(NO_COLOR="1"), "yes")):
        with Terminal(folder, "--model", "answers", "--show-confidence", **environment) as terminal:
            terminal.until("> ")
            terminal.type("is it?\n")
            terminal.until(shown)
            terminal.until("> ")
            terminal.type("/exit\n")
            assert terminal.exit_status() == 0

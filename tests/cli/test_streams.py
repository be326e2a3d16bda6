"""Standard streams that are closed, full, broken, narrow or gone: every command does its work or says what is lost."""

import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np import streams
from slm_np.errors import UserError, command
from slm_np.formats import checkpoint
from slm_np.streams import Output, guarded

POSIX = pytest.mark.skipif(os.name == "nt", reason="closes descriptors in the child process")
RUN = dict(kernels="numpy", log_interval=1, save_interval=4, eval_interval=4, threads=None)
LETTERS = "größer 大きい больше \u202f\U0001f600 الأكبر"  # in no narrow encoding


# Every command, on streams of every kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text full of letters that narrow encodings lack, its run `base`, and a checkpoint of llama2.c."""
    folder = tmp_path_factory.mktemp("streams")
    draw, words = np.random.default_rng(0), LETTERS.split(" ")
    text = "".join(" ".join(draw.choice(words, 8)) + "\n" for _ in range(150))
    (folder / "größe.txt").write_text(text, encoding="utf-8")
    dim, hidden, vocab, steps = 8, 8, 300, 8
    weights = draw.standard_normal(vocab * dim + 3 * dim + 4 * dim * dim + 3 * dim * hidden + 4 * steps)
    (folder / "llama.bin").write_bytes(
        struct.pack("<7i", dim, hidden, 1, 2, 2, vocab, steps) + weights.astype("<f4").tobytes()
    )
    done = small.command("train", *train_words("base", max_iters=8), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def train_words(out, **changes):
    return small.flags("größe.txt", tokenizer="char", out_dir=out, **{**RUN, **changes})


WORK = dict(  # commands whose result is in files: function (out_dir) -> its words
    train=train_words,
    pretrain=train_words,
    finetune=lambda out: ["--base", "base", "--data", "größe.txt", "--out-dir", out, *SHORT],
    prepare=lambda out: ["größe.txt", "--tokenizer", "char", "--out-dir", out],
    convert=lambda out: ["llama.bin", "--out-dir", out],
    warmup=lambda out: ["--preset", "stories"],
)
SHORT = ["--max-iters", 6, "--eval-interval", 3, "--eval-iters", 1, "--kernels", "numpy", "--log-interval", 1]
RESULT = dict(  # commands whose result is what they print
    generate=["--model", "base", "--kernels", "numpy", "-p", "-", "-n", 20],
    chat=["--model", "base", "--kernels", "numpy", "-n", 20],
    evaluate=["--model", "base", "--kernels", "numpy"],
    info=["base"],
    gradcheck=["--preset", "stories", "--kernels", "numpy"],
)


def close(*numbers):
    """What runs in the child before the command: closes descriptors."""

    def closing():
        for number in numbers:
            os.close(number)

    return dict(preexec_fn=closing)


def full(*names):
    return {name: open("/dev/full", "wb") for name in names}


def broken(*names):
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    file = open(writer, "wb")
    return {name: file for name in names}


STREAMS = {
    "stdout closed": lambda: close(1),
    "stderr closed": lambda: close(2),
    "stdin closed": lambda: close(0),
    "all closed": lambda: close(0, 1, 2),
    "stdout full": lambda: full("stdout"),
    "stderr full": lambda: full("stderr"),
    "both full": lambda: full("stdout", "stderr"),
    "reader of stdout gone": lambda: broken("stdout"),
    "reader of stderr gone": lambda: broken("stderr"),
    "reader of both gone": lambda: broken("stdout", "stderr"),
    "ascii": lambda: dict(env=small.environment(PYTHONIOENCODING="ascii")),
    "cp1252": lambda: dict(env=small.environment(PYTHONIOENCODING="cp1252:strict")),
}


def finished(folder, verb, words, **options):
    """Run a command. Returns its exit status and what it printed, after the checks that hold for all."""
    pipe = {name: subprocess.PIPE for name in ("stdout", "stderr") if name not in options}
    process = subprocess.Popen(
        [sys.executable, "-m", f"slm_np.{verb}", *map(str, words)],
        cwd=folder,
        stdin=subprocess.PIPE,
        **{"env": small.environment(), **pipe, **options},
    )
    out, err = process.communicate("größer\n".encode(), timeout=300)
    for file in options.values():
        if hasattr(file, "close"):
            file.close()
    said = (err or b"").decode("utf-8", "replace")
    assert "Traceback" not in said and "Exception ignored" not in said and "Error" not in said, (verb, said)
    return process.returncode, out or b"", said


def contents(path):
    """{name: bytes} of the files in a folder that are the same whenever they are made: models and tokens."""
    same = {".safetensors", ".bin", "tokenizer.json", "meta.json"}
    return {
        name: (path / name).read_bytes() for name in small.tree(path) if {Path(name).suffix, Path(name).name} & same
    }


@pytest.fixture(scope="module")
def undisturbed(folder):
    """{verb: `contents` of what it makes} of the commands that make files, with no stream in their way."""
    found = {}
    for verb, words in WORK.items():
        status, _, said = finished(folder, verb, words(f"whole-{verb}"))
        assert status == 0, (verb, said)
        if verb != "warmup":
            found[verb] = contents(folder / f"whole-{verb}")
            assert found[verb]
    return found


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("kind", STREAMS)
def test_work_is_done_whatever_becomes_of_its_output(folder, undisturbed, kind, tmp_path):
    if "full" in kind and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    for verb, words in WORK.items():
        status, _, said = finished(folder, verb, words(tmp_path / verb), **STREAMS[kind]())
        assert status == 0, (verb, said)
        if verb != "warmup":
            assert contents(tmp_path / verb) == undisturbed[verb], verb
        if verb in ("train", "pretrain", "finetune"):
            assert small.rows(tmp_path / verb) == small.rows(folder / f"whole-{verb}"), verb


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("kind", STREAMS)
def test_a_result_that_is_lost_does_not_look_like_success(folder, kind):
    if "full" in kind and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    stdout_fails = "stdout" in kind or "both" in kind
    for verb, words in RESULT.items():
        status, out, said = finished(folder, verb, words, **STREAMS[kind]())
        if stdout_fails and "full" in kind:
            assert status == 2, verb
            assert kind == "both full" or said.count("no space left on device") == 1, (verb, said)
        elif stdout_fails and "gone" in kind:
            assert status == 141 and "slm_np:" not in said, (verb, said)
        else:
            assert status == 0, (verb, said)
            assert (out != b"") == (kind not in ("stdout closed", "all closed")) or (verb, kind) == (
                "chat",
                "stdin closed",
            )


@POSIX
@pytest.mark.slow
def test_readers_that_go_away_after_a_line(folder, undisturbed, tmp_path):
    for streams_of, out in ((dict(stderr=subprocess.PIPE), "a"), (dict(stderr=subprocess.STDOUT), "b")):
        process = subprocess.Popen(
            [sys.executable, "-m", "slm_np.train", *map(str, train_words(tmp_path / out))],
            cwd=folder,
            env=small.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            **streams_of,
        )
        for pipe in filter(None, (process.stderr, process.stdout)):
            pipe.readline() if pipe is process.stderr or process.stderr is None else None
            pipe.close()
        assert process.wait(120) == 0
        assert contents(tmp_path / out) == undisturbed["train"]
        assert small.rows(tmp_path / out) == small.rows(folder / "whole-train")


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("hangup", ["default", "ignored"])
def test_a_terminal_that_closes_while_it_trains(folder, undisturbed, tmp_path, hangup):
    """SIGHUP saves the run. Under nohup the run goes on, though writing to the terminal fails."""
    import fcntl
    import pty
    import termios

    def set_up():  # in the child
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL if hangup == "default" else signal.SIG_IGN)

    side, other = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # wide enough for a bar
    words = train_words(tmp_path / "run", grad_accumulation_steps=20, max_iters=40)
    process = subprocess.Popen(
        [sys.executable, "-m", "slm_np.train", *map(str, words)],
        cwd=folder,
        env=small.environment(),
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        preexec_fn=set_up,
    )
    os.close(other)
    seen = b""
    while b"step 4: " not in seen:
        seen += os.read(side, 4096)
    assert b"%|" in seen, seen
    os.close(side)
    status = process.wait(300)
    if hangup == "default":
        step = checkpoint.newest_checkpoint(tmp_path / "run").step
        assert status == 129 and 4 <= step < 40
        assert small.command("train", "--resume", tmp_path / "run", cwd=folder).returncode == 0
    else:
        assert status == 0
    whole = train_words(tmp_path / "whole", grad_accumulation_steps=20, max_iters=40)
    assert small.command("train", *whole, cwd=folder).returncode == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert small.rows(tmp_path / "run") == small.rows(tmp_path / "whole")


# The same in one process


class Failing(io.RawIOBase):
    """A file that takes so many writes and then raises an error. after: -1 takes all."""

    def __init__(self, error, after=0):
        self.error, self.after, self.written = error, after, b""

    def writable(self):
        return True

    def write(self, data):
        if self.after == 0:
            raise self.error
        self.after -= 1
        self.written += bytes(data[:3])
        return min(3, len(data))  # a part, as a pipe may


def stream(file, **options):
    return io.TextIOWrapper(io.BufferedWriter(file), **{"encoding": "utf-8", "write_through": True, **options})


@contextlib.contextmanager
def standard(out=None, err=None):
    """sys.stdout and sys.stderr are these."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


BROKEN, FULL, GONE = BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), OSError(5, "I/O error")


def status_of(main, **options):
    try:
        command(main, **options)([])
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("error", [BROKEN, FULL, GONE])
def test_work_goes_on_when_printing_fails(error):
    done = []

    def main(argv):
        for _ in range(3):
            print("x" * 10_000, flush=True)
            print("y", file=sys.stderr)
            done.append(1)

    out, err = Failing(error, after=2), Failing(error)
    with standard(stream(out), stream(err)):
        assert status_of(main) == 0
    assert len(done) == 3 and out.written == b"xxxxxx"


@pytest.mark.parametrize("error, status", [(BROKEN, 141), (FULL, 2), (GONE, 2)])
def test_a_result_that_cannot_be_printed_is_an_error(error, status):
    for raises_later in (False, True):

        def main(argv):
            with contextlib.suppress(OSError if raises_later else ()):  # as a library may
                print("result", flush=not raises_later)
                sys.stdout.flush()
            if raises_later:
                raise SystemExit(0)

        said = Failing(None, after=-1)
        with standard(stream(Failing(error)), stream(said)):
            assert status_of(main, prints_result=True) == status
        assert said.written.count(b"slm_np: cannot write standard output") == (status == 2)


def test_an_error_of_another_file_is_told(tmp_path):
    def main(argv):
        raise BrokenPipeError(32, "Broken pipe")

    said = Failing(None, after=-1)
    with standard(stream(Failing(None, after=-1)), stream(said)):
        assert status_of(main, prints_result=True) == 2
    assert said.written == b"slm_np: cannot read or write: broken pipe\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16", "shift_jis", "utf-7"])
def test_what_an_encoding_lacks_is_escaped(encoding):
    def main(argv):
        print(LETTERS + "\ud800\udcff")
        print(LETTERS, file=sys.stderr)
        raise UserError(f"{LETTERS!r} is wrong\nin line 2\x1b")

    out, err = Failing(None, after=-1), Failing(None, after=-1)
    with standard(stream(out, encoding=encoding, errors="strict"), stream(err, encoding=encoding, errors="strict")):
        assert status_of(main) == 2
    assert out.written.decode(encoding).rstrip() == (LETTERS + "\ud800\udcff").encode(
        encoding, "backslashreplace"
    ).decode(encoding)
    assert err.written.decode(encoding).count("\n") == 2 and r"in line 2\x1b" in err.written.decode(encoding)


def test_streams_that_are_missing_or_closed():
    """As under pythonw, or after `>&-`."""
    closed = open(os.devnull, "w", encoding="utf-8")
    closed.close()
    for nothing in (None, closed):
        before, sys.stdin = sys.stdin, nothing
        try:
            with standard(nothing, nothing):
                with guarded(True) as output:
                    print("lost", file=sys.stderr)
                    print("lost", flush=True)
                    assert sys.stdin.read() == "" and not sys.stdout.isatty() and output.error is None
                assert (sys.stdin, sys.stdout, sys.stderr) == (nothing, nothing, nothing)
        finally:
            sys.stdin = before


@POSIX
def test_descriptors_that_are_closed_are_not_given_to_files(tmp_path):
    """What C libraries and child processes print must not land in a file that is opened later."""
    code = (
        "import os, subprocess, sys; from slm_np.streams import guarded\n"
        "with guarded(False):\n"
        "    file = open(sys.argv[1], 'w')\n"
        "    os.write(1, b'out'), os.write(2, b'err')\n"
        '    child = \'import os; os.write(1, b"out"); os.write(2, b"err")\'\n'
        "    subprocess.run([sys.executable, '-c', child], check=True)\n"
        "    assert file.fileno() > 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")], env=small.environment(), **close(0, 1, 2)
    )
    assert done.returncode == 0 and (tmp_path / "file").read_bytes() == b""


def test_the_streams_are_put_back():
    out, err = stream(io.FileIO(os.devnull, "w")), io.StringIO()
    with standard(out, err):
        with guarded(False):
            assert sys.stdout is not out and sys.stderr is err  # a notebook's stream stays
            inner = sys.stdout
            with guarded(True) as output:  # a command that another one calls
                assert sys.stdout is inner and output.required
            assert not output.required
        assert sys.stdout is out and sys.stderr is err


def test_a_stream_of_the_program_itself_is_used_as_it_is():
    class Tee:
        buffer = io.FileIO(os.devnull, "w")

        def write(self, text):
            said.append(text)

        def flush(self):
            pass

    said = []
    with standard(Tee(), Tee()):
        assert status_of(lambda argv: print("x"), prints_result=True) == 0
    assert said == ["x", "\n"]


@POSIX
@pytest.mark.parametrize("read", [True, False])
def test_a_full_pipe_that_does_not_block(read, monkeypatch):
    """Output waits for a reader, but not for ever for one that does not read."""
    monkeypatch.setattr(streams, "WAIT_S", 0.2)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text, got = b"0123456789" * 100_000, []

    def read_all():
        while data := os.read(reader, 1 << 16):
            got.append(data)

    with open(writer, "wb", buffering=0) as file:
        thread = threading.Thread(target=read_all)
        if read:
            thread.start()
        output = Output(file)
        assert output.write(text) == len(text) and output.lost == (not read)
    if read:
        thread.join()
        assert b"".join(got) == text
    os.close(reader)

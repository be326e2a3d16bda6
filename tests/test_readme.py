"""Every README: its commands and Python examples run, and its flags, files, links and sizes exist.

Commands are shortened: tiny models, few updates, small files under the names that a README gives to the user's data.
What needs a GPU, a network or an installation is parsed only.
"""

import argparse
import configparser
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import small

import slm_np.kernels.cpu  # noqa: F401  finds its compiled kernels before the tests change the cache folder
from slm_np.__main__ import VERBS
from slm_np.cli import flags
from slm_np.cli.own_text import is_own_text
from slm_np.config import ModelConfig, TrainConfig
from slm_np.data import download, embedded
from slm_np.data.plain_bpe import PlainBPE
from slm_np.nn.model import parameter_count
from slm_np.ops.device import CPU
from slm_np.presets import PRESETS, preset

ROOT = Path(small.__file__).resolve().parents[1]
READMES = {
    path.parent.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/README.md")))
}
every_readme = pytest.mark.parametrize("folder", READMES)
PROGRAMS = ("python", "python3", "slm-np", "pip", "git", ".", "cp", "nvidia-smi")
FLAG = re.compile(r"--[a-z][\w-]*")


# What the READMEs contain


def blocks(text, *languages):
    """The code blocks in one of the languages; "" is a block without a name."""
    return [block for name, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if name in languages]


def commands(text):
    """The commands in the blocks, as lists of words."""
    for block in blocks(text, "", "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.removeprefix("$ ").split(" && "):
                with contextlib.suppress(ValueError):  # no shell syntax: it is the output of a program
                    words = shlex.split(command, comments=True)
                    if words and words[0] in PROGRAMS:
                        yield words


def verb_of(words):
    """(verb, arguments) if a command is one of slm_np's, else (None, words)."""
    if words[0] in ("python", "python3") and words[1:2] == ["-m"] and words[2].startswith("slm_np."):
        return words[2].removeprefix("slm_np."), words[3:]
    return (words[1], words[2:]) if words[0] == "slm-np" else (None, words)


def inline_code(text):
    """The `code` outside of the blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))


# Flags of commands and benchmarks


def parser_of(verb):
    return importlib.import_module(f"slm_np.{verb}").parser()


class Parsed(Exception):
    """Ends a benchmark's `main` and carries its parser."""


def benchmark_parser(script):
    """The parser of a script in benchmarks/. Skips a test if a package that the script imports is missing."""

    def parse_args(self, args=None, namespace=None):
        raise Parsed(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(Parsed) as parsed:
            pytest.importorskip(Path(script).stem, reason=f"{script} needs another package").main([])
    return parsed.value.args[0]


def names_of(parser):
    return {name for action in parser._actions for name in action.option_strings}


# Commands


def provide_data(name):
    """Write small texts under a name that stands for the user's data, unless it exists or names a corpus."""
    path = Path(name)
    if name in (*embedded.WRITERS, *download.SOURCES) or path.exists():
        return
    if path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        small.text_file(path.parent, path.name)
    else:
        path.mkdir(parents=True)
        small.text_file(path, "first.txt", seed=1)
        small.text_file(path, "second.txt", seed=2)


def provide_run(name, **settings):
    """Train a small run under a name that stands for one of the user's, unless an earlier command made it."""
    if not Path(name).exists():
        provide_data("text.txt")
        assert small.status("train", *small.flags("text.txt", max_iters=2, out_dir=name, **settings)) == 0


def shortened(verb, words, seconds):
    """The arguments of a command, with small sizes after those that the README gives. The last one of a flag wins.

    seconds: --max-time of a run that has a limit of time
    """
    given = set(words)
    words = [re.sub(r"^bpe:\d+$", "bpe:300", word) for word in words]
    if "--max-time" in given:
        words += ["--max-time", f"{seconds}s"]
    if verb in ("generate", "chat"):
        words += ["--max-tokens", "5"]
    if verb == "gradcheck" and "--preset" not in given:
        words += ["--preset", "stories"]
    if verb in ("train", "pretrain", "finetune") and "--resume" not in given:
        words += ["--batch-size", "2", "--eval-iters", "1"]
        words += [] if given & {"--max-time", "--epochs"} else ["--max-iters", "2"]
    if verb in ("train", "pretrain") and "--resume" not in given:
        parsed = parser_of(verb).parse(words)
        data = flags.given(parsed, TrainConfig)
        name = parsed.preset or ("slim" if verb == "pretrain" else "own-text" if is_own_text(data) else "stories")
        sizes = dict(block_size=64, n_layer=1, n_head=2, n_embd=16, n_hidden=24)
        unused = preset(name, flags.given(parsed, ModelConfig) | dict(n_layer=1))[0].unused
        words += [
            word for size, value in sizes.items() if size not in unused for word in (flags.flag(size), str(value))
        ]
    return words


def runs_here(verb, words):
    """Whether it is an slm_np command that needs no GPU, no network and no model of another program."""
    from_hub = any(word.startswith("HuggingFaceTB/") for word in words)
    return verb not in (None, "convert") and not from_hub and not {"cuda", "gpt2", *download.SOURCES} & set(words)


@pytest.fixture
def user(tmp_path, monkeypatch, threads):
    """An empty current directory and an empty cache, in which embedded corpora are small."""
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=100_000, validation=20_000))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    CPU.use_kernels()


@pytest.mark.slow
@every_readme
def test_commands_run_in_the_order_of_the_readme(folder, user, monkeypatch):
    messages = re.findall(r"^> (.+)$", "\n".join(blocks(READMES[folder], "")), re.M)
    for seconds, words in enumerate(commands(READMES[folder]), 1):
        verb, words = verb_of(words)
        if not runs_here(verb, words):
            continue
        for flag, value in zip(words, words[1:]):
            if flag in ("--data", "--val-data", "--retention-data"):
                provide_data(value)
            elif flag in ("--model", "--base", "--resume"):
                provide_run(value)
        for word in words[:1]:
            if verb in ("prepare", "pretrain") and not word.startswith("-"):
                provide_data(word)
        stdin = io.BytesIO("\n".join(messages or ["Hello"]).encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin, encoding="utf-8"))
        assert not small.status(verb, *shortened(verb, words, seconds)), f"{verb} {words}"


@every_readme
def test_commands_are_parsed(folder):
    """Those that do not run in the test above, too."""
    for words in commands(READMES[folder]):
        verb, words = verb_of(words)
        if verb is not None:
            assert verb in VERBS, verb
            parser_of(verb).parse(words)
        elif words[0].startswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words[1]
            if words[1].startswith("benchmarks/"):
                benchmark_parser(words[1]).parse_args(words[2:])


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_the_command_that_runs_the_tests_is_pytests():
    (words,) = [words for words in commands(READMES["."]) if words[1:3] == ["-m", "pytest"]]
    command = [sys.executable, *words[1:], "--collect-only", "-q", "tests/test_config.py"]
    done = subprocess.run(command, cwd=ROOT, env=small.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "test_config.py" in done.stdout, done.stdout + done.stderr


def test_extras_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = {
        extra
        for text in READMES.values()
        for group in re.findall(r"\.\[([\w,-]+)\]", text)
        for extra in group.split(",")
    }
    assert named and named <= set(setup["options.extras_require"])


# Python examples


def assert_a_loss_below_uniform(printed):
    """Thirty updates teach a byte model more than the uniform distribution's 5.5 nats."""
    assert float(printed.split()[0]) < 4.5


def assert_a_window_of_text(printed):
    assert len(printed) == 65


EXPECTED = {".": assert_a_loss_below_uniform, "data": assert_a_window_of_text}


@pytest.mark.parametrize("folder", [folder for folder, text in READMES.items() if blocks(text, "python")])
def test_python_examples_run(folder, user):
    Path("README.md").write_text(READMES["."], encoding="utf-8")
    printed, names = io.StringIO(), {}
    for code in blocks(READMES[folder], "python"):
        if "transformers" in code:
            pytest.importorskip("transformers", reason="an example shows what transformers does with a run")
            pytest.importorskip("torch", reason="transformers needs PyTorch")
        for name in re.findall(r'"(runs/\w+)"', code):
            provide_run(name, documents="line")  # so that it has a token between documents
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{folder}/README.md", "exec"), names)
    if folder in EXPECTED:
        EXPECTED[folder](printed.getvalue())


# Names in the prose


def flags_of(words):
    """The flags that a verb or a benchmark has, or None if the words begin with neither."""
    verb, _ = verb_of(words) if words[0] in PROGRAMS else (words[0], words[1:])
    if verb in VERBS:
        return names_of(parser_of(verb))
    script = Path(next((word for word in words if word.endswith(".py")), ""))
    if (ROOT / "benchmarks" / script.name).is_file():
        return names_of(benchmark_parser(script.name))
    return None


@every_readme
def test_flags_beside_a_command_in_the_prose_are_its_own(folder):
    for code in inline_code(READMES[folder]):
        words = code.split()
        if FLAG.search(code) and (known := flags_of(words)) is not None:
            assert set(FLAG.findall(code)) <= known, code


def benchmarks_parsers():
    """The parsers of all scripts in benchmarks/ that are commands and whose packages are installed."""
    for path in (ROOT / "benchmarks").glob("*.py"):
        with contextlib.suppress(ImportError):
            if hasattr(importlib.import_module(path.stem), "main"):
                yield benchmark_parser(path.name)


def test_other_flags_in_the_prose_exist():
    parsers = [*map(parser_of, VERBS), *benchmarks_parsers()]
    known = set().union(*map(names_of, parsers))
    for text in READMES.values():
        for code in inline_code(text):
            if code.startswith("-"):
                assert set(FLAG.findall(code)) <= known, code


@pytest.mark.parametrize("folder", ["slm_np", "kernels", "data"])
def test_files_in_the_prose_exist(folder):
    """Paths start at the repository, at slm_np/, at the README's folder or at a folder that the same line names.

    Those of kernels/README.md start at a kernel set, too.
    """
    roots = [ROOT, ROOT / "slm_np", ROOT / folder]
    roots += [ROOT / "kernels" / name for name in ("numpy", "cpu", "gpu") if folder == "kernels"]
    for line in READMES[folder].splitlines():
        codes = inline_code(line)
        bases = roots + [root / code for root in roots for code in codes if code.endswith("/")]
        for code in codes:
            if re.fullmatch(r"[\w./*-]+\.(py|md|cfg|toml)", code):
                assert any(list(base.glob(code)) for base in bases), code


@pytest.mark.parametrize("folder, files", [("data", "*.py"), ("kernels", "cpu/[!_]*.py")])
def test_the_readme_of_a_room_names_every_file(folder, files):
    named = {Path(code).name for code in inline_code(READMES[folder])}
    for path in (ROOT / folder).glob(files):
        assert path.name in named, path


@every_readme
def test_local_links_resolve(folder):
    for link in re.findall(r"\]\(([^)\s]+)\)", READMES[folder]):
        if not re.match(r"https?:|mailto:", link):
            path, _, heading = link.partition("#")
            target = ROOT / folder / path if path else ROOT / folder / "README.md"
            assert target.exists(), link
            if heading:
                titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
                assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_in_the_table_with_its_size(name):
    (row,) = re.findall(rf"^\| `{name}` \|.*$", READMES["."], re.M)
    model, train = preset(name)
    if train.tokenizer == "stories":
        model = dataclasses.replace(model, vocab_size=PlainBPE.stories().vocab_size)
    n = parameter_count(model)
    assert f"{n:,}" in row or f"{n / 1e6:.1f}M" in row, row


def test_every_command_is_in_the_table():
    for verb in VERBS:
        assert re.search(rf"^\| `{verb}\b.*\|$", READMES["."], re.M), verb


def test_the_readme_is_short():
    assert len(READMES["."].split()) <= 1500


def test_every_promise_names_tests_that_exist():
    [promises] = re.findall(r"## What slm_np promises\n(.*?)\n## ", READMES["slm_np"], re.DOTALL)
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promises)
    assert len(named) >= 20
    for file, name in named:
        assert f"def {name or 'test_'}" in (ROOT / file).read_text(encoding="utf-8"), (file, name)

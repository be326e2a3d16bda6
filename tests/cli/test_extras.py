"""Optional packages: what runs without them, and the one line that says what to install."""

import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import small

from slm_np import errors
from slm_np.__main__ import VERBS
from slm_np.cli import flags
from slm_np.config import TrainConfig
from slm_np.ops.device import CPU

EXTRAS = ("tokenizers", "tiktoken", "huggingface_hub", "gguf", "jinja2", "matplotlib", "cupy", "torch")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty current directory with a text and an empty cache."""
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    small.text_file(".")
    yield
    CPU.use_kernels()


def trained(tokenizer):
    """The directory of a new run, trained with the NumPy kernels."""
    words = small.flags("text.txt", tokenizer=tokenizer, kernels="numpy", max_iters=1, out_dir="run")
    assert small.status("train", *words) == 0
    return "run"


def commands(run):
    """Every command that reads a tokenizer."""
    numpy = ("--kernels", "numpy")
    return [
        ("generate", "--model", run, "--max-tokens", "3", *numpy),
        ("evaluate", "--model", run, *numpy),
        ("finetune", "--base", run, "--data", "text.txt", "--max-iters", "1", "--out-dir", "tuned", *numpy),
        ("train", "--resume", run, "--max-iters", "2"),
    ]


def test_every_module_is_imported_without_the_extras(tmp_path):
    script = f"""
import importlib, sys
from pathlib import Path
sys.modules.update(dict.fromkeys({EXTRAS}))
import slm_np, slm_np.kernels, slm_np.data
count = 0
for package in (slm_np, slm_np.kernels, slm_np.data):
    folder = Path(package.__path__[0])
    for path in folder.rglob("*.py"):
        parts = (package.__name__, *path.relative_to(folder).with_suffix("").parts)
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
        count += 1
print(count)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=small.environment(), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_byte_and_char_need_no_extra(tokenizer, work, monkeypatch, capsys):
    for package in EXTRAS:
        monkeypatch.setitem(sys.modules, package, None)
    run = trained(tokenizer)
    assert Path(run, "tokenizer.json").is_file()
    for words in [*commands(run), ("info", run), ("info", f"{run}/tokenizer.json")]:
        assert small.status(*words) == 0, words
    words = small.flags("text.txt", tokenizer=f"file:{run}/tokenizer.json", kernels="numpy", max_iters=1, out_dir="new")
    assert small.status("train", *words) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_byte_pair_run_needs_one_extra_and_says_so(work, monkeypatch, capsys):
    run = trained("bpe:300")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    fresh = small.flags("text.txt", tokenizer=f"file:{run}/tokenizer.json", kernels="numpy", out_dir="new")
    before = small.tree(".")
    for words in [
        *commands(run),
        ("train", *fresh),
        ("prepare", "text.txt", "--tokenizer", "bpe:300", "--out-dir", "t"),
    ]:
        capsys.readouterr()
        assert small.status(*words) == 2, words
        said = capsys.readouterr().err
        line = r'slm_np: \S.* needs the package tokenizers, which is not installed; run pip install "slm_np\[bpe\]"\n'
        assert re.fullmatch(line, said), said
    assert small.tree(".") == before
    assert small.status("info", run) == 0 and re.search("tokenizer +byte pairs", capsys.readouterr().out)


def test_models_of_other_programs_need_extras_and_say_so(work, monkeypatch, capsys):
    run = trained("byte")
    assert small.status("convert", run, "directory", "--dtype", "bf16") == 0
    Path("directory/chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    Path("model.gguf").write_bytes(b"GGUF" + bytes(100))
    before = small.tree(".")
    for package, extra, words in (
        ("gguf", "gguf", ("convert", run, "new.gguf")),
        ("gguf", "gguf", ("generate", "--model", "model.gguf", "--kernels", "numpy")),
        ("gguf", "gguf", ("info", "model.gguf")),
        ("huggingface_hub", "hub", ("generate", "--model", "org/name", "--kernels", "numpy")),
        ("huggingface_hub", "hub", ("convert", "org/name", "new")),
        ("jinja2", "chat", ("chat", "--model", "directory", "--kernels", "numpy")),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            capsys.readouterr()
            assert small.status(*words) == 2, words
        said = capsys.readouterr().err.splitlines()[-1]
        line = rf'slm_np: \S.* needs the package {package}, which is not installed; run pip install "slm_np\[{extra}\]"'
        assert re.fullmatch(line, said), said
    assert small.tree(".") == before


def test_every_command_of_a_clone_that_is_not_installed_says_so(work):
    """Each fails at the first package that is missing, in one line."""
    script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys(("numpy", "numba", "tqdm", "safetensors", "threadpoolctl", *{EXTRAS})))
words = dict(finetune="--base run --data text.txt", prepare="text.txt --out-dir tokens", pretrain="text.txt",
             convert="text.txt", info="text.txt", evaluate="--model run", generate="--model run", chat="--model run")
for verb in {VERBS}:
    try:
        importlib.import_module("slm_np." + verb).main(words.get(verb, "").split())
    except SystemExit as end:
        print(verb, end.code, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=small.environment(), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    line = r"slm_np: the package \w+ is not installed; install slm_np: pip install -e \. in its checkout\n"
    assert re.fullmatch("".join(f"{line}{verb} 2\n" for verb in VERBS), done.stderr), done.stderr


def test_a_package_that_does_not_load_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import of_which_this_is_missing", encoding="utf-8")
    (tmp_path / "damaged.py").write_text("raise ImportError('libx.so: cannot open\\nmore')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name, reason in (
        ("half_installed", "No module named 'of_which_this_is_missing'"),
        ("damaged", "libx.so: cannot open"),
    ):
        with pytest.raises(errors.UserError) as error:
            errors.imported(name, "--flag", "slm_np[extra]")
        assert str(error.value) == (
            f"--flag needs the package {name}, which does not load ({reason}); run pip install --force-reinstall {name}"
        )


def test_a_settings_file_on_python_310_without_tomli_is_one_sentence(tmp_path, monkeypatch):
    """Python 3.11 and later have tomllib."""
    monkeypatch.setattr(flags, "sys", SimpleNamespace(version_info=(3, 10), stderr=sys.stderr))
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(errors.UserError, match='--config a.toml needs the package tomli, .* run pip install "tomli"'):
        flags.read_toml("a.toml", [TrainConfig])

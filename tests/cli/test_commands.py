"""The commands as their users meet them: help, settings, training, generation, and all kinds of bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small

import slm_np
from slm_np.__main__ import VERBS
from slm_np.formats import run_config
from slm_np.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a text and the runs `bytes`, `char` (the tokenizer), `learned` and `sinusoidal` (positions)."""
    folder = tmp_path_factory.mktemp("runs")
    data = small.text_file(folder)
    for name, changes in dict(
        bytes={},
        char=dict(tokenizer="char"),
        learned=dict(positions="learned"),
        sinusoidal=dict(positions="sinusoidal"),
    ).items():
        assert (
            small.status("train", *small.flags(data, max_iters=8, learning_rate=0.01, out_dir=folder / name, **changes))
            == 0
        )
    return folder


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    """A copy of `runs`, which is the current directory."""
    shutil.copytree(runs, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def edited(raw, old, new):
    """A run.json with `old` replaced and without its checksum, as a user would edit it."""
    without, n = re.subn(rb'  "crc32": "[0-9a-f]{8}",\n', b"", raw)
    assert n == 1 and old in without
    return without.replace(old, new)


# Help


NUMERICS = {"numpy", "scipy", "numba", "safetensors", "tokenizers", "matplotlib"}


@pytest.mark.parametrize("verb", [*VERBS, "__main__"])
def test_help_loads_no_numerics(verb, tmp_path):
    script = f"""
import sys
from slm_np.{verb} import main
try:
    main(["--help"])
except SystemExit as left:
    assert not left.code
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=small.environment(), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: slm-np"), done.stderr
    assert not NUMERICS & set(done.stderr.split())


def test_version_matches_package(tmp_path):
    done = small.command("__main__", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"slm_np {slm_np.__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_its_version_and_help(verb, capsys):
    assert small.status(verb, "--version") == 0
    assert capsys.readouterr() == (f"slm_np {slm_np.__version__}\n", "")
    shown = []
    for words in ([verb, "-h"], [verb, "--help"], ["help", verb]):
        assert small.status("__main__", *words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith(f"usage: slm-np {verb} ") and shown[0] == shown[1] == shown[2]


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_the_commands_are_listed(words, capsys):
    assert small.status("__main__", *words) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("word", ["-V", "--version", "version"])
def test_the_version_of_the_package(word, capsys):
    assert small.status("__main__", word) == 0
    assert capsys.readouterr().out == f"slm_np {slm_np.__version__}\n"


def test_a_flag_without_a_command(capsys):
    assert small.status("__main__", "--data", "x") == 2
    assert "--data follows a command, as in slm-np train --data" in capsys.readouterr().err
    assert small.status("__main__", "help", "trian") == 2
    assert "did you mean train" in capsys.readouterr().err


def test_help_has_groups_defaults_and_presets(capsys):
    assert small.status("train", "--help") == 0
    text = capsys.readouterr().out
    for group in ("run:", "training:", "model:"):
        assert f"\n{group}\n" in text
    for flag in (
        "preset data val-data retention-data out-dir max-iters epochs max-time fit-time batch-size "
        "grad-accumulation-steps block-size n-layer n-head n-kv-head n-embd n-hidden positions norm recurrence-size "
        "ssm-state-size feed-forward head pattern bias no-bias dropout learning-rate min-lr warmup-iters "
        "lr-decay-iters lr-schedule weight-decay beta1 beta2 grad-clip eval-interval eval-iters log-interval "
        "save-interval seed threads kernels dtype device tokenizer resume config"
    ).split():
        assert re.search(rf"--{flag}\b", text), flag
    for name in PRESETS:
        assert f"\n  {name} " in text
    assert re.search(r"--n-embd INT +D: width of the hidden state \(default: 192\)", text)
    assert small.status("generate", "--help") == 0
    text = capsys.readouterr().out
    for flag in "model prompt max-tokens temp top-k top-p min-p repeat-penalty seed stop num-samples".split():
        assert f"--{flag}" in text, flag
    assert "\nsampling:\n" in text and "(default: 0.95)" in text


def test_commands_are_called_by_name(tmp_path):
    assert "did you mean train or pretrain?" in small.command("__main__", "trian", cwd=tmp_path).stderr
    done = small.command("__main__", "train", "--n-layers", 3, cwd=tmp_path)
    assert (
        done.returncode == 2
        and done.stderr == "slm_np: unknown argument '--n-layers'; did you mean --n-layer?\n"
        and done.stdout == ""
    )


# Bad input

BAD_SETTINGS = [
    (["--preset", "storys"], "did you mean stories"),
    (["--n-layers", 3], "did you mean --n-layer"),
    (["--positions", "rotery"], "did you mean rotary"),
    (["--n-head", 5, "--n-embd", 16], "--n-head 5 does not divide --n-embd 16"),
    (["--n-head", 4, "--n-kv-head", 3], "--n-kv-head 3 does not divide"),
    (["--batch-size", -1], "--batch-size is -1"),
    (["--batch-size", 0], "--batch-size is 0"),
    (["--batch-size", "many"], "--batch-size 'many' is not a whole number"),
    (["--batch-size", "1" * 5000], "is not a whole number"),
    (["--learning-rate", "nan"], "--learning-rate is nan"),
    (["--learning-rate", "inf"], "--learning-rate is inf"),
    (["--learning-rate", "1e400"], "--learning-rate is inf"),
    (["--dropout", 1], "--dropout is 1.0"),
    (["--seed", -3], "--seed is -3"),
    (["--n-layer", 10**9], "--n-layer is 1000000000"),
    (["--min-lr", 1, "--learning-rate", 0.1], "--min-lr 1.0 is above"),
    (["--max-time", "soon"], "--max-time 'soon' is not a duration"),
    (["--max-time", "-5m"], "expected"),
    (["--max-time", "20m", "--epochs", 2], "give one"),
    (["--max-iters", 5, "--epochs", 2], "give one"),
    (
        ["--max-iters", 0, "--max-time", "3s"],
        "--max-iters 0 and --max-time 3s both set the length of training; give one",
    ),
    (
        ["--fit-time", "3s", "--max-iters", 5],
        "--max-iters 5 and --fit-time 3s both set the length of training; give one",
    ),
    (["--fit-time", "3s", "--max-time", "3s", "--epochs", 1], "all set the length of training; give one"),
    (["--fit-time", "soon"], "--fit-time 'soon' is not a duration; write 90s, 20m, 1.5h or 2h30m"),
    (["--pattern", "AX"], "--pattern 'AX' is unknown"),
    (["--tokenizer", "bites"], "did you mean byte"),
    (["--dtype", "fp8"], "--dtype 'fp8' is unknown"),
    (["--device", "tpu"], "--device 'tpu' is unknown"),
    (["--threads", 1024], "--threads 1024 exceeds"),
    (["--kernels", "cpu"], "--kernels 'cpu' is unknown"),
    (["--vocab-size", 256], "--vocab-size 256 has no effect with a tokenizer"),
    (["--max-spectral-norm", 1], "--max-spectral-norm 1.0 has no effect without linear recurrences"),
    (["--pattern", "M", "--n-head", 2], "--n-head 2 has no effect without attention layers"),
    (["--pattern", "M", "--positions", "rotary"], "--positions rotary has no effect without attention layers"),
    (["--conv-kernel", 3], "--conv-kernel 3 has no effect without Mamba layers"),
    (["--positions", "learned", "--rope-theta", 100], "--rope-theta 100.0 has no effect without rotary positions"),
    (["stray"], "unknown argument 'stray'"),
    (["--n-embd"], "expected one argument"),
    (["--bias", "yes"], "unknown argument 'yes'"),
]


@pytest.mark.parametrize(
    "words, named", BAD_SETTINGS, ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else ""
)
def test_bad_settings(folder, capsys, words, named):
    assert named in small.refusal(capsys, "train", "--data", "text.txt", "--out-dir", "new", *words)


def test_bad_data(folder, capsys):
    Path("empty.txt").write_bytes(b"")
    Path("short.txt").write_bytes(b"too short")
    Path("latin.txt").write_bytes("größe".encode("latin-1") * 100)
    Path("hollow").mkdir()
    np.append(300, np.random.default_rng(0).integers(0, 300, 999)).astype("<u2").tofile("ids.bin")
    Path("odd.bin").write_bytes(b"123")

    def refused(*words):
        return small.refusal(capsys, "train", *small.flags(words[0], out_dir="new"), *words[1:])

    assert "tezt.txt does not exist; did you mean text.txt" in refused("tezt.txt")
    assert "two\\nlines.txt does not exist" in refused("two\nlines.txt")
    assert "no/such/folder does not exist" in refused("no/such/folder")
    assert "*.csv matches no file" in refused("*.csv")
    assert "empty.txt is empty" in refused("empty.txt")
    assert "hollow is a folder without files" in refused("hollow")
    assert "the train split has 8 tokens, but --block-size 16 needs 17" in refused("short.txt")
    assert "the validation split has 9 tokens" in refused("text.txt", "--val-data", "short.txt")
    assert "the text is not UTF-8" in refused("latin.txt", "--tokenizer", "char")
    assert "contain the id 300 at position 0, but the vocabulary has 256" in refused("ids.bin", "--vocab-size", 256)
    assert "odd.bin has 3 bytes" in refused("odd.bin")
    if os.name != "nt":
        os.mkfifo("pipe")
        assert "pipe is neither a file nor a folder" in refused("pipe")
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        os.chmod("text.txt", 0)
        assert "text.txt cannot be read" in refused("text.txt")


def test_a_model_too_large_is_refused_before_it_is_allocated(folder, capsys):
    huge = [
        "--n-layer",
        1000,
        "--n-embd",
        65536,
        "--n-head",
        1024,
        "--block-size",
        2**20,
        "--batch-size",
        2**20,
    ]
    Path("long.txt").write_bytes(b"long enough " * 100_000)
    data = ["--data", "long.txt", "--val-data", "long.txt", "--tokenizer", "byte"]
    assert "GiB of memory, and" in small.refusal(capsys, "train", *data, "--out-dir", "new", *huge)
    beyond_64_bits = [
        "--n-embd",
        1,
        "--n-head",
        1024,
        "--head-dim",
        65536,
        "--block-size",
        2**20,
        "--batch-size",
        2**16,
    ]
    assert "GiB of memory, and" in small.refusal(capsys, "train", *data, "--out-dir", "new", *beyond_64_bits)
    assert "GiB of memory, and" in small.refusal(
        capsys, "train", "--data", "text.txt", "--out-dir", "new", "--batch-size", 2**20, "--n-embd", 4096
    )
    assert "ask for fewer" in small.refusal(capsys, "generate", "--model", "bytes", "--num-samples", 10**10)


def test_a_directory_that_already_holds_something(folder, capsys):
    assert "bytes already holds a run; resume it with --resume bytes" in small.refusal(
        capsys, "train", "--data", "text.txt", "--out-dir", "bytes"
    )
    assert "text.txt is a file" in small.refusal(capsys, "train", "--data", "text.txt", "--out-dir", "text.txt")
    assert ": not a directory; choose another --out-dir" in small.refusal(
        capsys, "train", *small.flags("text.txt", out_dir="text.txt/run")
    )
    Path("runs").write_text("not a folder", encoding="utf-8")
    assert "cannot create" in small.refusal(capsys, "train", *small.flags("text.txt"))


@pytest.mark.parametrize(
    "words, named",
    [
        (["--resume"], "there is no run in runs/"),
        (["--resume", "nowhere"], "nowhere is not a run"),
        (["--resume", "text.txt"], "text.txt is not a run"),
    ],
)
def test_nothing_to_resume(folder, capsys, words, named):
    assert named in small.refusal(capsys, "train", *words)


@pytest.mark.parametrize(
    "name, damage, named",
    [
        ("model.safetensors", lambda raw: raw[: len(raw) // 2], "cut short"),
        ("model.safetensors", lambda raw: raw[:-5] + bytes([raw[-5] ^ 4]) + raw[-4:], "checksum"),
        ("model.safetensors", lambda raw: raw.replace(b'"crc32', b'"crc33'), "was not written by slm_np"),
        ("run.json", lambda raw: raw[:50], "is not valid JSON"),
        ("run.json", lambda raw: raw.replace(b'"n_embd": 16', b'"n_embd": 32'), 'remove its line "crc32"'),
        ("run.json", lambda raw: edited(raw, b'"slm_np"', b'"gpt2"'), "not a run of slm_np"),
        ("run.json", lambda raw: edited(raw, b'"n_embd": 16', b'"n_embd": 32'), "shape"),
        ("run.json", lambda raw: edited(raw, b'"n_embd": 16', b'"n_embd": "x"'), "--n-embd"),
        ("run.json", lambda raw: edited(raw, b'"tokenizer.json": "', b'"tokenizer.json": "x'), "tokenizer.json is"),
        ("generation_config.json", lambda raw: b"[]", "is not valid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_runs(folder, capsys, name, damage, named):
    path = Path("bytes") / name
    path.write_bytes(damage(path.read_bytes()))
    assert named in small.refusal(capsys, "generate", "--model", "bytes", "-n", 3)


def test_a_run_without_its_settings_is_a_model_of_hugging_face(folder, capsys):
    words = ["--prompt", "the", "-n", 9, "--temp", 0]
    assert small.status("generate", "--model", "bytes", *words) == 0
    text = capsys.readouterr().out
    Path("bytes", "run.json").unlink()
    assert small.status("generate", "--model", "bytes", *words) == 0
    found = capsys.readouterr()
    assert found.out == text and "Hugging Face, llama" in found.err
    assert "run.json missing: bytes is not a run of slm_np; restore that file, or start one" in small.refusal(
        capsys, "train", "--resume", "bytes"
    )


def test_damaged_checkpoints_are_skipped_and_refused_if_there_is_no_other(folder, capsys):
    flipped = sorted(Path("bytes").glob("checkpoint-*/optimizer.safetensors"))
    for path in flipped[1:]:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    assert small.status("train", "--resume", "bytes") == 0
    assert "skipping a checkpoint" in capsys.readouterr().err
    for path in Path("bytes").glob("checkpoint-*/optimizer.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert small.status("train", "--resume", "bytes") == 2
    assert "no checkpoint to resume from in bytes" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, named",
    [
        (["--max-tokens", -1], "--max-tokens '-1' must be a whole number"),
        (["--num-samples", 0], "--num-samples '0'"),
        (["--temp", -1], "--temp is -1.0"),
        (["--top-p", 0], "--top-p is 0.0"),
        (["--top-p", "nan"], "--top-p is nan"),
        (["--top-k", 1.5], "--top-k '1.5' is not a whole number"),
        (["--min-p", 2], "--min-p is 2.0"),
        (["--repeat-penalty", "x"], "--repeat-penalty 'x' is not a number"),
        (["--modle", "x"], "did you mean --model"),
        (["--model", "text.txt"], "text.txt is a text, not a model"),
    ],
)
def test_bad_generation_settings(folder, capsys, words, named):
    assert named in small.refusal(capsys, "generate", "--model", "bytes", *words)


def test_no_run_to_generate_with(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no run in runs/" in small.refusal(capsys, "generate")


def test_bad_input_in_a_process_of_its_own(folder):
    """Through the interpreter, too: one line, no traceback, exit status 2."""
    for verb, words in [
        ("train", ["--data", "missing.txt"]),
        ("generate", ["--model", "char", "--prompt", "Zebra"]),
        ("gradcheck", ["--preset", "x"]),
        ("gradcheck", ["--preset"]),
    ]:
        done = small.command(verb, *words, cwd=folder)
        assert done.returncode == 2 and re.fullmatch(r"slm_np: [^\n]+\n", done.stderr) and done.stdout == "", done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written(folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "slm_np.generate", "--model", "bytes", "-n", "5"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=small.environment(),
            encoding="utf-8",
        )
    assert done.returncode == 2 and "no space left" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("SLM_NP_KERNELS", "foo", "SLM_NP_KERNELS=foo is unknown; known are numba, numpy"),
        ("SLM_NP_KERNELS", "numbaa", "did you mean numba"),
        ("SLM_NP_CPU", "foo", "SLM_NP_CPU=foo is unknown; set SLM_NP_CPU=avx2 or unset it"),
        ("NUMBA_NUM_THREADS", "many", "NUMBA_NUM_THREADS='many' is not a positive whole number"),
    ],
)
def test_bad_values_of_environment_variables(folder, name, value, said):
    done = subprocess.run(
        [sys.executable, "-m", "slm_np.generate", "--model", "bytes", "-n", "3"],
        env=small.environment(**{name: value}),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 2 and re.fullmatch(r"slm_np: [^\n]+\n", done.stderr) and said in done.stderr


# --config


def config_file(text):
    Path("settings.toml").write_text(text, encoding="utf-8")
    return ["-c", "settings.toml"]


@pytest.mark.parametrize(
    "text, named",
    [
        ("max-iters = ", "is not TOML"),
        ("a = " + "[" * 10_000, "is not TOML"),
        ("max-iters = " + "1" * 5000, "value has 5000 digits); write lines"),
        ("max_itres = 5", "did you mean max_iters"),
        ("max-iters = 'five'", "--max-iters must be of type int"),
        ("bias = 1", "--bias must be of type bool"),
        ("preset = ['stories']", "preset"),
        ("preset = 'storys'", "did you mean stories"),
        ("data = [1, 2]", "--data is 1; it must be a path"),
        ("n-layer = [1]", "--n-layer must be of type int"),
        ("learning-rate = nan", "finite"),
        ("[model]\nn-layer = 2", "section [model]"),
        ("dropout = 1979-05-27", "--dropout must be of type float"),
        ("epochs = 2\nmax-time = '3s'", "give one"),
        ('out-dir = "a\\u0000b"', "cannot create"),
    ],
    ids=lambda value: value[:30],
)
def test_bad_config_files(folder, capsys, text, named):
    words = ["--data", "text.txt"] if not text.startswith("data") else []
    words += [
        word
        for name, value in small.MODEL.items()
        for word in (f"--{name.replace('_', '-')}", value)
        if not text.startswith("n-layer")
    ]
    assert named in small.refusal(capsys, "train", *config_file(text), *words)


def test_a_missing_config_file(folder, capsys):
    assert "--config none.toml cannot be read" in small.refusal(capsys, "train", "-c", "none.toml")
    assert "--config bytes cannot be read" in small.refusal(capsys, "train", "-c", "bytes")


def test_settings_come_from_the_file_and_flags_win(folder):
    shutil.copy("text.txt", "more.txt")
    words = config_file(
        "preset = 'shakespeare-char'\ntokenizer = 'byte'\nn-layer = 1\nn_embd = 12\nn-head = 2\nblock-size = 8\n"
        "bias = true\nmax-iters = 5\nwarmup-iters = 1\nlearning-rate = 1\nmin-lr = 0\nbatch-size = 2\neval-iters = 1\n"
        "data = ['text.txt', 'more.txt']\nthreads = 1\nout-dir = 'from-file'\n"
    )
    assert small.status("train", *words, "--n-embd", 16, "--max-iters", 4, "--no-bias", "--out-dir", "from-flag") == 0
    config = run_config.read_config("from-flag")
    assert (config.preset, config.model.n_embd, config.model.n_head, config.model.positions, config.model.bias) == (
        "shakespeare-char",
        16,
        2,
        "learned",
        False,
    )
    assert (config.train.max_iters, config.train.learning_rate, config.train.data, config.train.beta2) == (
        4,
        1.0,
        "text.txt,more.txt",
        0.99,
    )
    assert (
        small.status("train", "--resume", "from-flag", *words, "--n-embd", 16, "--no-bias", "--out-dir", "from-flag")
        == 0
    )
    assert small.status("train", *words, "--epochs", 0.01) == 0  # replaces the file's max-iters
    assert run_config.read_config("from-file").train.epochs == 0.01


# Training's output


def test_several_files_folders_and_globs(folder):
    Path("texts/deeper").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "deeper/c.md"):
        Path("texts", name).write_text(f"{name} " * 100, encoding="utf-8")
    sizes = [os.path.getsize(Path("texts", name)) for name in ("a.txt", "b.txt", "deeper/c.md")]
    for number, (given, total) in enumerate(
        [
            (["texts/a.txt", "texts/b.txt"], sum(sizes[:2])),
            (["texts"], sum(sizes)),
            (["texts/*.txt"], sum(sizes[:2])),
            (["texts/a.txt,texts/deeper"], sizes[0] + sizes[2]),
        ]
    ):
        assert (
            small.status(
                "train",
                *small.flags(given[0], max_iters=1, out_dir=f"new{number}")[:-2],
                "--out-dir",
                f"new{number}",
                "--data",
                *given,
            )
            == 0
        )
        assert sum(run_config.read_config(f"new{number}").data["tokens"]) == total


def test_the_log_of_training(folder):
    done = small.command("train", *small.flags("text.txt", max_iters=40), cwd=folder)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    computed = r"bf16: bfloat16 matmuls|fp32 by .*(register tiles|Accelerate)"
    assert re.match(f"slm_np: on the CPU, 1 thread, ({computed})", lines[0])
    assert re.match(
        r"corpus text.txt: [\d,]+ bytes, one document \(nothing separates several\), "
        r"[\d,]+ training and [\d,]+ validation tokens, vocabulary 256",
        lines[1],
    )
    assert re.match(r"model stories: 6,320 parameters", lines[2]) and re.match(
        r"memory: weights .*, together .* MiB", lines[3]
    )
    assert any(
        re.match(r"step 3/40  loss \d\.\d+  \d\.\d+ bits/byte  [\d,]+ tokens/s  ETA \d+s", line) for line in lines
    )
    assert any(
        re.match(r"step 40: train loss \d\.\d+, validation loss \d\.\d+, \d\.\d+ bits/byte  \| .+", line)
        for line in lines
    )
    assert "compiling" not in done.stderr  # the kernels of this process are in the cache
    tail = done.stdout.splitlines()[-4:]
    assert (
        re.match(r"validation \d\.\d{4} bits/byte$", tail[0])
        and tail[1].startswith(f"run: {Path('runs/stories')}, best model of step 40; ")
        and "python -m slm_np.generate" in tail[2]
        and "python -m slm_np.chat" in tail[3]
    )
    again = small.command("generate", cwd=folder)
    assert again.returncode == 0 and "weights of step 40" in again.stderr
    assert small.command("train", *small.flags("text.txt", max_iters=1), cwd=folder).returncode == 0
    assert (folder / "runs" / "stories-2" / "run.json").exists()


def test_samples_of_training_take_no_compiled_step(folder, monkeypatch, capsys):
    def compiled(model, batch):
        raise AssertionError("the compiled step is chosen")

    monkeypatch.setattr("slm_np.inference.decoder.choose_step", compiled)
    assert small.status("train", *small.flags("text.txt", out_dir="new")) == 0
    assert "  | " in capsys.readouterr().err
    with pytest.raises(AssertionError, match="the compiled step is chosen"):
        small.status("generate", "--model", "new")


def test_a_small_corpus_gets_a_warning(folder, capsys):
    assert (
        small.status("train", *small.flags("text.txt", max_iters=1, n_embd=64, n_hidden=512, n_layer=2, out_dir="new"))
        == 0
    )
    assert re.search(
        r"the corpus has 8,\d+ tokens for \d\d\d,\d+ parameters: expect gibberish", capsys.readouterr().err
    )


def test_without_matplotlib_one_line_says_so(folder):
    blocked = "import sys; sys.modules['matplotlib'] = None; from slm_np.train import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", blocked, *small.flags("text.txt", out_dir="new")],
        env=small.environment(),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if "matplotlib" in line] == [
        'run: new, best model of step 12; no loss curve, since matplotlib is not installed: pip install "slm_np[plot]"'
    ]
    assert not Path("new/loss.png").exists()


def test_the_loss_curve_is_drawn(folder):
    pytest.importorskip("matplotlib")
    assert small.status("train", *small.flags("text.txt", out_dir="new")) == 0
    assert Path("new/loss.png").read_bytes().startswith(b"\x89PNG")


# Generation


def generated(capsys, *words):
    capsys.readouterr()
    assert small.status("generate", "--threads", 1, *words) == 0
    return capsys.readouterr().out


def test_generation_is_reproducible_and_seeded(folder, capsys):
    words = ["--model", "bytes", "--prompt", "the cat", "-n", 30]
    first = generated(capsys, *words)
    assert first.startswith("the cat") and len(first) > len("the cat") + 10
    assert generated(capsys, *words) == first == generated(capsys, *words, "--seed", 0)
    assert generated(capsys, *words, "--seed", 1) != first
    greedy = generated(capsys, *words, "--temp", 0)
    assert greedy == generated(capsys, *words, "--temp", 0, "--seed", 9) == generated(capsys, *words, "--top-k", 1)


def test_samples_and_stops(folder, capsys):
    words = ["--model", "char", "--prompt", "the", "-n", 60]
    three = generated(capsys, *words, "--num-samples", 3).rstrip("\n").split("\n" + "-" * 20 + "\n")
    assert len(three) == 3 and len(set(three)) == 3 and all(text.startswith("the") for text in three)
    assert three[0] + "\n" == generated(capsys, *words)
    made = three[0][3:]
    stop = made[20:23]  # three tokens of this model
    stopped = generated(capsys, *words, "--stop", "never there", "--stop", stop)
    assert stopped == "the" + made[: made.index(stop)] + "\n"
    assert generated(capsys, *words, "--max-tokens", 0) == "the\n"


def test_a_prompt_outside_the_vocabulary(folder, capsys):
    said = small.refusal(capsys, "generate", "--model", "char", "--prompt", "the Zoo")
    known = json.loads(Path("char/tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert "'Z'" in said and f"the {len(known)} characters of the tokenizer" in said and "abcdeghilmnorstw" in said


@pytest.mark.parametrize("name", ["bytes", "learned", "sinusoidal"])
def test_more_tokens_than_the_context(folder, capsys, name):
    assert (
        len(generated(capsys, "--model", name, "--prompt", "a" * 40, "-n", 100, "--stop", "nothing of this kind")) > 100
    )


def test_the_prompt_may_be_piped_and_need_not_be_utf8(folder):
    done = subprocess.run(
        [sys.executable, "-m", "slm_np.generate", "--model", "bytes", "--prompt", "-", "-n", "5"],
        input="größe ".encode() + b"\xff",
        env=small.environment(),
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("größe ".encode() + b"\xff")


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe that breaks")
def test_a_closed_pipe_is_quiet(folder):
    running = subprocess.Popen(
        [sys.executable, "-m", "slm_np.generate", "--model", "bytes", "--prompt", "the cat sat", "-n", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=small.environment(),
    )
    assert running.stdout.read(10) == b"the cat sa"  # printed long before the last token
    running.stdout.close()
    said = running.stderr.read().decode()
    assert running.wait(60) == 141 and said.count("\n") == 1 and "weights of step" in said

"""`--kernels`: the NumPy kernels compile nothing, load no Numba, and give the results of the Numba kernels."""

import json
import subprocess
import sys

import pytest
import small

# Runs a command and fails if it has imported Numba.
CHECKED = """
import sys
from slm_np.{verb} import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert not left.code, left.code
loaded = [name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite")]
assert not loaded, loaded[:3]
"""


def run(verb, *words, cwd, **environment):
    """Run a command with the NumPy kernels in a process of its own. Returns its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKED.format(verb=verb), *map(str, words)],
        cwd=cwd,
        env=small.environment(**environment),
        input="the cat\n",
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text and a run on it, trained with the default kernels."""
    pytest.importorskip("slm_np.kernels.numpy")
    folder = tmp_path_factory.mktemp("kernels")
    assert small.status("train", *small.flags(small.text_file(folder), out_dir=folder / "run", dtype="fp32")) == 0
    return folder


@pytest.mark.parametrize(
    "verb, words, shown",
    [
        ("generate", ["--model", "run", "--prompt", "the cat", "-n", 20], "the cat"),
        ("chat", ["--model", "run", "-n", 5], "\n"),
        ("evaluate", ["--model", "run", "--data", "text.txt"], "nats/token"),
        ("train", small.flags("text.txt", out_dir="new"), "validation"),
        ("train", ["--resume", "run", "--max-iters", 14], "validation"),
        ("finetune", ["--base", "run", "--data", "text.txt", "--max-iters", 2, "--out-dir", "tuned"], "validation"),
    ],
)
def test_the_numpy_kernels_load_no_numba(folder, verb, words, shown):
    assert shown in run(verb, *words, "--kernels", "numpy", cwd=folder)


def test_info_loads_no_numba(folder):
    assert "preset stories" in run("info", "run", cwd=folder)


def test_the_variable_chooses_the_kernels_and_the_flag_wins(folder):
    words = ["--model", "run", "--prompt", "the cat", "-n", 5]
    assert run("generate", *words, cwd=folder, SLM_NP_KERNELS="numpy")
    assert run("generate", *words, "--kernels", "numpy", cwd=folder, SLM_NP_KERNELS="numba")


def test_both_kernel_sets_give_the_same_loss(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = ["--model", "run", "--data", "text.txt", "--limit-bytes", 2000, "--json"]
    assert small.status("evaluate", *words) == 0
    expected = json.loads(capsys.readouterr().out)
    found = json.loads(run("evaluate", *words, "--kernels", "numpy", cwd=folder))
    assert found["nats_per_token"] == pytest.approx(expected["nats_per_token"], rel=1e-5)


def test_gradcheck_checks_the_chosen_kernels(folder):
    shown = run("gradcheck", "--preset", "mamba", "--kernels", "numpy", cwd=folder).splitlines()[1:]
    assert shown and all(line.endswith("ok") for line in shown)


@pytest.mark.parametrize("verb", ["generate", "chat", "evaluate", "gradcheck"])
def test_an_unknown_kernel_set_is_refused(verb, capsys):
    assert small.status(verb, "--kernels", "fortran") == 2
    assert "invalid choice: 'fortran'" in capsys.readouterr().err


def test_an_unknown_kernel_set_in_the_environment_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "slm_np.gradcheck"],
        cwd=tmp_path,
        env=small.environment(SLM_NP_KERNELS="nump"),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 2
    assert done.stderr == "slm_np: SLM_NP_KERNELS=nump is unknown; did you mean numpy or numba?\n"


@pytest.mark.parametrize("verb", ["generate", "chat", "evaluate", "train"])
def test_kernels_have_no_effect_on_a_gpu(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert small.status(verb, "--kernels", "numpy", "--device", "cuda") == 2
    assert "--kernels numpy has no effect with --device cuda" in capsys.readouterr().err

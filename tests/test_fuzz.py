"""Thousands of random calls of the public library: no crash, no nonsense; and no check can be removed unnoticed."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_calls
import pytest
import small

import slm_np
from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokens import Tokens


def fuzz(n, start=0):
    """The counts of `fuzz_calls.fuzz`. AssertionError, with the calls, if one did not end right."""
    counts = fuzz_calls.fuzz(n, start)
    assert not counts["crashed"], counts["crashed"]
    assert not counts["failures"], "\n".join(counts["failures"])
    return counts


@pytest.mark.slow
def test_ten_thousand_random_calls():
    counts = fuzz(10_000)
    assert counts["tried"] == 10_000 and 3000 < counts["refused"] < 7000


def test_random_calls():
    counts = fuzz(400, start=1)
    assert counts["tried"] == 400 and 100 < counts["refused"] < 300


def test_random_calls_are_the_same_for_the_same_start():
    assert fuzz_calls.drawn_calls(20, 3) == fuzz_calls.drawn_calls(20, 3) != fuzz_calls.drawn_calls(20, 4)


def test_every_public_name_and_method_is_called():
    """`ENTRIES` names them, a method as CLASS.METHOD."""
    wanted = set(slm_np.__all__)
    for name in slm_np.__all__:
        cls = getattr(slm_np, name)
        if inspect.isclass(cls) and not issubclass(cls, Exception) and not hasattr(cls, "__dataclass_fields__"):
            wanted |= {f"{name}.{method}" for method in fuzz_calls.named_methods(cls)}
    own = {f"tokenizer.{method}" for method in {"decode", "with_end", *fuzz_calls.named_methods(Tokenizer)}}
    assert set(fuzz_calls.named_methods(Tokens)) == {"first", "sample"}
    assert wanted | own <= set(fuzz_calls.ENTRIES)


def test_a_crash_is_found_and_named(tmp_path, monkeypatch):
    """The process of `fuzz` imports this sitecustomize first, and dies in the middle of a call."""
    script = tmp_path / "sitecustomize.py"
    script.write_text(
        "import os, slm_np.nn.model as model\n"
        "def parameter_count(config): os.abort()\n"
        "model.parameter_count = parameter_count\n",
        encoding="utf-8",
    )
    environment = small.environment
    monkeypatch.setattr(
        small,
        "environment",
        lambda **more: environment(**more | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), more["PYTHONPATH"]]))),
    )
    counts = fuzz_calls.fuzz(400, start=1)
    assert counts["crashed"].startswith(("Call(entry='parameter_count'", "Call(entry='load'"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each check is removed in a forked process")
def test_no_check_can_be_removed_unnoticed():
    done = subprocess.run(
        [sys.executable, "fuzz_mutations.py", "4"],
        cwd=Path(__file__).parent,
        env=small.environment(),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    n_checks, survivors = json.loads(done.stdout.splitlines()[-1])
    assert survivors == [] and n_checks > 100

"""Messages for a path that is not a run: what it is, and what to name instead."""

import difflib
import os
from pathlib import Path

from slm_np.errors import UserError
from slm_np.paths import is_run
from slm_np.words import quoted


def not_a_run(path):
    """The UserError for a path that was named as a run and is none: what it is, and what helps."""
    path = Path(path)
    parent = Path(os.path.abspath(path)).parent
    if is_run(parent):
        wrong = "is not a run but a part of" if os.path.lexists(path) else "does not exist in"
        return UserError(f"{path} {wrong} the run {path.parent}; name the run: {path.parent}")
    if not os.path.lexists(path):
        return UserError(f"{path} is not a run: it does not exist; {similar_run(path)}")
    if not path.is_dir():
        return UserError(f"{path} is not a run but a file; {_use_of(path)}")
    if (path / "train.bin").is_file():
        return UserError(f"{path} is not a run but a folder of tokens; train on it with --data {quoted(path)}")
    if runs := sorted(filter(is_run, path.glob("*"))):
        shown = ", ".join(map(str, runs[:5])) + " and more" * (len(runs) > 5)
        return UserError(f"{path} is not a run but a folder with runs; name one: {shown}")
    return UserError(f"run.json missing: {path} is not a run of slm_np; name a directory that --out-dir made")


def similar_run(path):
    """What to name instead of a path that does not exist."""
    try:
        runs = [folder.name for folder in path.parent.iterdir() if is_run(folder)]
    except OSError:
        runs = []
    if near := difflib.get_close_matches(path.name, runs, n=2):
        return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?"
    return "name a directory that --out-dir made"


def _use_of(file):
    """What can be done with a file that is not a run."""
    name = quoted(file)
    if file.suffix == ".bin":
        return f"convert a llama2.c checkpoint with python -m slm_np.convert {name}, train on tokens with --data {name}"
    if file.suffix == ".safetensors":
        return "name the directory of its run"
    return f"train on a text with --data {name}"

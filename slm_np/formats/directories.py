"""Directories of runs: the one a new run gets, and the newest under runs/."""

import contextlib
import itertools
import os
import shutil
from pathlib import Path

from slm_np.errors import UserError
from slm_np.paths import expanded
from slm_np.words import quoted

RUNS = Path("runs")


def check_free(out_dir):
    """UserError if `out_dir` is a file or holds a run."""
    if os.path.lexists(out_dir) and not os.path.isdir(out_dir):
        raise UserError(f"--out-dir {out_dir} is a file; name a directory")
    if any(os.path.lexists(Path(out_dir) / name) for name in ("config.json", "model.safetensors", "metrics.jsonl")):
        raise UserError(
            f"{out_dir} already holds a run; resume it with --resume {quoted(out_dir)}, or choose another --out-dir"
        )


@contextlib.contextmanager
def new_directory(out_dir, name):
    """Create the directory of a new run, yield its path, and undo everything if the block raises.

    out_dir  the directory; "" means the first of runs/NAME, runs/NAME-2, ... that does not exist
    Raises UserError if it cannot be created or already holds a run.
    """
    paths = [expanded(out_dir)] if out_dir else (RUNS / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    for directory in paths:
        created = _create(directory)  # creating it claims the name: two programs that start at once get two directories
        if created or out_dir:
            break
    check_free(directory)
    before = set(os.listdir(directory))
    try:
        yield directory
    except BaseException:
        with contextlib.suppress(OSError):  # the disk that failed may also fail to remove
            for path in (directory / entry for entry in set(os.listdir(directory)) - before):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if created:
                directory.rmdir()
        raise


def _create(directory):
    """Create the directory. Returns False if it exists already; UserError if it cannot be created."""
    try:
        os.makedirs(directory)
        return True
    except (OSError, ValueError) as error:  # ValueError: a character that is not allowed in paths
        if isinstance(error, FileExistsError) and os.path.lexists(directory):
            return False
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"cannot create {str(directory)!r}: {reason}; choose another --out-dir") from None


def newest_run():
    """The run under runs/ that was written to last. UserError if there is none."""
    found = [path.parent for path in RUNS.glob("*/config.json")] if RUNS.is_dir() else []
    if not found:
        raise UserError("there is no run in runs/ yet; train one with python -m slm_np.train, or name its directory")
    return max(found, key=_modified)


def _modified(run):
    """When a run was written to last, by files that stay: while a run trains, others are renamed and removed."""
    files = [run / name for name in ("config.json", "metrics.jsonl")]
    return max(file.stat().st_mtime for file in files if file.exists())

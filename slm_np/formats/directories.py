"""Directories of runs: the one a new run gets, the lock of its only writer, and the newest under runs/."""

import contextlib
import itertools
import os
import re
import shutil
from pathlib import Path

from slm_np import file_lock
from slm_np.errors import UserError
from slm_np.formats.files import saving
from slm_np.formats.run_config import check_is_run
from slm_np.paths import OLD_RUN, RUN, expanded, is_run
from slm_np.words import quoted

RUNS = Path("runs")
LOCK = "lock"  # the file that the process which writes a run holds locked, see slm_np/file_lock.py
# What a run writes. The first group is all that a start can leave, beside its lock, if it is killed.
CREATED = (
    r"((tokenizer_|generation_|adapter_)?config|tokenizer|chat_template)\.json|chat_template\.jinja|checkpoint-0|"
    r".+\.(tmp|old)-\d+"
)
TRAINED = r"run\.json|(adapter_)?model\.safetensors|metrics\.jsonl|checkpoint-\d+"


@contextlib.contextmanager
def new_directory(out_dir, name):
    """Create the directory of a new run and yield its path, with the run's lock held until the block ends.

    If the block raises before the directory has become a run, that is before it holds run.json, all that this
    process created is removed again.

    out_dir  the directory; "" means the first of runs/NAME, runs/NAME-2, ... that is free: it does not exist, or is
             empty, or holds only what a start that was killed has left
    Raises UserError if the directory cannot be created, already holds a run or files that a run would overwrite, or is
    in use by another process.
    """
    with contextlib.ExitStack() as held:
        directory, created, before = held.enter_context(_taken(expanded(out_dir)) if out_dir else _first_free(name))
        try:
            yield directory
        except BaseException:
            with contextlib.suppress(OSError):  # the disk that failed may also fail to remove
                if not os.path.lexists(directory / RUN) and not file_lock.is_lost(directory / LOCK):
                    _remove(directory, keep=before)
                    held.close()  # removes the lock, without which the directory is empty
                    _remove_directories(created)
            raise


@contextlib.contextmanager
def writing(directory):
    """Hold the lock of the run in `directory` until the block ends.

    Raises UserError at once if it is not a run, or if another process writes there.
    """
    directory = Path(directory)
    if not is_run(directory):
        _check_unclaimed(directory)  # a run that is being created has a lock before its run.json
        check_is_run(directory)
    with contextlib.ExitStack() as held:
        with saving(directory / LOCK):
            held.enter_context(file_lock.claimed(directory / LOCK))
        check_is_run(directory)
        yield


def check_in_place(directory):
    """UserError if this process holds the lock of a run whose directory was removed, renamed or replaced since."""
    if file_lock.is_lost(Path(directory) / LOCK):
        raise UserError(
            f"the directory {directory} was removed, renamed or replaced during training, so nothing more is written; "
            "resume the run where it is now, or start again"
        )


def release(directory):
    """Free the lock of the run in `directory` early, if this process holds it."""
    file_lock.release(Path(directory) / LOCK)


@contextlib.contextmanager
def _taken(directory):
    """Create and lock the directory that --out-dir names. Yields (directory, created, before).

    created  the directories that did not exist before, innermost first
    before   the names in it that an undo has to keep
    """
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise UserError(f"--out-dir {directory} is a file; name a directory")
    _check_unclaimed(directory)
    leftover = os.path.lexists(directory / LOCK)
    _files_to_keep(directory, leftover)  # a run is left alone: not even its lock is touched
    with contextlib.ExitStack() as held:
        created = _claim(directory, held)
        kept = _files_to_keep(directory, leftover)
        _clear(directory, kept)
        yield directory, created, kept


@contextlib.contextmanager
def _first_free(name):
    """Create and lock the first of runs/NAME, runs/NAME-2, ... that is free. Yields as `_taken`."""
    for number in itertools.count(1):
        directory = RUNS / (name if number == 1 else f"{name}-{number}")
        if os.path.lexists(directory) and not _is_unused(directory):
            continue
        with contextlib.ExitStack() as held:
            try:
                created = _claim(directory, held)
            except file_lock.InUse:  # two programs that start at once get two directories
                continue
            if _is_unused(directory):  # still, now that the lock is held
                _clear(directory, set())
                yield directory, created, set()
                return


def _claim(directory, held):
    """Create the directory unless it exists, and lock it until the ExitStack `held` is closed.

    Returns the directories that did not exist, innermost first. Raises UserError if it cannot be written, or if another
    process holds the lock.
    """
    while True:
        created = _create(directory)
        with saving(directory / LOCK):
            try:
                held.enter_context(file_lock.claimed(directory / LOCK))
                return created
            except FileNotFoundError:  # another start that failed has removed the directory
                if os.path.isdir(directory):
                    raise
            except OSError:
                _remove_directories(created)
                raise


def _check_unclaimed(directory):
    """UserError if another process holds the lock of the directory, which need not exist."""
    with saving(directory / LOCK):
        file_lock.check_unclaimed(directory / LOCK)


def _create(directory):
    """Create the directory. Returns the directories that did not exist, innermost first; [] if it exists already.

    UserError if it cannot be created.
    """
    try:
        missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
        os.makedirs(directory)
        return missing
    except (OSError, ValueError) as error:  # ValueError: a character that is not allowed in paths
        if isinstance(error, FileExistsError) and os.path.lexists(directory):
            return []
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"cannot create {str(directory)!r}: {reason}; choose another --out-dir") from None


def _is_unused(directory):
    """Whether the directory is empty, or holds only what a start that was killed has left."""
    names = set(os.listdir(directory)) if directory.is_dir() else {"a file"}
    return not names or LOCK in names and all(name == LOCK or re.fullmatch(CREATED, name) for name in names)


def _files_to_keep(directory, leftover):
    """The names in the directory, without those that a start which was killed has left if there was one (`leftover`).

    UserError if there is a run, or a file that a run would overwrite.
    """
    names = set(os.listdir(directory)) - {LOCK} if os.path.isdir(directory) else set()
    if is_run(directory):
        raise UserError(
            f"{directory} already holds a run; resume it with --resume {quoted(directory)}, or choose another --out-dir"
        )
    if leftover:
        names = {name for name in names if not re.fullmatch(CREATED, name)}
    for name in sorted(names):
        if re.fullmatch(f"{CREATED}|{TRAINED}", name):
            raise UserError(
                f"{directory} already holds {name}, which a new run would overwrite; choose another --out-dir"
            )
    return names


def _clear(directory, keep):
    """Remove what a start that was killed has left, which would become part of the new run."""
    with saving(directory):
        _remove(directory, keep)


def _remove(directory, keep):
    """Remove what a run that failed to start, or was killed then, has written to its directory, except its lock."""
    for name in os.listdir(directory):
        if name not in keep and re.fullmatch(f"{CREATED}|{TRAINED}", name):
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_directories(paths):
    """Remove empty directories, innermost first, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for path in paths:
            os.rmdir(path)


def newest_run():
    """The run under runs/ that was written to last. UserError if there is none."""
    found = [path for path in RUNS.glob("*") if is_run(path)]
    if not found:
        raise UserError("there is no run in runs/ yet; train one with python -m slm_np.train, or name its directory")
    return max(found, key=_modified)


def _modified(run):
    """When a run was written to last, by files that stay: while a run trains, others are renamed and removed."""
    files = [run / name for name in (RUN, OLD_RUN, "metrics.jsonl")]
    return max(file.stat().st_mtime for file in files if file.exists())

"""The cache folder, folders that appear under their name only when they are complete, and what makes a folder a run."""

import atexit
import contextlib
import functools
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from slm_np.errors import UserError, remedy

UNFINISHED_SECONDS = 86400  # until an unfinished folder belongs to a killed process
RUN = "run.json"  # the file that makes a directory a run
OLD_RUN = "config.json"  # the same in runs of formats 1 to 3. Elsewhere it is Hugging Face's file


def cache_dir(folder=None):
    """The folder for token stores and compiled kernels, created if needed: `folder`, else $SLM_NP_CACHE, else `slm_np`
    in the platform's cache folder.

    That is $XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on macOS and %LOCALAPPDATA% on Windows. If the folder
    cannot be written, or if there is no home folder, a line on stderr says so and a temporary folder is used until the
    program ends. Raises UserError if no folder can be written.
    """
    return _writable(_configured(folder))


def cache_path(folder=None):
    """The folder of `cache_dir` for reading, whether it exists and can be written or not.

    So a cache that another user or an image build has filled is usable. Without a home folder it is `cache_dir`.
    """
    path = _configured(folder)
    return path if path.is_absolute() else cache_dir(folder)


def is_run(directory):
    """Whether the path `directory` is a run, of this format or an older one."""
    return os.path.isfile(os.path.join(directory, RUN)) or has_old_settings(directory)


def has_old_settings(directory):
    """Whether a directory has the config.json of a run of formats 1 to 3."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(directory, OLD_RUN), "rb") as file:
        return re.search(rb'"model_type"\s*:\s*"slm_np"', file.read(1 << 20)) is not None
    return False


def expanded(path):
    """A Path in which ~ stands for the home folder. Without one it stays, where `Path.expanduser` would raise."""
    return Path(os.path.expanduser(path))


def expanded_list(data):
    """Paths separated by commas, as `--data` takes them, in which ~ stands for the home folder."""
    return ",".join(os.path.expanduser(path.lstrip()) if path.lstrip()[:1] == "~" else path for path in data.split(","))


def import_path():
    """sys.path for a child process: "" becomes the working directory, or is left out if that was deleted."""
    try:
        here = os.getcwd()
    except OSError:
        here = ""
    return [folder or here for folder in sys.path if folder or here]


def _configured(folder):
    """The chosen folder. Its path stays relative if ~ or the working directory, on which it depends, does not exist."""
    path = expanded(folder or os.environ.get("SLM_NP_CACHE") or _platform_cache() / "slm_np")
    with contextlib.suppress(OSError):
        return path if str(path).startswith("~") else path.absolute()
    return path


def _platform_cache():
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or expanded("~") / "AppData" / "Local")
    if sys.platform == "darwin":
        return expanded("~") / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return Path(xdg) if os.path.isabs(xdg) else expanded("~") / ".cache"


@functools.lru_cache(maxsize=None)  # so that there is one message and one temporary folder
def _writable(path):
    if str(path).startswith("~"):  # $HOME is not set, and this user has no entry in the list of users
        reason = f"the cache folder {path} needs a home folder, and this user has none"
    elif not path.is_absolute():
        reason = f"the cache folder {path} is relative to a working directory that no longer exists"
    else:
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Permission bits do not show whether a write succeeds (read-only file systems, Windows).
            tempfile.TemporaryFile(dir=path).close()
            return path
        except OSError as error:
            reason = f"the cache folder {path} cannot be written ({(error.strerror or str(error)).lower()})"
    temporary = _temporary(reason)
    print(f"slm_np: {reason}; using {temporary} for this run; set SLM_NP_CACHE to another folder", file=sys.stderr)
    return temporary


def _temporary(reason):
    """A folder that is removed when the program ends. Raises UserError, which begins with `reason`, without one."""
    try:
        # A fresh private folder: one of a fixed name in /tmp could hold someone else's files.
        folder = Path(tempfile.mkdtemp(prefix="slm_np-"))
    except OSError:
        raise UserError(
            f"{reason}, and no temporary folder can be written; set SLM_NP_CACHE or TMPDIR to one that can be"
        ) from None
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder, process):
    """Remove a folder in the process that made it: a forked child runs the exit functions of its parent, too."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def published(folder):
    """Yield an empty folder beside `folder` to fill. On success it is renamed to `folder`, on an exception removed.

    So a folder under its final name is always complete. If another process has created `folder` meanwhile, that one is
    kept. Raises UserError if the disk cannot be written.
    """
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        part = Path(tempfile.mkdtemp(prefix=folder.name[:12] + "-", suffix=".part", dir=folder.parent))
        yield part
        for path in (*part.iterdir(), part):
            sync(path)
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():
                raise
        sync(folder.parent)
    except OSError as error:
        raise UserError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror}); "
            + remedy(error, "set SLM_NP_CACHE to another folder")
        ) from None
    finally:
        if part:
            shutil.rmtree(part, ignore_errors=True)


def sync(path):
    """Make the contents of a file survive a power cut, or the names in a folder.

    Folders cannot be flushed on Windows and on some network disks, which is ignored.
    """
    if path.is_dir():
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    else:
        with open(path, "r+b") as file:
            os.fsync(file.fileno())


def sweep(parent):
    """Remove the unfinished folders of killed processes: those not written to for UNFINISHED_SECONDS."""
    for part in parent.glob("*.part"):
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime for path in (part, *part.iterdir())) < time.time() - UNFINISHED_SECONDS:
                shutil.rmtree(part)

"""The cache folder, and folders that appear under their name only when they are complete."""

import atexit
import contextlib
import functools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from slm_np.errors import UserError

UNFINISHED_SECONDS = 86400  # until an unfinished folder belongs to a killed process


def cache_dir(folder=None):
    """The folder for token stores and compiled kernels, created if needed: `folder`, else $SLM_NP_CACHE, else `slm_np`
    in the platform's cache folder.

    That is $XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on macOS and %LOCALAPPDATA% on Windows. If the folder
    cannot be written, a line on stderr says so and a temporary folder is used until the program ends.
    """
    return _writable(str(cache_path(folder)))


def cache_path(folder=None):
    """The folder of `cache_dir`, whether it exists and can be written or not."""
    return Path(folder or os.environ.get("SLM_NP_CACHE") or _platform_cache() / "slm_np").expanduser().absolute()


def _platform_cache():
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"


@functools.lru_cache(maxsize=None)  # so that there is one message and one temporary folder
def _writable(folder):
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits do not show whether a write succeeds (read-only file systems, Windows).
        tempfile.TemporaryFile(dir=path).close()
        return path
    except OSError as error:
        # A fresh private folder: one of a fixed name in /tmp could hold someone else's files.
        temporary = Path(tempfile.mkdtemp(prefix="slm_np-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        print(
            f"slm_np: the cache folder {path} cannot be written ({error.strerror}); using {temporary} for this run; "
            "set SLM_NP_CACHE to choose another folder",
            file=sys.stderr,
        )
        return temporary


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
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise UserError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror}); free some space, "
            "or set SLM_NP_CACHE to another folder"
        ) from None
    finally:
        if part:
            shutil.rmtree(part, ignore_errors=True)


def sweep(parent):
    """Remove the unfinished folders of killed processes: those not written to for UNFINISHED_SECONDS."""
    for part in parent.glob("*.part"):
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime for path in (part, *part.iterdir())) < time.time() - UNFINISHED_SECONDS:
                shutil.rmtree(part)

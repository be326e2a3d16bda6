"""Where things are kept between runs: the cache folder, and folders that appear whole or not at all."""

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


def cache_dir(folder=None):
    """The folder for token stores and compiled kernels, made if need be: `folder`, else $SLM_NP_CACHE, else the platform's own.

    That is $XDG_CACHE_HOME or ~/.cache on Linux, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows, and `slm_np` in it. If it
    cannot be written, a line on stderr says so and a temporary folder serves until the program ends.
    """
    return _writable(str(folder or os.environ.get("SLM_NP_CACHE") or _platform_cache() / "slm_np"))


def _platform_cache():
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"  # the XDG rules say to ignore a relative one


@functools.lru_cache(maxsize=None)  # so that the line is printed once, and the temporary folder is one
def _writable(folder):
    path = Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # permission bits alone do not tell (read-only disks, Windows)
        return path
    except OSError as error:
        # A fresh private folder, not a fixed name in /tmp that somebody else may have filled.
        temporary = Path(tempfile.mkdtemp(prefix="slm_np-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        print(
            f"slm_np: the cache folder {path} cannot be written ({error.strerror}); {temporary} serves for this run, "
            "or set SLM_NP_CACHE to another folder",
            file=sys.stderr,
        )
        return temporary


@contextlib.contextmanager
def published(folder):
    """Yield an empty sibling of `folder`, in the cache, to fill; on success it is renamed to `folder`, on an exception it is removed.

    So a folder under its final name is always complete. Where another process was quicker, its folder stays and ours is dropped.
    UserError if the disk refuses.
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
            f"the cache {folder.parent} cannot be written ({error.strerror}); free some space, "
            "or set SLM_NP_CACHE to another folder"
        ) from None
    finally:
        if part:
            shutil.rmtree(part, ignore_errors=True)


def sweep(parent, age=86400):
    """Remove what killed processes left: unfinished folders in which nothing was written for `age` seconds."""
    for part in parent.glob("*.part"):
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime for path in (part, *part.iterdir())) < time.time() - age:
                shutil.rmtree(part)

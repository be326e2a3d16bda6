"""The k-th operation on files fails, or kills the process: for `setup` of `children.forked`.

Patched are the functions through which Python changes files: `open` for writing and `write` of what it opens,
`os.open`, `os.write`, `os.fsync`, `os.replace`, `os.rename`, `os.mkdir`, `os.unlink`, `os.remove`, `os.rmdir`,
`os.truncate` and `os.ftruncate`. Only operations on paths in one folder count. Processes that the child starts are
exempt.
"""

import builtins
import errno
import io
import json
import os
import signal
from pathlib import Path

KILL = "kill"
CREATE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NEEDS_SPACE = ("open", "write", "mkdir", "fsync")  # what goes on failing on a full disk


class Injection:
    """Counts the operations in `folder`. The one of number `at` (from 1) fails.

    fault  an errno, which it raises, or KILL.   ENOSPC lasts: all later operations that need space fail, too.
    after  kill after the operation instead of before it; half of what a write should write is written
    log    a file for [[operation, path], ...], written at the end, or None
    """

    def __init__(self, folder, at=None, fault=None, after=False, log=None):
        self.folder, self.at, self.fault, self.after, self.log = os.path.realpath(folder), at, fault, after, log
        self.seen, self.full, self.paths = [], False, {}
        self.real = {name: getattr(os, name) for name in PATCHED}
        self.open = builtins.open

    def __call__(self):
        """Patch this process. Returns the function to call at its end."""
        builtins.open = io.open = self.opened
        for name in PATCHED:
            setattr(os, name, getattr(self, f"os_{name}"))
        return self.write_log if self.log else None

    def write_log(self):
        with self.open(self.log, "w", encoding="utf-8") as file:
            json.dump(self.seen, file)

    def path_of(self, path, dir_fd=None):
        """The path in the folder as a string, or None if it lies elsewhere."""
        if isinstance(path, int):
            return self.paths.get(path)
        path = os.fsdecode(path)
        if dir_fd is not None and not os.path.isabs(path):
            path = os.path.join(self.paths.get(dir_fd, "/"), path)
        path = os.path.abspath(path)
        return path if path.startswith(self.folder + os.sep) or path == self.folder else None

    def reach(self, operation, path):
        """Count an operation. Returns whether the process is to be killed after it."""
        if path is None:
            return False
        self.seen.append([operation, os.path.relpath(path, self.folder)])
        due = len(self.seen) == self.at
        if due and self.fault == KILL:
            if not self.after:
                die()
            return True
        if due or self.full and operation in NEEDS_SPACE:
            self.full = self.fault == errno.ENOSPC
            raise OSError(self.fault, os.strerror(self.fault), path)
        return False

    def opened(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        """`open`, whose files for writing count their writes."""
        path = self.path_of(file) if isinstance(file, (str, bytes, os.PathLike)) else None
        if path is None or not set(mode) & set("wax+"):
            return self.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        kill = self.reach("open", path)
        raw = CountedFile(self, path, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        self.paths[raw.fileno()] = path
        if kill:
            die()
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    def call(self, name, operation, path, *arguments, **options):
        """A patched function of `os`."""
        kill = self.reach(operation, path)
        found = self.real[name](*arguments, **options)
        if kill:
            die()
        return found

    def os_open(self, path, flags, mode=0o777, *, dir_fd=None):
        inside = self.path_of(path, dir_fd)
        found = self.call("open", "open", inside if flags & CREATE else None, path, flags, mode, dir_fd=dir_fd)
        if inside:
            self.paths[found] = inside
        else:
            self.paths.pop(found, None)
        return found

    def os_write(self, descriptor, data):
        return self.call("write", "write", self.paths.get(descriptor), descriptor, data)

    def os_fsync(self, descriptor):
        return self.call("fsync", "fsync", self.paths.get(_number(descriptor)), descriptor)

    def os_ftruncate(self, descriptor, length):
        return self.call("ftruncate", "truncate", self.paths.get(descriptor), descriptor, length)

    def os_truncate(self, path, length):
        return self.call("truncate", "truncate", self.path_of(path), path, length)

    def os_replace(self, source, target, **options):
        return self.call("replace", "rename", self.path_of(target), source, target, **options)

    def os_rename(self, source, target, **options):
        return self.call("rename", "rename", self.path_of(target), source, target, **options)

    def os_mkdir(self, path, *arguments, dir_fd=None, **options):
        return self.call("mkdir", "mkdir", self.path_of(path, dir_fd), path, *arguments, dir_fd=dir_fd, **options)

    def os_unlink(self, path, *, dir_fd=None):
        return self.call("unlink", "unlink", self.path_of(path, dir_fd), path, dir_fd=dir_fd)

    def os_remove(self, path, *, dir_fd=None):
        return self.call("remove", "unlink", self.path_of(path, dir_fd), path, dir_fd=dir_fd)

    def os_rmdir(self, path, *, dir_fd=None):
        return self.call("rmdir", "unlink", self.path_of(path, dir_fd), path, dir_fd=dir_fd)


class CountedFile(io.FileIO):
    """A file whose writes count. The one that fails has written half of its bytes."""

    def __init__(self, injection, path, file, mode, closefd, opener):
        super().__init__(file, mode, closefd, opener)
        self.injection, self.path, self.error = injection, path, None

    def write(self, data):
        if self.error:
            error, self.error = self.error, None
            raise error
        half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        try:
            kill = self.injection.reach("write", self.path)
        except OSError as error:  # as a disk does: what fits is written, and the rest fails
            self.error = error
            return super().write(half) if len(half) else self.write(data)
        if kill:
            super().write(half)
            die()
        return super().write(data)


PATCHED = [name.removeprefix("os_") for name in vars(Injection) if name.startswith("os_")]


def _number(descriptor):
    return descriptor if isinstance(descriptor, int) else descriptor.fileno()


def die():
    """End this process as a crash does: nothing is flushed or cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def operations(log):
    """What a child with a log has done: [[operation, path], ...]."""
    return json.loads(Path(log).read_text(encoding="utf-8"))

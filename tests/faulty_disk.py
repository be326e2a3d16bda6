"""A disk that fails at one operation: opening a file to write, writing, flushing, renaming, or making a folder."""

import builtins
import io
import os


class FaultyDisk:
    """Counts what is written, and fails at the operation `at` with the error number `code`. 0 never fails.

    A write that fails has written half of its bytes.
    """

    def __init__(self, monkeypatch, at=0, code=0):
        self.at, self.code, self.count, self.failed = at, code, 0, ""
        self.open = io.open
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self.opened)
        for name in ("fsync", "rename", "replace", "mkdir"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name), name))

    def step(self, what):
        """Count an operation. OSError if it is the one that fails."""
        self.count += 1
        if self.count == self.at:
            self.failed = what
            raise OSError(self.code, os.strerror(self.code))

    def counted(self, function, name):
        def call(*arguments, **options):
            self.step(f"{name} {arguments[0]}")
            if name != "fsync":  # which nothing but a power cut shows
                return function(*arguments, **options)

        return call

    def opened(self, file, mode="r", *arguments, **options):
        if not set(mode) & set("wax+"):
            return self.open(file, mode, *arguments, **options)
        self.step(f"open {file}")
        return Written(self, self.open(file, mode, *arguments, **options))


class Written:
    """A file that is open for writing on a `FaultyDisk`."""

    def __init__(self, disk, file):
        self.disk, self.file = disk, file

    def write(self, data):
        try:
            self.disk.step(f"write {self.file.name}")
        except OSError:
            self.file.write(data[: len(data) // 2])
            raise
        return self.file.write(data)

    def flush(self):
        self.disk.step(f"flush {self.file.name}")
        self.file.flush()

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __iter__(self):
        return iter(self.file)

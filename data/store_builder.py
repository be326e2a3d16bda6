"""Build a token store from a plan: tokenize its shards, join them, and rename the folder once it is complete.

A plan is an object that JSON can hold:
    shards        [[split, kind, start, stop], ...]: byte ranges of the split's text (see `shards.shard_ranges`)
    texts         {split: [[path, size, mtime], ...]}
    fingerprint   equal for equal stores
    and whatever else the store depends on. A folder that was begun with an equal plan is resumed.
"""

import contextlib
import json
import os
import shutil
from itertools import zip_longest

from slm_np.data import joined, shards
from slm_np.data.checksums import Damaged, crc32, verify
from slm_np.data.files import checksummed, read_json_or_empty, verified
from slm_np.data.meter import Meter
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.data.workers import WorkerDied, tokenize_in_processes
from slm_np.errors import UserError, remedy
from slm_np.file_lock import locked
from slm_np.machine import available_cores
from slm_np.paths import sync


class Build:
    """A store to make, with `run`, or step by step: `begin`, `finish` and `close`. It appears once it is complete.

    folder          the store: SPLIT.bin and SPLIT.mask.bin (see joined.py), tokenizer.json and meta.json
    plan            see above
    make_tokenizer  function () -> Tokenizer
    describe        function (tokenizer, totals {split: counts}) -> the object in meta.json, without checksums
    keep            function () -> whether to keep a folder that exists. It is called while the lock is held
    elsewhere       what the user can do if the folder cannot be written, for the end of a message
    threads         number of processes, 0 for one per core
    progress        whether to show progress on stderr

    If another process builds the same store, this one waits for it. UserError for text that cannot be tokenized, or a
    disk that fails.
    """

    def __init__(
        self,
        folder,
        plan,
        make_tokenizer,
        describe,
        keep=lambda: True,
        elsewhere="name another folder",
        threads=0,
        progress=True,
    ):
        self.folder, self.staging, self.plan = folder, staging_of(folder), plan
        self.make_tokenizer, self.describe, self.keep, self.elsewhere = make_tokenizer, describe, keep, elsewhere
        self.threads, self.progress = threads, progress
        self.tokenizer = None  # after `begin`
        self._is_whole = False  # whether `finish` only has to rename the folder
        self._lock = contextlib.ExitStack()

    def run(self):
        """Make the store, or wait until another process has made it."""
        try:
            if self.begin():
                self.finish()
        finally:
            self.close()

    def begin(self, until=lambda: False):
        """Whether this process builds the store now. If so, it holds the lock, and the tokenizer is made.

        If not, the store is complete, or `until()` became true while another process was building it.
        """
        waiting = "waiting for another process that prepares the same corpus" if self.progress else ""
        with self._errors():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = self.folder.with_name(self.folder.name + ".lock")
            if not self._lock.enter_context(locked(lock, waiting, until)) or self.exists() and self.keep():
                self.close()
                return False
            if self.exists():
                shutil.rmtree(self.folder)  # a process that reads it keeps what it has opened
            self._is_whole = _is_complete(self.staging, self.plan)
            if self._is_whole:
                self.tokenizer = load_tokenizer(self.staging / "tokenizer.json")
                return True
            self.tokenizer = _resumed(self.staging, self.plan) or _begun(self.staging, self.plan, self.make_tokenizer)
            joined.clean(self.staging, self.plan, self.tokenizer.dtype.itemsize, self.progress)
            return True

    def finish(self, stop=None):
        """Tokenize the shards, join them, and rename the folder. stop: as in `tokenize_in_processes`."""
        with self._errors():
            if not self._is_whole:
                _tokenize_all(self.staging, self.plan, self.tokenizer, self.threads, self.progress, stop)
                self._describe()
            if (self.staging / "shards").exists():
                shutil.rmtree(self.staging / "shards")
            (self.staging / "plan.json").unlink(missing_ok=True)
            sync(self.staging)
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # an empty folder, onto which Windows would rename nothing
            os.rename(self.staging, self.folder)
            sync(self.folder.parent)

    def _describe(self):
        """Write meta.json, after which the store is complete, and flush all files."""
        staging, plan = self.staging, self.plan
        for split in plan["texts"]:
            shards.text_of(plan, split).check_unchanged()
        totals = {split: joined.join_masks(staging, plan, split) for split in plan["texts"]}
        checksums = {"tokenizer.json": _plan_of(staging)["tokenizer_crc32"]}
        for split in plan["texts"]:
            checksums |= joined.checksums(staging, plan, split, self.tokenizer.dtype.itemsize)
        for name in checksums:
            sync(staging / name)
        meta = checksummed(dict(self.describe(self.tokenizer, totals), crc32=checksums))
        (staging / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        sync(staging / "meta.json")

    def exists(self):
        """Whether the store is complete."""
        return holds_files(self.folder)

    def begun(self):
        """Whether this process or another one has begun this store, so that its tokenizer can be loaded."""
        return _is_begun(self.staging, self.plan)

    def close(self):
        """Free the lock. Finished shards are kept."""
        self._lock.close()

    @contextlib.contextmanager
    def _errors(self):
        """Turn the errors of a build into a UserError."""
        try:
            yield
        except UserError:
            shutil.rmtree(self.staging, ignore_errors=True)  # after the text is corrected, the plan is another one
            raise
        except WorkerDied as error:
            raise UserError(
                f"a worker process that tokenized the corpus ended with status {error}; start again with fewer "
                "--threads: finished shards are kept"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write {self.folder.parent} ({error.strerror}); {remedy(error, self.elsewhere)}"
            ) from None


def holds_files(folder):
    """Whether a folder exists and is not empty. Another process may remove it meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def staging_of(folder):
    """The folder in which the store `folder` is built."""
    return folder.with_name(folder.name + ".part")


def _resumed(staging, plan):
    """The tokenizer of a store that was begun with this plan, or None if there is none."""
    with contextlib.suppress(OSError, UserError):
        if _is_begun(staging, plan):
            (staging / "shards").mkdir(exist_ok=True)  # an earlier process may have been killed after it removed them
            return load_tokenizer(staging / "tokenizer.json")
    return None


def _is_complete(staging, plan):
    """Whether `staging` holds the whole store: a kill interrupted `Build.finish` just before the folder was renamed."""
    meta = verified(read_json_or_empty(staging / "meta.json"))
    with contextlib.suppress(Damaged):
        if meta and meta["fingerprint"] == plan["fingerprint"]:
            verify(staging, meta["crc32"], meta["crc32"], progress=False)
            return True
    return False


def _is_begun(staging, plan):
    """Whether `staging` holds the plan and the tokenizer, which is saved before it."""
    found = _plan_of(staging)
    checksum = found.pop("tokenizer_crc32", None)
    with contextlib.suppress(OSError):
        return found == json.loads(json.dumps(plan)) and crc32([(staging / "tokenizer.json").read_bytes()]) == checksum
    return False


def _plan_of(staging):
    """The plan in `staging`, and as "tokenizer_crc32" the checksum of the tokenizer. {} if it is missing or damaged."""
    return verified(read_json_or_empty(staging / "plan.json"))


def _begun(staging, plan, make_tokenizer):
    """The tokenizer of a store that begins now, in an empty folder."""
    if staging.exists():
        shutil.rmtree(staging)
    (staging / "shards").mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.save(staging / "tokenizer.json")
    begun = checksummed(dict(plan, tokenizer_crc32=crc32([(staging / "tokenizer.json").read_bytes()])))
    (staging / "plan.json").write_text(json.dumps(begun), encoding="utf-8")
    return tokenizer


def _tokenize_all(staging, plan, tokenizer, threads, progress, stop):
    """Tokenize the shards that are not finished, and join them as soon as all before them are finished.

    It takes processes if there are several shards' worth of bytes, or in the background (`stop`).
    """
    sizes = [stop - start for _, _, start, stop in plan["shards"]]
    todo = [number for number in _order(plan) if not shards.finished(staging, number)]
    left = sum(sizes[number] for number in todo)
    processes = min(threads or available_cores(), max(bool(stop), -(-left // shards.SHARD)))
    appended = dict.fromkeys(plan["texts"], (0, 0))

    def join():
        for split, so_far in appended.items():
            appended[split] = joined.join(staging, plan, split, tokenizer.dtype.itemsize, so_far)

    with Meter(sum(sizes), "tokenizing", progress, sum(sizes) - left) as meter:
        if todo and (stop or processes > 1):
            tokenize_in_processes(staging, todo, processes, meter, join, stop)
        else:
            for number in todo:
                shards.tokenize(staging, plan, number, tokenizer, meter.update)
                join()
    join()


def _order(plan):
    """The numbers of all shards: those of the validation split and of the training split in turn.

    So both are there early: training starts with the first, and waits for all of the validation split before its first
    evaluation.
    """
    turns = zip_longest(*(shards.numbers_of(plan, split) for split in reversed(plan["texts"])))
    return [number for turn in turns for number in turn if number is not None]

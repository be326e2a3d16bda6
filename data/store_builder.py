"""Build a token store from a plan: tokenize its shards, join them, and rename the folder once it is complete.

A plan is an object that JSON can hold:
    shards     [[split, kind, start, stop], ...]: byte ranges of the split's text (see `shards.shard_ranges`)
    texts      {split: [[path, size, mtime], ...]}
    and whatever else the store depends on. A folder that was begun with an equal plan is resumed.
"""

import contextlib
import json
import os
import shutil

from slm_np.data import shards
from slm_np.file_lock import locked
from slm_np.data.meter import Meter
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.data.workers import WorkerDied, tokenize_in_processes
from slm_np.errors import UserError
from slm_np.machine import available_cores


def build(folder, plan, make_tokenizer, describe, threads=0, progress=True):
    """Make the store `folder`, which appears only once it is complete.

    It contains SPLIT.bin and SPLIT.mask.bin (see `shards.join`), tokenizer.json and meta.json.
    make_tokenizer: function () -> Tokenizer.   describe: function (tokenizer, totals {split: counts}) -> the object in
    meta.json.   threads: number of processes, 0 for one per core.
    If another process builds the same store, this waits for it. UserError for text that cannot be tokenized, or a disk
    that fails.
    """
    staging = staging_of(folder)
    waiting = "waiting for another process that prepares the same corpus" if progress else ""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(folder.name + ".lock"), waiting):
            if folder.is_dir() and any(folder.iterdir()):
                return  # another process has built it
            tokenizer = _resumed(staging, plan) or _begun(staging, plan, make_tokenizer)
            _tokenize_all(staging, plan, tokenizer, threads, progress)
            for split in plan["texts"]:
                shards.text_of(plan, split).check_unchanged()
            totals = {split: shards.join(staging, plan, split, tokenizer.dtype.itemsize) for split in plan["texts"]}
            meta = json.dumps(describe(tokenizer, totals), indent=2) + "\n"
            (staging / "meta.json").write_text(meta, encoding="utf-8")
            shutil.rmtree(staging / "shards")
            (staging / "plan.json").unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()  # an empty folder, onto which Windows would rename nothing
            os.rename(staging, folder)
    except UserError:
        shutil.rmtree(staging, ignore_errors=True)  # after the text is corrected, the plan is another one
        raise
    except WorkerDied as error:
        raise UserError(
            f"a worker process that tokenized the corpus ended with status {error}; start again with fewer --threads: "
            "finished shards are kept"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {folder.parent} ({error.strerror}); free some space, or set SLM_NP_CACHE to another folder"
        ) from None


def staging_of(folder):
    """The folder in which the store `folder` is built."""
    return folder.with_name(folder.name + ".part")


def _resumed(staging, plan):
    """The tokenizer of a store that was begun with this plan, or None if there is none."""
    with contextlib.suppress(OSError, UserError):
        if (staging / "plan.json").read_text(encoding="utf-8") == json.dumps(plan):
            (staging / "shards").mkdir(exist_ok=True)  # an earlier process may have been killed after it removed them
            return load_tokenizer(staging / "tokenizer.json")
    return None


def _begun(staging, plan, make_tokenizer):
    """The tokenizer of a store that begins now, in an empty folder."""
    if staging.exists():
        shutil.rmtree(staging)
    (staging / "shards").mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.save(staging / "tokenizer.json")
    (staging / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return tokenizer


def _tokenize_all(staging, plan, tokenizer, threads, progress):
    """Tokenize the shards that are not finished, in processes if there are several shards' worth of bytes."""
    sizes = [stop - start for _, _, start, stop in plan["shards"]]
    todo = [number for number in range(len(sizes)) if not shards.finished(staging, number)]
    left = sum(sizes[number] for number in todo)
    processes = min(threads or available_cores(), -(-left // shards.SHARD))
    with Meter(sum(sizes), "tokenizing", progress, sum(sizes) - left) as meter:
        if processes > 1:
            tokenize_in_processes(staging, todo, processes, meter)
        else:
            for number in todo:
                shards.tokenize(staging, plan, number, tokenizer, meter.update)

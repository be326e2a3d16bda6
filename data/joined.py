"""The files of a split that its shards are joined into, SPLIT.bin and SPLIT.mask.bin, compared with their checksums."""

import contextlib
import os
import shutil
import zlib
from itertools import takewhile
from typing import NamedTuple

from slm_np.data.meter import Meter
from slm_np.data.shards import COUNTS, begin_build, finished, numbers_of
from slm_np.data.text_files import BLOCK
from slm_np.errors import UserError


class Joined(NamedTuple):
    """One of the files of a split."""

    file: str  # its name
    suffix: str  # of the shards that it is joined from
    checksum: str  # of `shards.CHECKSUMS`
    width: int  # bytes per token


def joined_files(split, id_size):
    """(ids, mask): the `Joined` of a split. id_size: bytes per id."""
    return (
        Joined(f"{split}.bin", ".bin", "ids_crc32", id_size),
        Joined(f"{split}.mask.bin", ".mask", "mask_crc32", 1),
    )


def join(staging, plan, split, id_size, start=(0, 0)):
    """Append finished shards of a split to SPLIT.bin, in order, up to the first one that is not finished.

    id_size: bytes per id.   start: (shards, bytes) that an earlier call has appended.   Returns these two numbers now.
    A shard is removed once its bytes are on disk. A rerun derives from the file size which shards were appended, so a
    kill loses nothing.
    """
    numbers = numbers_of(plan, split)[start[0] :]
    counts = _finished_first(staging, numbers)
    if not counts and (numbers or (staging / f"{split}.bin").exists()):
        return start
    size = _append(staging, joined_files(split, id_size)[0], counts, start[1])
    return start[0] + len(counts), size


def join_masks(staging, plan, split):
    """Append the masks of a split to SPLIT.mask.bin if not all tokens are targets. Returns the sums of `COUNTS`.

    All shards are finished, and a kill loses nothing, as in `join`.
    """
    counts = _finished_first(staging, numbers_of(plan, split))
    totals = {key: sum(count[key] for _, count in counts) for key in COUNTS}
    if totals["targets"] < totals["tokens"]:
        _append(staging, joined_files(split, 0)[1], counts)
    return totals


def _finished_first(staging, numbers):
    """[(number, counts), ...] of the shards `numbers` up to the first one that is not finished."""
    return [*takewhile(lambda shard: shard[1], ((number, finished(staging, number)) for number in numbers))]


def _append(staging, joined, counts, at=0):
    """Append shards from the byte `at` of a `Joined` on, unless they are there. counts: [(number, `COUNTS`), ...].

    The file never becomes shorter than what readers may have mapped.
    """
    path = staging / joined.file
    path.touch()
    with open(path, "r+b") as out:
        for number, count in counts:
            size, shard = count["tokens"] * joined.width, staging / "shards" / f"{number}{joined.suffix}"
            if out.seek(0, os.SEEK_END) < at + size:
                out.seek(at)
                if shard.exists():
                    with open(shard, "rb") as source:
                        shutil.copyfileobj(source, out, BLOCK)
                else:  # a shard without a mask: all of its tokens are targets
                    out.write(b"\1" * size)
                out.flush()
                os.fsync(out.fileno())
            with contextlib.suppress(OSError):
                shard.unlink()
            at += size
        out.truncate(at)
        out.flush()
        os.fsync(out.fileno())
    return at


def clean(staging, plan, id_size, progress=True):
    """Begin a build, or continue one that was interrupted: unfinished and damaged shards will be tokenized again.

    The lock of the store is held.
    """
    begin_build(staging)
    for path in (staging / "shards").glob("*.*.*"):  # NUMBER.PROCESS.SUFFIX
        path.unlink()
    paths = [*staging.glob("*.bin"), *(staging / "shards").iterdir()]
    with Meter(sum(path.stat().st_size for path in paths), "verifying", progress) as meter:
        for split in plan["texts"]:
            _clean_split(staging, plan, split, id_size, meter)


def _clean_split(staging, plan, split, id_size, meter):
    """`clean` for one split. If a part of a joined file is damaged, or its shard unfinished, the file starts anew."""
    numbers, files = numbers_of(plan, split), joined_files(split, id_size)
    held = [_shards_held(staging, joined, numbers, meter) for joined in files]
    while True:
        sound = {
            number
            for place, number in enumerate(numbers)
            if all(place < n or _is_sound(staging, number, joined, meter) for n, joined in zip(held, files))
            and finished(staging, number)
        }
        if min(held) >= 0 and sound.issuperset(numbers[: max(held)]):
            break
        for joined in files:
            (staging / joined.file).unlink(missing_ok=True)
        held = [0, 0]
    for number in set(numbers) - sound:
        (staging / "shards" / f"{number}.json").unlink(missing_ok=True)
    if numbers and numbers[0] not in sound:  # its ids are written to SPLIT.bin, to which an old worker may still write
        (staging / files[0].file).unlink(missing_ok=True)


def _shards_held(staging, joined, numbers, meter):
    """How many of the shards `numbers` a `Joined` holds. -1 if it is damaged, or has more than finished shards."""
    path, at = staging / joined.file, 0
    if not path.exists():
        return 0
    size, counts = path.stat().st_size, _finished_first(staging, numbers)
    with open(path, "rb") as file:
        for place, (_, count) in enumerate(counts):
            length = count["tokens"] * joined.width
            if at + length > size:
                return place  # a kill interrupted `_append`, which repeats this shard
            if _crc32(file, length, meter.update) != count[joined.checksum]:
                return -1
            at += length
    return len(counts) if at == size else -1


def _is_sound(staging, number, joined, meter):
    """Whether the file of a shard has the contents that its NUMBER.json says."""
    path, count = staging / "shards" / f"{number}{joined.suffix}", finished(staging, number)
    if not count:
        return False
    if not path.exists():  # a mask of ones has no file
        return joined.suffix == ".mask" and count["targets"] == count["tokens"]
    length = count["tokens"] * joined.width
    with open(path, "rb") as file:
        return path.stat().st_size == length and _crc32(file, length, meter.update) == count[joined.checksum]


def checksums(staging, plan, split, id_size):
    """{name: CRC-32} of the joined files of a split. UserError if one differs from the shards it was joined from."""
    found = {}
    for joined in joined_files(split, id_size):
        path, total = staging / joined.file, 0
        if not path.exists():
            continue
        with open(path, "rb") as file:
            for number in numbers_of(plan, split):
                count = finished(staging, number)

                def add(block):
                    nonlocal total
                    total = zlib.crc32(block, total)

                if _crc32(file, count["tokens"] * joined.width, blocks=add) != count[joined.checksum]:
                    raise UserError(f"{path} does not contain what was written to it; check the disk, and start again")
        found[joined.file] = f"{total:08x}"
    return found


def _crc32(file, length, report=lambda n: None, blocks=lambda block: None):
    """The CRC-32 of the next `length` bytes of an open file. report, blocks: called with each size, each block."""
    total = 0
    while length:
        block = file.read(min(BLOCK, length))
        if not block:
            return None
        total, length = zlib.crc32(block, total), length - len(block)
        report(len(block))
        blocks(block)
    return total

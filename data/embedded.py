"""Embedded corpora: text that this program writes itself, kept as files in the cache."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from slm_np.data import dialogues, stories
from slm_np.data.files import read_json_or_empty
from slm_np.data.meter import metered
from slm_np.data.text_files import Text
from slm_np.paths import published

SPLIT_BYTES = dict(train=12_000_000, validation=120_000)
SEEDS = dict(train=1, validation=2)


class Writer(NamedTuple):
    """What writes an embedded corpus."""

    # (n_bytes, seed) -> iterable of (text, bits) until n_bytes are reached; bits is the text's entropy, None if unknown
    write: Callable
    suffix: str  # of the file: .txt, or .jsonl for rows
    modules: tuple  # their source determines the text


WRITERS = dict(
    stories=Writer(stories.write, ".txt", (stories,)),
    dialogues=Writer(dialogues.write, ".jsonl", (dialogues, stories)),
)


def written(name, split, cache, progress=True):
    """The `Text` of `split` (train or validation) of an embedded corpus, written into the folder `cache` if necessary.

    Its floor is the sum of the entropies over the bytes, if the writer knows them. The folder's name contains a hash of
    the writer's source, so a changed writer writes a new file. UserError if the cache cannot be written.
    """
    writer, n_bytes, seed = WRITERS[name], SPLIT_BYTES[split], SEEDS[split]
    code = b"".join(Path(module.__file__).read_bytes().replace(b"\r\n", b"\n") for module in writer.modules)
    version = hashlib.sha256(code + repr((n_bytes, seed)).encode()).hexdigest()
    folder = cache / name / f"{split}-{version[:16]}"
    file, floor_file = folder / (name + writer.suffix), folder / "floor.json"
    floor = read_json_or_empty(floor_file)
    if folder.is_dir() and not (file.is_file() and file.stat().st_size == floor.get("bytes") and "bits" in floor):
        shutil.rmtree(folder, ignore_errors=True)  # damaged
    if not folder.is_dir():
        with published(folder) as part:
            floor = _write(
                writer.write(n_bytes, seed), part / file.name, n_bytes, f"writing the {split} {name}", progress
            )
            (part / floor_file.name).write_text(json.dumps(floor), encoding="utf-8")
    status = file.stat()
    bits_per_byte = None if floor["bits"] is None else floor["bits"] / floor["bytes"]
    return Text(((file, status.st_size, status.st_mtime_ns),), bits_per_byte)


def _write(texts, path, n_bytes, what, progress):
    """Write (text, bits) one after the other. Returns dict(bytes, bits), with bits None if one of them is unknown."""
    floor = dict(bytes=0, bits=0.0)

    def encoded():
        for text, bits in texts:
            data = text.encode()
            floor["bytes"] += len(data)
            floor["bits"] = None if bits is None or floor["bits"] is None else floor["bits"] + float(bits)
            yield data

    with open(path, "wb") as out:
        out.writelines(metered(encoded(), n_bytes, what, progress))
    return floor

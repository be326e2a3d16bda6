"""What `info` says about a path that is not a run: tokens, tensors, a tokenizer, a checkpoint, a text."""

import json
import math
import os
import re

from slm_np.cli.summary import describe_tokenizer
from slm_np.errors import UserError
from slm_np.formats.other_paths import not_a_model, not_a_run, similar_run
from slm_np.paths import is_run
from slm_np.words import counted, quoted


def describe_path(path):
    """The lines about a file or a folder. Raises UserError for what is missing, and for other folders."""
    if not os.path.lexists(path):
        raise UserError(f"{path} does not exist; {similar_run(path, 'a model')}")
    if not path.exists():  # a link
        raise not_a_model(path)
    if path.is_dir():
        return _checkpoint(path) if re.fullmatch("checkpoint-[0-9]+", path.name) else _token_folder(path)
    if path.suffix == ".json":
        return _json_file(path)
    if path.suffix == ".safetensors":
        return _tensor_file(path)
    if path.suffix == ".bin":
        return [f"{path}: a file of {counted(path.stat().st_size // 2, 'token')}, if they have two bytes as nanoGPT's"]
    return _text_file(path)


def _checkpoint(path):
    """The lines about a checkpoint-STEP folder of a run."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise not_a_run(path)
    lines = [
        f"{path}: a checkpoint after {counted(int(path.name.partition('-')[2]), 'update')} of the run {path.parent}"
    ]
    return lines + [f"  {line}" for file in files for line in _tensor_file(file)]


def _json_file(path):
    """The line about a tokenizer, or a file of settings of a run."""
    try:
        return [f"{path}: a tokenizer, {describe_tokenizer(path)}"]
    except UserError:
        if not is_run(path.parent) or path.name == "tokenizer.json":
            raise
    return [f"{path}: settings of the run {path.parent}, which python -m slm_np.info {quoted(path.parent)} describes"]


def _tensor_file(path):
    """The lines about a safetensors file, of any program: its tensors and metadata, from the header alone."""
    try:
        with open(path, "rb") as file:
            n = int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(min(n, path.stat().st_size)))
        metadata = tensors.pop("__metadata__", None) or {}
        sizes = [math.prod(tensor["shape"]) for tensor in tensors.values()]
        dtypes = sorted({tensor["dtype"] for tensor in tensors.values()})
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a safetensors file, or it is damaged; copy it again from its source") from None
    lines = [f"{path}: {counted(len(sizes), 'tensor')}, {counted(sum(sizes), 'element')} of {' and '.join(dtypes)}"]
    shown = ", ".join(f"{key} {value}" for key, value in metadata.items() if not key.startswith("crc32"))
    return lines + [f"  metadata   {shown}"] * bool(shown)


def _token_folder(path):
    from slm_np.formats.files import read_json
    from slm_np.formats.run_config import read_config

    if not (path / "meta.json").is_file():
        read_config(path)  # raises the UserError that says what is missing
    meta = read_json(path / "meta.json")
    vocabulary = f", vocabulary {meta['vocab_size']:,}" if isinstance(meta.get("vocab_size"), int) else ""
    lines = [f"{path}: prepared tokens, {meta.get('dtype', 'uint16')}{vocabulary}"]
    for file in sorted(path.glob("*.bin")):
        if file.name.endswith(".mask.bin"):
            continue
        counts = {
            name: meta[name].get(file.stem)
            for name in ("tokens", "bytes", "documents")
            if isinstance(meta.get(name), dict)
        }
        if counts.get("tokens") is None:
            counts["tokens"] = file.stat().st_size // (4 if meta.get("dtype") == "uint32" else 2)
        shown = ", ".join(counted(count, name[:-1]) for name, count in counts.items() if isinstance(count, int))
        lines.append(f"  {file.stem:<11}{shown}")
    if (path / "tokenizer.json").is_file():
        lines.append(f"  tokenizer  {describe_tokenizer(path / 'tokenizer.json')}")
    return lines


def _text_file(path):
    from slm_np.data import corpus, documents
    from slm_np.data.converted import readable
    from slm_np.paths import cache_dir

    try:
        text = corpus.find(str(path), "train", None)
        if path.suffix.lower() != ".jsonl":  # a log, for example, has rows of another kind
            text = readable(text, "marker", cache_dir())
    except UserError as error:
        with open(path, "rb") as file:
            binary = b"\0" in file.read(1 << 16)
        size = counted(path.stat().st_size, "byte")
        return [f"{path}: a binary file of {size}" if binary else f"{path}: a file of {size}: {error}"]
    n_lines = sum(block.count(b"\n") for block in text.blocks())
    if text.segments("marker")[0][0] == documents.ROWS:
        return [f"{path}: {counted(text.size, 'byte')}, {counted(n_lines, 'row of JSON')}", *text.notes]
    n_documents = sum(part is documents.END for part in documents.split(text.blocks(), "marker"))
    parts = counted(text.size, "byte"), counted(n_lines, "line"), counted(n_documents, "document")
    return [f"{path}: a text of {', '.join(parts)}", *text.notes]

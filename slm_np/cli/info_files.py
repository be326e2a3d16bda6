"""What `info` says about a path that is not a run: tokens, a tokenizer, another program's checkpoint, a text."""

from slm_np.cli.summary import describe_model, describe_tokenizer
from slm_np.errors import UserError


def describe_path(path):
    """The lines about a file or a folder. Raises UserError for a folder that is neither a run nor prepared tokens."""
    if path.is_dir():
        return _token_folder(path)
    if path.suffix == ".json":
        return [f"{path}: a tokenizer, {describe_tokenizer(path)}"]
    if path.suffix == ".bin":
        return _binary_file(path)
    return _text_file(path)


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
        shown = ", ".join(f"{count:,} {name}" for name, count in counts.items() if isinstance(count, int))
        lines.append(f"  {file.stem:<11}{shown}")
    if (path / "tokenizer.json").is_file():
        lines.append(f"  tokenizer  {describe_tokenizer(path / 'tokenizer.json')}")
    return lines


def _binary_file(path):
    from slm_np.formats import llama2c
    from slm_np.nn.model import parameter_count

    try:
        config, _ = llama2c.read_checkpoint(path)
    except UserError:
        return [f"{path}: a file of {path.stat().st_size // 2:,} tokens, if they have two bytes as nanoGPT's"]
    return [
        f"{path}: a checkpoint of llama2.c, which python -m slm_np.convert converts into a run",
        f"  model      {parameter_count(config):,} parameters: {describe_model(config)}",
    ]


def _text_file(path):
    from slm_np.data import corpus, documents

    text = corpus.find(str(path), "train", None)
    n_lines = sum(block.count(b"\n") for block in text.blocks())
    if path.suffix.lower() == ".jsonl":
        return [f"{path}: {text.size:,} bytes, {n_lines:,} rows of JSON"]
    n_documents = sum(part is documents.END for part in documents.split(text.blocks(), "marker"))
    plural = "s" * (n_documents != 1)
    return [f"{path}: a text of {text.size:,} bytes, {n_lines:,} lines, {n_documents:,} document{plural}"]

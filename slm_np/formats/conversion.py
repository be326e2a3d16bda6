"""From another program's checkpoint to a run."""

import contextlib
import dataclasses
from pathlib import Path

from slm_np.config import SamplingConfig, TrainConfig
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.meter import Meter
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.formats import llama2c
from slm_np.formats.checkpoint import save_best
from slm_np.formats.checksum import crc32, write_settings
from slm_np.formats.directories import new_directory
from slm_np.formats.files import read_json, to_json, write_file
from slm_np.formats.generation_config import to_generation_config
from slm_np.formats.interchange import interchange_files, token_ids
from slm_np.formats.layouts import layout_of
from slm_np.formats.run_config import RunConfig, write_config
from slm_np.paths import expanded, is_run
from slm_np.words import counted


def convert(file, out_dir="", tokenizer=""):
    """Make a run of the llama2.c checkpoint `file`. Returns the run's directory.

    out_dir    directory of the run; "" means runs/NAME-OF-THE-FILE
    tokenizer  its tokenizer.bin or tokenizer.json; "" means the one beside the checkpoint, if there is one
    Raises UserError if a file is not what it should be, the tokenizer does not fit, or the directory already holds a
    run; then nothing is left behind.
    """
    file, tokenizer = expanded(file), tokenizer and expanded(tokenizer)
    if is_run(file) or (file / "config.json").is_file():
        raise UserError(f"{file} is the directory of a model, not a file; name a checkpoint of llama2.c, a .bin")
    with new_directory(out_dir, file.stem) as directory:
        config, tensors = llama2c.read_checkpoint(file)
        fields = _tokenizer_fields(tokenizer or _tokenizer_beside(file, config.vocab_size), config.vocab_size)
        run = RunConfig(config, TrainConfig(max_iters=0), data=dict(converted=f"llama2.c, {file.name}"))
        made = None
        with contextlib.suppress(UserError):  # without the package tokenizers, nobody is told the special tokens
            made = LibraryTokenizer(fields) if fields else None
        files = {"tokenizer.json": to_json(fields, indent=2) + b"\n"} if fields else {}
        files |= interchange_files(run, made, None)
        for name, content in files.items():
            write_file(directory / name, content)
        sampling = to_generation_config(SamplingConfig(), **token_ids(made))
        write_settings(directory / "generation_config.json", sampling)
        with Meter(sum(tensor.nbytes for tensor in tensors.values()), "writing the model") as meter:
            save_best(directory, tensors, dict(step=0, val_loss="nan"), layout_of(run), report=meter.update)
        write_config(directory, dataclasses.replace(run, files={name: crc32(files[name]) for name in files}))
    return directory


def _tokenizer_beside(file, vocab_size):
    """The tokenizer in the checkpoint's directory, or None."""
    paths = [file.with_name(name) for name in (f"tok{vocab_size}.bin", "tokenizer.bin")]
    return next((path for path in paths if path.is_file()), None)


def _tokenizer_fields(path, vocab_size):
    """The fields of tokenizer.json, from a tokenizer of llama2.c or a tokenizer.json; None without a path.

    Raises UserError if the tokenizer does not fit the model.
    """
    if path is None:
        return None
    if Path(path).suffix != ".json":
        return llama2c.tokenizer_json(llama2c.read_tokenizer(path, vocab_size))
    found = load_tokenizer(path).vocab_size
    if found != vocab_size:
        raise UserError(
            f"--tokenizer {path} has {counted(found, 'token')}, but the model {vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    return read_json(path)

"""From a model of any format to a directory or a GGUF file, which appears only once it is complete."""

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from slm_np.config import TrainConfig
from slm_np.data.meter import Meter
from slm_np.errors import UserError, near
from slm_np.formats.checkpoint import save_best
from slm_np.formats.checksum import crc32, write_settings
from slm_np.formats.directories import RUNS
from slm_np.formats.files import saving, write_file
from slm_np.formats.generation_config import to_generation_config
from slm_np.formats.interchange import interchange_files, token_ids
from slm_np.formats.layouts import layout_of
from slm_np.formats.model_parts import ModelParts
from slm_np.formats.run_config import RunConfig, write_config
from slm_np.formats.sources import open_model
from slm_np.nn.model import parameter_count
from slm_np.paths import expanded, sync

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "Q8_0"}


class Converted(NamedTuple):
    """What was written, and what it was made from."""

    path: Path
    parts: ModelParts


def convert(source, target="", tokenizer="", dtype="f32", merge=False):
    """Write the model `source`, of any format that `open_model` reads, as `target`. Returns the `Converted`.

    target     a new file that ends in .gguf, else a new directory; "" means runs/NAME-OF-THE-SOURCE, or the next free
               name of that kind
    tokenizer  to use instead of the model's own, see `open_model`
    dtype      of the weights, in DTYPES. A directory of f32 is a run, too
    Raises UserError if the source is no model, the target exists or cannot be written, or the format of the target has
    no such model or dtype; then nothing is left behind.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; {near(dtype, list(DTYPES))}")
    is_gguf = str(target).lower().endswith(".gguf")
    if dtype == "q8_0" and not is_gguf:
        raise UserError("--dtype q8_0 is a type of GGUF files; name a TARGET that ends in .gguf, or another --dtype")
    target = expanded(target) if target else free_name(Path(source).stem)
    check_free(target)
    parts = metered(open_model(source, tokenizer))
    if is_gguf:
        from slm_np.formats import gguf_file

        gguf_file.write(parts, target, dtype)
    else:
        with new_folder(target) as folder:
            write_directory(parts, folder, dtype)
    return Converted(target, parts)


def metered(parts):
    """The `ModelParts` whose tensors show how far they are, as they are read."""

    def tensors():
        with Meter(4 * parameter_count(parts.config), f"converting {parts.path.name}") as meter:
            for name, array in parts.tensors():
                yield name, array
                meter.update(array.nbytes)

    return dataclasses.replace(parts, tensors=tensors)


def free_name(name):
    """The first of runs/NAME, runs/NAME-2, ... that does not exist."""
    paths = (RUNS / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in paths if not os.path.lexists(path))


def check_free(target):
    """UserError if the path exists, unless it is an empty directory."""
    if os.path.isdir(target) and not target.name.lower().endswith(".gguf"):
        with contextlib.suppress(OSError):
            if not os.listdir(target):
                return
    if os.path.lexists(target):
        raise UserError(f"{target} already exists, and nothing is overwritten; choose another TARGET, or remove it")


@contextlib.contextmanager
def new_folder(target):
    """Yield an empty folder beside `target` to fill. On success it is renamed to `target`, on an exception removed.

    What a kill has left is removed by the next conversion to this target. Raises UserError if it cannot be written.
    """
    folder = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    with saving(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in target.parent.iterdir():
            if re.fullmatch(re.escape(target.name) + r"\.tmp-\d+", path.name):
                shutil.rmtree(path)
        folder.mkdir()
        try:
            yield folder
            for path in (*folder.iterdir(), folder):
                sync(path)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(target)  # an empty directory, which Windows does not replace
            os.rename(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        sync(target.parent)


def write_directory(parts, folder, dtype):
    """Write a run of the `ModelParts`, which is a Hugging Face directory if transformers has such a model."""
    run = RunConfig(parts.config, TrainConfig(max_iters=0), data=dict(converted=parts.origin))
    files = {} if parts.tokenizer is None else {"tokenizer.json": parts.tokenizer.to_bytes()}
    files |= interchange_files(run, parts.tokenizer, parts.template)
    for name, content in files.items():
        write_file(folder / name, content)
    sampling = to_generation_config(parts.sampling, **token_ids(parts.tokenizer))
    write_settings(folder / "generation_config.json", sampling)
    save_best(folder, dict(parts.tensors()), dict(step=0, val_loss="nan"), layout_of(run))
    write_config(folder, dataclasses.replace(run, files={name: crc32(files[name]) for name in files}))

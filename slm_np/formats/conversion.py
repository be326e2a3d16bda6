"""From a model of any format to a directory or a GGUF file, which appears only once it is complete."""

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from slm_np import file_lock
from slm_np.config import FILE_DTYPES
from slm_np.errors import UserError, near
from slm_np.formats import adapters, hugging_face, peft
from slm_np.formats.checksum import crc32, write_settings
from slm_np.formats.directories import RUNS
from slm_np.formats.families import family_of
from slm_np.formats.families.tensor_mapping import in_their_layout
from slm_np.formats.files import new_folder, saving, write_file
from slm_np.formats.generation_config import to_generation_config
from slm_np.formats.interchange import interchange_files, token_ids
from slm_np.formats.lora_adapter import LoraAdapter
from slm_np.formats.model_parts import ModelParts, metered
from slm_np.formats.run_config import read_config, write_config
from slm_np.formats.runs import own_files
from slm_np.formats.sources import ADAPTER, RUN, format_of, located, open_model, run_config
from slm_np.formats.tensors import stream_tensors
from slm_np.nn.model import parameters
from slm_np.paths import expanded, is_run

MODELFILE = ".Modelfile"  # ending of the file for ollama


class Converted(NamedTuple):
    """What was written, and the model that it is.

    adapter: the LoraAdapter if that alone was written; then `parts` are its base
    """

    path: Path
    parts: ModelParts
    adapter: LoraAdapter | None = None


def convert(source, target="", tokenizer="", dtype="f32", merge=False):
    """Write the model `source`, of any format that `open_model` reads, as `target`. Returns the `Converted`.

    target     a new file that ends in .gguf, else a new directory; "" means runs/NAME-OF-THE-SOURCE, or the next free
               name of that kind
    tokenizer  to use instead of the model's own, see `open_model`
    dtype      of the weights, in FILE_DTYPES. A directory of f32 is a run, too
    merge      whether of an adapter the model is written that it makes of its base. Otherwise the adapter is: in PEFT's
               format or, if the target ends in .gguf, as an adapter for llama.cpp
    Raises UserError if the source is not a model, the target exists or cannot be written, or the format of the target
    has no such model or dtype; then nothing is left behind.
    """
    if dtype not in FILE_DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; {near(dtype, FILE_DTYPES)}")
    is_gguf = str(target).lower().endswith(".gguf")
    if dtype == "q8_0" and not is_gguf:
        raise UserError("--dtype q8_0 is a type of GGUF files; name a TARGET that ends in .gguf, or another --dtype")
    target = expanded(target) if target else free_name(name_of(source))
    check_free(target, is_gguf)
    path = located(source)
    if holds_adapter(path):
        if not merge:
            check_alone(dtype, tokenizer)
            return convert_adapter(path, target)
    elif merge and format_of(path):
        raise UserError(f"--merge has no effect on {source}, which is not an adapter; leave it out")
    parts = metered(open_model(source, tokenizer), "converting")
    with claimed(target):
        if is_gguf:
            write_gguf(parts, target, dtype)
        elif dtype != "f32":
            hugging_face.write(parts, target, dtype)
        else:
            with new_folder(target) as folder:
                write_run(parts, folder)
    return Converted(target, parts)


def holds_adapter(path):
    """Whether the path is an adapter, or a run that trained one."""
    kind = format_of(path)
    return kind == ADAPTER or kind == RUN and bool(read_config(path).lora)


def check_alone(dtype, tokenizer):
    """UserError for settings without effect on an adapter that is written alone."""
    given = [f"--dtype {dtype}"] * (dtype != "f32") + [f"--tokenizer {tokenizer}"] * bool(tokenizer)
    if given:
        raise UserError(
            f"{given[0]} has no effect on an adapter, which is written alone and in f32; leave it out, or give --merge"
        )


def convert_adapter(path, target):
    """Write the adapter in the directory `path` alone. Returns the `Converted`."""
    if is_run(path):
        parts = open_model(adapters.base_path(path, read_config(path)))
    else:
        parts = peft.base_parts(path, open_model)
    adapter = peft.read_adapter(path, parts.config)
    adapter = dataclasses.replace(adapter, base=lasting(parts.path))
    with claimed(target):
        if str(target).lower().endswith(".gguf"):
            from slm_np.formats.gguf import adapter as gguf_adapter  # its package is an extra

            gguf_adapter.write(parts.config, adapter, target)
        else:
            peft.write(parts.config, adapter, target)
    return Converted(target, parts, adapter)


def lasting(base):
    """The path of a base as it is found from everywhere, or its name on the hub."""
    return os.path.abspath(base) if os.path.lexists(base) else str(base)


def name_of(source):
    """The name of a model by its path, without the revision of a hub's name and the ending of a file."""
    name = Path(source).name
    known = next((ending for ending in (".gguf", ".bin") if name.lower().endswith(ending)), "")
    return (name[: len(name) - len(known)].partition("@")[0]) or "model"


def free_name(name):
    """The first of runs/NAME, runs/NAME-2, ... that does not exist."""
    paths = (RUNS / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in paths if not os.path.lexists(path))


def check_free(target, is_gguf):
    """UserError if the target exists, unless it is an empty directory, or the Modelfile beside a GGUF file does."""
    if os.path.isdir(target) and not is_gguf:
        with contextlib.suppress(OSError):
            if not os.listdir(target):
                return
    for path in (target, target.with_suffix(MODELFILE)) if is_gguf else (target,):
        if os.path.lexists(path):
            raise UserError(f"{path} already exists, and nothing is overwritten; choose another TARGET, or remove it")


@contextlib.contextmanager
def claimed(target):
    """Make the parent folder of a new target and hold the target's lock, NAME.lock, until the block ends.

    What a conversion to this target has left that was killed is removed. If the block raises, so are the folders that
    were made for it. Raises UserError at once if another process writes this target, or has written it.
    """
    made = [folder for folder in target.parents if not os.path.lexists(folder)]
    with contextlib.ExitStack() as held:
        with saving(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            held.callback(remove_empty, made)  # after the lock is released
            held.enter_context(file_lock.claimed(target.with_name(f"{target.name}.lock"), target))
            names = "|".join(map(re.escape, (target.name, target.with_suffix(MODELFILE).name)))
            for path in target.parent.iterdir():
                if re.fullmatch(rf"({names})\.tmp-\d+", path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        check_free(target, target.name.lower().endswith(".gguf"))
        yield


def remove_empty(folders):
    """Remove folders, the innermost first, up to one that is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write_gguf(parts, target, dtype):
    """Write a new GGUF file and its Modelfile, both or none."""
    from slm_np.formats.gguf import file as gguf_file  # its package is an extra

    try:
        gguf_file.write(parts, target, dtype)
    except BaseException:
        if not os.path.lexists(target.with_suffix(MODELFILE)):  # which is written last
            with contextlib.suppress(OSError):
                target.unlink()
        raise


def write_run(parts, folder):
    """Write the `ModelParts` as a run, which transformers reads if it has such a model. One tensor is in memory."""
    config, family = parts.config, family_of(parts.config)
    if family is None:
        shapes, tensors = {tensor.name: tensor.shape for tensor in parameters(config)}, parts.tensors()
    else:
        shapes, tensors = in_their_layout(list(family.mappings(config)), parts.tensors())
    stream_tensors(folder / "model.safetensors", shapes, tensors, dict(step=0, val_loss="nan"))
    run = run_config(parts)
    files = interchange_files(run, parts.tokenizer, parts.template) | own_files(parts.tokenizer, parts.template)
    for name, content in files.items():
        write_file(folder / name, content)
    sampling = to_generation_config(parts.sampling, **token_ids(parts.tokenizer))
    write_settings(folder / "generation_config.json", sampling)
    write_config(folder, dataclasses.replace(run, files={name: crc32(content) for name, content in files.items()}))

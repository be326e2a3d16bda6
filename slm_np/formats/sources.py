"""A model of any format, told by what the path holds: the one way in for every command and for `slm_np.load`.

    a directory with run.json, or config.json of this package     a run (runs.py)
    a directory with adapter_config.json                          a LoRA adapter of PEFT, merged into its base (peft.py)
    a directory with config.json                                  a model of transformers (hugging_face.py)
    a file that starts with GGUF                                  a model of llama.cpp (gguf/file.py)
    any other binary file                                         a checkpoint of llama2.c (llama2c.py)
    org/name, unless it exists here                               a model on the Hugging Face hub (hub.py)

Readers return `ModelParts`. Their tensors are read one at a time, straight into the model's memory.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

from slm_np import arguments
from slm_np.config import DEVICES, TrainConfig
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.formats import adapters, hub, llama2c, runs
from slm_np.formats.model_parts import ModelParts, metered
from slm_np.formats.other_paths import is_model_directory, not_a_model, starts_with_pickle
from slm_np.formats.run_config import RunConfig, ends_of, read_config
from slm_np.nn.model import Model, parameter_count
from slm_np.ops.device import device as device_named
from slm_np.ops.device import put
from slm_np.paths import expanded, is_run
from slm_np.words import counted

CONTEXT = 4096  # tokens that another program's model is loaded for at most: its cache of keys and values has to fit
RUN, ADAPTER, HUGGING_FACE, GGUF, LLAMA2C = "run", "adapter", "Hugging Face", "GGUF", "llama2.c"


def located(path):
    """The Path of a model here: `path` itself, or where the cache has it if it is a name on the hub.

    A path that exists is not a hub name. Neither is one in a folder that exists, nor FOLDER/FILE.gguf: those are typos.
    Raises UserError as `hub.fetch`.
    """
    return hub.fetch(path) if is_hub_name(path) else expanded(path)


def is_hub_name(path):
    """Whether the path is to be looked up on the hub."""
    path = expanded(path)
    name = hub.parsed(path)
    return bool(name and (name[2] or path.suffix.lower() != ".gguf")) and not (
        os.path.lexists(path) or os.path.isdir(path.parts[0])
    )


def format_of(path):
    """RUN, ADAPTER, HUGGING_FACE, GGUF or LLAMA2C: what the directory or file `path` holds; None for anything else."""
    path = Path(path)
    if is_run(path):
        return RUN
    if is_model_directory(path):
        return ADAPTER if (path / "adapter_config.json").is_file() else HUGGING_FACE
    start = b""
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:  # ValueError: a zero byte in the path
        start = file.read(1 << 12)
    if start.startswith((b"GGUF", b"FUGG")):  # the second one is big-endian
        return GGUF
    return LLAMA2C if llama2c.may_start_with(start) and not starts_with_pickle(start) else None


def open_model(path, tokenizer=""):
    """The `ModelParts` of a run, a model of another program, or a name on the hub.

    tokenizer  a tokenizer.json or a tokenizer of llama2.c, to use instead of the model's own; "" means that one
    Raises UserError if it is not a model, it is damaged, or this package cannot represent it; if the tokenizer does not
    fit; or if an optional package is missing.
    """
    return _opened(Path(path), located(path), tokenizer)


def _opened(given, path, tokenizer=""):
    """`open_model` of the name `given`, which is located at `path`."""
    parts = _read(path, tokenizer and expanded(tokenizer))
    check_tokenizer(parts)
    # A model of the hub keeps its name, by which it is found again on any machine.
    return parts if path == expanded(given) else dataclasses.replace(parts, path=given)


def _read(path, tokenizer):
    # Imported here: most programs need one of the readers.
    match format_of(path):
        case "run":
            parts = run_parts(path)
        case "adapter":
            from slm_np.formats import peft

            parts = peft.read(path, open_model)
        case "Hugging Face":
            from slm_np.formats import hugging_face

            parts = hugging_face.read(path)
        case "GGUF":
            from slm_np.formats.gguf import file as gguf_file

            parts = gguf_file.read(path)
        case "llama2.c":
            return llama2c.read(path, tokenizer)
        case _:
            raise not_a_model(path)
    return dataclasses.replace(parts, tokenizer=load_tokenizer(tokenizer)) if tokenizer else parts


def run_parts(path):
    """The `ModelParts` of the run in the directory `path`, with its best weights."""
    config = read_config(path)

    def tensors():
        return iter(run_weights(path, config)[0].items())

    return ModelParts(
        Path(path),
        dataclasses.replace(config.model, block_size=config.full_context),
        tensors,
        runs.tokenizer_of(path, config),
        runs.template_of(path, config),
        runs.sampling_of(path),
        f"slm_np, {Path(path).name}",
    )


def run_weights(path, config, into=None):
    """`runs.best_weights` of any run: adapters are merged into their base."""
    if config.lora:
        return adapters.merged_weights(Path(path), config, into, open_model)
    return runs.best_weights(path, config, into)


def check_tokenizer(parts):
    """UserError if the tokenizer has ids that the embedding does not. The embedding may have more rows, as padding."""
    if parts.tokenizer is not None and parts.tokenizer.vocab_size > parts.config.vocab_size:
        raise UserError(
            f"the tokenizer of {parts.path} has {counted(parts.tokenizer.vocab_size, 'token')}, but its model "
            f"{parts.config.vocab_size:,}; use the tokenizer that the model was trained with"
        )


def load(path, device="cpu"):
    """The `Run` of a run's directory, a Hugging Face directory, a GGUF file or a name on the hub.

    device: "cpu" or "cuda", where its model is to be. A run has its best weights or, before the first evaluation, those
    of its newest checkpoint. A model of another program is loaded for at most CONTEXT tokens. Raises UserError if it is
    no model, anything in it is damaged, or it does not fit into memory.
    """
    given = Path(arguments.path("path", path))
    chosen = device_named(arguments.choice("device", device, DEVICES))
    path = located(given)
    parts, trained = _opened(given, path), is_run(path)
    config = read_config(path) if trained else run_config(parts)
    needed = 4 * parameter_count(config.model)  # float32
    chosen.check_memory(needed, f"the model in {parts.path}", "use a machine with more")
    model, step = Model(config.model, None, config.train.decay, device=chosen), 0
    if trained:
        _, step = run_weights(path, config, model.parameters.weight)
        runs.mend_interchange(path, config, parts.tokenizer, parts.template)
    else:
        fill(model.parameters.weight, parts)
    return runs.Run(parts.path, model, parts.tokenizer, config, step, parts.sampling, parts.template)


def run_config(parts):
    """The RunConfig of a model of another program, which was not trained here."""
    config = usable(parts.config)
    return RunConfig(
        config,
        TrainConfig(max_iters=0),
        data=dict(converted=parts.origin) | ends_of(parts.tokenizer),
        context=parts.config.block_size if config != parts.config else 0,
    )


def usable(config):
    """The ModelConfig with a context that fits into memory. A table of learned positions stays as it is."""
    if config.positions == "learned" or config.block_size <= CONTEXT:
        return config
    return dataclasses.replace(config, block_size=CONTEXT)


def fill(weights, parts):
    """Copy the tensors of `ModelParts` into {name: array}, one at a time.

    Raises UserError if one is missing, unknown, or of another shape.
    """
    left = set(weights)
    for name, array in metered(parts, "loading").tensors():
        if name not in left:
            raise UserError(f"{parts.path} has the unexpected tensor {name!r}; it is not the model of its settings")
        if array.shape != weights[name].shape:
            raise UserError(
                f"{parts.path} has the tensor {name!r} with shape {array.shape}, not {weights[name].shape}; "
                "it is not the model of its settings"
            )
        put(weights[name], array)
        left.remove(name)
    if left:
        raise UserError(f"{parts.path} lacks the tensor {min(left)!r}; copy it again from its source")

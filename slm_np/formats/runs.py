"""A run in memory: its model with the best weights, its tokenizer and its sampling defaults."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from slm_np.config import SamplingConfig
from slm_np.data import chat_template, templates
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.formats.checkpoint import copies_of, load_best, newest_checkpoint
from slm_np.formats.checksum import crc32, read_settings
from slm_np.formats.files import read_bytes, write_bytes, write_file
from slm_np.formats.generation_config import from_generation_config
from slm_np.formats.interchange import interchange_files
from slm_np.formats.layouts import layout_of
from slm_np.formats.run_config import RunConfig
from slm_np.nn.model import Model
from slm_np.paths import RUN
from slm_np.words import counted

KEPT = ("tokenizer.json", chat_template.FILE)  # small files of which each checkpoint has a copy


@dataclass
class Run:
    """A loaded run.

    model      the Model, with the best weights
    tokenizer  None for a run on token files
    step       number of updates after which the weights were saved
    sampling   the run's sampling defaults
    template   the chat template of a run that was trained on conversations, or None
    """

    path: Path
    model: Model
    tokenizer: Tokenizer | None
    config: RunConfig
    step: int
    sampling: SamplingConfig
    template: chat_template.Template | JinjaTemplate | None


def best_weights(path, config, into=None):
    """({name: array}, step) of the run's best model or, before the first evaluation, of its newest checkpoint.

    config: RunConfig.   `into` as in `load_tensors`.
    """
    layout = layout_of(config)
    best = Path(path) / layout.file
    if best.exists():
        weights, metadata = load_best(path, into, layout)
        return weights, int(metadata["step"])
    found = newest_checkpoint(path, into)
    if found.state.get("best") is not None:
        print(f"slm_np: {best}, the best model, is missing; using {found.path.name}", file=sys.stderr)
    return found.model, found.step


def tokenizer_of(path, config):
    """The tokenizer of the run in `path`, or None if it has none. UserError if it does not fit `config` (RunConfig)."""
    file = intact_file(path, config, "tokenizer.json")
    if file is None:
        return None
    tokenizer = load_tokenizer(file)
    known = config.model.vocab_size
    may_be_padded = config.base or "converted" in config.data  # another program's model may have more embeddings
    if tokenizer.vocab_size > known or tokenizer.vocab_size < known and not may_be_padded:
        raise UserError(
            f"{file} has {counted(tokenizer.vocab_size, 'token')}, but the model {config.model.vocab_size}; "
            "restore the tokenizer that the run was trained with"
        )
    tokenizer.trained_ends = config.data.get("separated", True)
    tokenizer.prompt_start = config.data.get("prompt_start")
    tokenizer.more_ends = tuple(config.data.get("more_ends", ()))
    return tokenizer


def sampling_of(path):
    """The sampling defaults of the run in `path`. UserError if they are damaged, or out of range."""
    file = Path(path) / "generation_config.json"
    if not file.exists():
        print(f"slm_np: {file} is missing; sampling with the defaults", file=sys.stderr)
        return SamplingConfig()
    fields = read_settings(file)
    try:
        return from_generation_config(fields)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def template_of(path, config):
    """The chat template of the run in `path`, or None. UserError as `intact_file`, or if it is malformed."""
    file = intact_file(path, config, chat_template.FILE)
    return file and templates.load(file.parent)


def intact_file(path, config, name):
    """The path of the run's file `name`, tokenizer.json or chat_template.json; None if the run has no such file.

    A file that is lost or damaged, as the checksum in `config` (RunConfig) tells, is restored from the newest
    checkpoint with a copy; a line on stderr says so. If the run cannot be written, that is the path of the copy.
    UserError if no checkpoint has one. A file whose checksum is unknown, as in older runs, is taken as it is.
    """
    file, wanted = Path(path) / name, config.files.get(name)
    there = file.exists()
    if wanted is None or _has_checksum(file, wanted):
        return file if there else None
    state = "is damaged, its checksum differs" if there else "is missing"
    for copy in copies_of(path, name):
        content = read_bytes(copy)
        if crc32(content) == wanted:
            try:
                write_bytes(file, content)
                print(f"slm_np: {file} {state}; restored from {copy.parent.name}", file=sys.stderr)
                return file
            except OSError:
                print(f"slm_np: {file} {state}; using the copy in {copy.parent.name}", file=sys.stderr)
                return copy
    origin = config.data.get("converted")
    remedy = f"convert the checkpoint ({origin}) again" if origin else "restore it from a backup"
    raise UserError(f"{file} {state}, and no checkpoint has a copy; {remedy}")


def mend_interchange(path, config, tokenizer, template):
    """Make the files again that are for other programs only, as far as they are lost or damaged.

    A line on stderr says so. config, tokenizer, template: of the run in `path`.
    """
    known = {name: sum for name, sum in config.files.items() if name not in KEPT}
    damaged = [name for name, sum in known.items() if not _has_checksum(Path(path) / name, sum)]
    made = interchange_files(config, tokenizer, template) if damaged else {}
    for name in damaged:
        file, content = Path(path) / name, made.get(name, b"")
        state = "is damaged or was edited, its checksum differs" if file.exists() else "is missing"
        result = "other programs may read another model"  # from a version that wrote it otherwise
        with contextlib.suppress(OSError):
            if crc32(content) == known[name]:
                write_bytes(file, content)
                result = f"made again from {RUN}"
        print(f"slm_np: {file} {state}; {result}", file=sys.stderr)


def _has_checksum(file, wanted):
    return file.exists() and crc32(read_bytes(file)) == wanted


def own_files(tokenizer, template):
    """{name: bytes} of tokenizer.json and chat_template.json. tokenizer, template: None if there is none"""
    content = {"tokenizer.json": tokenizer, chat_template.FILE: template}
    return {name: one.to_bytes() for name, one in content.items() if one is not None}


def small_files(path, config, tokenizer):
    """{name: bytes} of the run's tokenizer.json and chat_template.json, as far as it has them.

    tokenizer: that of the run's corpus. An older run that has lost its tokenizer.json gets it from there.
    """
    found = {name: intact_file(path, config, name) for name in KEPT}
    content = {name: read_bytes(file) for name, file in found.items() if file is not None}
    if tokenizer is not None and "tokenizer.json" not in content:
        content["tokenizer.json"] = tokenizer.to_bytes()
        write_file(Path(path) / "tokenizer.json", content["tokenizer.json"])
        print(f"slm_np: {Path(path) / 'tokenizer.json'} is missing; made again from the data", file=sys.stderr)
    return content

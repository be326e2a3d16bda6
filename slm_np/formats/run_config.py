"""run.json: the settings of a run, from which its model is rebuilt, and the checksums of its other small files.

It holds its own checksum, too, see `read_settings`. Up to format 3 the file was called config.json. Format 1 had other
names, see format1.py; format 2 no checksums.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from slm_np.config import LoraConfig, ModelConfig, TrainConfig
from slm_np.errors import UserError, near
from slm_np.formats import format1
from slm_np.formats.checksum import read_settings, write_settings
from slm_np.formats.files import RESTORE
from slm_np.formats.other_paths import not_a_run
from slm_np.paths import OLD_RUN, RUN, is_run

FORMAT = 4

OBJECT = "an object in braces", lambda value: isinstance(value, dict)
STRING = "a string", lambda value: isinstance(value, str)
BOOLEAN = "true or false", lambda value: isinstance(value, bool)
COUNT = "a number of updates", lambda value: type(value) is int and 0 <= value <= 10**9
CONTEXT = "a number of tokens", lambda value: type(value) is int and 0 <= value <= 1 << 20
WHOLE = "a whole number", lambda value: type(value) is int and 0 <= value < 1 << 63
TOKENS = (
    "two numbers of tokens",
    lambda value: value is None or isinstance(value, list) and len(value) == 2 and all(map(WHOLE[1], value)),
)
IDS = (
    "a list of token ids",
    lambda value: isinstance(value, list) and all(map(WHOLE[1], value)),
)
PATHS = (
    "an object of paths",
    lambda value: isinstance(value, dict) and all(isinstance(path, str) for path in value.values()),
)
# What the fields must be: in words, and as a test. The settings of model and training have checks of their own.
FIELDS = dict(
    model=OBJECT,
    train=OBJECT,
    preset=STRING,
    data=OBJECT,
    base=OBJECT,
    fitted_iters=COUNT,
    files=OBJECT,
    context=CONTEXT,
    lora=OBJECT,
)
DATA = dict(
    fingerprint=STRING,
    source=STRING,
    tokens=TOKENS,
    separated=BOOLEAN,
    replay=STRING,
    directory=PATHS,
    converted=STRING,
    prompt_start=IDS,
    more_ends=IDS,
)
BASE = dict(
    run=STRING,
    step=WHOLE,
    weights=STRING,
    vocab_size=WHOLE,
    separated=BOOLEAN,
    data=STRING,
    val_data=STRING,
    documents=STRING,
    limit_bytes=WHOLE,
    binary=BOOLEAN,
)


@dataclass(frozen=True)
class RunConfig:
    """What run.json holds.

    model   the architecture
    train   how it is trained, and on what; `dtype` is resolved and never "auto"
    preset  name of the preset that the settings came from; "" for a converted model
    data    what the settings cannot say about the data; {} before it is prepared:
                fingerprint    hash of the training and validation tokens; resuming requires the same
                source         the name to show
                tokens         [training tokens, validation tokens]; None until the corpus is completely tokenized
                separated      whether the training data contain the end-of-text token
                replay         fingerprint of the retention data, if there are any
                directory      where the run was started, at which its relative paths start; see run_paths.py
                converted      for a converted model, format and name of the file
                prompt_start, more_ends    ids, as in `Tokenizer`, if the model or its base is another program's
    base    what a finetuned run started from; {} for others:
                run, step      directory of the base, and the step of its weights
                weights        checksum of those weights
                vocab_size, separated, data, val_data, documents, limit_bytes, binary    of the base; its paths start
                               where those of this run do
    fitted_iters    the number of updates that was fitted to `fit_time`; 0 before that, and without `fit_time`
    files   {name: CRC-32} of the run's small files other than run.json and generation_config.json. {} in older formats
    context the context length that exports write, in tokens, if that is not the model's block_size; else 0. The model
            of another program is used with a shorter one if its memory would be too large
    lora    fields of the LoraConfig of a run that trains adapters; {} for others
    """

    model: ModelConfig
    train: TrainConfig
    preset: str = ""
    data: dict = dataclasses.field(default_factory=dict)
    base: dict = dataclasses.field(default_factory=dict)
    fitted_iters: int = 0
    files: dict = dataclasses.field(default_factory=dict)
    context: int = 0
    lora: dict = dataclasses.field(default_factory=dict)

    @property
    def full_context(self):
        """The context length that exports write."""
        return self.context or self.model.block_size


def ends_of(tokenizer):
    """What run.json says of how the texts of another program's model start and end; {} for a model of this one."""
    found = {name: getattr(tokenizer, name, None) for name in ("prompt_start", "more_ends")}
    return {name: list(ids) for name, ids in found.items() if ids or ids is not None and name == "prompt_start"}


def write_config(run_dir, config):
    """Write the `RunConfig` as run_dir/run.json, atomically. UserError if the file cannot be written."""
    fields = {"model_type": "slm_np", "format": FORMAT, **dataclasses.asdict(config)}
    write_settings(Path(run_dir) / RUN, fields)


def check_is_run(run_dir):
    """UserError if `run_dir` is not a run."""
    if not is_run(run_dir):
        read_config(run_dir)  # says why


def _settings_file(run_dir):
    """run.json or, in an older run, config.json. UserError if there is neither."""
    paths = [Path(run_dir) / name for name in (RUN, OLD_RUN)]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise not_a_run(run_dir)
    return found


def read_config(run_dir):
    """The `RunConfig` of a run, of this format or an older one.

    Raises UserError if `run_dir` is not a run, was written by a newer version, or has a run.json that is damaged,
    malformed, or holds unknown fields.
    """
    path = _settings_file(run_dir)
    fields = read_settings(path)
    kind, version = fields.pop("model_type", None), fields.pop("format", None)
    if path.name == OLD_RUN and kind != "slm_np" and version is None:  # of another program
        raise not_a_run(run_dir)
    if kind != "slm_np" or type(version) is not int or version < 1:
        raise UserError(
            f"{path} has model_type {_shown(kind)} and format {_shown(version)}, so {run_dir} is not a run of slm_np; "
            "name one that is"
        )
    if version > FORMAT:
        raise UserError(f"{path} is of format {_shown(version)}, and this version reads up to {FORMAT}; upgrade slm_np")
    for name, default in dict(base={}, fitted_iters=0, files={}, context=0, lora={}).items():
        fields.setdefault(name, default)
    _check_types(path, fields, FIELDS)
    _check_types(path, fields["data"], DATA, "data")
    _check_types(path, fields["base"], BASE, "base")
    for name in BASE:
        if fields["base"] and name not in (*fields["base"], "vocab_size", "separated", "binary"):
            raise UserError(f"{path} lacks {name!r} in 'base'; {RESTORE}")
    _check_types(path, fields["files"], dict.fromkeys(fields["files"], STRING), "files")
    try:
        if version == 1:
            fields = format1.run_settings(fields)
        fields["model"], fields["train"] = _build(ModelConfig, fields["model"]), _build(TrainConfig, fields["train"])
        _build(LoraConfig, fields["lora"])
        return _build(RunConfig, fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_types(path, fields, known, part=""):
    """UserError if one of the known fields of a part of the settings is missing there or of another type.

    known: {name: (what it must be, function (value) -> whether it is)}. In a `part` fields may be missing.
    """
    for name, (words, fits) in known.items():
        if name in fields and not fits(fields[name]) or not part and name not in fields:
            where = f" in {part!r}" if part else ""
            raise UserError(f"{path} has {_shown(fields.get(name))} for {name!r}{where}; it must be {words}")


def _shown(value):
    """A value of any JSON type, as short text."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested too deeply
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _build(kind, fields):
    """The dataclass `kind` with these fields. UserError if one is unknown or has a bad value."""
    known = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in known:
            raise UserError(f"unknown field {name!r}; remove it or upgrade slm_np ({near(name, known)})")
    return kind(**fields)

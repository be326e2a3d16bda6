"""Directories of models as Hugging Face's transformers reads and writes them.

config.json                the architecture, see families
model.safetensors          the weights; or shards, and model.safetensors.index.json, which names them
tokenizer.json             the tokenizer; or GPT-2's vocab.json and merges.txt
tokenizer_config.json      names of its special tokens
generation_config.json     sampling defaults
chat_template.jinja        how a conversation becomes text
"""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np

from slm_np.arguments import shown
from slm_np.config import SamplingConfig
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.plain_bpe import PlainBPE
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.data.tokenizer_json import END_OF_TEXT, bpe_model, byte_level, leading_token, tokenizer_json
from slm_np.errors import UserError, near
from slm_np.formats.families import FAMILIES, config_json, family_named, family_of
from slm_np.formats.families.tensor_mapping import in_their_layout, to_ours
from slm_np.formats.files import new_folder, read_json, to_json
from slm_np.formats.generation_config import from_generation_config, to_generation_config
from slm_np.formats.interchange import TEMPLATE, token_ids, tokenizer_config
from slm_np.formats.model_parts import ModelParts
from slm_np.formats.weight_files import AGAIN, WRITTEN, open_weights, write_weights

HEAD = "lm_head.weight"
GPT2_TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast")


def read(path):
    """The `ModelParts` of the directory `path`. Its tensors are read when they are asked for.

    Raises UserError if a file is missing, damaged or contradicts another, or if the model has what this package lacks.
    The tensors raise it for values that are NaN or infinite.
    """
    path = Path(path)
    fields = read_json(path / "config.json")
    family, config = architecture(path, fields)
    weights = open_weights(path)
    config, places = _placed(path, family, config, weights)

    def array_of(mapping):
        name = places[mapping.theirs]
        return weights[name].read(name)

    def tensors():
        return to_ours(config, family.mappings(config), array_of)

    return ModelParts(
        path=path,
        config=config,
        tensors=tensors,
        tokenizer=_with_ends(tokenizer_of(path), path, fields),
        template=template_of(path),
        sampling=sampling_of(path),
        origin=f"Hugging Face, {fields['model_type']}",
    )


def architecture(path, fields):
    """(family, ModelConfig) from the fields of path/config.json. UserError if this package does not know them."""
    kind = fields.get("model_type")
    family = family_named(kind) if isinstance(kind, str) else None
    if family is None:
        known = [name for one in FAMILIES for name in one.MODEL_TYPES]
        hint = near(kind, known) if isinstance(kind, str) else f"known are {', '.join(known)}"
        found = "no model_type" if kind is None else f"model_type {shown(kind)}, which is not supported"
        raise UserError(f"{path / 'config.json'} has {found}; {hint}")
    try:
        return family, family.config_from(fields)
    except UserError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from None


def _placed(path, family, config, weights):
    """(ModelConfig, {name of a TensorMapping: name in the files}). weights: {name: WeightFile}

    The head that a file of a tied model holds counts if it differs from the embedding, as in transformers. UserError if
    a tensor is missing, unknown or of another shape than `config` says.
    """
    names, unknown = _names(family, config, weights)
    embedding, head = next(family.mappings(config)).theirs, family.ALIASES.get(HEAD, HEAD)
    extra = next((name for name in unknown if family.ALIASES.get(name, name) == head), None)
    if extra and config.head == "tied":
        unknown.remove(extra)
        if embedding not in names:
            names[embedding] = extra
        elif not np.array_equal(weights[extra].read(extra), weights[names[embedding]].read(names[embedding])):
            config = dataclasses.replace(config, head="linear")
            names[head] = extra
    if unknown:
        raise UserError(
            f"{path} holds the tensor {min(unknown)!r}, which a model with its config.json does not have; "
            "name a directory whose files belong together"
        )
    for mapping in family.mappings(config):
        if mapping.theirs not in names:
            untied = ", and tie_word_embeddings is false" if mapping.ours == "head.weight" else ""
            raise UserError(f"{path} lacks the tensor {mapping.theirs!r}{untied}; {AGAIN}")
        name = names[mapping.theirs]
        if weights[name].shape(name) != mapping.shape:
            raise UserError(
                f"{weights[name].path} holds tensor {name!r} with shape {weights[name].shape(name)}, but config.json "
                f"says {mapping.shape}; {AGAIN}"
            )
    return config, names


def _names(family, config, weights):
    """({name of a TensorMapping: name in the files}, [names in the files that are none]), without buffers."""
    wanted, found, unknown = {mapping.theirs for mapping in family.mappings(config)}, {}, []
    for name in weights:
        bare = name.removeprefix(family.PREFIX)
        candidates = (name, family.PREFIX + bare, *map(family.ALIASES.get, (name, family.PREFIX + bare)))
        known = next((one for one in candidates if one in wanted and one not in found), None)
        if known:
            found[known] = name
        elif not re.fullmatch(family.IGNORED, bare):
            unknown.append(name)
    return found, unknown


def tokenizer_of(path):
    """The tokenizer in a directory, or None: a line on stderr says so if there is one of another format."""
    if (path / "tokenizer.json").is_file():
        return load_tokenizer(path / "tokenizer.json")
    kind = _optional_json(path / "tokenizer_config.json").get("tokenizer_class", GPT2_TOKENIZERS[0])
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file() and kind in GPT2_TOKENIZERS:
        return _gpt2_tokenizer(path)
    others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (path / name).is_file()]
    if others:
        print(
            f"slm_np: {path} has no tokenizer.json but {others[0]}, so its model takes no text; make one in Python: "
            f"transformers.AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained('NEW')",
            file=sys.stderr,
        )
    return None


def _gpt2_tokenizer(path):
    """GPT-2's kind of tokenizer from vocab.json and merges.txt."""
    vocab = read_json(path / "vocab.json")
    try:
        lines = (path / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'merges.txt'} cannot be read ({error}); {AGAIN}") from None
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    if any(type(id) is not int for id in vocab.values()) or any(line.count(" ") != 1 for line in merges):
        raise UserError(f"{path} has a vocab.json or a merges.txt that is not GPT-2's; {AGAIN}")
    fields = tokenizer_json(byte_level(True), byte_level(True), bpe_model(vocab, merges), vocab.get(END_OF_TEXT))
    return LibraryTokenizer(fields, str(path / "vocab.json"))


def _with_ends(tokenizer, path, fields):
    """The tokenizer, told which tokens start a prompt and which end a text.

    The ends are those of generation_config.json, else those of config.json, whose `fields` are given.
    """
    if not isinstance(tokenizer, (LibraryTokenizer, PlainBPE)):  # none, bytes or characters
        return tokenizer
    ends = _optional_json(path / "generation_config.json").get("eos_token_id") or fields.get("eos_token_id")
    ends = [ends] if type(ends) is int else ends or []
    if not isinstance(ends, list) or not all(type(id) is int for id in ends):
        raise UserError(f"{path} has eos_token_id {shown(ends)}; it must be a token id, or a list of them")
    inside = (id for id in ends if 0 <= id < tokenizer.vocab_size and id != tokenizer.end_of_text)
    tokenizer.more_ends = tuple(dict.fromkeys(inside))
    first = tokenizer.special_tokens.get(leading_token(tokenizer.to_json()))
    tokenizer.prompt_start = () if first is None else (first.id,)
    return tokenizer


def template_of(path):
    """The chat template in a directory, or None: of chat_template.jinja, else of tokenizer_config.json."""
    fields, file = _optional_json(path / "tokenizer_config.json"), path / TEMPLATE
    source = fields.get("chat_template")
    if isinstance(source, list):  # several, with names
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default", next(iter(named.values()), None))
    if file.is_file():
        try:
            source = file.read_bytes().decode("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}); {AGAIN}") from None
    if not isinstance(source, str) or not source.strip():
        return None
    tokens = {name: _content(value) for name, value in fields.items() if name.endswith("_token") and _content(value)}
    return JinjaTemplate(source, tokens, str(file if file.is_file() else path / "tokenizer_config.json"))


def _content(token):
    """The name of a special token, which is a string or the field of an object; "" if it is neither."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def sampling_of(path):
    """The sampling defaults in a directory. UserError if they are out of range."""
    file = path / "generation_config.json"
    if not file.is_file():
        return SamplingConfig()
    try:
        return from_generation_config(read_json(file))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _optional_json(path):
    return read_json(path) if path.is_file() else {}


def write(parts, directory, dtype="f32", report=lambda n: None):
    """Write the `ModelParts` as a new directory that transformers reads.

    dtype   of the weights: f32, f16 or bf16
    report  function (n), called when n more bytes of them are written
    Raises UserError if no class of transformers computes the model, if the directory holds files or cannot be written,
    or if a weight is beyond the type's range. Then nothing is left behind.
    """
    config, tokenizer = parts.config, parts.tokenizer
    family = family_of(config)
    if family is None:
        raise UserError(
            f"no class of transformers computes the model {parts.path} (--pattern {config.pattern}, --positions "
            f"{config.positions}, --norm {config.norm}, --feed-forward {config.feed_forward}, --head {config.head}); "
            "see the README for those that do"
        )
    if dtype not in WRITTEN:
        raise UserError(f"--dtype {dtype} is not one of a Hugging Face directory; {near(dtype, WRITTEN)}")
    shapes, tensors = in_their_layout(list(family.mappings(config)), parts.tensors())
    ids = token_ids(tokenizer)
    files = {
        "config.json": config_json(config, WRITTEN[dtype][0], **ids),
        "generation_config.json": to_generation_config(parts.sampling, **ids),
    }
    if tokenizer is not None:
        files["tokenizer_config.json"] = tokenizer_config(tokenizer, parts.template, config.block_size)
    with new_folder(directory) as folder:
        write_weights(folder, shapes, tensors, dtype, report)
        for name, fields in files.items():
            (folder / name).write_bytes(to_json(fields, indent=2) + b"\n")
        if tokenizer is not None:
            (folder / "tokenizer.json").write_bytes(tokenizer.to_bytes())
        if parts.template is not None:
            (folder / TEMPLATE).write_bytes(parts.template.to_jinja())

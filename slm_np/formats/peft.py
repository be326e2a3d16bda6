"""Adapters in the format of PEFT, both ways, and merged into their base.

    adapter_config.json          ranks, scales and targets
    adapter_model.safetensors    base_model.model.LAYER.lora_A.weight (r, in) and .lora_B.weight (out, r)

An adapter adds s B A to a weight (out, in), with s = alpha / r or, with use_rslora, alpha / sqrt(r).
Of Mamba, PEFT refuses to load adapters of out_proj, and those of dt_proj have no effect before they are merged, since
transformers reads that weight without calling the layer. So finetuning adapts them only if they are named. Merged here,
all have an effect.
"""

import contextlib
import math
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from slm_np.arguments import shown
from slm_np.errors import UserError
from slm_np.formats import hub
from slm_np.formats.families import family_of
from slm_np.formats.families import fields as of
from slm_np.formats.files import new_folder, read_json, to_json
from slm_np.formats.lora_adapter import LoraAdapter, factors, merged_tensors, own_mappings, take
from slm_np.formats.weight_files import AGAIN, WeightFile, write_weights

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
KEY = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")
# Settings that change the result, with the values that change nothing.
NEUTRAL = dict(
    bias=("none",),
    use_dora=(False,),
    lora_bias=(False,),
    use_qalora=(False,),
    modules_to_save=([],),
    target_parameters=([],),
    trainable_token_indices=([], {}),
    layer_replication=([],),
    megatron_config=(),
    alora_invocation_tokens=([],),
    arrow_config=(),
    kasa_config=(),
    monteclora_config=(),
    use_bdlora=(False,),
)
# Initial values after which the base is another model than the one named: its weights were changed too.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings that change nothing once an adapter is trained, or that this module reads.
KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",  # follows from the base
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "velora_config",
}


def read(path, open_model):
    """The `ModelParts` of the base of the adapter in the directory `path`, with the adapter merged into it.

    The base is what adapter_config.json names: a path, from here or from the adapter's directory, or a name on the hub.
    open_model: function (path) -> ModelParts.   Raises UserError as `read_adapter` and as `open_model`.
    """
    parts = base_parts(path, open_model)
    return merged(parts, read_adapter(path, parts.config))


def base_parts(path, open_model):
    """The `ModelParts` of the base of the adapter in the directory `path`. Arguments and errors as of `read`."""
    path = Path(path)
    base, seen, at = base_of(path), set(), path
    while os.path.isfile(at / CONFIG):  # the base of an adapter may be one, too
        if os.path.realpath(at) in seen:
            raise UserError(
                f"the base of {path} is an adapter to itself, {at}; write the path of a model "
                f"for 'base_model_name_or_path' in {path / CONFIG}"
            )
        seen.add(os.path.realpath(at))
        at = _beside(at, base_of(at))
    found = _beside(path, base)
    if not os.path.lexists(found) and not hub.parsed(base):
        raise UserError(
            f"the base of {path}, {base}, is missing; put it back, "
            f"or write where it is for 'base_model_name_or_path' in {path / CONFIG}"
        )
    return open_model(found)


def _beside(path, base):
    """The path of a base that the adapter in the directory `path` names: seen from there, else from here."""
    return path / base if os.path.lexists(path / base) else Path(base)


def base_of(path):
    """The base that the adapter in the directory `path` names. UserError without one."""
    base = read_json(Path(path) / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{Path(path) / CONFIG} has {shown(base)} for 'base_model_name_or_path'; write the path of the base there"
        )
    return base


def merged(parts, adapter):
    """The `ModelParts` of a model with the weights W + s A B, computed in float32."""
    return replace(
        parts,
        tensors=lambda: merged_tensors(parts.config, parts.tensors(), adapter),
        path=adapter.path,  # what continues from this model has to find the adapter, too
        origin=f"adapter to {parts.path}, {parts.origin}",
    )


def mappings_of(config):
    """The linear layers of the model that other programs know, as TensorMappings; our own if they do not know it."""
    family = family_of(config)
    return [mapping for mapping in (family.mappings(config) if family else own_mappings(config)) if mapping.is_linear]


def read_adapter(path, config):
    """The `LoraAdapter` in the directory `path`, of a base with the ModelConfig `config`.

    Raises UserError if a file is missing or damaged, if it does not fit the base, or if a setting is not supported.
    """
    path = Path(path)
    fields = read_json(path / CONFIG)
    with _about(path / CONFIG):
        _check_settings(fields, path)
    if not (path / WEIGHTS).is_file() and (path / PICKLE).is_file():
        raise UserError(
            f"{path / PICKLE} is a pickle, which may run any code, so it is not read; save the adapter again with a "
            "newer version of PEFT, which writes safetensors"
        )
    file = WeightFile(path / WEIGHTS)
    found, tensors, scales = _layers(file, config), {}, {}
    for module, keys in found.items():
        mapping = keys["mapping"]
        with _about(path / CONFIG):
            target, (rank, scale) = _is_target(fields, module), _rank_and_scale(fields, module)
        if not target:
            raise UserError(f"{file.path} adapts {module}, which is not in the target_modules of {CONFIG}; {AGAIN}")
        inputs, outputs = mapping.shape[::-1] if mapping.transposed else mapping.shape
        for kind, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            if file.shape(keys[kind]) != shape:
                raise UserError(
                    f"{file.path} holds {keys[kind]!r} with shape {file.shape(keys[kind])}, but its rank and the base "
                    f"say {shape}; use the base that it was trained on"
                )
        a, b = (file.read(keys[kind]).astype(np.float32) for kind in "AB")
        name = mapping.our_module
        tensors |= {f"{name}.lora_A": a.T.copy(), f"{name}.lora_B": _layer_b(mapping, b.T).read(b).copy()}
        scales[name] = scale
    return LoraAdapter(path, fields.get("base_model_name_or_path") or "", tensors, scales)


@contextlib.contextmanager
def _about(file):
    """Put the name of a file before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _check_settings(fields, path):
    """UserError for settings that are not supported; a line on stderr for unknown ones."""
    if fields.get("peft_type") != "LORA":
        raise of.refused("peft_type", fields.get("peft_type"), "LORA")
    of.check_neutral(fields, NEUTRAL)
    initial = fields.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(CHANGED_BASES):
        raise of.refused("init_lora_weights", initial, "adapters that leave the base as it is")
    unknown = sorted(set(fields) - KNOWN - set(NEUTRAL))
    if unknown:
        print(f"slm_np: {path / CONFIG} has unknown settings, which are ignored: {', '.join(unknown)}", file=sys.stderr)


def _layers(file, config):
    """{their layer: {"mapping": TensorMapping, "A": key, "B": key}} of a file. UserError for anything else in it."""
    family = family_of(config)
    prefix = family.PREFIX if family else ""
    mappings, found = {mapping.module: mapping for mapping in mappings_of(config)}, {}
    for key in file.names:
        match = KEY.fullmatch(key)
        module = match and next((one for one in (match[1], prefix + match[1]) if one in mappings), None)
        if not module:
            raise UserError(
                f"{file.path} holds {key!r}, which is not a low-rank adapter of a linear layer in a block of the base; "
                "use another adapter, or the base that it was trained on"
            )
        found.setdefault(module, {"mapping": mappings[module]})[match[2]] = key
    for module, keys in found.items():
        if len(keys) < 3:
            raise UserError(f"{file.path} holds only one of lora_A and lora_B of {module}; {AGAIN}")
    if not found:
        raise UserError(f"{file.path} holds no adapter; {AGAIN}")
    return found


def _is_target(fields, module):
    """Whether target_modules names a layer: a list of names or ends of names, a regular expression, or all-linear."""
    targets = fields.get("target_modules")
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return True
        try:
            return re.fullmatch(targets, module) is not None
        except re.error as error:
            raise UserError(f"target_modules {shown(targets)} is not a regular expression ({error}); {AGAIN}") from None
    if not isinstance(targets, list):
        raise of.refused("target_modules", targets, "a list or a string")
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _rank_and_scale(fields, module):
    """(r, s) of a layer. The first entry of rank_pattern and of alpha_pattern that matches its name counts."""
    rank = of.whole(dict(r=_matching(fields, "rank_pattern", module, fields.get("r"))), "r", 8)
    alpha = _matching(fields, "alpha_pattern", module, fields.get("lora_alpha"))
    root = of.truth(fields, "use_rslora", False)
    return rank, of.real(dict(lora_alpha=alpha), "lora_alpha", 8) / (math.sqrt(rank) if root else rank)


def _matching(fields, name, module, default):
    """The value of a pattern, an object {end of a layer's name, as a regular expression: value}, for a layer."""
    patterns = fields.get(name) or {}
    if not isinstance(patterns, dict):
        raise of.refused(name, patterns, "an object")
    try:
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
    except re.error as error:
        raise UserError(f"{name} has a key that is not a regular expression ({error}); {AGAIN}") from None


def to_tensors(config, adapter):
    """{key: array} of adapter_model.safetensors of a `LoraAdapter`."""
    tensors = {}
    for mapping, (a, b, _) in factors(config, mappings_of(config), adapter):
        tensors[f"{PREFIX}{mapping.module}.lora_A.weight"] = np.ascontiguousarray(a.T)
        tensors[f"{PREFIX}{mapping.module}.lora_B.weight"] = _layer_b(mapping, b).write(b)
    return tensors


def from_tensors(config, adapter, tensors):
    """Fill a `LoraAdapter` from the `to_tensors` of one with the same layers, ranks and scales."""
    found = {}
    for mapping in mappings_of(config):
        a, b = (tensors.get(f"{PREFIX}{mapping.module}.lora_{kind}.weight") for kind in "AB")
        if a is not None:
            found[mapping.module] = a.T, _layer_b(mapping, b.T).read(b)
    take(config, mappings_of(config), adapter, found)


def _layer_b(mapping, b):
    """The TensorMapping of their B (out, r) and our b (r, out): a fused layer may have its columns in another order."""
    return mapping._replace(columns=None, transposed=True, shape=b.shape[::-1])


def to_settings(config, adapter, rslora=False, dropout=0.0):
    """The fields of adapter_config.json of a `LoraAdapter`.

    rslora   whether scales are written as alpha / sqrt(r)
    dropout  that it was trained with
    """
    ranks, alphas, every = {}, {}, mappings_of(config)
    for mapping, (a, _, scale) in factors(config, every, adapter):
        rank = ranks[mapping.module] = a.shape[1]
        alphas[mapping.module] = _plain(scale * (math.sqrt(rank) if rslora else rank))
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    names = {module.rpartition(".")[2] for module in ranks}
    others = {mapping.module for mapping in every if mapping.module.rpartition(".")[2] in names} - ranks.keys()
    return dict(
        peft_type="LORA",
        task_type="CAUSAL_LM",
        base_model_name_or_path=adapter.base,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(ranks) if others else sorted(names),
        rank_pattern={re.escape(module): value for module, value in ranks.items() if value != rank},
        alpha_pattern={re.escape(module): value for module, value in alphas.items() if value != alpha},
        use_rslora=rslora,
        fan_in_fan_out=not every[0].transposed,
        bias="none",
        init_lora_weights=True,
        inference_mode=True,
    )


def _plain(number):
    """A number as an integer if it is one, apart from rounding."""
    return round(number) if abs(number - round(number)) < 1e-9 * abs(number) else number


def write(config, adapter, directory, **options):
    """Write a `LoraAdapter` of a base with the ModelConfig `config` as a new directory. options: as of `to_settings`

    Raises UserError if the directory holds files or cannot be written. Then nothing is left behind.
    """
    fields, tensors = to_settings(config, adapter, **options), to_tensors(config, adapter)
    with new_folder(directory) as folder:
        (folder / CONFIG).write_bytes(to_json(fields, indent=2) + b"\n")
        layout = {name: array.shape for name, array in tensors.items()}
        write_weights(folder, layout, tensors.items(), "f32", file=WEIGHTS)

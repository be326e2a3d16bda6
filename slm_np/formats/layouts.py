"""How the file of a run's best weights holds them: its name, and the names and layouts of its tensors.

Other programs read these weights, so they have the names and layouts of the family that computes the same model
(`slm_np.formats.families`), and config.json beside them says which family that is. Without such a family they have
ours, and there is no config.json. Checkpoints always have ours.

A layout has
    file                           name of the file in the run's directory
    described(run, **ids)          {name: bytes} of the files that tell other programs what the tensors are.
                                   ids: bos_token_id and the like, see config.json
    holds(names)                   whether a file with tensors of these names has this layout
    to_file(tensors)               {name in the file: array or LazyTensor} of the model's tensors {our name: array}
    from_file(path, found, into)   {our name: array} of the tensors {name in the file: array} in the file `path`, filled
                                   into the arrays `into`, or new ones. UserError if they do not match
"""

import dataclasses
from functools import partial

import numpy as np

from slm_np.config import LoraConfig
from slm_np.formats import peft
from slm_np.formats.families import FAMILIES, config_json
from slm_np.formats.families.tensor_mapping import to_ours
from slm_np.formats.files import to_json
from slm_np.formats.format1 import tensor_name
from slm_np.formats.lora_adapter import of_model
from slm_np.formats.tensors import LazyTensor, check_match, filled
from slm_np.nn.model import model_tensors
from slm_np.ops.device import host, put


class OurLayout:
    """Our names and layouts, of any model."""

    file = "model.safetensors"

    def described(self, run, **ids):
        return {}

    def holds(self, names):
        return "embedding.weight" in names

    def to_file(self, tensors):
        return tensors

    def from_file(self, path, found, into=None):
        return filled(path, {tensor_name(name): tensor for name, tensor in found.items()}, into)


class FamilyLayout:
    """The names and layouts of a `family` that computes the model `config` (ModelConfig), in float32."""

    file = "model.safetensors"

    def __init__(self, config, family):
        self.config, self.mappings = config, list(family.mappings(config))

    def described(self, run, **ids):
        config = dataclasses.replace(run.model, block_size=run.full_context)
        return {"config.json": to_json(config_json(config, **ids), indent=2) + b"\n"}

    def holds(self, names):
        return {mapping.theirs for mapping in self.mappings} == set(names)

    def to_file(self, tensors):
        return {mapping.theirs: self._lazy(mapping, partial(_written, mapping, tensors)) for mapping in self.mappings}

    def from_file(self, path, found, into=None):
        if not self.holds(found):  # perhaps a file of an earlier version, which wrote our names, or another family's
            for other in (*families(self.config), OurLayout()):
                if other.holds(found):
                    return other.from_file(path, found, into)
        check_match(path, found, {mapping.theirs: self._lazy(mapping) for mapping in self.mappings})
        made, into = into is None, {} if into is None else into
        for name, tensor in to_ours(self.config, self.mappings, lambda mapping: found[mapping.theirs]):
            if made:
                into[name] = tensor
            else:
                put(into[name], tensor)
        return into

    def _lazy(self, mapping, make=None):
        return LazyTensor(mapping.shape, np.dtype(np.float32), make)


class AdapterLayout:
    """Adapters in PEFT's format, apart from their base. run: RunConfig of a run that trains adapters"""

    file = peft.WEIGHTS

    def __init__(self, run):
        self.run = run
        tensors, self.adapters = model_tensors(run.model, lora_of(run))
        self.shapes = {tensor.name: tensor.shape for tensor in tensors if tensor.trained}

    def described(self, run, **ids):
        settings = lora_of(run)
        empty = self.adapter({name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()})
        fields = peft.to_settings(run.model, empty, settings.rslora, settings.lora_dropout)
        return {peft.CONFIG: to_json(fields, indent=2) + b"\n"}

    def holds(self, names):
        return True

    def to_file(self, tensors):
        return peft.to_tensors(self.run.model, self.adapter({name: host(tensors[name]) for name in self.shapes}))

    def from_file(self, path, found, into=None):
        joined = {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}
        alone = self.adapter(joined)
        check_match(path, found, peft.to_tensors(self.run.model, alone))
        peft.from_tensors(self.run.model, alone, found)
        if into is None:
            return joined
        for name, array in joined.items():
            put(into[name], array)
        return into

    def adapter(self, tensors):
        """The LoraAdapter of the model's tensors {name: array}, of which its own are views."""
        return of_model(self.adapters, tensors, self.run.base.get("run", ""))


def _written(mapping, tensors):
    """Their tensor of a TensorMapping, made of ours."""
    return mapping.write(host(tensors[mapping.ours]) if mapping.ours else None)


def lora_of(run):
    """The LoraConfig of a RunConfig, or None if it trains all weights."""
    return LoraConfig(**run.lora) if run.lora else None


def families(config):
    """The layouts of a ModelConfig that other programs know, the one to write first."""
    return [FamilyLayout(config, family) for family in FAMILIES if family.config_to(config) is not None]


def layout_of(run):
    """The layout in which the best weights of a run with the RunConfig `run` are written."""
    return AdapterLayout(run) if run.lora else [*families(run.model), OurLayout()][0]

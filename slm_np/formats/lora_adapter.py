"""Low-rank adapters apart from a model: which columns of our tensors they change, and of the layers of other programs.

An adapter of a linear layer W (D, E), or of some of its columns, adds s A B with A (D, r) and B (r, E).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_np.formats.families.tensor_mapping import TensorMapping, joined_columns, qkv_columns
from slm_np.nn import lora
from slm_np.nn.model import parameters


@dataclass
class LoraAdapter:
    """The adapters of a model.

    path     where they are from
    base     the model that they were trained on, as its user named it
    tensors  {name: array}: `layers.0.attention.q.lora_A` (D, r) and `.lora_B` (r, E), float32, for each layer or part
    scales   {layer or part: s}
    """

    path: Path
    base: str
    tensors: dict
    scales: dict


def of_model(layers, tensors, base=""):
    """The `LoraAdapter` of a model with adapters; its arrays are views.

    layers   [(Adapter, ...) of each layer], see nn/lora.py
    tensors  {name: array} of `nn.lora.parameters`, in host memory
    """
    scales = {
        f"layers.{layer}.{part.name}": adapter.scale
        for layer, own in enumerate(layers)
        for adapter in own
        for part in adapter.parts
    }
    return LoraAdapter(None, base, lora.parts(layers, tensors), scales)


class Block(NamedTuple):
    """Columns start to stop of our tensor `tensor` (D, E), which one adapter changes."""

    tensor: str
    start: int
    stop: int


class Factors(NamedTuple):
    """The adapter of one linear layer of another program: scale a b is added to its weight (in, out)."""

    a: np.ndarray  # (in, r)
    b: np.ndarray  # (r, out)
    scale: float


def blocks(config):
    """{layer or part: Block} of all that adapters may change: the linear layers within the blocks of a model."""
    found = {}
    for tensor in parameters(config):
        module, _, kind = tensor.name.rpartition(".")
        if not module.startswith("layers.") or kind != "weight" or len(tensor.shape) != 2 or "conv1d" in module:
            continue
        found[module] = Block(tensor.name, 0, tensor.shape[1])
        parts = {}
        if module.endswith("attention.qkv"):
            parts = qkv_columns(config)
        elif module.endswith("feed_forward.input") and config.feed_forward == "swiglu":
            parts = joined_columns(dict(gate=config.n_hidden, up=config.n_hidden))
        prefix = module.rpartition(".")[0]
        found |= {f"{prefix}.{part}": Block(tensor.name, at.start, at.stop) for part, at in parts.items()}
    return found


def own_mappings(config):
    """A TensorMapping for each of our linear layers, for a model that no other program knows."""
    shapes = {tensor.name: tensor.shape for tensor in parameters(config)}
    for name in dict.fromkeys(block.tensor for block in blocks(config).values()):
        yield TensorMapping(name, name, shapes[name][::-1], transposed=True)


def by_tensor(config, adapter):
    """{name of our tensor: [(layer or part, Block), ...]} of a LoraAdapter."""
    known, found = blocks(config), {}
    for module in adapter.scales:
        found.setdefault(known[module].tensor, []).append((module, known[module]))
    return found


def _changed(config, mappings, adapter):
    """Yield (TensorMapping, first column, width, [(layer or part, Block), ...]) for each that a LoraAdapter changes."""
    changes = by_tensor(config, adapter)
    for mapping in mappings:
        start = mapping.columns.start if mapping.columns else 0
        width = mapping.shape[0 if mapping.transposed else -1]
        found = [
            (module, block)
            for module, block in changes.get(mapping.ours, ())
            if block.start < start + width and start < block.stop
        ]
        if found:
            yield mapping, start, width, found


def factors(config, mappings, adapter):
    """Yield (TensorMapping, Factors) of each linear layer of another program that the LoraAdapter changes.

    Where its layer has the columns of several adapters, they become one: A side by side, B on the diagonal. Where it
    has some of the columns of an adapter, it has the same A.
    """
    for mapping, start, width, found in _changed(config, mappings, adapter):
        scale = adapter.scales[found[0][0]]
        all_a, all_b = [], []
        for module, block in found:
            ours, theirs = _common(block, start, width)
            own = adapter.tensors[f"{module}.lora_B"]
            b = np.zeros((len(own), width), np.float32)
            b[:, theirs] = own[:, ours] * np.float32(adapter.scales[module] / scale)
            all_a.append(adapter.tensors[f"{module}.lora_A"])
            all_b.append(b)
        yield mapping, Factors(np.concatenate(all_a, 1), np.concatenate(all_b), scale)


def take(config, mappings, adapter, found):
    """Fill the tensors of a LoraAdapter from the `factors` of one with the same layers, ranks and scales.

    found: {their layer: (A, B)}
    """
    for mapping, start, width, of_mapping in _changed(config, mappings, adapter):
        (a, b), row = found[mapping.module], 0
        for module, block in of_mapping:
            ours, theirs = _common(block, start, width)
            own_a, own_b = adapter.tensors[f"{module}.lora_A"], adapter.tensors[f"{module}.lora_B"]
            rows = slice(row, row + len(own_b))
            own_a[...], own_b[:, ours] = a[:, rows], b[rows, theirs]
            row = rows.stop


def _common(block, start, width):
    """The columns that a Block shares with start to start + width: (slice of the Block's, slice of the others)."""
    first, last = max(start, block.start), min(start + width, block.stop)
    return slice(first - block.start, last - block.start), slice(first - start, last - start)


def merged_tensors(config, tensors, adapter):
    """Yield (name, array) of `tensors`, with s A B added where the LoraAdapter changes them. Arrays are not shared."""
    changes = by_tensor(config, adapter)
    for name, array in tensors:
        if name in changes:
            array = np.array(array, np.float32)
            for module, block in changes[name]:
                product = adapter.tensors[f"{module}.lora_A"] @ adapter.tensors[f"{module}.lora_B"]
                array[:, block.start : block.stop] += np.float32(adapter.scales[module]) * product
        yield name, array

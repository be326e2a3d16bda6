"""GGUF, the files of llama.cpp, ollama and their kin: a model, its tokenizer and its chat template in one file.

A file is written tensor by tensor, atomically, with a Modelfile for ollama beside it. Matrices are written in the type
that is asked for; vectors, norms, positions and the small tensors of Mamba in float32, as llama.cpp wants them.
Q8_0 needs a multiple of 32 columns. Other matrices are written in F16, as llama.cpp's own quantization does.
Values of Q8_0 are off by at most 1/254 of the largest of their 32 neighbors.
"""

import math
from itertools import chain
from pathlib import Path

import numpy as np

from slm_np.config import SamplingConfig
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.errors import UserError, near
from slm_np.formats.families.tensor_mapping import by_our_name, to_ours, to_theirs
from slm_np.formats.files import replacing, saving
from slm_np.formats.gguf import layout
from slm_np.formats.gguf import tokenizer as gguf_tokenizer
from slm_np.formats.gguf.architecture import architecture_of, config_of, metadata_of
from slm_np.formats.gguf.header import AGAIN, check_readable, gguf_package, read_header, read_tensor
from slm_np.formats.gguf.modelfile import stops_of, write_modelfile
from slm_np.formats.model_parts import ModelParts
from slm_np.nn.model import parameters
from slm_np.progress import say

DTYPES = dict(f32="F32", f16="F16", bf16="BF16", q8_0="Q8_0")
FILE_TYPES = dict(f32="ALL_F32", f16="MOSTLY_F16", bf16="MOSTLY_BF16", q8_0="MOSTLY_Q8_0")  # names in the package
Q8_0_BLOCK, LARGEST_F16 = 32, 65504.0
SMALL = ("position_embd.weight", "ssm_conv1d.weight", "ssm_a")  # matrices that stay in float32
TEMPLATE = "tokenizer.chat_template"
# Sampling defaults, after general.sampling, and the fields of SamplingConfig.
SAMPLING = dict(
    temp="temp",
    top_k="top_k",
    top_p="top_p",
    min_p="min_p",
    penalty_repeat="repeat_penalty",
    penalty_last_n="repeat_last_n",
)


def read(path):
    """The `ModelParts` of the GGUF file `path`.

    UserError if it is damaged, or has an architecture, a setting, a type of tensors or a tokenizer that is not
    supported.
    """
    header = read_header(path)
    config = config_of(header)
    architecture = header.metadata["general.architecture"]
    mappings = layout.mappings(architecture, config)
    _check_tensors(header, mappings)
    tokenizer = gguf_tokenizer.from_metadata(header, config.vocab_size)

    def array_of(mapping):
        array = read_tensor(header, mapping.theirs)
        with np.errstate(invalid="ignore", divide="ignore"):  # Mamba's matrix must be negative
            array = layout.restored(architecture, config, mapping, array)
        if not np.isfinite(array).all():
            raise UserError(f"{header.path} holds weights that are not finite, in {mapping.theirs}; {AGAIN}")
        return array

    def tensors():
        return to_ours(config, mappings, array_of)

    return ModelParts(header.path, config, tensors, tokenizer, _template(header), _sampling(header), _origin(header))


def _check_tensors(header, mappings):
    """UserError if a tensor is missing, unexpected, of a wrong shape, or of a type that cannot be read."""
    expected = {mapping.theirs: mapping.shape for mapping in mappings}
    for name, shape in expected.items():
        found = header.tensors.get(name)
        if found is None:
            raise UserError(f"{header.path} lacks the tensor {name}; {AGAIN}")
        if found.shape != shape:
            raise UserError(
                f"{header.path} has the tensor {name} of shape {found.shape}, but its metadata says {shape}; {AGAIN}"
            )
    kinds = {}
    for name, tensor in header.tensors.items():
        if name not in expected and name != layout.FREQUENCIES:
            raise UserError(f"{header.path} has the tensor {name!r}, which is not supported; choose another model")
        kinds.setdefault(tensor.kind, name)
    for name in kinds.values():
        check_readable(header, name)


def _template(header):
    """The chat template of a file, or None."""
    source = header.metadata.get(TEMPLATE)
    if not isinstance(source, str) or not source.strip():
        return None
    return JinjaTemplate(source, gguf_tokenizer.names_of(header, "bos", "eos"), f"the chat template of {header.path}")


def _sampling(header):
    """The sampling defaults of a file. UserError if they are out of range."""
    found = {ours: header.metadata.get(f"general.sampling.{theirs}") for theirs, ours in SAMPLING.items()}
    given = {
        name: float(str(np.float32(value))) if isinstance(value, float) else value for name, value in found.items()
    }
    try:
        return SamplingConfig(**{name: value for name, value in given.items() if value is not None})
    except UserError as error:
        raise UserError(f"{header.path}: {error}") from None


def _origin(header):
    name = header.metadata.get("general.name")
    return f"GGUF, {name if isinstance(name, str) and name else header.path.name}"


def write(parts, path, dtype="f32", report=lambda n: None):
    """Write the `ModelParts` as a GGUF file at `path`, and a Modelfile beside it. Both replace what was there.

    dtype   of the matrices: f32, f16, bf16 or q8_0
    report  function (n), called when n more bytes of tensors are written
    Raises UserError if no architecture of llama.cpp computes the model, if it cannot run the tokenizer, or if the file
    cannot be written. Then nothing is left behind.
    """
    gguf, path = gguf_package(), Path(path)
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; {near(dtype, tuple(DTYPES))}")
    architecture = architecture_of(parts.config)
    metadata = {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": int(gguf.LlamaFileType[FILE_TYPES[dtype]]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **{f"general.sampling.{theirs}": getattr(parts.sampling, ours) for theirs, ours in SAMPLING.items()},
        **metadata_of(parts.config, architecture),
        **_tokenizer_metadata(parts),
    }
    with saving(path), replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            _write(writer, metadata, parts, architecture, gguf.GGMLQuantizationType[DTYPES[dtype]], report)
        finally:
            writer.close()
    write_modelfile(path, parts)
    if parts.tokenizer is None:
        say(f"{path} has no tokenizer, so llama.cpp takes and gives token ids only")


def _tokenizer_metadata(parts):
    named, stops = getattr(parts.template, "tokens", {}), stops_of(parts)
    found = gguf_tokenizer.to_metadata(
        parts.tokenizer, parts.config.vocab_size, named, [stop for stop in stops if isinstance(stop, int)]
    )
    found = {f"tokenizer.ggml.{name}": value for name, value in found.items()}
    if parts.template is not None:
        found[TEMPLATE] = parts.template.to_jinja().decode("utf-8")
    return found


def _write(writer, metadata, parts, architecture, wanted, report):
    """Fill the file of a GGUFWriter. wanted: the type of matrices, a gguf.GGMLQuantizationType"""
    sizes, config = gguf_package().GGML_QUANT_SIZES, parts.config
    for key, value in metadata.items():
        _add(writer, key, value)
    mappings = by_our_name(layout.mappings(architecture, config))
    names = [*(tensor.name for tensor in parameters(config)), *[""] * ("" in mappings)]
    mappings = [mapping for name in names for mapping in mappings[name]]
    extra = layout.extra_tensors(config)
    shapes = {mapping.theirs: mapping.shape for mapping in mappings}
    shapes |= {name: array.shape for name, array in extra.items()}
    kinds = {name: _kind(name, shape, wanted) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        per_block, block_bytes = sizes[kinds[name]]
        size = math.prod(shape) // per_block * block_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pairs = to_theirs(mappings, _in_order(parts.tensors(), names))
    arrays = ((mapping.theirs, layout.changed(architecture, config, mapping, array)) for mapping, array in pairs)
    for name, array in chain(arrays, extra.items()):
        quantized = _quantized(name, array, kinds[name])
        writer.write_tensor_data(quantized)
        report(quantized.nbytes)


def _add(writer, key, value):
    """Add an entry of the metadata. Integers are uint32, except those of lists, int32."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _kind(name, shape, wanted):
    """The type of a tensor in a file of type `wanted`."""
    kinds = type(wanted)
    if len(shape) < 2 or name.endswith(SMALL):
        return kinds.F32
    return kinds.F16 if wanted == kinds.Q8_0 and shape[-1] % Q8_0_BLOCK else wanted


def _quantized(name, array, kind):
    """An array in a type. UserError if it is not finite, or becomes so."""
    array = np.ascontiguousarray(array, np.float32)
    largest = max(array.max(initial=0), -array.min(initial=0))
    if not np.isfinite(largest):
        raise UserError(f"the model has weights that are not finite, in {name}; convert an earlier checkpoint")
    # The scale of a block of Q8_0 is the largest of its values, divided by 127.
    limit = {"F16": LARGEST_F16, "Q8_0": 127 * LARGEST_F16}.get(kind.name, np.inf)
    if largest > limit:
        raise UserError(f"the model has the weight {largest:.3g} in {name}, too large for {kind.name}; use bf16 or f32")
    return gguf_package().quantize(array, kind)


def _in_order(tensors, names):
    """Yield (name, array) in the order of names, as far as they are ours. Tensors that come too early are kept."""
    early, tensors = {}, iter(tensors)
    for name in filter(None, names):
        while name not in early:
            early.update([next(tensors)])
        yield name, early.pop(name)

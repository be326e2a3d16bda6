"""Where the tensors of a model lie in a GGUF file.

It has the tensors of a family of Hugging Face's, see `slm_np.formats.families`, under other names, with these
differences of layout:
- Every matrix is (out, in), and so is the joined matrix of queries, keys and values.
- llama and smollm3 rotate neighbors (2i, 2i + 1) of a head, so the rows of their queries and keys are in that order.
- Mamba's matrix is -exp(A_log), and the kernel of its convolution is (channels, width).
- Frequencies that are scaled as in Llama 3 are a tensor of divisors, `rope_freqs.weight`.
- gptneox has a head of its own even where it is tied.
"""

import numpy as np

from slm_np.errors import UserError
from slm_np.formats.families import family_named
from slm_np.formats.families.tensor_mapping import TensorMapping
from slm_np.formats.gguf.header import gguf_package, read_tensor
from slm_np.ops.rotary import scaled_frequencies

# {architecture: model_type}. mistral without windows is llama, too.
MODEL_TYPES = dict(
    gpt2="gpt2", llama="llama", qwen2="qwen2", qwen3="qwen3", smollm3="smollm3", gptneox="gpt_neox", mamba="mamba"
)
NEIGHBORS = ("llama", "smollm3")  # rotate (2i, 2i + 1)
FREQUENCIES, EMBEDDING, HEAD = "rope_freqs.weight", "token_embd.weight", "output.weight"
LLAMA3 = (1.0, 4.0, 8192.0)  # low, high and context of the scaling in all models of Llama 3.1 and 3.2


def mappings(architecture, config):
    """[TensorMapping, ...] of a file: those of the family, with the names and the layout of llama.cpp."""
    names = gguf_package().get_tensor_name_map(_member(architecture), config.n_layer)
    found = []
    for mapping in family_named(MODEL_TYPES[architecture]).mappings(config):
        shape = mapping.shape[::-1] if mapping.is_linear and not mapping.transposed else mapping.shape
        found.append(
            mapping._replace(
                theirs=names.get_name(mapping.theirs, try_suffixes=(".weight", ".bias")),
                shape=tuple(n for n in shape if n > 1 or len(shape) < 3),
                transposed=mapping.transposed or mapping.is_linear,
                order=None,
            )
        )
    if architecture == "gptneox" and config.head == "tied":
        embedding = next(mapping for mapping in found if mapping.ours == "embedding.weight")
        found.append(TensorMapping(HEAD, "embedding.weight", embedding.shape))
    return found


def _member(architecture):
    """The member of the package's enumeration of architectures."""
    gguf = gguf_package()
    return next(member for member, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def changed(architecture, config, mapping, array):
    """What a file holds of a tensor that has the layout of `mapping`."""
    if architecture in NEIGHBORS and mapping.part in ("q", "k"):
        heads = array.reshape(-1, 2, config.head_dim // 2, *array.shape[1:])
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(array.shape)
    return -np.exp(array) if mapping.ours.endswith(".A_log") else array


def restored(architecture, config, mapping, array):
    """The inverse of `changed`."""
    if architecture in NEIGHBORS and mapping.part in ("q", "k"):
        heads = array.reshape(-1, config.head_dim // 2, 2, *array.shape[1:])
        return heads.swapaxes(1, 2).reshape(array.shape)
    return np.log(-array) if mapping.ours.endswith(".A_log") else array


def extra_tensors(config):
    """{name: array} of the tensors of a file that our model computes from its settings."""
    if not config.has_rotation or not config.rotary_frequencies:
        return {}
    return {FREQUENCIES: frequency_divisors(config.rope_theta, config.rotary_width, *config.rotary_frequencies)}


def frequency_divisors(theta, width, *scaling):
    """The divisors (width / 2,) of the rotary frequencies, float32. scaling: as of `scaled_frequencies`"""
    frequencies = theta ** (-2 * np.arange(width // 2) / width)
    return (frequencies / scaled_frequencies(frequencies, *scaling)).astype(np.float32)


def llama3_scaling(header, theta, width, scaling):
    """The field rope_scaling of config.json that gives the divisors in a file.

    scaling: what we wrote beside them. Other programs write the divisors only, and so those of Llama 3.1 and 3.2 are
    recognized. UserError if they are others.
    """
    divisors = read_tensor(header, FREQUENCIES)
    found = (float(np.round(divisors.max(), 3)), *LLAMA3)
    try:
        found = tuple(map(float, scaling.removeprefix("llama3:").split(","))) if isinstance(scaling, str) else found
        with np.errstate(all="ignore"):
            wanted = frequency_divisors(theta, width, *found)
    except (ValueError, TypeError):
        wanted = np.zeros(0)
    if not np.isfinite(found).all() or divisors.shape != wanted.shape or not np.allclose(divisors, wanted, rtol=1e-4):
        raise UserError(
            f"{header.path} scales its rotary frequencies in another way than Llama 3.1 and 3.2 do; "
            "convert the model from its Hugging Face directory"
        )
    factor, low, high, context = found
    return dict(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=int(context),
    )

"""The model families of transformers. Each has a module with these names:

    MODEL_TYPES          {model_type: class of transformers}
    PREFIX               of the family's tensor names; files of a model without its head omit it
    ALIASES              {name: name in `mappings`}: other names for the same tensors
    IGNORED              regular expression for names, without the prefix, of tensors that are not weights
    config_from(fields)  ModelConfig from the fields of config.json. UserError names what is not supported
    config_to(config)    the fields of config.json of a ModelConfig, or None if the family does not support it
    mappings(config)     yields each `TensorMapping` between the family's tensors and those of our model

`mappings` is the only description of the layout, for reading and for writing, of weights, gradients and adapters.
"""

from slm_np.formats.families import gpt2, gpt_neo, gpt_neox, llama, mamba

FAMILIES = (llama, gpt_neo, gpt2, gpt_neox, mamba)  # GPT-Neo before GPT-2, which would need biases of zeros


def family_of(config):
    """The family that computes the same as a ModelConfig, or None."""
    return next((family for family in FAMILIES if family.config_to(config) is not None), None)


def family_named(model_type):
    """The family with this model_type, or None."""
    return next((family for family in FAMILIES if model_type in family.MODEL_TYPES), None)


def config_json(config, dtype="float32", **others):
    """All fields of config.json of a ModelConfig for transformers 4 and 5, or None if no family has it.

    dtype   of the file's weights: float32, float16 or bfloat16
    others  further fields, such as bos_token_id and eos_token_id. The ids of special tokens are null unless given:
            some classes have defaults beyond a small vocabulary
    """
    family = family_of(config)
    if family is None:
        return None
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    return family.config_to(config) | dict(dtype=dtype, torch_dtype=dtype, use_cache=True) | ids | others

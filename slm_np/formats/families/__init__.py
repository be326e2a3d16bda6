"""The families of models that other programs know. One module each, with these names:

    MODEL_TYPES          {model_type: class of transformers}
    PREFIX               of their names, which files of a model without its head lack
    ALIASES              {name: name in `mappings`}: other names for the same tensors
    IGNORED              regular expression for their names, without the prefix, that are not weights
    config_from(fields)  ModelConfig from the fields of config.json. UserError that names what is not supported
    config_to(config)    the fields of config.json of a ModelConfig, or None if the family lacks what it has
    mappings(config)       yields each `TensorMapping`: where the tensors of our model lie in those of the family

`mappings` is the only description of the layout, for reading and for writing, of weights, gradients and adapters.
"""

from slm_np.formats.families import gpt2, gpt_neo, gpt_neox, llama, mamba

FAMILIES = (llama, gpt_neo, gpt2, gpt_neox, mamba)  # GPT-Neo first: GPT-2 has all but the missing biases, as zeros


def family_of(config):
    """The family that computes what a ModelConfig says, or None."""
    return next((family for family in FAMILIES if family.config_to(config) is not None), None)


def family_named(model_type):
    """The family with this model_type, or None."""
    return next((family for family in FAMILIES if model_type in family.MODEL_TYPES), None)


def config_json(config, dtype="float32", **others):
    """All fields of config.json of a ModelConfig for transformers 4 and 5, or None if no family has it.

    dtype   of the file's weights: float32, float16 or bfloat16
    others  further fields, such as bos_token_id and eos_token_id. Without them these are null: the defaults of some
            classes are ids beyond a small vocabulary
    """
    family = family_of(config)
    if family is None:
        return None
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    return family.config_to(config) | dict(dtype=dtype, torch_dtype=dtype, use_cache=True) | ids | others

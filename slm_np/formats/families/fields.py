"""Readers of the fields of config.json. They check types and refuse, by name, what our model cannot compute."""

from slm_np.arguments import shown
from slm_np.errors import UserError

# Activations: their names in config.json, and ours.
ACTIVATIONS = dict(
    gelu_new="gelu-tanh",
    gelu_pytorch_tanh="gelu-tanh",
    gelu_python_tanh="gelu-tanh",
    gelu_fast="gelu-tanh",
    gelu="gelu",
    gelu_python="gelu",
    silu="silu",
    swish="silu",
)
# Fields that change the result of a model of any family, each with the values that leave it unchanged.
NEUTRAL = dict(
    quantization_config=({},),
    add_cross_attention=(False,),
    is_encoder_decoder=(False,),
    final_logit_softcapping=(0,),
    attn_logit_softcapping=(0,),
    logit_scale=(1,),
    logits_scaling=(1,),
    embedding_multiplier=(1,),
    residual_multiplier=(1,),
    attention_multiplier=(),
    num_experts=(0,),
    num_local_experts=(0,),
)
LARGEST = 1 << 40  # of a size
THETA = 10000.0  # default of rope_theta


def refused(name, value, only):
    """The UserError about a value that is not supported. only: the supported values, in words"""
    return UserError(f"{name} {shown(value)} is not supported, only {only}; choose another model")


def check_neutral(fields, neutral):
    """UserError if a field has a value other than null and those in `neutral`, {name: values}."""
    for name, values in neutral.items():
        value = fields.get(name)
        if value is not None and value not in values:
            # {} means the same as null, which is clearer to a user.
            raise refused(name, value, " or ".join(str(one) for one in values if one != {}) or "null")


def check_supported(fields, architecture, neutral):
    """UserError if the fields name another class than `architecture`, or have a value that changes the result.

    neutral: {name: values that change nothing} of the family
    """
    classes = fields.get("architectures") or [architecture]
    base = architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    if not isinstance(classes, list) or classes[0] not in (architecture, f"{base}Model"):
        raise refused("architectures", classes, architecture)
    check_neutral(fields, NEUTRAL)
    check_neutral(fields, neutral)


def whole(fields, name, default=None, low=1):
    """A field that is a whole number. UserError if it is not, or if it is missing and has no default."""
    value = fields.get(name)
    value = default if value is None else value
    if type(value) is not int or not low <= value <= LARGEST:
        raise _wrong(name, value, f"a whole number of at least {low}")
    return value


def real(fields, name, default=None):
    """A field that is a number above 0. UserError as for `whole`."""
    value = fields.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise _wrong(name, value, "a number above 0")
    return float(value)


def truth(fields, name, default):
    """A field that is true or false."""
    value = fields.get(name)
    value = default if value is None else value
    if type(value) is not bool:
        raise _wrong(name, value, "true or false")
    return value


def choices(fields, name, known, length):
    """The first `length` values of a field, a list of at least as many, all in `known`. None if it is missing."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < length or any(one not in known for one in value[:length]):
        raise _wrong(name, value, f"a list of {length} values of {' and '.join(map(str, known))}")
    return value[:length]


def _wrong(name, value, right):
    if value is None:
        return UserError(f"{name} is missing; it must be {right}")
    return UserError(f"{name} is {shown(value)}; it must be {right}")


def activation(fields, name, default):
    """Our name for the activation in a field."""
    value = fields.get(name) or default
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise refused(name, value, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[value]


def dropout(fields, *names):
    """The dropout rate in all these fields; 0.0 if they differ, because our model has one rate."""
    values = [fields.get(name) or 0.0 for name in names]
    rate = values[0] if type(values[0]) in (int, float) else 0.0
    return float(rate) if 0 <= rate <= 0.95 and all(value == rate for value in values) else 0.0


def head(fields, default):
    """The setting `head` of ModelConfig: tied or linear."""
    return "tied" if truth(fields, "tie_word_embeddings", default) else "linear"


def heads(fields, head_dim=None, width_name="hidden_size", heads_name="num_attention_heads"):
    """The settings of ModelConfig about attention heads. head_dim: the default; None means width / heads.

    UserError if they contradict each other.
    """
    width, heads = whole(fields, width_name), whole(fields, heads_name)
    kv_heads = whole(fields, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise UserError(f"num_key_value_heads {kv_heads} does not divide {heads_name} {heads}; copy the file again")
    if width % heads and not fields.get("head_dim") and not head_dim:
        raise UserError(f"{heads_name} {heads} does not divide {width_name} {width}; copy the file again")
    return dict(n_head=heads, n_kv_head=kv_heads, head_dim=whole(fields, "head_dim", head_dim or width // heads))


def shortest(letters):
    """The shortest pattern that, repeated, gives these letters."""
    patterns = (letters[:n] for n in range(1, len(letters) + 1))
    return next(pattern for pattern in patterns if (pattern * len(letters)).startswith(letters))


def rotation(fields, default_theta=THETA):
    """({setting of ModelConfig: value} of the rotary positions, share of a head's columns that is rotated or None)

    transformers 4 writes rope_theta and rope_scaling, transformers 5 rope_parameters. UserError unless the type is
    default or llama3.
    """
    given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise _wrong("rope_parameters", given, "an object")
    if any(isinstance(value, dict) for value in given.values()):
        raise refused("rope_parameters", given, "one rotation for all layers")
    rotary = {"rope_theta": fields.get("rope_theta"), **{name: one for name, one in given.items() if one is not None}}
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    found = dict(rope_theta=real(rotary, "rope_theta", default_theta))
    if kind == "llama3":
        context = rotary.get("original_max_position_embeddings") or fields.get("max_position_embeddings")
        numbers = [real(rotary, name) for name in ("factor", "low_freq_factor", "high_freq_factor")]
        numbers.append(real(dict(original_max_position_embeddings=context), "original_max_position_embeddings"))
        found["rope_scaling"] = "llama3:" + ",".join(f"{number:.17g}" for number in numbers)
    elif kind != "default":
        raise refused("rope_type", kind, "default or llama3")
    share = rotary.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    return found, share


def rotation_fields(config):
    """The fields of config.json about the rotation of a ModelConfig, for transformers 4 and 5."""
    rotary = dict(rope_type="default", rope_theta=config.rope_theta)
    if config.rotary_frequencies:
        factor, low, high, context = config.rotary_frequencies
        rotary |= dict(
            rope_type="llama3",
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=int(context),
        )
    scaling = {name: value for name, value in rotary.items() if name != "rope_theta"} if len(rotary) > 2 else None
    return dict(rope_theta=config.rope_theta, rope_scaling=scaling, rope_parameters=rotary)


def plain_scale(config):
    """Whether attention's scores are divided by the square root of the head's width."""
    return config.score_scale in (0.0, config.head_dim**-0.5)

"""The Llama family: RMSNorm, rotary positions, SwiGLU, separate (out, in) matrices for queries, keys and values.

Other models add to Llama: Mistral windows; Qwen2 biases of queries, keys and values, and windows in some layers; Qwen3
norms of queries and keys; SmolLM3 layers without rotation.
"""

from slm_np.config import ModelConfig
from slm_np.formats.families import fields as of
from slm_np.formats.families.tensor_mapping import TensorMapping, joined_columns, linear, norm, qkv_columns

MODEL_TYPES = dict(
    llama="LlamaForCausalLM",
    mistral="MistralForCausalLM",
    qwen2="Qwen2ForCausalLM",
    qwen3="Qwen3ForCausalLM",
    smollm3="SmolLM3ForCausalLM",
)
PREFIX = "model."
ALIASES = {}
IGNORED = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
FULL, SLIDING = "full_attention", "sliding_attention"  # values of layer_types
BIASED = ("llama", "smollm3")  # may have biases in all linear layers
THETA = dict(smollm3=2000000.0)  # the default
WINDOW = dict(mistral=4096, qwen2=4096, qwen3=4096)  # the default


def config_from(fields):
    """See `slm_np.formats.families`."""
    kind = fields["model_type"]
    of.check_supported(fields, MODEL_TYPES[kind], dict(hidden_act=("silu", "swish")))
    context, layers = of.whole(fields, "max_position_embeddings"), of.whole(fields, "num_hidden_layers")
    windows = [w if w and w < context else None for w in _windows(fields, kind, layers)]
    rotated = _rotated(fields, kind, layers)
    rotary, share = of.rotation(fields, THETA.get(kind, of.THETA))
    if share not in (None, 1):
        raise of.refused("partial_rotary_factor", share, "1")
    return ModelConfig(
        vocab_size=of.whole(fields, "vocab_size"),
        block_size=context,
        n_layer=layers,
        n_embd=of.whole(fields, "hidden_size"),
        n_hidden=of.whole(fields, "intermediate_size"),
        pattern=of.shortest(_letters(windows, rotated)),
        norm_eps=of.real(fields, "rms_norm_eps", 1e-6),
        head=of.head(fields, kind == "smollm3"),
        bias=_bias(fields, kind),
        qkv_bias="on" if kind == "qwen2" else "auto",
        qk_norm=kind == "qwen3",
        **of.heads(fields, head_dim=128 if kind == "qwen3" else None),
        **(dict(window=max(filter(None, windows))) if any(windows) else {}),
        **(rotary if any(rotated) else dict(positions="none")),
    )


def _bias(fields, kind):
    """Whether all linear layers have biases. UserError if only some have: our model cannot, except as Qwen2 does."""
    bias = of.truth(fields, "attention_bias", False)
    if kind in BIASED and bias != of.truth(fields, "mlp_bias", False):
        raise of.refused("attention_bias", bias, "the same value as that of mlp_bias")
    if kind in ("mistral", "qwen3") and bias:
        raise of.refused("attention_bias", bias, "false")
    return bias and kind in BIASED


def _windows(fields, kind, layers):
    """The window of each layer in tokens; None for full attention."""
    window = fields.get("sliding_window", WINDOW.get(kind)) and of.whole(fields, "sliding_window", WINDOW.get(kind))
    if kind in ("llama", "mistral"):
        return [window if kind == "mistral" else None] * layers
    types = of.choices(fields, "layer_types", (FULL, SLIDING), layers)
    if not of.truth(fields, "use_sliding_window", False) or window is None:
        if types and SLIDING in types:
            raise of.refused("layer_types", types, f"{FULL} without use_sliding_window and sliding_window")
        return [None] * layers
    if types is None and kind == "smollm3":
        return [None if rotates else window for rotates in _rotated(fields, kind, layers)]
    start = of.whole(fields, "max_window_layers", 28, low=0)
    return [window if (i >= start if types is None else types[i] == SLIDING) else None for i in range(layers)]


def _rotated(fields, kind, layers):
    """Whether each layer rotates its queries and keys."""
    if kind != "smollm3":
        return [True] * layers
    interval = of.whole(fields, "no_rope_layer_interval", 4)
    given = of.choices(fields, "no_rope_layers", (0, 1), layers)
    return [bool(given[i]) if given else (i + 1) % interval != 0 for i in range(layers)]


def _letters(windows, rotated):
    """The letter of each layer's mixer."""
    if not any(rotated):  # with --positions none
        return "".join("L" if window else "A" for window in windows)
    if any(window and not rotates for window, rotates in zip(windows, rotated)):
        raise of.refused("sliding_window", max(filter(None, windows)), "null in layers without rotary positions")
    return "".join("L" if window else "A" if rotates else "N" for window, rotates in zip(windows, rotated))


def fits(config):
    """Whether the family may compute the same. `kind_of` then finds the model_type."""
    return (
        config.has_attention
        and set(config.letters) <= set("ALN")
        and config.positions in ("rotary", "none")
        and config.norm == "rmsnorm"
        and config.feed_forward == "swiglu"
        and config.residual
        and not config.parallel
        and config.head in ("tied", "linear")
        and config.head_dim % 2 == 0
        and (not config.has_rotation or config.rotary_width == config.head_dim)
        and of.plain_scale(config)
    )


def kind_of(config):
    """The model_type that supports a ModelConfig that `fits`, or None."""
    letters, rotated = set(config.letters), config.has_rotation
    needed = [
        *["qwen3"] * config.qk_norm,
        *["qwen2"] * (config.has_qkv_bias and not config.bias),
        *["smollm3"] * (not rotated or "N" in letters),
    ]
    if len(needed) > 1 or config.bias and (needed not in ([], ["smollm3"]) or not config.has_qkv_bias):
        return None
    if needed:
        return needed[0]
    if letters == {"A"}:
        whole = config.n_embd % config.n_head == 0  # LlamaConfig requires it
        return "llama" if whole else None if config.bias else "mistral"
    return "mistral" if letters == {"L"} and not config.bias else "smollm3"


def config_to(config):
    """See `slm_np.formats.families`."""
    kind = kind_of(config) if fits(config) else None
    if kind is None:
        return None
    found = dict(
        architectures=[MODEL_TYPES[kind]],
        model_type=kind,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.block_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_hidden,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        head_dim=config.head_dim,
        hidden_act="silu",
        rms_norm_eps=config.norm_eps,
        initializer_range=config.init_std,
        attention_dropout=0.0,
        tie_word_embeddings=config.head == "tied",
        **(of.rotation_fields(config) if config.has_rotation else {}),
    )
    local = [letter == "L" for letter in config.letters]
    if kind in BIASED:
        found |= dict(attention_bias=config.bias, mlp_bias=config.bias)
    if kind == "qwen3":
        found |= dict(attention_bias=False)
    if kind == "mistral":
        found |= dict(sliding_window=config.window if any(local) else None)
    if kind in ("qwen2", "qwen3", "smollm3"):
        found |= dict(
            use_sliding_window=any(local),
            sliding_window=config.window if any(local) else None,
            max_window_layers=local.index(True) if any(local) else config.n_layer,
            layer_types=[SLIDING if one else FULL for one in local],
        )
    if kind == "smollm3":
        found |= dict(no_rope_layers=[int(config.has_rotation and letter != "N") for letter in config.letters])
    return found


def mappings(config):
    """See `slm_np.formats.families`."""
    vocab, width, hidden = config.vocab_size, config.n_embd, config.n_hidden
    bias = "both" if config.bias else "neither"
    gate_up = joined_columns(dict(gate=hidden, up=hidden))
    yield TensorMapping("model.embed_tokens.weight", "embedding.weight", (vocab, width))
    for i in range(config.n_layer):
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        yield from norm(f"{theirs}.input_layernorm", f"{ours}.mixer_norm", width)
        for part, columns in qkv_columns(config).items():
            yield from linear(
                f"{theirs}.self_attn.{part}_proj",
                f"{ours}.attention.qkv",
                (width, columns.stop - columns.start),
                bias="both" if config.has_qkv_bias else "neither",
                columns=columns,
                part=part,
            )
        for part in "qk" if config.qk_norm else "":
            yield from norm(f"{theirs}.self_attn.{part}_norm", f"{ours}.attention.{part}_norm", config.head_dim)
        attended = config.n_head * config.head_dim
        yield from linear(f"{theirs}.self_attn.o_proj", f"{ours}.attention.output", (attended, width), bias=bias)
        yield from norm(f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward_norm", width)
        for part, columns in gate_up.items():
            yield from linear(
                f"{theirs}.mlp.{part}_proj",
                f"{ours}.feed_forward.input",
                (width, hidden),
                bias=bias,
                columns=columns,
                part=part,
            )
        yield from linear(f"{theirs}.mlp.down_proj", f"{ours}.feed_forward.output", (hidden, width), bias=bias)
    yield from norm("model.norm", "norm", width)
    if config.head == "linear":
        yield TensorMapping("lm_head.weight", "head.weight", (vocab, width))

"""The architectures of llama.cpp: which of them computes a model, and its settings as metadata.

llama.cpp takes the values of GELU from a table in float16, computed by tanh, whichever GELU the model has. The exact
one differs from it by less than 5e-4, which is about what the table rounds.
"""

import re

import numpy as np

from slm_np.arguments import shown
from slm_np.config import as_flag
from slm_np.errors import UserError
from slm_np.formats.families import family_named
from slm_np.formats.gguf.header import same_tensor
from slm_np.formats.gguf.layout import EMBEDDING, FREQUENCIES, HEAD, MODEL_TYPES, llama3_scaling

ARCHITECTURES = {kind: name for name, kind in MODEL_TYPES.items()} | dict(mistral="llama")
NO_ROTATION = "AAAN"  # the pattern of smollm3, fixed in llama.cpp
# Settings that other programs do not name, and the names of GELU in Hugging Face's config.json.
FEED_FORWARD, ROPE_SCALING = "slm_np.feed_forward", "slm_np.rope_scaling"
GELUS = {"gelu": "gelu", "gelu-tanh": "gelu_new"}
# Metadata that change the result, after the architecture's name and a dot: values with which they change nothing.
NEUTRAL = {
    "expert_count": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (0,),
    "attention.causal": (True,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "ssm.dt_b_c_rms": (False,),
    "swin_norm": (False,),
}


def architecture_of(config):
    """The name of the architecture that computes a ModelConfig. UserError, which names a setting, if none does."""
    fields = (family_named(kind).config_to(config) for kind in MODEL_TYPES.values())
    kind = next((found["model_type"] for found in fields if found is not None), None)
    reason = next(_obstacles(config, ARCHITECTURES.get(kind)), None)
    if kind and not reason:
        return ARCHITECTURES[kind]
    reason = reason or "this combination of settings"
    directory = "convert it to a Hugging Face directory, or " if kind else ""
    raise UserError(
        f"no architecture of llama.cpp has {reason}, so the model cannot become a GGUF file; "
        f"{directory}train one with settings of gpt2, llama, qwen3, gptneox or mamba"
    )


def _obstacles(config, architecture):
    """Yield the settings that no architecture has and then those that `architecture`, if it is not None, lacks."""
    letters, feed_forward, norm = set(config.letters), config.feed_forward, config.norm
    if letters not in ({"A"}, {"M"}) and not _has_smollm3_layers(config):
        yield f"--pattern {config.pattern}"
    if config.positions == "sinusoidal" or (config.positions == "none") != (letters == {"M"}):
        yield f"--positions {config.positions} with --pattern {config.pattern}"
    if norm == "none" or norm == "layernorm" and letters == {"M"}:
        yield f"--norm {norm} with --pattern {config.pattern}"
    if config.head not in ("tied", "linear"):
        yield f"--head {config.head}"
    if not config.residual:
        yield "--no-residual"
    if feed_forward == "silu" or (feed_forward == "none") != (letters == {"M"}):
        yield f"--feed-forward {feed_forward} with --pattern {config.pattern}"
    if config.has_attention and config.score_scale not in (0.0, config.head_dim**-0.5):
        yield f"--score-scale {config.score_scale}"
    if letters == {"M"} and config.n_inner != 2 * config.n_embd:
        yield f"--n-inner {config.n_inner}"
    if letters == {"M"} and config.bias:
        yield "--bias in Mamba"
    if architecture is None and config.has_attention:
        yield from _mixed(config)
    if config.rope_scaling and architecture != "llama":
        yield f"--rope-scaling {config.rope_scaling} beside its other settings"
    if architecture == "smollm3" and config.has_qkv_bias:
        yield "--bias or --qkv-bias on with layers without rotary positions"
    if architecture in ("gpt2", "qwen2", "gptneox") and config.n_head * config.head_dim != config.n_embd:
        yield f"--head-dim {config.head_dim}"


def _mixed(config):
    """Yield settings that exclude each other: those with layer norm are of GPT-2 and GPT-NeoX, the others of Llama."""
    if (config.norm == "rmsnorm") != (config.feed_forward == "swiglu"):
        yield f"--norm {config.norm} with --feed-forward {config.feed_forward}"
    if config.norm == "layernorm":
        for name, has in dict(
            qk_norm=config.qk_norm,
            n_kv_head=config.n_kv_head != config.n_head,
            head_dim=config.n_head * config.head_dim != config.n_embd,
            parallel=config.parallel and config.positions == "learned",
        ).items():
            if has:
                yield f"{as_flag(name, getattr(config, name))} with --norm layernorm --positions {config.positions}"
    else:
        for name, has in dict(
            bias=config.bias,
            parallel=config.parallel,
            rotary_dim=config.has_rotation and config.rotary_width != config.head_dim,
            positions=config.positions == "learned",
            qkv_bias=config.qkv_bias == "on",
        ).items():
            if has:
                yield f"{as_flag(name, getattr(config, name))} with --norm rmsnorm and its other settings"


def _has_smollm3_layers(config):
    pattern = (NO_ROTATION * config.n_layer)[: config.n_layer]
    return config.letters == pattern and "N" in pattern and config.norm == "rmsnorm"


def metadata_of(config, architecture):
    """{key: value} of the settings of a ModelConfig."""
    found = {
        "vocab_size": config.vocab_size,
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_hidden if config.feed_forward != "none" else 0,
        f"attention.layer_norm_{'rms_' * (config.norm == 'rmsnorm')}epsilon": config.norm_eps,
    }
    if architecture == "mamba":
        found |= {
            "attention.head_count": 0,
            "ssm.conv_kernel": config.conv_kernel,
            "ssm.inner_size": config.n_inner,
            "ssm.state_size": config.ssm_state_size,
            "ssm.time_step_rank": config.time_step_rank,
            "ssm.dt_b_c_rms": False,
        }
    else:
        found |= {
            "attention.head_count": config.n_head,
            "attention.head_count_kv": config.n_kv_head,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    if config.has_rotation:
        found |= {"rope.dimension_count": config.rotary_width, "rope.freq_base": config.rope_theta}
    if architecture == "gptneox":
        found["use_parallel_residual"] = config.parallel
    own = {FEED_FORWARD: config.feed_forward} if config.feed_forward in GELUS else {}
    if config.rope_scaling:
        own[ROPE_SCALING] = config.rope_scaling
    return {f"{architecture}.{key}": value for key, value in found.items()} | own


def config_of(header):
    """The ModelConfig of a file. UserError if its architecture, or something in its metadata, is not supported."""
    name = header.metadata.get("general.architecture")
    if header.metadata.get("general.type", "model") != "model":
        kind = shown(header.metadata["general.type"])
        use = "give it to llama.cpp with --lora, or name the adapter's directory"
        if kind != "'adapter'":
            use = "name the GGUF file of a model"
        raise UserError(f"{header.path} holds {kind}, not a model; {use}")
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise UserError(
            f"{header.path} has the architecture {shown(name)}; supported are {', '.join(MODEL_TYPES)}; "
            "choose another model"
        )
    fields = _fields(_Settings(header, name), name, header.tensors)
    try:
        return family_named(fields["model_type"]).config_from(fields)
    except UserError as error:
        raise UserError(f"{header.path}: {error}") from None


def _fields(settings, name, tensors):
    """The fields of Hugging Face's config.json."""
    settings.check_neutral()
    embedding = tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{settings.header.path} has no matrix {EMBEDDING}, so it is not a model; get it again")
    width = settings.whole("embedding_length")
    found = dict(
        model_type=MODEL_TYPES[name],
        vocab_size=embedding.shape[0],
        hidden_size=width,
        num_hidden_layers=settings.whole("block_count", high=1000),
        max_position_embeddings=settings.whole("context_length"),
        tie_word_embeddings=HEAD not in tensors or same_tensor(settings.header, HEAD, EMBEDDING),
    )
    if name == "mamba":
        return found | dict(
            layer_norm_epsilon=settings.real("attention.layer_norm_rms_epsilon"),
            conv_kernel=settings.whole("ssm.conv_kernel"),
            intermediate_size=settings.whole("ssm.inner_size"),
            expand=settings.whole("ssm.inner_size") / width,
            state_size=settings.whole("ssm.state_size"),
            time_step_rank=settings.whole("ssm.time_step_rank"),
            use_bias=False,
            use_conv_bias=True,
        )
    heads, hidden = settings.whole("attention.head_count"), settings.whole("feed_forward_length")
    head_dim = settings.whole("attention.key_length", width // heads)
    settings.check("attention.value_length", width // heads, head_dim, "the same as attention.key_length")
    kv_heads = settings.whole("attention.head_count_kv", heads)
    if name == "gpt2":
        settings.check("attention.head_count_kv", heads, heads, "the same as attention.head_count")
        return found | dict(
            n_embd=width,
            n_layer=found["num_hidden_layers"],
            n_head=heads,
            n_inner=hidden,
            n_positions=found["max_position_embeddings"],
            layer_norm_epsilon=settings.real("attention.layer_norm_epsilon"),
            activation_function=settings.gelu("gelu-tanh"),
        )
    found |= dict(
        intermediate_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_theta=settings.real("rope.freq_base", 10000.0),
    )
    rotated = settings.whole("rope.dimension_count", head_dim)
    if name == "gptneox":
        settings.check("attention.head_count_kv", heads, heads, "the same as attention.head_count")
        return found | dict(
            layer_norm_eps=settings.real("attention.layer_norm_epsilon"),
            rotary_pct=rotated / head_dim,
            use_parallel_residual=settings.truth("use_parallel_residual", True),
            hidden_act=settings.gelu("gelu"),
        )
    settings.check("rope.dimension_count", head_dim, head_dim, "as many as a head has columns")
    window = settings.whole("attention.sliding_window", 0, low=0)
    if 0 < window < found["max_position_embeddings"]:
        settings.check("attention.sliding_window", 0, 0, "none")
    found |= dict(head_dim=head_dim, rms_norm_eps=settings.real("attention.layer_norm_rms_epsilon"))
    if name == "llama":
        found |= _llama_biases(tensors)
    if name == "smollm3":
        found["no_rope_layer_interval"] = len(NO_ROTATION)
    if FREQUENCIES in tensors:
        found["rope_scaling"] = llama3_scaling(
            settings.header, found["rope_theta"], head_dim, settings.header.metadata.get(ROPE_SCALING)
        )
    return found


def _llama_biases(tensors):
    """The fields about the biases of llama: none, in all linear layers, or as Qwen2 has them."""
    names = {name.split(".", 2)[2] for name in tensors if re.fullmatch(r"blk\.\d+\.[a-z_]+\.bias", name)}
    if names == {"attn_q.bias", "attn_k.bias", "attn_v.bias"}:
        return dict(model_type="qwen2")
    return dict(attention_bias="attn_q.bias" in names, mlp_bias="ffn_up.bias" in names)


class _Settings:
    """The metadata of an architecture, by their names without it. UserError if one has another type or value."""

    def __init__(self, header, architecture):
        self.header, self.architecture = header, architecture

    def _value(self, name, default):
        value = self.header.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list) and len(set(value)) == 1:  # one for each layer
            value = value[0]
        if value is None:
            raise UserError(
                f"{self.header.path} has no {self.architecture}.{name} in its metadata; copy or download it again"
            )
        return value

    def _refuse(self, name, value, right):
        raise UserError(
            f"{self.header.path} has {self.architecture}.{name} {shown(value)}, and only {right} is supported; "
            "choose another model"
        )

    def whole(self, name, default=None, low=1, high=1 << 30):
        value = self._value(name, default)
        if type(value) is not int or not low <= value <= high:
            self._refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def real(self, name, default=None):
        """A number above 0, as it was before float32 rounded it."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            self._refuse(name, value, "a number above 0")
        return float(str(np.float32(value)))

    def truth(self, name, default):
        value = self._value(name, default)
        if type(value) is not bool:
            self._refuse(name, value, "true or false")
        return value

    def gelu(self, default):
        """The name of the GELU that the model was trained with: the one that we wrote, or else the default."""
        found = self.header.metadata.get(FEED_FORWARD)
        return GELUS[found if isinstance(found, str) and found in GELUS else default]

    def check(self, name, default, wanted, right):
        value = self._value(name, default)
        if value != wanted:
            self._refuse(name, value, right)

    def check_neutral(self):
        for name, values in NEUTRAL.items():
            value = self._value(name, values[0])
            if value not in values:
                self._refuse(name, value, " or ".join(map(str, values)))

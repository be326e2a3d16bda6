"""Presets: settings of a model, of its training and of its sampling. No code depends on the name of a preset."""

import dataclasses

from slm_np import arguments
from slm_np.config import (
    LENGTHS,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
    check_effect,
    check_lengths,
    check_range,
    lengths,
    typed,
)
from slm_np.errors import UserError

GPT2 = dict(positions="learned", norm="layernorm", feed_forward="gelu", head="tied")
LLAMA = dict(positions="rotary", norm="rmsnorm", feed_forward="swiglu")
# No norms, one head, uniform initial weights and a head of two matrices.
BYTE_TRANSFORMER = dict(positions="sinusoidal", norm="none", feed_forward="silu", head="mlp", init="uniform", n_head=1)
# Linear recurrences and nothing else: the last one gives the logits.
BYTE_SSM = dict(
    pattern="S", positions="none", norm="none", feed_forward="none", residual=False, head="none", init="uniform"
)
MAMBA = dict(pattern="M", positions="none", norm="rmsnorm", feed_forward="none", head="tied", init_std=0.1)
BYTE_SAMPLING = dict(samplers="temp,top-p")
EMBEDDED = ("stories", "dialogues")
MUON = dict(
    optimizer="muon",
    lr_schedule="linear",
    warmup_iters=40,
    beta1=0.8,
    beta2=0.95,
    weight_decay=0.1,
    decay="matrices",
)
# Batches are small, because in a run this short many updates lower the loss more than exact gradients do.
STORIES_RECIPE = dict(
    MUON,
    weight_decay=0.0,  # the text is read less than twice
    data="stories",
    tokenizer="stories",
    batch_size=8,
    fit_time="90s",
    learning_rate=12e-3,
    min_lr=2e-4,
    matrix_rate=0.7,
    eval_iters=10,
)
# What does not follow from the text. The rest is what a short text gets, until the text is known.
OWN_TEXT_RECIPE = dict(MUON, batch_size=16, fit_time="3m", learning_rate=6e-3, min_lr=3e-4, matrix_rate=2.0)

PRESETS = {
    "stories": dict(
        about="default: Llama style, about 1M parameters, words, the embedded corpus",
        # Wide and shallow learns most in 90 seconds. Stories repeat names, so it starts with attention that copies.
        model=dict(
            LLAMA,
            head="tied",
            init="mimetic",
            n_layer=2,
            n_head=6,
            qk_norm=True,
            rope_theta=500.0,
            n_embd=192,
            n_hidden=512,
            block_size=256,
        ),
        train=STORIES_RECIPE,
    ),
    "own-text": dict(
        about="your own text: size, tokenizer and recipe follow from the text and the time",
        model=dict(
            LLAMA, head="tied", n_layer=4, n_head=2, qk_norm=True, n_embd=64, n_hidden=160, block_size=128, dropout=0.2
        ),
        train=OWN_TEXT_RECIPE,
        follows_text=True,
    ),
    "qwen3-tiny": dict(
        about="Qwen3 style: as stories, deeper, and with 2 key-value heads",
        model=dict(
            LLAMA,
            head="tied",
            init="mimetic",
            n_layer=4,
            n_head=4,
            n_kv_head=2,
            head_dim=32,
            qk_norm=True,
            n_embd=128,
            n_hidden=384,
            block_size=256,
        ),
        train=STORIES_RECIPE,
    ),
    "byte-transformer": dict(
        about="byte-level transformer, small: no norms, one head, mlp head",
        model=dict(BYTE_TRANSFORMER, n_layer=4, n_embd=256, n_hidden=512, block_size=1024),
        # A constant rate of 1e-5 without clipping barely lowers the uniform model's loss in 100 updates.
        train=dict(
            batch_size=4,
            max_iters=2000,
            learning_rate=1e-3,
            min_lr=1e-4,
            warmup_iters=100,
            beta2=0.999,
            weight_decay=0.01,
            decay="all",
        ),
    ),
    "byte-transformer-large": dict(
        about="byte-level transformer, large",
        model=dict(BYTE_TRANSFORMER, n_layer=12, n_embd=512, n_hidden=2048, block_size=4096),
        train=dict(
            batch_size=4,
            max_iters=10000,
            learning_rate=3e-4,
            min_lr=3e-5,
            warmup_iters=500,
            beta2=0.999,
            weight_decay=0.01,
            decay="all",
        ),
    ),
    "shakespeare-char": dict(
        about="nanoGPT's CPU model: GPT-2 style on characters",
        model=dict(GPT2, n_layer=4, n_head=4, n_embd=128, block_size=64),
        # nanoGPT's recipe is AdamW at 1e-3, a cosine to 1e-4 and a warmup of 100. It reaches 1.88 nats in four times
        # the updates (benchmarks/README.md).
        train=dict(
            MUON,
            tokenizer="char",
            batch_size=12,
            max_iters=2000,
            learning_rate=6e-3,
            min_lr=3e-4,
            matrix_rate=2.0,
            warmup_iters=20,
            beta2=0.99,
            eval_iters=20,
        ),
    ),
    "gpt2-stories": dict(
        about="GPT-2 style, 30M parameters, 50,257 tokens, 625 updates of 32 micro-batches",
        model=dict(GPT2, vocab_size=50257, n_layer=6, n_head=6, n_embd=384, block_size=128, bias=True, dropout=0.1),
        # 20,000 micro-batches of 32 sequences; the warmup of 31 updates is 1,000 of them.
        train=dict(
            batch_size=32,
            grad_accumulation_steps=32,
            max_iters=625,
            learning_rate=1e-4,
            min_lr=1e-5,
            warmup_iters=31,
            weight_decay=0.1,
            decay="matrices",
            grad_clip=0.5,
            log_interval=1,
        ),
    ),
    "slim": dict(
        about="Llama style, 6 layers, 8 heads of 32, untied head",
        model=dict(LLAMA, head="linear", n_layer=6, n_head=8, n_embd=256, n_hidden=1024, block_size=256),
        train=dict(
            batch_size=16,
            max_iters=5000,
            learning_rate=1e-4,
            min_lr=1e-5,
            warmup_iters=100,
            weight_decay=0.1,
            decay="matrices",
        ),
        generation=dict(min_confidence=0.15),
    ),
    "mamba": dict(
        about="Mamba-1 on bytes, as Hugging Face's MambaForCausalLM",
        model=dict(MAMBA, n_layer=4, n_embd=256, block_size=256),
        # AdamW at 2e-3, a cosine to 1e-4 and a warmup of 100 learn less per update (benchmarks/README.md).
        train=dict(MUON, batch_size=8, max_iters=2000, learning_rate=4e-3, min_lr=1e-4, matrix_rate=1.0),
    ),
    "byte-ssm": dict(
        about="byte-level state-space model, small: linear recurrences only",
        model=dict(BYTE_SSM, n_layer=4, n_embd=256, recurrence_size=512, block_size=256),
        # Constant rates of 2e-5 to 1e-4, with gradients truncated to one time step, learn far more slowly.
        train=dict(
            batch_size=16,
            max_iters=2000,
            learning_rate=1e-3,
            min_lr=1e-4,
            warmup_iters=100,
            beta2=0.999,
            weight_decay=0.01,
            decay="all",
        ),
        generation=BYTE_SAMPLING,
    ),
    "byte-ssm-8": dict(
        about="byte-level state-space model: E 512, S 256, T 1024, 8 layers",
        model=dict(BYTE_SSM, n_layer=8, n_embd=512, recurrence_size=256, block_size=1024),
        train=dict(
            batch_size=16,
            max_iters=10000,
            learning_rate=1e-3,
            min_lr=1e-4,
            warmup_iters=500,
            beta2=0.999,
            weight_decay=0.01,
            decay="all",
        ),
        generation=BYTE_SAMPLING,
    ),
    "byte-ssm-11": dict(
        about="byte-level state-space model: E 256, S 512, T 1024, 11 layers",
        model=dict(BYTE_SSM, n_layer=11, n_embd=256, recurrence_size=512, block_size=1024),
        train=dict(
            batch_size=256,
            max_iters=10000,
            learning_rate=1e-3,
            min_lr=1e-4,
            warmup_iters=500,
            beta2=0.999,
            weight_decay=0.01,
            decay="all",
        ),
        generation=BYTE_SAMPLING,
    ),
    "byte-ssm-large": dict(
        about="byte-level state-space model, large: E 512, S 2048, T 2048, 11 layers",
        model=dict(BYTE_SSM, n_layer=11, n_embd=512, recurrence_size=2048, block_size=2048),
        train=dict(
            batch_size=32,
            max_iters=10000,
            learning_rate=5e-4,
            min_lr=5e-5,
            warmup_iters=500,
            beta2=0.999,
            weight_decay=0.01,
            decay="all",
        ),
        generation=BYTE_SAMPLING,
    ),
}


RECIPE_FIELDS = TrainConfig.__dataclass_fields__
# The fields of ModelConfig that decide which others have an effect.
STRUCTURE = ("pattern", "n_layer", "positions", "norm", "feed_forward", "residual", "head", "init")


def preset(name, model=None, train=None, chosen=None):
    """(ModelConfig, TrainConfig) of the preset `name`, with {field: value} changes to either.

    chosen: {field: value} of both that take the place of the preset's own, see `training.own_text.chosen`

    Values of the preset that the changes deprive of their effect are dropped: with pattern M, a number of heads; with
    max_iters, the preset's fit_time; with learning_rate, its min_lr; with another text, the tokenizer of its own text.
    Raises UserError, with the closest names, if the name or a field is unknown, for a change without effect, and for
    more than one length of training.
    """
    own, recipe, chosen = known(name)["model"], known(name)["train"], arguments.settings("chosen", chosen)
    recipe = recipe | {field: value for field, value in chosen.items() if field in RECIPE_FIELDS}
    own = own | {field: value for field, value in chosen.items() if field not in RECIPE_FIELDS}
    own = changes("chosen", own, ModelConfig)
    model, train = changes("model", model, ModelConfig), changes("train", train, TrainConfig)
    check_lengths(train)
    structure = {field: value for field, value in (own | model).items() if field in STRUCTURE}
    if structure.get("init") == "mimetic":  # the same fields have an effect, and attention need not be there
        structure["init"] = "normal"
    config = ModelConfig(**structure)
    if not config.has_attention and own.get("init") == "mimetic":
        del own["init"]
    if (own | model).get("qk_norm") and "qk_norm" not in config.unused:  # norm_eps has an effect then
        config = dataclasses.replace(config, qk_norm=True)
    if model.get("positions") == "rotary" and not config.has_attention:
        raise UserError("--positions rotary has no effect without attention layers; leave it out")
    check_effect(config, model)
    own = {field: value for field, value in own.items() if field not in config.unused}
    if lengths(train):
        recipe = {field: value for field, value in recipe.items() if field not in LENGTHS}
    if "learning_rate" in train:  # min_lr follows
        recipe = {field: value for field, value in recipe.items() if field != "min_lr"}
    if "data" in recipe and not {item.strip() for item in train.get("data", recipe["data"]).split(",")} <= {*EMBEDDED}:
        recipe = {field: value for field, value in recipe.items() if field != "tokenizer"}
    made = TrainConfig(**recipe | train)
    check_effect(made, train)
    return ModelConfig(**own | model), made


def changes(name, value, kind):
    """The {field: value} of an argument, None for none, each of its field's type.

    Raises UserError if the dataclass lacks a field, or for a number beyond the limits of its field.
    """
    found, fields = arguments.settings(name, value), kind.__dataclass_fields__
    for field in found:
        arguments.choice(f"the field in {name}", field, list(fields))
    found = {field: typed(fields[field], one) for field, one in found.items()}
    for field, one in found.items():
        check_range(fields[field], one)
    return found


def follows_text(name):
    """Whether the preset `name` leaves settings to the text that it trains on. UserError if it is unknown."""
    return known(name).get("follows_text", False)


def generation_defaults(name):
    """The `SamplingConfig` that a run of the preset `name` starts with."""
    return SamplingConfig(**known(name).get("generation", {}))


def known(name):
    """The fields of the preset `name`. Raises UserError, with the closest names, if it is unknown."""
    return PRESETS[arguments.choice("--preset", name, list(PRESETS))]

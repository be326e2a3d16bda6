"""Small random models of every architecture that GGUF files may have."""

from pathlib import Path

import numpy as np
from parts_of_models import parts_of

from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.nn.model import Model

ATTENTION = dict(n_layer=2, n_head=4, n_embd=64, n_hidden=96, block_size=64)
LAYER_NORM = dict(norm="layernorm", bias=True)
SETTINGS = dict(
    llama=dict(ATTENTION, n_kv_head=2, rope_theta=5e4, norm_eps=1e-6),
    llama_untied=dict(ATTENTION, head="linear", head_dim=24, n_kv_head=1),
    llama_biased=dict(ATTENTION, bias=True),
    llama3=dict(ATTENTION, rope_scaling="llama3:8,1,4,8192", rope_theta=5e5),
    qwen2=dict(ATTENTION, qkv_bias="on", n_kv_head=2),
    qwen3=dict(ATTENTION, qk_norm=True, head_dim=32, n_kv_head=2),
    smollm3=dict(ATTENTION, n_layer=5, pattern="AAAN", n_kv_head=2),
    gpt2=dict(ATTENTION, **LAYER_NORM, positions="learned", feed_forward="gelu-tanh"),
    gpt2_untied=dict(ATTENTION, **LAYER_NORM, positions="learned", feed_forward="gelu-tanh", head="linear"),
    gptneox=dict(ATTENTION, **LAYER_NORM, feed_forward="gelu", parallel=True, rotary_dim=4, head="linear"),
    gptneox_serial=dict(ATTENTION, **LAYER_NORM, feed_forward="gelu"),
    mamba=dict(n_layer=2, n_embd=64, block_size=64, pattern="M", positions="none", feed_forward="none"),
)


def model(name, tokenizer=None, **changes):
    """A Model of the settings `name` for a tokenizer (default: bytes and end-of-text).

    Every bias, norm and other parameter differs from its initial value, so that a wrong one shows.
    """
    tokenizer = tokenizer or ByteTokenizer(end=True)
    made = Model(ModelConfig(**{"vocab_size": tokenizer.vocab_size, **SETTINGS[name], **changes}), 1)
    random = np.random.default_rng(1)
    for weight in made.parameters.weight.values():
        weight += 0.1 * random.standard_normal(weight.shape).astype(np.float32)
    return made


def parts(made, tokenizer=None, template=None, sampling=SamplingConfig()):
    """The `ModelParts` of a model and a tokenizer (default: bytes and end-of-text)."""
    return parts_of(made, tokenizer or ByteTokenizer(end=True), template, sampling, Path("model"))


def log_probabilities(made, ids):
    """(V,) of the next token after ids, float64."""
    logits = made.logits(np.array([ids], np.int32))[0, -1].astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

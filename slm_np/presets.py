"""Presets: each a model, its recipe, its corpus and how it writes. They are values of the one trunk's settings, never branches in it."""

from slm_np.config import ModelConfig, SamplingConfig, TrainConfig
from slm_np.errors import UserError, near

GPT2 = dict(positions="learned", norm="layernorm", feed_forward="gelu", head="tied")
LLAMA = dict(positions="rotary", norm="rmsnorm", feed_forward="swiglu")
# System 1 has no norm anywhere, one head, uniform weights and an output of two matrices.
BYTE_TRANSFORMER = dict(positions="sinusoidal", norm="none", feed_forward="silu", head="mlp", init="uniform", n_head=1)
# System 2: layers of a linear recurrence and nothing else; the last one gives the logits.
BYTE_SSM = dict(
    pattern="S", positions="none", norm="none", feed_forward="none", residual=False, head="none", init="uniform"
)
MAMBA = dict(pattern="M", positions="none", norm="rmsnorm", feed_forward="none", head="tied", init_std=0.1)
BYTE_SAMPLING = dict(samplers="temp,top-p")  # temperature first, then the nucleus

PRESETS = {
    "stories": dict(
        about="default: Llama style, about 1M parameters, bytes, the embedded corpus",
        model=dict(LLAMA, head="tied", n_layer=4, n_head=8, n_embd=128, n_hidden=384, block_size=256),
        # Sized to 90 s on two cores that multiply bfloat16. Small batches: so early in training many updates teach more than exact gradients.
        train=dict(
            data="stories",
            batch_size=4,
            max_iters=2650,
            learning_rate=4e-3,
            min_lr=1e-4,
            warmup_iters=50,
            beta2=0.95,
            weight_decay=0.1,
            decay="matrices",
            eval_interval=530,
            save_interval=530,
        ),
    ),
    "byte-transformer": dict(
        about="byte transformer of the C + BLAS kind, its CPU size: no norm, one head, mlp output",
        model=dict(BYTE_TRANSFORMER, n_layer=4, n_embd=256, n_hidden=512, block_size=1024),
        # The original's rate of 1e-5, constant and without clipping, barely leaves the uniform loss in 100 steps; this course learns.
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
        about="the same at its large size",
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
        about="nanoGPT's CPU recipe: GPT-2 style on characters",
        model=dict(GPT2, n_layer=4, n_head=4, n_embd=128, block_size=64),
        train=dict(
            tokenizer="char",
            batch_size=12,
            max_iters=2000,
            learning_rate=1e-3,
            min_lr=1e-4,
            warmup_iters=100,
            beta2=0.99,
            weight_decay=0.1,
            decay="matrices",
            eval_interval=250,
            eval_iters=20,
        ),
    ),
    "gpt2-stories": dict(
        about="GPT-2 style, 30M parameters, 50,257 pieces, 625 updates of 32 micro-batches",
        model=dict(GPT2, vocab_size=50257, n_layer=6, n_head=6, n_embd=384, block_size=128, bias=True, dropout=0.1),
        # The original's 20,000 iterations are micro-batches of 32 rows; 1,000 of them of warmup are 31 updates.
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
            eval_interval=16,
            save_interval=16,
            log_interval=1,
        ),
    ),
    "slim": dict(
        about="Llama style, 8 heads of 32, 6 layers, output not tied",
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
        train=dict(
            batch_size=8,
            max_iters=2000,
            learning_rate=2e-3,
            min_lr=1e-4,
            warmup_iters=100,
            beta2=0.95,
            weight_decay=0.1,
            decay="matrices",
        ),
    ),
    "byte-ssm": dict(
        about="byte state-space model: linear recurrences alone, its CPU size, gradients through all of time",
        model=dict(BYTE_SSM, n_layer=4, n_embd=256, recurrence_size=512, block_size=256),
        # The original's rates of 2e-5 to 1e-4, constant and with its gradients cut to one step, learn far more slowly.
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
        about="the same at the original's first size: E 512, S 256, T 1024, 8 layers",
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
        about="the same at the original's second size: E 256, S 512, T 1024, 11 layers",
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
        about="the same at the original's large size: E 512, S 2048, T 2048, 11 layers",
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


def preset(name, model=None, train=None):
    """(ModelConfig, TrainConfig) of the preset `name`, with {field: value} changes to either. UserError names the near ones if it is unknown."""
    return ModelConfig(**{**known(name)["model"], **(model or {})}), TrainConfig(
        **{**known(name)["train"], **(train or {})}
    )


def generation_defaults(name):
    """The `SamplingConfig` that a run of the preset `name` starts with."""

    return SamplingConfig(**known(name).get("generation", {}))


def known(name):
    """The preset `name`. UserError names the near ones if it is unknown."""
    if name not in PRESETS:
        raise UserError(f"--preset {name!r} is unknown; {near(name, list(PRESETS))}")
    return PRESETS[name]

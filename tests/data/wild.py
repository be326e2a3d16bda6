"""Chat templates and tokenizers like those of other models, made for tests."""

import functools
import json

import tokenizers
from sample_tokenizers import LLAMA, TALE
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from slm_np.data.word_patterns import LLAMA3, QWEN2

CHATML = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# Like Qwen3's: it writes the thoughts of the last reply only, and empty ones if there are none.
THINKING = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set parts = message.content.split('</think>') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last %}
            {%- set thoughts = parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' %}
            {{- '<think>\\n' ~ thoughts ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- parts[-1].lstrip() + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Like Llama 3's: a begin token, headers, the day, and trimmed messages.
HEADERS = """\
{{- bos_token }}
{%- set day = strftime_now('%d %b %Y') %}
{%- if messages[0].role != 'system' %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday is ' + day + '.<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# Like Zephyr's and TinyLlama's: roles are text, and every message ends with end-of-text.
ROLES = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# Like Mistral's first: no system message, and no special tokens but the begin and end of a text.
INSTRUCTIONS = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + \
' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% else %}\
{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

# Like Alpaca's: text only.
TEXT = """\
{% for message in messages %}{% if message.role == 'assistant' %}### Response:
{{ message.content }}

{% else %}### Instruction:
{{ message.content }}

{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}"""

NAMES = {
    CHATML: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    THINKING: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    HEADERS: ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ROLES: ["<unk>", "<s>", "</s>"],
    INSTRUCTIONS: ["<unk>", "<s>", "</s>"],
    TEXT: ["<|endoftext|>"],
}
TOKENS = {
    CHATML: dict(bos_token="<|im_start|>", eos_token="<|im_end|>"),
    THINKING: dict(eos_token="<|im_end|>"),
    HEADERS: dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    ROLES: dict(bos_token="<s>", eos_token="</s>"),
    INSTRUCTIONS: dict(bos_token="<s>", eos_token="</s>"),
    TEXT: dict(eos_token="<|endoftext|>"),
}


def written(parts, tokenizer):
    """Parts of a prompt as text, with the names of special tokens."""
    names = {token.id: name.encode() for name, token in tokenizer.special_tokens.items()}
    return b"".join(names[part] if isinstance(part, int) else part for part in parts).decode("utf-8", "surrogateescape")


def begins_with(name):
    """A post-processor that puts the special token `name`, of id 0, before a text."""
    return processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1", special_tokens=[(name, 0)]
    )


def byte_level(split=None, normalizer=None, first=(), later=(), ignore_merges=False, **options):
    """A byte-level BPE tokenizer, trained on `TALE`. split: its pre-tokenizer before ByteLevel, or None."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    end = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not isinstance(split, pre_tokenizers.Split))
    made.pre_tokenizer = pre_tokenizers.Sequence([split, end]) if split else end
    if normalizer:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TALE] * 3 + ["1234 56 don't DON'T\\n\\n the   cats..\\n\\n"] * 3, trainer)
    for token in later:
        made.add_special_tokens([token]) if token.special else made.add_tokens([token])
    for name, value in options.items():
        setattr(made, name, value)
    return json.loads(made.to_str())


def split(pattern):
    """A pre-tokenizer that splits a text into the matches of a pattern."""
    return pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")


def added(name, special=True):
    """An added token for `byte_level`."""
    return tokenizers.AddedToken(name, special=special, normalized=False)


@functools.cache
def kinds():
    """{kind: fields of a tokenizer.json}"""
    chatml = [added("<|endoftext|>"), added("<|im_start|>"), added("<|im_end|>")]
    unigram = tokenizers.Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKC()])
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator([TALE] * 3, trainer)
    return {
        "gpt2": byte_level(later=[added("<|endoftext|>")]),
        "llama3": byte_level(
            split(LLAMA3),
            first=["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            ignore_merges=True,
            post_processor=processors.Sequence(
                [processors.ByteLevel(trim_offsets=False), begins_with("<|begin_of_text|>")]
            ),
        ),
        "qwen": byte_level(
            split(QWEN2),
            normalizers.NFC(),
            later=[*chatml, added("<think>", special=False), added("</think>", special=False)],
        ),
        "smollm": byte_level(pre_tokenizers.Digits(individual_digits=True), first=[token.content for token in chatml]),
        "neox": byte_level(
            normalizer=normalizers.NFC(),
            first=["<|endoftext|>"],
            later=[tokenizers.AddedToken(" " * n, special=False, normalized=True) for n in (4, 3, 2)],
        ),
        "tinyllama": LLAMA,
        "unigram": json.loads(unigram.to_str()),
    }

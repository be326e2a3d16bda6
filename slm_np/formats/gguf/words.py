"""The names that GGUF files have for pre-tokenizers, and how each of them splits a text into words.

A pre-tokenizer is a tuple of regular expressions. Each in turn splits every part that the ones before it left: matches
and what lies between them become parts. Byte-pair merges happen within a part.
"""

from slm_np.data.word_patterns import LLAMA3, QWEN2

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel splits by
DIGIT = r"\p{N}"
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")  # llama.cpp's, where a file names none

# (regular expressions, whether a word that is a token stays whole): names. The first one is written.
NAMES = {
    ((GPT2,), False): ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat"),
    ((DIGIT, GPT2), False): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ((LLAMA3,), True): ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "glm4"),
    ((LLAMA3,), False): ("smaug-bpe", "dbrx", "chatglm-bpe"),
    ((QWEN2,), False): ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
    (DEFAULT, False): ("default",),
}
BY_NAME = {name: key for key, names in NAMES.items() for name in names}


def pre_tokenizer(words):
    """The field pre_tokenizer of tokenizer.json for a tuple of regular expressions."""
    bytes_only = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True)
    whole = words[-1:] == (GPT2,)
    steps = [_split(pattern) for pattern in (words[:-1] if whole else words)] + [dict(bytes_only, use_regex=whole)]
    return steps[0] if len(steps) == 1 else dict(type="Sequence", pretokenizers=steps)


def _split(pattern):
    if pattern == DIGIT:
        return dict(type="Digits", individual_digits=True)
    return dict(type="Split", pattern=dict(Regex=pattern), behavior="Isolated", invert=False)


def words_of(steps):
    """The regular expressions of the steps of a pre-tokenizer of tokenizer.json; None if they are none of these.

    The last step must be ByteLevel.
    """
    found = []
    for step in steps:
        kind, pattern = step["type"], step.get("pattern")
        if kind == "ByteLevel" and step is steps[-1] and not step.get("add_prefix_space", True):
            return (*found, GPT2) if step.get("use_regex", True) else tuple(found)
        if kind == "Digits":
            found.append(DIGIT if step.get("individual_digits") else DIGIT + "+")
        elif kind == "Split" and isinstance(pattern, dict) and "Regex" in pattern and step["behavior"] == "Isolated":
            found.append(pattern["Regex"])
        else:
            return None
    return None

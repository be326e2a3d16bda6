"""Make a tokenizer from its name, as `--tokenizer` gives it, or from its `tokenizer.json`."""

import json
import re
from pathlib import Path

from slm_np.data import bpe
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.foreign_tokenizers import described
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.meter import metered
from slm_np.data.plain_bpe import PlainBPE
from slm_np.data.tokenizer import used_like
from slm_np.data.tokenizer_json import joined_merges
from slm_np.errors import UserError, near
from slm_np.paths import expanded

TOKENIZERS = ("byte", "char", "stories", "bpe:N", "gpt2", "gpt2-trimmed", "file:PATH")
SMALLEST, LARGEST = 257, 1 << 20  # vocabularies of bpe:N. The smallest has the bytes and the end-of-text token


def make_tokenizer(name, texts, progress=True):
    """The `Tokenizer` with that name in `TOKENIZERS`.

    texts: functions () -> fresh iterable of blocks of bytes, to learn from: char takes all their characters, bpe:N a
    vocabulary of N tokens, gpt2-trimmed GPT-2's tokens that they have; the last is the end-of-text token. stories,
    the vocabulary of the embedded corpora, and the others ignore them.
    UserError for an unknown name, an N out of range, a missing package, GPT-2's vocabulary out of reach, or a bad file.
    """
    kind, colon, value = name.partition(":")
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        sizes = [sum(map(len, text())) if progress else 0 for text in texts]
        return CharTokenizer.learn(
            *(metered(text(), size, "collecting characters", progress) for text, size in zip(texts, sizes))
        )
    if name == "stories":
        return PlainBPE.stories()
    if name == "gpt2":
        return bpe.gpt2()
    if name == "gpt2-trimmed":
        return bpe.gpt2_trimmed(texts, progress)
    if kind == "file" and value:
        return load_tokenizer(expanded(value))
    if kind == "bpe":
        if not re.fullmatch("[0-9]{1,7}", value) or not SMALLEST <= int(value) <= LARGEST:
            raise UserError(
                f"--tokenizer {name!r} must be bpe:N with a whole number N from {SMALLEST} (the bytes and end-of-text) "
                f"to {LARGEST}; give for instance bpe:4096"
            )
        return bpe.train(int(value), texts, progress)
    hint = f"did you mean file:{name}?" if expanded(name).is_file() else near(name, TOKENIZERS)
    raise UserError(f"--tokenizer {name!r} is unknown; {hint}")


def load_tokenizer(path):
    """The tokenizer in the file `path`, of whichever kind. Needs no network.

    UserError if it is missing, damaged, or a vocabulary in another format.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a character that no path may contain
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the tokenizer {path} cannot be read ({reason}); name a tokenizer.json") from None
    try:
        return tokenizer_from(json.loads(data.decode("utf-8-sig")), path)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        foreign = described(data)
        what, remedy = foreign or ("is not a tokenizer.json, or it is damaged", "copy it again from its source")
        raise UserError(f"{path} {what}{', not a tokenizer.json' * bool(foreign)}; {remedy}") from None


def tokenizer_from(fields, name):
    """The tokenizer with the fields of a tokenizer.json, which errors call `name`."""
    model, end = fields["model"], bool(fields.get("added_tokens"))
    kind, vocab, own = model.get("type"), model["vocab"], None
    if kind == "BPE" and len(vocab) == 256:
        own = ByteTokenizer(end)
    elif kind == "BPE":
        own = PlainBPE.from_json(fields)
        fields = dict(fields, model=dict(model, merges=joined_merges(model))) if own else fields
    elif kind == "WordLevel" and all(len(token) == 1 for token in vocab):
        own = CharTokenizer("".join(sorted(vocab, key=vocab.get)), end)
    # A newer library may have added fields. The tokenizer is ours if it contains everything that we would write.
    return own if own and _contains(fields, own.to_json()) else LibraryTokenizer(fields, name)


def with_end_of_text(tokenizer):
    """The tokenizer itself if it has an end-of-text token, else one with that token as one more id, the last."""
    return tokenizer if tokenizer.end_of_text is not None else used_like(tokenizer.with_end(), tokenizer)


def _contains(found, wanted):
    """Whether `found` has every key of `wanted` with its value, at every depth. It may have more keys."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() >= wanted.keys() and all(_contains(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(_contains, found, wanted))
    return found == wanted

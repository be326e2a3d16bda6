"""Byte-pair vocabularies: trained on a corpus, or GPT-2's."""

from itertools import chain

import numpy as np

from slm_np.data.bpe_process import learned
from slm_np.data.library_tokenizer import LibraryTokenizer, tokenizers_library
from slm_np.data.meter import metered
from slm_np.data.segments import ESCAPED, decoded, segments
from slm_np.data.tokenizer_json import bpe_model, byte_letters, byte_level, tokenizer_json
from slm_np.errors import UserError, imported
from slm_np.progress import say
from slm_np.words import counted

SAMPLE = 1 << 27  # bytes of a corpus to train on, so that the distinct words of a large corpus fit into memory


def check_packages(name):
    """UserError if a package that the tokenizer `name`, bpe:N or gpt2, needs is missing."""
    if name in ("gpt2", "gpt2-trimmed"):
        imported("tiktoken", f"--tokenizer {name}", "slm_np[gpt2]")
    tokenizers_library(f"--tokenizer {name}")


def train(vocab_size, texts, progress=True):
    """A tokenizer of `vocab_size` tokens by byte-pair encoding (Sennrich et al. 2016) over bytes, within GPT-2's words.

    texts: functions () -> fresh iterable of blocks of bytes, which together are the corpus. Of a corpus above `SAMPLE`
    bytes, segments spread all over it are taken. Ids: the 256 bytes in the order of their letters, the merges, the
    end-of-text token. A text with fewer pairs to merge gives fewer tokens, which a line on stderr says.
    Words of more than `bpe_process.LONGEST` bytes, such as DNA, base64 or text without spaces, are learned in parts of
    that length, so the time is near-linear in the text. They are encoded whole.
    UserError if the `tokenizers` library is missing, or its process fails.
    """
    name = f"bpe:{vocab_size}"
    tokenizers_library(f"--tokenizer {name}")
    total = sum(sum(map(len, text())) for text in texts)
    strings = chain.from_iterable(decoded(metered(text(), total, "training the tokenizer", progress)) for text in texts)
    vocab, merges = learned(vocab_size - 1, sample(strings, total), progress)
    made = _gpt2_style(dict(sorted(vocab.items(), key=lambda item: item[1])), merges, name)
    if progress and made.vocab_size < vocab_size:
        say(f"{name} learned {counted(made.vocab_size, 'token')}: the text has no more pairs to merge")
    return made


def sample(strings, total):
    """Yield what to train on: all of a text of `total` bytes, or segments all over it, up to about `SAMPLE` bytes.

    strings: the text, cut anywhere. Bytes that are not UTF-8 are left out.
    """
    seen = taken = 0
    for segment in segments(strings):
        if total <= SAMPLE or taken * total <= seen * SAMPLE:
            taken += len(segment)
            yield from (part for part in ESCAPED.split(segment) if part and not ESCAPED.match(part))
        seen += len(segment)


def gpt2():
    """GPT-2's tokenizer (Radford et al. 2019), 50,257 tokens. UserError if it is unavailable."""
    tiktoken = imported("tiktoken", "--tokenizer gpt2", "slm_np[gpt2]")
    try:
        encoding = tiktoken.get_encoding("gpt2")
        ranks = {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    except Exception as error:  # of the network, of the disk, of a damaged download
        raise UserError(
            "--tokenizer gpt2 needs GPT-2's vocabulary, which is not in tiktoken's cache and could not be downloaded "
            f"({type(error).__name__}); run it once with a network, or set TIKTOKEN_CACHE_DIR to a filled cache"
        ) from None
    letters = byte_letters()

    def name(token):
        return "".join(letters[byte] for byte in token)

    tokens = sorted(ranks, key=ranks.get)
    merges = [" ".join(map(name, _last_pair(token, ranks))) for token in tokens if len(token) > 1]
    return _gpt2_style({name(token): ranks[token] for token in tokens}, merges, "gpt2")


def gpt2_trimmed(texts, progress=True):
    """GPT-2's tokenizer with the tokens that a corpus uses, all bytes, and the tokens that these are merged from.

    texts: functions () -> fresh iterable of blocks of bytes. On the corpus it gives the tokens of GPT-2: byte-pair
    encoding makes the same merges, as all that occur on the way are kept. Other text is spelled with shorter tokens.
    The names and the order of the tokens are those of GPT-2, so ids map to GPT-2's by name.
    """
    whole, used = gpt2(), set()
    for text in texts:
        size = sum(map(len, text())) if progress else 0
        for ids in whole.encode_blocks(metered(text(), size, "trimming the vocabulary", progress)):
            used.update(np.unique(ids).tolist())
    fields = whole.to_json()["model"]
    kept, merges = {name for name, id in fields["vocab"].items() if id in used or len(name) == 1}, []
    for merge in reversed(fields["merges"]):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if "".join(parts) in kept:
            kept.update(parts)
            merges.append(" ".join(parts))
    names = sorted(kept, key=fields["vocab"].get)
    return _gpt2_style({name: id for id, name in enumerate(names)}, merges[::-1], "gpt2-trimmed")


def _last_pair(token, ranks):
    """The two tokens that merge into `token`: what merging its bytes, the lowest rank first, leaves at the end."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _gpt2_style(vocab, merges, name):
    fields = tokenizer_json(byte_level(True), byte_level(True), bpe_model(vocab, merges), end_of_text=len(vocab))
    return LibraryTokenizer(fields, name)

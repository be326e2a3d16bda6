"""Where the common pre-tokenizers split any text, so that the ids of each part can be cached.

Byte-pair merges happen within the words of a pre-tokenizer. The library runs its regular expression; here a text is cut
into parts of one word or a few, at places where the expression splits whatever stands around them.
White space is Unicode's White_Space, as in the library's expressions. ASCII is enough to tell where a line end belongs
to the punctuation before it: behind any other character no cut is made.
"""

import re

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ENDINGS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{ENDINGS}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{ENDINGS}"

SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# For GPT-2's expression, also behind a step that splits off digits: a word with the white space before it.
WORD = re.compile(f"[{SPACES}]*[^{SPACES}]+|[{SPACES}]+")
# For the expressions above, in which line ends belong to the punctuation before them.
_OPEN = f"[^{SPACES}]*[^{SPACES}\0-\x7f][\r\n][{SPACES}]*"  # may be punctuation, so it goes on with the next word
_CLOSED = f"[^{SPACES}]*[^{SPACES}0-9A-Za-z\x80-\U0010ffff](?![^{SPACES}])[\r\n]*|[^{SPACES}]+"
WORD_AND_LINE_END = re.compile(f"[{SPACES}]*(?:(?:{_OPEN})+(?:{_CLOSED})?|{_CLOSED})|[{SPACES}]+")


def parts_of(steps, normalizers):
    """The regular expression that cuts a text for a pre-tokenizer, or None if it is not known to split there.

    steps, normalizers: the fields of the pre-tokenizer's and the normalizer's steps in tokenizer.json
    """
    if any(step["type"] != "NFC" for step in normalizers):  # which changes no white space, and nothing beside it
        return None
    *before, last = steps or [dict(type="")]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    if last.get("use_regex", True):
        return WORD if all(step["type"] == "Digits" for step in before) else None
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    step = before[0]
    known = step["pattern"] in (dict(Regex=LLAMA3), dict(Regex=QWEN2)) and step["behavior"] == "Isolated"
    return WORD_AND_LINE_END if known and not step.get("invert") else None

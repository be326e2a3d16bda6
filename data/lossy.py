"""What a tokenizer loses of a text, measured on a sample: text that comes back changed has no comparable bits/byte."""

import re
import unicodedata
from collections import Counter
from functools import partial
from typing import NamedTuple

from slm_np.data.shards import content, numbers_of, text_of
from slm_np.data.templates import restored

PART = 1 << 16  # bytes that are tried at the start, in the middle and at the end of a text
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
WORD = 1000  # bytes of a word at most, where a sample ends between words
FIRST_WORD, LAST_WORD = re.compile(rb"\S{0,%d}\s+" % WORD), re.compile(rb"\s+\S{0,%d}\Z" % WORD)


class Losses(NamedTuple):
    """What became of `tried` bytes of a text."""

    tried: int
    lost: int  # bytes of characters that do not come back. 0 does not exclude that others are added
    kinds: tuple  # names of what is lost or added, () if the text comes back as it was
    unknown: float  # share of the tokens that stand for something unknown

    def sentence(self):
        """One sentence for the user, "" if nothing is lost."""
        if not self.kinds:
            return ""
        unknown = f", {_percent(self.unknown)} of the tokens are unknown" if self.unknown else ""
        return (
            f"the tokenizer is lossy: of {self.tried:,} bytes of the text {_percent(self.lost / self.tried)} do not "
            f"come back ({', '.join(self.kinds)}){unknown}; bits/byte would not be comparable, so nats/token are shown"
        )


def _percent(share):
    return f"{100 * share:.1f} %" if share >= 0.0005 else "less than 0.1 %"


def sentence_about(tokenizer, plan, documents):
    """`Losses.sentence` of a tokenizer on a sample of both splits of a plan (see store_builder.py).

    documents: the value of --documents.   UserError if the tokenizer cannot encode the sample.
    """
    if tokenizer.lossless:
        return ""
    parts = (part for split in plan["texts"] for part in _sample(plan, split, documents, tokenizer))
    return losses(tokenizer, parts).sentence()


def losses(tokenizer, texts):
    """The `Losses` of a tokenizer on texts (bytes), each encoded and decoded on its own."""
    tried, n_tokens, n_unknown, before, after, changed = 0, 0, 0, Counter(), Counter(), False
    for text in texts:
        ids = tokenizer.encode(text)
        back = tokenizer.decode(ids)
        tried, n_tokens = tried + len(text), n_tokens + len(ids)
        n_unknown += int((ids == tokenizer.unknown).sum()) if tokenizer.unknown is not None else 0
        if back != text:
            changed = True
            before.update(text.decode("utf-8", "surrogateescape"))
            after.update(back.decode("utf-8", "surrogateescape"))
    gone, added = before - after, after - before
    lost = sum(n * len(letter.encode("utf-8", "surrogateescape")) for letter, n in gone.items())
    return Losses(tried, lost, _kinds(gone, added, n_unknown) if changed else (), n_unknown / max(1, n_tokens))


def _kinds(gone, added, n_unknown):
    """Names of the kinds of characters in the Counters `gone` and `added`, the most frequent first."""
    made_of = set(unicodedata.normalize("NFKD", "".join(added)))
    found, examples = Counter(), {}
    for letter, n in (gone or added).items():
        if "\udc80" <= letter <= "\udcff":
            kind = "bytes that are not UTF-8"
        elif letter in LINE_ENDS:
            kind = "line ends"
        elif letter.isspace():
            kind = "spaces"
        elif letter.lower() != letter and set(letter.lower()) <= added.keys():
            kind = "letter case"
        elif unicodedata.combining(letter) or made_of & {letter, *unicodedata.normalize("NFKD", letter)}:
            kind = "accents and Unicode forms"
        else:
            kind = "unknown characters" if n_unknown else "characters"
            examples.setdefault(kind, letter)
        found[kind] += n
    kinds = [f"{kind} such as {examples[kind]!r}" if kind in examples else kind for kind, _ in found.most_common()]
    return tuple(kinds) or ("the order of characters",)


def _sample(plan, split, documents, tokenizer):
    """Parts of a split: of a single shard its start, middle and end, else of its first, middle and last."""
    numbers, text = numbers_of(plan, split), text_of(plan, split)
    chosen = sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]}) if numbers else []
    written = partial(restored(plan.get("template")).spans, tokenizer=tokenizer)
    for number in chosen:
        _, _, start, stop = plan["shards"][number]
        blocks = content(text, start, stop, documents, plan["separated"], written)
        yield from spread(blocks, stop - start, PART // len(chosen))


def spread(blocks, total, size):
    """Parts of a text of about `total` bytes, up to `size` bytes each: start, middle and end, or all of a short one.

    Inside the text a part starts and ends with a whole word or, where there is no white space, a whole character.
    """
    if total <= 3 * size:
        return [b"".join(blocks)]
    start, middle, end, at = b"", b"", b"", 0
    for block in blocks:
        start += block[: size - len(start)]
        middle += block[max(0, total // 2 - at) :][: size - len(middle)] if at + len(block) > total // 2 else b""
        end = (end + block)[-size:]
        at += len(block)
    if at <= size:  # all of it, as of rows that consist of little text
        return [start]
    return [_whole(start, left=False), _whole(middle), _whole(end, right=False)]


def _whole(part, left=True, right=True):
    """A part of a text without the word, or at least the character, that is incomplete at its cut ends."""
    if left:
        word = FIRST_WORD.match(part)
        lead = next((i for i in range(min(4, len(part))) if part[i] & 0xC0 != 0x80), 0)
        part = part[word.end() if word else lead :]
    if right:
        word = LAST_WORD.search(part, max(0, len(part) - 2 * WORD))
        lead = next((i for i in range(1, min(4, len(part)) + 1) if part[-i] & 0xC0 != 0x80), 0)
        length = 1 + sum(part[-lead] >= least for least in (0xC0, 0xE0, 0xF0)) if lead else 0
        part = part[: word.start()] if word else part[: len(part) - lead * (length > lead)]
    return part

"""Sample tokens and stream them as text, whole characters only, until a stop string or end-of-text."""

import contextlib
import re

import numpy as np

from slm_np import arguments
from slm_np.config import SamplingConfig
from slm_np.data.tokenizer import Tokenizer, encode_spans
from slm_np.errors import UserError
from slm_np.inference.decoder import Decoder
from slm_np.inference.sampling import confidence, sample
from slm_np.nn.model import Model
from slm_np.words import counted

START = b"\n\n"  # a blank line ends a document, so after one the next begins
# What moves the cursor of a terminal, rings its bell or starts a command to it, and halves of surrogate pairs, which
# have no UTF-8. Line ends and tabs stay.
CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def generate_tokens(decoder, prompt, max_tokens, sampling, substream=0, vocab_size=None):
    """Yield (logits (B, V), ids (B,)) of each of `max_tokens` steps: the ids were sampled from the logits.

    prompt     ids (n,), n >= 1, of all B sequences of the decoder
    sampling   SamplingConfig
    substream  of the first sequence; see `sampling.sample`. Sequence i draws from substream + i, so it is the same
               whether it is generated alone or beside others.
    vocab_size only ids below it are sampled: the tokenizer may have fewer tokens than the embedding has rows
    The next step overwrites the logits.
    """
    prompt = np.asarray(prompt, np.int32).reshape(-1)
    sequences, ids = [list(map(int, prompt)) for _ in range(decoder.batch)], None
    for counter in range(max_tokens):
        logits = decoder.read(np.repeat(prompt[None], decoder.batch, 0)) if ids is None else decoder.step(ids)
        logits = logits[:, :vocab_size]
        rows = enumerate(zip(logits, sequences))
        ids = np.array([sample(row, sampling, recent, counter, substream + i) for i, (row, recent) in rows])  # (B,)
        for sequence, id in zip(sequences, ids):
            sequence.append(int(id))
        yield logits, ids


class StopStrings:
    """Holds back text that may become a stop string. `finished` after one: neither it nor what follows is shown."""

    def __init__(self, stops):
        self.stops, self.held, self.finished = [stop for stop in stops if stop], "", False

    def push(self, text):
        """The text that may be shown after `text` was added."""
        if self.finished:
            return ""
        self.held += text
        found = [(self.held.find(stop) + len(stop), self.held.find(stop)) for stop in self.stops if stop in self.held]
        if found:  # the stop string that ends first, so that it does not matter how the text is divided into calls
            shown, self.held, self.finished = self.held[: min(found)[1]], "", True
            return shown
        beginnings = (n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n]))
        n_shown = len(self.held) - max(beginnings, default=0)
        shown, self.held = self.held[:n_shown], self.held[n_shown:]
        return shown

    def end(self):
        """The text that was held back, when no more can follow."""
        shown, self.held, self.finished = self.held, "", True
        return shown


class TextStream:
    """The text of one sequence while it is generated: ids in, text that may be shown out.

    It is `finished` after a stop string, after an id in `ends` or in the tokenizer's own `ends`, or after `patience`
    tokens in a row where the likeliest token's probability was below `min_confidence`. Such uncertain tokens are held
    back until a certain one follows. They are shown if the text ends otherwise, and dropped if it ends because of them.

    style  function (text, probability) -> text, which formats what is shown, or None. A character of several tokens has
           the lowest of their probabilities.
    after  the ids before the first one, since some tokenizers omit the space at the start of a text
    """

    def __init__(self, tokenizer, stops, min_confidence=0.0, patience=3, style=None, after=(), ends=()):
        self.ends, self.decoded = tokenizer.ends.union(ends), tokenizer.stream(after)
        self.stop_strings, self.min_confidence, self.patience = StopStrings(stops), min_confidence, patience
        self.style = style
        self.uncertain = 0  # tokens since the last certain one
        self.passed = ""  # text that belongs to no stop string and is not shown yet
        self.n_decoded = 0  # characters that are not shown yet, those that a stop string may claim included
        self.n_certain = 0  # of these, the characters up to the last certain token
        self.runs = []  # [characters, probability] that are not shown yet, if there is a style
        self.lowest = 1.0  # probability within an unfinished character

    @property
    def finished(self):
        return self.stop_strings.finished

    def push(self, id, probability=1.0, likeliest=1.0):
        """The text that may be shown after token `id`.

        probability  of this token
        likeliest    probability of the likeliest token at this step
        """
        if self.finished:
            return ""
        if id in self.ends:
            return self.end()
        self.uncertain = self.uncertain + 1 if likeliest < self.min_confidence else 0
        self._add(self.decoded.push(int(id)), probability)
        if self.uncertain == self.patience and not self.finished:
            self.passed += self.stop_strings.end()
            return self._show(self.n_certain)
        if not self.uncertain:
            self.n_certain = self.n_decoded
        return self._show(self.n_decoded if self.finished else self.n_certain)

    def end(self):
        """The text that was held back, when no token can follow."""
        if self.finished:
            return ""
        self._add(self.decoded.flush(), self.lowest)
        self.passed += self.stop_strings.end()
        return self._show(self.n_decoded)

    def _add(self, text, probability):
        self.lowest = min(self.lowest, probability)
        if text:
            if self.style is not None:
                self.runs.append([len(text), self.lowest])
            self.n_decoded, self.lowest = self.n_decoded + len(text), 1.0
            self.passed += self.stop_strings.push(text)

    def _show(self, limit):
        """Take the text that has passed out of the first `limit` characters, in its style."""
        shown, self.passed = self.passed[:limit], self.passed[limit:]
        self.n_decoded, self.n_certain = self.n_decoded - len(shown), max(0, self.n_certain - len(shown))
        if self.style is None:
            return shown
        styled, start = [], 0
        while start < len(shown):
            run = self.runs[0]
            n = min(run[0], len(shown) - start)
            styled.append(self.style(shown[start : start + n], run[1]))
            start, run[0] = start + n, run[0] - n
            if not run[0]:
                self.runs.pop(0)
        return "".join(styled)


def encode_prompt(tokenizer, prompt):
    """Ids (n,), n >= 1, of a prompt: str, bytes, or what `prompt` of a chat template returns, [bytes or int, ...].

    A prompt with special tokens of a chat template is used as it is. For a model of another program, any other prompt
    starts with `tokenizer.prompt_start`, or is the end-of-text token if this gives no ids. For a model of this program,
    it starts with the end-of-text token if the model was trained with one: documents follow the end of another one.

    A prompt that still has no ids (an empty one, or characters that the tokenizer drops) becomes a blank line. If that
    has no ids either, it becomes `tokenizer.start_of_text`: the end-of-text token, else the token before a text, such
    as <s> or [CLS], else id 0. Raises UserError if the tokenizer cannot encode the prompt.
    """
    if tokenizer is None:
        raise UserError(
            "the model has no tokenizer, so it can neither read nor write text; "
            "copy its tokenizer.json into its directory"
        )
    parts = prompt if isinstance(prompt, list) else [arguments.encoded("the prompt", prompt)]
    found = [ids for ids, _ in encode_spans(tokenizer, ((part, False) for part in parts))]
    ids = np.concatenate([np.empty(0, np.int32), *found]).astype(np.int32)
    if any(isinstance(part, int) for part in parts):
        return ids
    start, end = tokenizer.prompt_start, tokenizer.end_of_text
    if end is not None and (tokenizer.trained_ends if start is None else not len(start) and not len(ids)):
        start = [end]
    if start:
        return np.concatenate([start, ids]).astype(np.int32)
    if not len(ids):
        with contextlib.suppress(UserError):  # of a character vocabulary without newlines
            ids = tokenizer.encode(START).astype(np.int32)
    return ids if len(ids) else np.array([tokenizer.start_of_text], np.int32)


def unread(tokenizer, prompt, name="the prompt"):
    """A sentence for the user if a prompt (str or bytes) has characters, and its ids stand for none; else ""."""
    if not prompt or tokenizer.decode(tokenizer.encode(prompt)):
        return ""
    return f"the tokenizer cannot represent {name}, so the model does not see it"


def printable(text):
    """The text as a terminal can show it: `CONTROLS` are replaced by U+FFFD, and every line end is \\n.

    All other characters stay, also those without a shape of their own: joiners, spaces of all kinds, direction marks.
    """
    return CONTROLS.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def cut(model, ids, name="the prompt"):
    """A sentence for the user if ids (n,) exceed the context, else "". With `unlimited_context` they never do."""
    size = model.config.block_size
    if len(ids) <= size or model.config.unlimited_context:
        return ""
    kept = f"{counted(size, 'token')} {'is' if size == 1 else 'are'} kept"
    return f"{name} has {len(ids):,} tokens and the context {size:,}; its last {kept}"


def generate(
    model,
    tokenizer,
    prompt,
    max_tokens,
    sampling,
    stops=(),
    samples=1,
    style=None,
    substream=0,
    make_step=None,
    ends=(),
):
    """Iterate over lists of `samples` strings: what each sequence may show next. Joined, they follow the prompt.

    prompt    text, or its ids (n,), n >= 1
    sampling  SamplingConfig
    style     function (text, probability of its token) -> text to show
    substream  the seed's substream for the first sequence; the others take the following ones
    make_step  as for `Decoder`
    stops     strings that end a text, or one such string
    ends      ids that end a text besides `tokenizer.ends`
    A string has whole characters only, and no part of a stop string, of the end-of-text token or of an uncertain tail
    (see `TextStream`). Raises UserError at once for a wrong argument, or if the tokenizer cannot encode the prompt.
    """
    arguments.instance("model", model, Model)
    if tokenizer is not None:
        arguments.instance("tokenizer", tokenizer, Tokenizer)
    arguments.instance("sampling", sampling, SamplingConfig)
    max_tokens, stops = arguments.whole("max_tokens", max_tokens), arguments.strings("stops", stops)
    if tokenizer is None or isinstance(prompt, (str, bytes)):
        ids = encode_prompt(tokenizer, prompt)
    else:
        ids = arguments.ids("prompt", prompt, model.config.vocab_size, ("n",))
    ends = arguments.integers("ends", ends).tolist()
    decoder = Decoder(model, samples, make_step)
    texts = [
        TextStream(tokenizer, stops, sampling.min_confidence, sampling.confidence_patience, style, ids, ends)
        for _ in range(samples)
    ]

    def strings():
        measured = style is not None or sampling.min_confidence > 0
        for logits, new in generate_tokens(decoder, ids, max_tokens, sampling, substream, tokenizer.vocab_size):
            probabilities = [confidence(row, id)[::-1] if measured else () for row, id in zip(logits, new)]
            yield [text.push(id, *values) for text, id, values in zip(texts, new, probabilities)]
            if all(text.finished for text in texts):
                return
        yield [text.end() for text in texts]

    return strings()


def text_of(model, tokenizer, prompt, max_tokens, sampling, stops=(), make_step=None, ends=()):
    """The whole text that the model generates, without the prompt. Arguments and errors are those of `generate`.

    make_step: as for `Decoder`
    """
    strings = generate(model, tokenizer, prompt, max_tokens, sampling, stops, make_step=make_step, ends=ends)
    return "".join(first for (first,) in strings)

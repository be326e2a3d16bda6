"""Text from a model, as it is made: decoding, sampling, where it ends, whole characters."""

import numpy as np

from slm_np.errors import UserError
from slm_np.inference.decoder import Decoder
from slm_np.inference.sampling import confidence, sample

START = b"\n\n"  # a blank line ends a text, so after one the next begins


def steps(decoder, prompt, max_tokens, sampling, stream=0):
    """Yield (logits (B, V), ids (B,) drawn from them) per step; the logits are good until the next. Else as `generate_ids`."""
    prompt = np.asarray(prompt, np.int32).reshape(-1)
    texts = [list(map(int, prompt)) for _ in range(decoder.batch)]
    for counter in range(max_tokens):
        logits = decoder.step(ids) if counter else decoder.read(np.repeat(prompt[None], decoder.batch, 0))
        ids = np.array(
            [sample(row, sampling, text, counter, stream + i) for i, (row, text) in enumerate(zip(logits, texts))]
        )
        for text, id in zip(texts, ids):
            text.append(int(id))
        yield logits, ids


def generate_ids(decoder, prompt, max_tokens, sampling, stream=0):
    """Yield (B,) ids per step, `max_tokens` of them, for the B texts of the decoder. prompt: ids (n,), n >= 1.

    Text i draws its random numbers from stream `stream` + i of the seed: the same whether it is made alone or beside others.
    """
    for _, ids in steps(decoder, prompt, max_tokens, sampling, stream):
        yield ids


class Stops:
    """Holds back text that may become a stop string; `over` once one was met, which is not shown, nor is what follows."""

    def __init__(self, stops):
        self.stops, self.held, self.over = [s for s in stops if s], "", False

    def push(self, text):
        """The text that may be shown now."""
        if self.over:
            return ""
        self.held += text
        met = [(self.held.find(s) + len(s), self.held.find(s)) for s in self.stops if s in self.held]
        if met:  # the one that is complete first, so that it does not matter in which pieces the text comes
            self.held, self.over = self.held[: min(met)[1]], True
        keep = (
            0 if met else max((n for s in self.stops for n in range(1, len(s)) if self.held.endswith(s[:n])), default=0)
        )
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def end(self):
        """What was held back, once no text can follow."""
        shown, self.held, self.over = self.held, "", True
        return shown


class Text:
    """One text as it is made: ids in, out what may be shown of it. `over` once a stop string or the tokenizer's end of text was met, or
    once `patience` tokens in a row were drawn where the likeliest had less than `min_confidence`.

    Those uncertain tokens are held back until a certain one follows or the text ends elsewhere, and dropped where it ends by them.
    `style(text, probability)`, where given, dresses each piece that is shown; a character of several tokens has the least of their
    probabilities. `after`: the ids it follows, as some tokenizers leave out a text's first space.
    """

    def __init__(self, tokenizer, stops, min_confidence=0.0, patience=3, style=None, after=()):
        self.end_of_text, self.stream, self.stops = tokenizer.end_of_text, tokenizer.stream(after), Stops(stops)
        self.min_confidence, self.patience, self.style = min_confidence, patience, style
        self.uncertain = 0  # tokens since the last certain one
        self.passed = ""  # characters no stop string can claim, not shown yet
        self.made = self.certain = (
            0  # characters, counted from the first not shown: all, and those up to the last certain token
        )
        self.pieces, self.least = (
            [],
            1.0,
        )  # [characters, probability] not shown yet; the least probability within an unfinished character

    @property
    def over(self):
        return self.stops.over

    def push(self, id, probability=1.0, likeliest=1.0):
        """What may be shown after the token `id`, drawn with `probability` where the likeliest token had `likeliest`."""
        if self.over:
            return ""
        if id == self.end_of_text:
            return self.end()
        self.uncertain = self.uncertain + 1 if likeliest < self.min_confidence else 0
        self._add(self.stream.push(int(id)), probability)
        if self.uncertain == self.patience and not self.over:
            self.passed += self.stops.end()
            return self._show(self.certain)
        if not self.uncertain:
            self.certain = self.made
        return self._show(self.made if self.over else self.certain)

    def end(self):
        """What was held back, once no text can follow."""
        if self.over:
            return ""
        self._add(self.stream.flush(), self.least)
        self.passed += self.stops.end()
        return self._show(self.made)

    def _add(self, text, probability):
        self.least = min(self.least, probability)
        if text:
            if self.style is not None:
                self.pieces.append([len(text), self.least])
            self.made, self.least = self.made + len(text), 1.0
            self.passed += self.stops.push(text)

    def _show(self, limit):
        """Take what has passed of the first `limit` characters."""
        shown, self.passed = self.passed[:limit], self.passed[limit:]
        self.made, self.certain = self.made - len(shown), max(0, self.certain - len(shown))
        if self.style is None:
            return shown
        dressed, at = [], 0
        while at < len(shown):
            piece = self.pieces[0]
            n = min(piece[0], len(shown) - at)
            dressed.append(self.style(shown[at : at + n], piece[1]))
            at, piece[0] = at + n, piece[0] - n
            if not piece[0]:
                self.pieces.pop(0)
        return "".join(dressed)


def encode_prompt(tokenizer, prompt):
    """Ids (n,) of a prompt (str or bytes), n >= 1: a text begins after the end of another, so the tokenizer's end-of-text, where it has
    one that the model has seen, comes first; without one an empty prompt is a blank line. UserError if the tokenizer cannot express it."""
    if tokenizer is None:
        raise UserError(
            "the run was trained on a token file without a tokenizer, so text cannot be read or written; put its tokenizer.json into the run"
        )
    data = prompt if isinstance(prompt, bytes) else prompt.encode("utf-8", "surrogateescape")
    if tokenizer.end_of_text is not None and tokenizer.trained_ends:
        return np.concatenate([[tokenizer.end_of_text], tokenizer.encode(data)]).astype(np.int32)
    if data:
        return tokenizer.encode(data)
    try:
        return tokenizer.encode(START)
    except UserError:  # a character vocabulary without line ends
        return np.zeros(1, np.int32)


def printable(text):
    """The text without what would move a terminal's cursor or ring its bell, as a model of bytes at first writes."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def cut(model, ids, name="the prompt"):
    """A sentence for the user where ids (n,) are more than the context holds, else ""; a model that carries a state reads them all."""
    size = model.config.block_size
    return (
        f"{name} has {len(ids):,} tokens and the context {size:,}; its last {size:,} tokens are kept"
        if len(ids) > size and not model.config.unlimited_context
        else ""
    )


def generate(model, tokenizer, prompt, max_tokens, sampling, stops=(), samples=1, style=None, stream=0):
    """Iterate over lists of `samples` pieces of text, one of each text, as they are made; joined per text they are what follows the prompt.

    prompt  a text, or its ids (n,), n >= 1
    style   a function (text, probability of its token) -> what to show of it
    stream  the seed's stream of random numbers for the first text; the others take those that follow
    A piece never ends inside a character, nor shows any of a stop string, of the end-of-text, or of an uncertain tail (`Text`).
    UserError, at once, for a prompt the tokenizer cannot express.
    """
    ids, decoder = (
        encode_prompt(tokenizer, prompt) if isinstance(prompt, (str, bytes)) else prompt,
        Decoder(model, samples),
    )

    def pieces():
        texts = [
            Text(tokenizer, stops, sampling.min_confidence, sampling.confidence_patience, style, ids)
            for _ in range(samples)
        ]
        measured = style is not None or sampling.min_confidence > 0
        for logits, new in steps(decoder, ids, max_tokens, sampling, stream):
            measures = [confidence(row, id)[::-1] if measured else () for row, id in zip(logits, new)]
            yield [text.push(id, *measure) for text, id, measure in zip(texts, new, measures)]
            if all(text.over for text in texts):
                return
        yield [text.end() for text in texts]

    return pieces()


def text_of(model, tokenizer, prompt, max_tokens, sampling, stops=()):
    """One whole text, the prompt not included."""
    return "".join(pieces[0] for pieces in generate(model, tokenizer, prompt, max_tokens, sampling, stops))

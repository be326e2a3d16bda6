"""Text from a model, as it is made: decoding, sampling, stop strings, whole characters."""
import numpy as np

from slm_np.decode import Decoder
from slm_np.errors import UserError
from slm_np.sampling import sample

START = b"\n\n"  # a blank line ends a text, so after one the next begins


def generate_ids(decoder, prompt, max_tokens, sampling):
    """Yield (B,) ids per step, `max_tokens` of them, for the B texts of the decoder. prompt: ids (n,), n >= 1.

    Text i draws its random numbers from stream i of the seed: the same whether it is made alone or beside others.
    """
    prompt = np.asarray(prompt, np.int32).reshape(-1)
    texts = [list(map(int, prompt)) for _ in range(decoder.batch)]
    for counter in range(max_tokens):
        logits = decoder.step(ids) if counter else decoder.read(np.repeat(prompt[None], decoder.batch, 0))
        ids = np.array([sample(row, sampling, text, counter, stream=i) for i, (row, text) in enumerate(zip(logits, texts))])
        for text, id in zip(texts, ids):
            text.append(int(id))
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
            self.held, self.over = self.held[:min(met)[1]], True
        keep = 0 if met else max((n for s in self.stops for n in range(1, len(s)) if self.held.endswith(s[:n])), default=0)
        shown, self.held = self.held[:len(self.held) - keep], self.held[len(self.held) - keep:]
        return shown

    def end(self):
        """What was held back, once no text can follow."""
        shown, self.held, self.over = self.held, "", True
        return shown


class Text:
    """One text as it is made: ids in, out what may be shown of it. `over` once a stop string or the tokenizer's end of text was met."""

    def __init__(self, tokenizer, stops):
        self.end_of_text, self.stream, self.stops = tokenizer.end_of_text, tokenizer.stream(), Stops(stops)

    @property
    def over(self):
        return self.stops.over

    def push(self, id):
        return self.end() if id == self.end_of_text else self.stops.push(self.stream.push(int(id)))

    def end(self):
        return self.stops.push(self.stream.flush()) + self.stops.end()


def encode_prompt(tokenizer, prompt):
    """Ids (n,) of a prompt; an empty one is what stands between two texts. UserError if the tokenizer cannot express it."""
    if tokenizer is None:
        raise UserError("the run was trained on a token file without a tokenizer, so text cannot be read or written; put its tokenizer.json into the run")
    if prompt:
        return tokenizer.encode(prompt.encode("utf-8", "surrogateescape"))
    try:
        return tokenizer.encode(START)
    except UserError:  # a character vocabulary without line ends
        return np.zeros(1, np.int32)


def generate(model, tokenizer, prompt, max_tokens, sampling, stops=(), samples=1):
    """Iterate over lists of `samples` pieces of text, one of each text, as they are made; joined per text they are what follows the prompt.

    A piece never ends inside a character, nor shows any of a stop string. UserError, at once, for a prompt the tokenizer cannot express.
    """
    ids, decoder = encode_prompt(tokenizer, prompt), Decoder(model, samples)

    def pieces():
        texts = [Text(tokenizer, stops) for _ in range(samples)]
        for new in generate_ids(decoder, ids, max_tokens, sampling):
            yield [text.push(id) for text, id in zip(texts, new)]
            if all(text.over for text in texts):
                return
        yield [text.end() for text in texts]
    return pieces()


def text_of(model, tokenizer, prompt, max_tokens, sampling, stops=()):
    """One whole text, the prompt not included."""
    return "".join(pieces[0] for pieces in generate(model, tokenizer, prompt, max_tokens, sampling, stops))

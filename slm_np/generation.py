"""Text from a model, as it is made: decoding, sampling, stop strings, whole characters."""
import numpy as np

from slm_np.decode import Decoder
from slm_np.errors import UserError
from slm_np.sampling import sample

START = b"\n\n"  # a blank line ends a text, so after one the next begins


def generate_ids(model, prompt, max_tokens, sampling, samples=1, end=None):
    """Yield (samples,) ids per step, at most `max_tokens` of them. prompt: ids (n,), n >= 1.   end: the id after which a text is over, or None.

    Text i draws its random numbers from stream i of the seed: the same whether it is made alone or beside others.
    """
    prompt = np.asarray(prompt, np.int32).reshape(-1)
    decoder = Decoder(model, samples)
    texts = [list(map(int, prompt)) for _ in range(samples)]
    over = np.zeros(samples, bool)
    logits = decoder.read(np.repeat(prompt[None], samples, 0))
    for counter in range(max_tokens):
        ids = np.array([sample(logits[i], sampling, texts[i], counter, stream=i) for i in range(samples)])
        yield ids
        for text, id in zip(texts, ids):
            text.append(int(id))
        if end is not None:
            over |= ids == end
            if over.all():
                return
        if counter + 1 < max_tokens:
            logits = decoder.step(ids)


class Stops:
    """Holds back text that may become a stop string; `over` once one was met, which is not shown."""

    def __init__(self, stops):
        self.stops, self.held, self.over = [s for s in stops if s], "", False

    def push(self, text):
        """The text that may be shown now."""
        if self.over:
            return ""
        self.held += text
        found = [at for at in (self.held.find(s) for s in self.stops) if at >= 0]
        if found:
            self.over = True
            shown, self.held = self.held[:min(found)], ""
            return shown
        keep = max((n for s in self.stops for n in range(1, len(s)) if self.held.endswith(s[:n])), default=0)
        shown, self.held = self.held[:len(self.held) - keep], self.held[len(self.held) - keep:]
        return shown

    def flush(self):
        shown, self.held = ("" if self.over else self.held), ""
        return shown


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
    """Yield lists of `samples` pieces of text as they are made, the prompt not included; joined per sample they are the texts.

    A piece never ends inside a character, nor shows any of a stop string.
    """
    streams, watch = [tokenizer.stream() for _ in range(samples)], [Stops(stops) for _ in range(samples)]
    ended = [False] * samples
    for ids in generate_ids(model, encode_prompt(tokenizer, prompt), max_tokens, sampling, samples, tokenizer.end_of_text):
        pieces = []
        for i, id in enumerate(ids):
            ended[i] = ended[i] or watch[i].over or id == tokenizer.end_of_text
            pieces.append("" if ended[i] else watch[i].push(streams[i].push(int(id))))
        yield pieces
        if all(done or w.over for done, w in zip(ended, watch)):
            return
    yield ["" if done else w.push(s.flush()) + w.flush() for done, s, w in zip(ended, streams, watch)]


def text_of(model, tokenizer, prompt, max_tokens, sampling, stops=()):
    """One whole text, the prompt not included."""
    return "".join(pieces[0] for pieces in generate(model, tokenizer, prompt, max_tokens, sampling, stops))

"""The embedded corpus `stories`: short stories whose entropy is known exactly.

A story is decoded from one random integer. It chooses the plot, and each choice in it takes the remainder of the
integer by the number of options, so all options are equally likely. A story whose choices had n1, n2, ... options has
probability 1 / (n1 n2 ...) and carries log2(n1 n2 ...) bits. The text determines every choice (`read` recovers them),
so the sum of these bits is the entropy of a corpus, and no model can predict it in fewer bits on average.
"""

import math

import numpy as np

from slm_np.data.stories import skimmer
from slm_np.data.stories.home_plots import PLOTS as HOME_PLOTS
from slm_np.data.stories.outdoor_plots import PLOTS as OUTDOOR_PLOTS
from slm_np.data.stories.teller import Question, Reader, Story, StoryError, Writer
from slm_np.data.stories.words import LISTS

PLOTS = HOME_PLOTS | OUTDOOR_PLOTS  # {name: function (Teller)}
WORDS = {name: tuple(sorted(words.words)) for name, words in LISTS.items()}
SEPARATOR = "\n\n"
# Random 64-bit words per story: 2,048 bits, many times what a story needs, so remainders are uniform to 1 in 2^1000.
WORDS_OF_64 = 32


def random_integers(seed):
    """Endless random integers, one per story. Integer k depends on `seed` and k only (Philox)."""
    source = np.random.Philox(key=seed)
    while True:
        words = source.random_raw(WORDS_OF_64 * 64).astype("<u8").tobytes()
        for at in range(0, len(words), 8 * WORDS_OF_64):
            yield int.from_bytes(words[at : at + 8 * WORDS_OF_64], "little")


def _told(seed):
    """Endless (plot's name, Writer that has told a story)."""
    names = tuple(PLOTS)
    for integer in random_integers(seed):
        integer, plot = divmod(integer, len(names))
        writer = Writer(integer)
        PLOTS[names[plot]](writer)
        yield names[plot], writer


def stories(seed):
    """Endless (text, bits): stories that end with a blank line. Story k depends on `seed` and k only."""
    for _, writer in _told(seed):
        yield writer.text() + SEPARATOR, math.log2(writer.outcomes * len(PLOTS))


def tales(seed):
    """The stories of `stories(seed)` as `Story`s, with their facts and questions."""
    for plot, writer in _told(seed):
        yield _story(writer.text() + SEPARATOR, plot, writer)


def write(n_bytes, seed):
    """Yield (text, bits) of whole stories of `stories(seed)` until they have at least `n_bytes`."""
    size = 0
    for text, bits in stories(seed):
        if size >= n_bytes:
            return
        size += len(text)
        yield text, bits


def read(text):
    """The `Story` that a text is; `StoryError` unless exactly one plot tells it."""
    if not text.endswith(SEPARATOR):
        raise StoryError(len(text), "a story ends with a blank line")
    found, error = [], StoryError(0, "there is no plot")
    for plot, tell in PLOTS.items():
        reader = Reader(text[: -len(SEPARATOR)])
        try:
            tell(reader)
            reader.end()
            found.append(_story(text, plot, reader))
        except StoryError as reason:
            error = max(error, reason, key=lambda error: error.position)
    if not found:
        raise error
    if len(found) > 1:
        raise StoryError(0, f"{len(found)} plots tell this text")
    return found[0]


def bits_of(text):
    """The information of one story in bits, recovered from its text alone; `StoryError` if it is none."""
    return read(text).bits


def sentences(text):
    """[(sentence, accepted)] of a text that may be wrong, for the plot that accepts most of its sentences.

    A sentence is accepted if the plot can tell it after the accepted sentences before. So a wrong name, thing, place or
    feeling makes a sentence wrong; one that does not fit is skipped, and reading goes on with what is established.
    """
    return skimmer.sentences(text, list(PLOTS.values())) if text.strip() else []


def _story(text, plot, teller):
    return Story(text, math.log2(teller.outcomes * len(PLOTS)), plot, teller.facts(), teller.questions())

"""The embedded corpus `dialogues`: a story and questions about it, whose answers the story determines exactly.

A row is a conversation about a whole new story of `stories`, with one to four of the questions that its plot asks:
    {"messages": [{"role": "user", "content": STORY QUESTION}, {"role": "assistant", "content": ANSWER}, ...]}
The story is one line there. Its words are drawn from long lists, so an answer must be read in the story and cannot be
guessed. Under the default chat template and with the tokenizer `stories`, a dialogue fits into a context of 256.
"""

import json
import re
from typing import NamedTuple

from slm_np.data import stories

KINDS = ("who", "whose", "what", "where", "why", "how", "before", "after")
MOST = 4  # questions of a dialogue
LONGEST = 242  # words and punctuation marks of a dialogue: less than 256, since a rare word may have several tokens
MARKERS = 6  # of them, which the default chat template adds to a question and its answer: "Q:", "A:", two line ends
WORD = re.compile(r"[A-Za-z]+|[^\sA-Za-z]+")
# Second words of the random key, whose first word is the seed: no corpus of stories has these stories.
STORIES, CHOICES = 1 << 64, 2 << 64


class Dialogue(NamedTuple):
    """A story and the questions that are asked about it."""

    story: str  # in one line
    turns: tuple  # of `stories.Question`s
    plot: str


def dialogue(story, kind, choose):
    """The `Dialogue` about a `stories.Story` whose first question is of a kind. choose: function (n) -> number below n.

    Each further question is of a kind that is drawn from those left. None if the story has no question of the first
    kind, or is too long for it.
    """
    text, turns, left = " ".join(story.text.split()), [], {}  # left: {kind: questions not yet asked}
    for question in dict.fromkeys(story.questions):
        left.setdefault(question.kind, []).append(question)
    size = n_words(text)
    for _ in range(1 + choose(MOST)):
        if kind not in left:
            break
        turn = left[kind].pop(choose(len(left[kind])))
        size += n_words(turn.question) + n_words(turn.answer) + MARKERS
        if size > LONGEST:
            break
        turns.append(turn)
        left = {kind: questions for kind, questions in left.items() if questions}
        kind = list(left)[choose(len(left))] if left else ""
    return Dialogue(text, tuple(turns), story.plot) if turns else None


def n_words(text):
    """The number of words and of runs of other characters in a text."""
    return len(WORD.findall(text))


def dialogues(seed):
    """Endless `Dialogue`s. Dialogue k depends on `seed` and k only.

    The kind of a first question is drawn from `KINDS`, and the next story that has one is taken, so no kind is rare.
    """
    kind = ""
    for story, integer in zip(stories.tales(STORIES + seed), stories.random_integers(CHOICES + seed)):

        def choose(n):
            nonlocal integer
            integer, option = divmod(integer, n)
            return option

        kind = kind or KINDS[choose(len(KINDS))]
        found = dialogue(story, kind, choose)
        if found:
            yield found
            kind = ""


def messages(dialogue):
    """The messages of a `Dialogue`. The first one holds the story and the first question."""
    found = []
    for n, turn in enumerate(dialogue.turns):
        found.append(dict(role="user", content=turn.question if n else f"{dialogue.story} {turn.question}"))
        found.append(dict(role="assistant", content=turn.answer))
    return found


def write(n_bytes, seed):
    """Yield (line, None), rows of `dialogues(seed)` of unknown entropy, until they have at least `n_bytes`."""
    size = 0
    for found in dialogues(seed):
        if size >= n_bytes:
            return
        line = json.dumps(dict(messages=messages(found))) + "\n"
        size += len(line)
        yield line, None

"""Reads a text that may be no story: which of its sentences a plot tells, given those that it tells before.

A sentence that does not fit is skipped, in the text and in the plot. What it would have told stays open: a role gets
its word from a later sentence, and a branch of the plot is tried in each way. So is a sentence too many or too few.
"""

import re

from slm_np.data.stories.teller import Choice, Teller
from slm_np.data.stories.words import LISTS, ROLES

ENDS = re.compile(r'(?<=[.!?])\s+|(?<=[.!?]")\s+')  # the white space after a sentence
STEPS = 1, 2, 0  # sentences of the text that a wrong sentence of the plot may take


class _End(Exception):
    """The text has no more sentences."""


class Skimmer(Teller):
    """Reads a text sentence by sentence.

    spans: (start, stop) of each sentence   decisions: numbers of the options to take where the text does not tell
    """

    def __init__(self, text, spans, decisions=()):
        super().__init__()
        self.text, self.spans, self.decisions = text, spans, decisions
        self.accepted = [False] * len(spans)
        self.offered = []  # how many options each decision had
        self.sentence, (self.at, self.stop) = 0, spans[0]
        self.skips = False  # until the end of the plot's sentence
        self.branches = False  # whether the next choice is one of `choose`
        self.told = ""  # the plot's last two characters
        self.entries = {}  # {role: entries that it can be}
        self.before = {}  # the same before this sentence

    def __getitem__(self, role):
        groups = {}
        for entry in self.entries.get(role) or LISTS[ROLES[role]].pairs:
            groups.setdefault(entry.kinds, []).append(entry)
        found = list(groups.values())
        self.entries[role] = found[self.decide(len(found))] if len(found) > 1 else found[0]
        return self.entries[role][0]

    def say(self, part):
        text, at = self.told + part, len(self.told)
        for end in ENDS.finditer(text, at):
            self.expect(text[at : end.start()])
            self.end_sentence()
            at = end.end()
        self.expect(text[at:])
        self.told = text[-2:]

    def expect(self, part):
        if not self.skips:
            if self.text.startswith(part, self.at) and self.at + len(part) <= self.stop:
                self.at += len(part)
            else:
                self.skip()

    def skip(self):
        """The sentence is wrong: what it told is open again."""
        self.skips, self.entries = True, dict(self.before)

    def end_sentence(self):
        if self.at != self.stop:
            self.skip()
        self.accepted[self.sentence] = self.accepted[self.sentence] or not self.skips
        self.sentence += STEPS[self.decide(len(STEPS))] if self.skips else 1
        if self.sentence >= len(self.spans):
            raise _End
        self.at, self.stop = self.spans[self.sentence]
        self.skips, self.before = False, dict(self.entries)

    def mention(self, mention):
        self.told = "x"
        if self.skips:
            return
        entries, text = self.entries.get(mention.role), None
        if entries is None:
            text = mention.found(self.text, self.at)
            if text:
                taken = {entries[0].word for entries in self.entries.values() if len({e.word for e in entries}) == 1}
                entries = [entry for entry in mention.spellings[text] if entry.word not in taken]
        else:
            text = longest(self.text, self.at, {mention.spelled(entry) for entry in entries})
            entries = [entry for entry in entries if mention.spelled(entry) == text]
        if text and entries:
            self.entries[mention.role] = entries
            self.at += len(text)
        else:
            self.skip()

    def choose(self, *templates):
        self.branches = True
        return super().choose(*templates)

    def pick(self, options, choice):
        branches, self.branches = self.branches, False
        fitting = range(len(options))
        if not self.skips:
            fitting = [n for n in fitting if self.fits(options[n] + choice.after, self.at)]
            if len(fitting) == 1:
                return fitting[0]
            if not fitting:
                self.skip()
                fitting = range(len(options))
        if branches or not self.skips:
            return fitting[self.decide(len(fitting))]
        return 0

    def decide(self, n):
        number = len(self.offered)
        self.offered.append(n)
        return self.decisions[number] if number < len(self.decisions) else 0

    def fits(self, parts, at):
        """Whether the sentence from `at` on can be these parts, up to their first end of a sentence."""
        for n, part in enumerate(parts):
            kind = part.__class__
            if kind is Choice:
                return any(self.fits(option + parts[n + 1 :], at) for option in part.options)
            if kind is str:
                end = ENDS.search(part)
                known = part[: end.start()] if end else part
                if not self.text.startswith(known, at):
                    return False
                at += len(known)
                if end:
                    return at == self.stop
            else:
                entries = self.entries.get(part.role)
                if entries is None:
                    text = part.found(self.text, at)
                else:
                    text = longest(self.text, at, {part.spelled(entry) for entry in entries})
                if not text:
                    return False
                at += len(text)
        return True

    def read(self, plot):
        """Let a plot tell. Returns self."""
        try:
            plot(self)
            self.accepted[self.sentence] = self.at == self.stop and not self.skips
        except _End:
            pass
        return self


def longest(text, at, options):
    """The longest option that is in a text at a position; None if there is none."""
    return max((option for option in options if text.startswith(option, at)), key=len, default=None)


def skimmed(text, plot, spans):
    """The `Skimmer` with which a plot tells most sentences of a text."""
    best, number = Skimmer(text, spans).read(plot), 0
    while number < len(best.offered):
        decisions = [*best.decisions, *[0] * number][:number]
        for option in range(1, best.offered[number]):
            other = Skimmer(text, spans, [*decisions, option]).read(plot)
            if sum(other.accepted) > sum(best.accepted):
                best = other
        number += 1
    return best


def sentences(text, plots):
    """[(sentence, whether a plot tells it)] of a text, for the one of `plots` that tells most of them."""
    starts = [0, *(end.end() for end in ENDS.finditer(text.rstrip()))]
    stops = [*(end.start() for end in ENDS.finditer(text.rstrip())), len(text.rstrip())]
    spans = list(zip(starts, stops))
    accepted = [False] * len(spans)
    for plot in sorted(plots, key=lambda plot: -sum(Skimmer(text, spans).read(plot).accepted)):
        if not all(accepted):
            accepted = max(accepted, skimmed(text, plot, spans).accepted, key=sum)
    merged = []
    for (start, stop), right in zip(spans, accepted):
        if merged and text[start].islower():  # "she said" after words in quotes
            (begin, _), whole = merged.pop()
            merged.append(((begin, stop), whole and right))
        else:
            merged.append(((start, stop), right))
    return [(text[start:stop], right) for (start, stop), right in merged]

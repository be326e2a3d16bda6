"""The engine of the stories: a plot tells through a `Teller`, which writes a new story or reads one in the same calls.

The syntax of a template:
    {hero}          the word that has this role, drawn from the role's list where it first occurs
    {hero.he}       a field of that word; {Hero} and {hero.He} capitalize the first letter
    {a toy.full}    the word after "a" or "an"; {A toy.full} capitalizes the article
    (x|y)           x or y, equally likely
    <soon>          a phrase of words.PHRASES; <Soon> capitalizes each of its options
"""

import functools
import re
from typing import NamedTuple

from slm_np.data.stories.words import LISTS, PHRASES, ROLES


class StoryError(ValueError):
    """A text that no plot tells. position: of the first character that does not fit; reason: what is wrong there."""

    def __init__(self, position, reason):
        super().__init__(f"{reason} (character {position})")
        self.position, self.reason = position, reason


class Question(NamedTuple):
    """A question that a reader of the story can answer."""

    question: str
    answer: str
    kind: str  # before, after, or the first word of the question


class Story(NamedTuple):
    """A story and what it tells."""

    text: str  # with the blank line after it
    bits: float  # of information: log2 of the number of equally likely stories
    plot: str
    facts: dict  # {role: word, and role.look: adjective}
    questions: tuple  # of `Question`s


class Mention:
    """Where a template mentions the word of a role."""

    def __init__(self, article, role, field):
        self.article = article
        self.role, self.field = role[0].lower() + role[1:], field[0].lower() + field[1:]
        self.capital = not article and (role[0].isupper() or field[0].isupper())
        self.after = []  # the parts after it, to the end of the template
        self.list = LISTS[ROLES[self.role]]
        self.options = self.list.pairs if self.field in ("full", "look") else self.list.entries

    def spelled(self, entry):
        """The text of this mention for an `Entry`."""
        text = entry.__dict__[self.field]
        if self.article:
            return f"{self.article}n {text}" if starts_with_vowel(text) else f"{self.article} {text}"
        return text[0].upper() + text[1:] if self.capital else text

    @functools.cached_property
    def spellings(self):
        """{text: entries of the list that this mention spells so}"""
        return self._by_text(self.list.pairs)

    @functools.cached_property
    def drawn(self):
        """{text: options that this mention spells so}"""
        return self._by_text(self.options)

    def _by_text(self, entries):
        found = {}
        for entry in entries:
            found.setdefault(self.spelled(entry), []).append(entry)
        return found

    @functools.cached_property
    def lengths(self):
        """The lengths of its texts, the longest first."""
        return sorted({len(text) for text in self.spellings}, reverse=True)

    def found(self, text, at):
        """The longest of its texts that is in `text` at a position, up to the end of a word; or None."""
        for length in self.lengths:
            known = text[at : at + length]
            if known in self.spellings and not text[at + length : at + length + 1].isalpha():
                return known
        return None


class Choice:
    """Where a template offers several texts."""

    def __init__(self, options):
        self.options = options  # a list of parts each
        self.after = []


@functools.cache
def starts_with_vowel(text):
    """Whether "an" is before this text."""
    return bool(re.match("[aeio]|u(?!ni|se)|hour|honest", text))


@functools.cache
def parsed(template):
    """The parts of a template: strings, `Mention`s and `Choice`s."""
    while "<" in template:
        template = re.sub("<(.*?)>", lambda match: phrase(match[1]), template)
    stack = [[[]]]  # for each open parenthesis its options so far
    for token in re.findall(r"[^{}()|]+|{.*?}|.", template):
        if token == "(":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == ")":
            options = stack.pop()
            stack[-1][-1].append(Choice(options))
        elif token[0] == "{":
            article, role, field = re.fullmatch(r"{(?:([aA]) )?(\w+)(?:\.(\w+))?}", token).groups()
            stack[-1][-1].append(Mention(article or "", role, field or "word"))
        else:
            stack[-1][-1].append(token)
    [[parts]] = stack
    _link(parts, [])
    return parts


@functools.cache
def alternatives(templates):
    """The `Choice` between several templates."""
    return Choice(list(map(parsed, templates)))


def phrase(name):
    """The text of a phrase; a capital in its name capitalizes each of its options."""
    text = PHRASES[name[0].lower() + name[1:]]
    return text if name[0].islower() else capitalized(text)


def capitalized(text):
    """A template with a capital where any of its texts begins."""
    found, groups, begins = [], [], True  # groups: for each open parenthesis whether the text can begin there
    for letter in text:
        if letter == "(":
            groups.append(begins)
        elif letter == "|":
            begins = groups[-1]
        elif letter == ")":
            groups.pop()
            begins = False
        else:
            letter, begins = letter.upper() if begins else letter, False
        found.append(letter)
    return "".join(found)


def _link(parts, after):
    """Tell every mention and choice of these parts what comes after it."""
    for n, part in enumerate(parts):
        if part.__class__ is not str:
            part.after = parts[n + 1 :] + after
            if part.__class__ is Choice:
                for option in part.options:
                    _link(option, part.after)


class Teller:
    """What a plot tells through. Subclasses decide what a choice yields (`pick`) and what happens to text (`say`)."""

    def __init__(self):
        self.cast = {}  # {role: Entry}
        self.taken = set()  # their words, which no other role may have
        self.asked = []  # (question, answer) as templates
        self.gap = ""  # before the next sentence
        self.outcomes = 1  # how many stories are as likely as this one

    # What plots call

    def __call__(self, template):
        """Tell a sentence or several."""
        if self.gap:
            self.say(self.gap)
        self.gap = " "
        self.tell(parsed(template))

    def choose(self, *templates):
        """Tell one of the templates. Returns its number."""
        if self.gap:
            self.say(self.gap)
        self.gap = " "
        choice = alternatives(templates)
        option = self.pick(choice.options, choice)
        self.tell(choice.options[option])
        return option

    def paragraph(self):
        """Start a new paragraph."""
        self.gap = "\n"

    def ask(self, question, answer):
        """Note a question that has exactly this answer at the end of the story."""
        self.asked.append((question, answer))

    def __getitem__(self, role):
        """The `Entry` of a role that was mentioned; KeyError otherwise."""
        return self.cast[role]

    # How it is told

    def tell(self, parts):
        for part in parts:
            kind = part.__class__
            if kind is str:
                self.say(part)
            elif kind is Mention:
                self.mention(part)
            else:
                self.tell(part.options[self.pick(part.options, part)])

    def mention(self, mention):
        entry = self.cast.get(mention.role)
        self.say(mention.spelled(self.draw(mention) if entry is None else entry))

    def draw(self, mention):
        """Give a role its word: one that no other role has."""
        options = self.options(mention)
        entry = self.cast[mention.role] = options[self.pick(options, mention)]
        self.taken.add(entry.word)
        return entry

    def options(self, mention):
        """The entries that a role can have."""
        if self.taken.isdisjoint(mention.list.words):
            return mention.options
        return [entry for entry in mention.options if entry.word not in self.taken]

    def facts(self):
        found = {role: entry.word for role, entry in self.cast.items()}
        found.update((f"{role}.look", entry.look) for role, entry in self.cast.items() if entry.look)
        return found

    def questions(self):
        """The `Question`s asked, in their words."""

        def text(template):
            return "".join(p if p.__class__ is str else p.spelled(self.cast[p.role]) for p in parsed(template))

        return tuple(Question(text(question), text(answer), kind_of(question)) for question, answer in self.asked)


def kind_of(question):
    """The kind of a question: before, after, or its first word."""
    found = re.match("What happened (before|after)", question)
    return found[1] if found else re.match("[A-Za-z]+", question)[0].lower()


class Writer(Teller):
    """Writes a story: each choice takes the remainder of `integer` by the number of options."""

    def __init__(self, integer):
        super().__init__()
        self.integer, self.parts = integer, []
        self.say = self.parts.append

    def pick(self, options, part):
        n = len(options)
        self.outcomes *= n
        self.integer, option = divmod(self.integer, n)
        return option

    def text(self):
        return "".join(self.parts)


class Reader(Teller):
    """Reads a story: each choice is the only option that fits the text."""

    def __init__(self, text):
        super().__init__()
        self.text, self.at = text, 0

    def say(self, part):
        if not self.text.startswith(part, self.at):
            common = next((n for n, (a, b) in enumerate(zip(part, self.text[self.at :])) if a != b), len(part))
            raise StoryError(
                self.at + common, f"expected {part[common:]!r}, found {self.text[self.at + common :][:20]!r}"
            )
        self.at += len(part)

    def pick(self, options, choice):
        fitting = [n for n, option in enumerate(options) if self.fits(option + choice.after, self.at)]
        return self.only(fitting, len(options))

    def draw(self, mention):
        fitting = [
            entry
            for entry in mention.drawn.get(mention.found(self.text, self.at), ())
            if entry.word not in self.taken and self.can_be(mention, entry)
        ]
        entry = self.only(fitting, len(self.options(mention)))
        self.cast[mention.role] = entry
        self.taken.add(entry.word)
        return entry

    def only(self, fitting, n):
        """The only option that fits, one of n; StoryError if several do, or none."""
        if len(fitting) != 1:
            raise StoryError(self.at, f"{len(fitting)} options fit {self.text[self.at : self.at + 20]!r}")
        self.outcomes *= n
        return fitting[0]

    def can_be(self, mention, entry):
        """Whether the text goes on with this entry and with what comes after it in its template."""
        self.cast[mention.role] = entry
        fits = self.fits([mention, *mention.after], self.at)
        del self.cast[mention.role]
        return fits

    def fits(self, parts, at):
        """Whether the text from `at` on can be these parts; a role without a word may have any of its list."""
        for n, part in enumerate(parts):
            kind = part.__class__
            if kind is Choice:
                return any(self.fits(option + parts[n + 1 :], at) for option in part.options)
            if kind is Mention and part.role not in self.cast:
                known = part.found(self.text, at)
                if not known:
                    return False
                at += len(known)
                continue
            known = part if kind is str else part.spelled(self.cast[part.role])
            if not self.text.startswith(known, at):
                return False
            at += len(known)
        return not (at < len(self.text) and self.text[at - 1 : at + 1].isalpha())

    def end(self):
        if self.at != len(self.text):
            raise StoryError(self.at, f"expected the end, found {self.text[self.at : self.at + 20]!r}")

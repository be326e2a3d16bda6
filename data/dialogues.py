"""The embedded corpus `dialogues`: a short story and questions about it, whose answers the story determines exactly.

A row is a conversation about a story in the words of `stories`, with one to four questions:
    {"messages": [{"role": "user", "content": STORY QUESTION}, {"role": "assistant", "content": ANSWER}, ...]}
Everyone and everything that a question is about has a role in the story. Its word is drawn from a list of up to a
hundred, so an answer must be read in the story and cannot be guessed. Under the default chat template a dialogue has at
most `LONGEST` bytes and fits into a context of 256.

The syntax of a plot: the story's script, as in `stories`, then a line `QUESTION = ANSWER` for each question.
"""

import json
import re
from typing import NamedTuple

from slm_np.data import stories

LONGEST = 250  # bytes of a conversation under the default chat template
MARKERS = len("Q: \nA: \n")  # bytes that the template adds to a question and its answer
ROLES = dict(
    stories.ROLES,
    tool="thing",
    pet="animal",
    home="place",
    spot="place",
    look="red",
    hue="red",
    coat="red",
    fur="red",
    taste="odd",
    air="odd",
    way="odd",
    joy="glad",
    cheer="glad",
    sorrow="sad",
    woe="sad",
    trait="shy",
    habit="shy",
    weather="cold",
)
COLORS = frozenset(
    "red blue green pink white black brown grey gold silver yellow purple orange cream tan rose plum lime mint teal "
    "amber coral lilac navy ruby jade ivory beige olive peach lemon copper bronze violet maroon indigo scarlet "
    "azure pearl hazel mauve khaki crimson tawny".split()
)

OPENINGS = (
    """
{hero} was {trait} and {habit}.
What was {hero} like? = {He} was {trait} and {habit}.
""",
    """
{hero} lived by the {air} {home}.
Where did {hero} live? = By the {air} {home}.
Who lived by the {home}? = {hero}.
Whose home was by the {home}? = {hero}'s.
""",
    """
{hero} loved the {fur} {pet}.
Who loved the {pet}? = {hero}.
(What|Which animal) did {hero} love? = The {fur} {pet}.
""",
    """
{hero} kept the {hue} {tool} at home.
Whose {tool} was at home? = {hero}'s.
Who kept the {tool}? = {hero}.
What did {hero} keep at home? = The {hue} {tool}.
""",
)

PLOTS = dict(
    lost="""
lost the {look} {thing}. {friend} found it by the {way} {spot}. {hero} felt {joy} and {cheer}.
Who lost the {thing}? = {hero}.
Who (found the {thing}|helped {hero})? = {friend}.
Whose {thing} (was lost|did {friend} find)? = {hero}'s.
What did {hero} lose? = The {look} {thing}.
What (did {friend} find|was lost)? = The {look} {thing}.
Where (was the {thing}|did {friend} find the {thing})? = By the {way} {spot}.
How did {hero} feel? = {He} felt {joy} and {cheer}.
""",
    gift="""
got the {look} {thing} from {friend}. {He} felt {joy} and {cheer}, and took it to the {way} {spot}.
Who (got|was given) the {thing}? = {hero}.
Who (gave|brought) {hero} the {thing}? = {friend}.
Whose (present|gift) was the {thing}? = {friend}'s.
What did {hero} get from {friend}? = The {look} {thing}.
What did {friend} give {hero}? = The {look} {thing}.
Where did {hero} take the {thing}? = To the {way} {spot}.
How did {hero} feel? = {He} felt {joy} and {cheer}.
""",
    share="""
packed the {taste} {snack}. {friend} sat by the {way} {spot} and felt {sorrow} and {woe}, \
so {hero} gave away half of it.
Who (packed the {snack}|gave away the {snack})? = {hero}.
Who (felt {woe}|got half of the {snack})? = {friend}.
Whose {snack} did {friend} get? = {hero}'s.
What did {hero} (pack|give away)? = The {taste} {snack}.
Where (did {friend} sit|was {friend})? = By the {way} {spot}.
How did {friend} feel? = {FriendHe} felt {sorrow} and {woe}.
""",
    rescue="""
saw the {coat} {beast} stuck under the {look} {thing}. {friend} pulled it out. The {beast} felt {joy} and {cheer}.
Who saw the {beast}? = {hero}.
Who (freed the {beast}|pulled the {beast} out)? = {friend}.
(What|Which animal) did {hero} see? = The {coat} {beast}.
(What|Which animal) was stuck? = The {coat} {beast}.
Where was the {beast} stuck? = Under the {look} {thing}.
How did the {beast} feel? = It felt {joy} and {cheer}.
""",
    learn="""
wished to draw the {coat} {beast}. {friend} lent {him} the {look} {thing}, and {he} felt {joy} and {cheer}.
Who wished to draw? = {hero}.
Who (lent {hero}|owned) the {thing}? = {friend}.
Whose {thing} was it? = {friend}'s.
(What|Which animal) did {hero} wish to draw? = The {coat} {beast}.
What did {friend} lend {hero}? = The {look} {thing}.
How did {hero} feel? = {He} felt {joy} and {cheer}.
""",
    visit="""
saw gran by the {way} {spot}. {He} brought the {look} {thing}, and gran felt {joy} and {cheer}.
Who (went to see|saw) gran? = {hero}.
Who brought the {thing}? = {hero}.
Whose gran lived by the {spot}? = {hero}'s.
What did (gran get|{hero} bring)? = The {look} {thing}.
Where (was|did {hero} see) gran? = By the {way} {spot}.
How did gran feel? = She felt {joy} and {cheer}.
""",
    rain="""
played by the {way} {spot}, but it began to rain. {friend} had the {look} {thing} inside, \
and they felt {joy} and {cheer}.
Who played by the {spot}? = {hero}.
Who had the {thing}? = {friend}.
Whose {thing} was inside? = {friend}'s.
What did {friend} have? = The {look} {thing}.
Where did {hero} play? = By the {way} {spot}.
How did they feel? = They felt {joy} and {cheer}.
""",
    make="""
made the {look} {thing} for {friend}. {friend} felt {joy} and {cheer}, and put it by the {way} {spot}.
Who made the {thing}? = {hero}.
Who (got the {thing}|was the {thing} for)? = {friend}.
Whose work was the {thing}? = {hero}'s.
What did {hero} make? = The {look} {thing}.
What did {friend} (get|put by the {spot})? = The {look} {thing}.
Where did {friend} put the {thing}? = By the {way} {spot}.
How did {friend} feel? = {FriendHe} felt {joy} and {cheer}.
""",
    fear="""
heard a noise by the {way} {spot} and felt {sorrow} and {woe}. {friend} saw that it was the {coat} {beast}.
Who heard (a|the) noise? = {hero}.
Who saw the {beast}? = {friend}.
(What|Which animal) made the noise? = The {coat} {beast}.
What did {friend} see? = The {coat} {beast}.
Where was the (noise|{beast})? = By the {way} {spot}.
How did {hero} feel? = {He} felt {sorrow} and {woe}.
""",
    grow="""
put a seed by the {way} {spot}. The {coat} {beast} sat on it, so {friend} made a fence. {hero} felt {joy} and {cheer}.
Who put (a|the) seed by the {spot}? = {hero}.
Who made (a|the) fence? = {friend}.
Whose seed was it? = {hero}'s.
(What|Which animal) sat on the seed? = The {coat} {beast}.
Where was the seed? = By the {way} {spot}.
How did {hero} feel? = {He} felt {joy} and {cheer}.
""",
)

# Questions about every story that has these roles. A color is asked for only if the word is one ("a damp boat"
# has none).
ALWAYS = """
(What was the day like|How was the day)? = It was {weather}.
What colour was the {thing}? = It was {look}.
What colour was the {tool}? = It was {hue}.
What colour was the {beast}? = It was {coat}.
What colour was the {pet}? = It was {fur}.
"""


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str
    kind: str  # who, whose, what, where, how or color


class Dialogue(NamedTuple):
    """A story and the questions about it."""

    story: str
    turns: tuple
    facts: dict  # {role: word} that answer the questions, and the plot


def kind_of(line):
    """The kind of a question: color, or its first word."""
    return "color" if "colour" in line else re.search("[A-Za-z]+", line)[0].lower()


def roles_of(line):
    """The roles that occur in a line."""
    return set(re.findall("{(.*?)}", line)) & set(ROLES)


def parse_question(line):
    """(kind, roles, question's parts, answer's parts) of a line `QUESTION = ANSWER`."""
    return kind_of(line), roles_of(line), *(stories.parse_script(part, ROLES) for part in line.split(" = "))


def parse_plot(text, after=""):
    """(story's parts, questions) of an opening or a plot. `after` is appended to the story's script."""
    story, *lines = text.strip().split("\n")
    return stories.parse_script(story + after, ROLES), list(map(parse_question, lines))


WHEN = "(One day|One {weather} day), "
# Half of the stories have no opening.
BEGINNINGS = [parse_plot(WHEN + "{hero}")] * len(OPENINGS) + [
    parse_plot(text, after=f" {WHEN}{{he}}") for text in OPENINGS
]
MIDDLES = {plot: parse_plot(text) for plot, text in PLOTS.items()}
ANYWHERE = list(map(parse_question, ALWAYS.strip().split("\n")))


def dialogue(choose):
    """One `Dialogue`. choose: function (n) -> number below n, all equally likely."""
    writer = stories.StoryWriter(lambda n, text_so_far, options: choose(n))
    facts = writer.facts

    def expanded(parts):
        start = len(writer.text)
        writer.expand(parts)
        return "".join(writer.text[start:])

    plot = list(MIDDLES)[choose(len(MIDDLES))]
    (beginning, early), (middle, late) = BEGINNINGS[choose(len(BEGINNINGS))], MIDDLES[plot]
    story = f"{expanded(beginning)} {expanded(middle)}"
    facts.update(plot=plot, FriendHe="She" if facts.get("friend") in stories.WORDS["girl"] else "He")
    questions = {}  # {kind: [(question's parts, answer's parts), ...]} that this story answers
    for kind, roles, *parts in early + late + ANYWHERE:
        if roles <= set(facts) and (kind != "color" or any(facts[role] in COLORS for role in roles)):
            questions.setdefault(kind, []).append(parts)
    turns, size = [], len(story + " ")
    for _ in range(1 + choose(4)):
        kind = list(questions)[choose(len(questions))]  # the kind comes first, so that no kind is rare
        question, answer = questions[kind].pop(choose(len(questions[kind])))
        if not questions[kind]:
            del questions[kind]
        turn = Turn(expanded(question), expanded(answer), kind)
        size += len(turn.question) + len(turn.answer) + MARKERS
        if size > LONGEST and turns:
            break
        turns.append(turn)
    return Dialogue(story, tuple(turns), facts)


def dialogues(seed):
    """Endless `Dialogue`s. Dialogue k depends on `seed` and k only."""
    for integer in stories.random_integers(seed):

        def choose(n):
            nonlocal integer
            integer, option = divmod(integer, n)
            return option

        yield dialogue(choose)


def messages(dialogue):
    """The messages of a `Dialogue`. The first one holds the story and the first question."""
    story, turns, _ = dialogue
    found = []
    for n, turn in enumerate(turns):
        found.append(dict(role="user", content=turn.question if n else f"{story} {turn.question}"))
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

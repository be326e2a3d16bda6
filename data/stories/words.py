"""The words of the stories: lists with the adjectives that fit each word, the roles that draw from them, and phrases.

A line of a list is `word: adjective, adjective, ...; field=text; field=text`. Adjectives and fields are optional. An
entry with adjectives has the fields `look` and `full` ("red", "red kite") where it is drawn with one.
"""


class Entry:
    """A word and its fields, as attributes: `word`, `key` (the word again), `look`, `full` and those of its line."""

    def __init__(self, word, look="", **fields):
        self.word = self.key = word
        self.look = look
        self.full = f"{look} {word}" if look else word
        self.__dict__.update(fields)


class WordList:
    """The entries of a list, and those with one of their adjectives each.

    lines: the list's text   common: fields of all entries
    """

    def __init__(self, lines, **common):
        entries, pairs = [], []
        for line in filter(None, map(str.strip, lines.split("\n"))):
            described, *fields = line.split(";")
            word, _, looks = map(str.strip, described.partition(":"))
            fields = common | dict(map(str.strip, field.split("=")) for field in fields)
            entries.append(Entry(word, **fields))
            pairs += [Entry(word, look.strip(), **fields) for look in looks.split(",")]
        self.entries, self.pairs = tuple(entries), tuple(pairs)
        self.words = frozenset(entry.word for entry in entries)


def names(words, **fields):
    return WordList("\n".join(words.split()), **fields)


def joined(*lists):
    """One list of the entries of several."""
    found = WordList("")
    found.entries = tuple(entry for one in lists for entry in one.entries)
    found.pairs = tuple(entry for one in lists for entry in one.pairs)
    found.words = frozenset(entry.word for entry in found.entries)
    return found


SHE = dict(he="she", him="her", his="her", himself="herself", girl="girl", son="daughter", brother="sister")
HE = dict(he="he", him="him", his="his", himself="himself", girl="boy", son="son", brother="brother")
MASS = dict(was="was", it="it", them="it", some="some", this="this")
MANY = dict(was="were", it="they", them="them", some="some", this="these")

GIRLS = names(
    "Alice Anna Bella Clara Daisy Ella Emily Emma Grace Hannah Jane Julia Kate Laura Lily Lisa Lucy Mary Mia Molly "
    "Nancy Nina Nora Olivia Rachel Rosa Ruby Sally Sarah Sophie Susan Zoe",
    **SHE,
)
BOYS = names(
    "Adam Andy Ben Billy Bobby Charlie Daniel David Eric Frank George Harry Henry Jack Jacob James John Leo Luke Mark "
    "Max Michael Nick Noah Oliver Oscar Paul Peter Sam Simon Tim Tom",
    **HE,
)
COLORS = "red, blue, green, yellow, orange, purple, white, black, brown, pink"

LISTS = dict(
    name=joined(GIRLS, BOYS),
    girl=GIRLS,
    boy=BOYS,
    # kind: how such a child goes about things
    trait=WordList("""
        careful; kind=quiet
        patient; kind=quiet
        quiet; kind=quiet
        gentle; kind=quiet
        brave; kind=bold
        curious; kind=bold
        lively; kind=bold
        cheerful; kind=bold
    """),
    elder=joined(
        WordList("mother\ngrandmother\naunt", **SHE),
        WordList("father\ngrandfather\nuncle", **HE),
    ),
    pet_name=names(
        "Biscuit Bramble Bubbles Button Cocoa Cookie Domino Fluffy Ginger Honey Jingles Lucky Marble Mittens Muffin "
        "Nibbles Nutmeg Patch Peanut Pebbles Pepper Pickles Poppy Pudding Rusty Scruffy Shadow Smoky Snowball Socks "
        "Sparky Waffles"
    ),
    toy=WordList(f"""
        kite: {COLORS}, paper, long
        ball: {COLORS}, rubber, striped
        drum: {COLORS}, tin, shiny
        top: {COLORS}, wooden, shiny
        whistle: {COLORS}, tin, wooden
        sled: {COLORS}, wooden, fast
        wagon: {COLORS}, wooden, little
        balloon: {COLORS}, round, shiny
        yo-yo: {COLORS}, wooden, shiny
        robot: {COLORS}, tin, shiny
        train: {COLORS}, wooden, little
        puppet: {COLORS}, wooden, funny
        teddy bear: {COLORS}, soft, fluffy
        doll: wooden, little, pretty, rag, tiny, old
        toy boat: {COLORS}, wooden, little
        toy car: {COLORS}, shiny, fast
        toy horse: {COLORS}, wooden, little
        toy plane: {COLORS}, paper, wooden
    """),
)

ROLES = dict(hero="name", friend="name", trait="trait", elder="elder", pet="pet_name", toy="toy")

# Phrases that plots share, without anything to remember.
PHRASES = dict(
    soon="(soon|before long|in a little while|after a while|a little later|not long after)",
    then="(then|next|after that|a moment later|right away|at once)",
    said="(said|called|cried|shouted)",
)

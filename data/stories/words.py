"""The words of the stories: lists with the adjectives that fit each word, the roles that draw from them, and phrases.

A line of a list is `word: adjective, adjective, ...; field=text; field=text`. Adjectives and fields are optional. An
entry with adjectives has the fields `look` and `full` ("red", "red kite") where it is drawn with one.
"""


class Entry:
    """A word and its fields, as attributes: `word`, `key` (the word again), `look`, `full` and those of its line."""

    def __init__(self, word, look="", **fields):
        self.word = self.key = word
        self.look = look  # "" if it has none
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
    pet=WordList("""
        dog: brown, black, white, spotted, small, big, friendly, old
        puppy: brown, black, white, spotted, small, fluffy, playful, clumsy
        cat: gray, black, white, striped, fat, fluffy, old, sleepy
        kitten: gray, black, white, striped, tiny, fluffy, playful, hungry
        rabbit: gray, brown, white, spotted, small, fluffy, timid, hungry
        hamster: brown, white, golden, spotted, tiny, fluffy, round, sleepy
        parrot: green, blue, red, gray, noisy, clever, old, hungry
        turtle: green, brown, spotted, small, slow, old, shy, hungry
    """),
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
    # a treat that is baked or made, one that can be cut in half
    treat=WordList("""
        cake: apple, carrot, chocolate, lemon, honey, nut, plum, cherry
        pie: apple, cherry, plum, peach, berry, pumpkin, pear, lemon
        sandwich: cheese, ham, egg, jam, tomato, butter, chicken, tuna
        muffin: banana, blueberry, chocolate, carrot, lemon, nut, pumpkin, raisin
        bun: honey, cinnamon, raisin, sugar, butter, nut, milk, poppy seed
        tart: apple, cherry, plum, peach, berry, lemon, pear, grape
        pancake: apple, banana, blueberry, chocolate, pumpkin, potato, oat, honey
        waffle: apple, banana, blueberry, chocolate, pumpkin, nut, oat, honey
    """),
    soup=WordList("""
        soup: tomato, pea, bean, potato, carrot, chicken, onion, pumpkin, noodle, corn, fish, mushroom
        stew: tomato, bean, potato, carrot, chicken, beef, fish, mushroom
    """),
    fruit=WordList("""
        apple: red, green, ripe, juicy, shiny, sweet; some=apples
        pear: green, yellow, ripe, juicy, soft, sweet; some=pears
        peach: ripe, juicy, soft, sweet, golden; some=peaches
        plum: purple, blue, ripe, juicy, soft, sweet; some=plums
        banana: yellow, green, ripe, long, soft, sweet; some=bananas
        orange: ripe, juicy, round, sweet; some=oranges
        cherry: red, black, ripe, juicy, shiny, sweet; some=cherries
        strawberry: red, ripe, juicy, sweet; some=strawberries
        melon: green, yellow, ripe, juicy, round, sweet; some=melons
    """),
    # where something of any size can be in a house
    spot=WordList("""
        under the bed
        under the table
        under the stairs
        under the bench
        behind the sofa
        behind the door
        behind the curtain
        behind the armchair
        behind the piano
        behind the bookcase
        in the closet
        in the attic
        in the cellar
        in the hall
        next to the stove
        next to the fireplace
    """),
    container=WordList("""
        basket: old, big, little, round, brown, deep, straw, white
        box: old, big, little, wooden, brown, deep, green, paper
        bag: old, big, little, brown, blue, red, green, paper
        chest: old, big, little, wooden, brown, deep, green, heavy
        suitcase: old, big, little, brown, blue, red, green, heavy
        bucket: old, big, little, tin, blue, red, yellow, deep
        crate: old, big, little, wooden, brown, deep, green, heavy
        barrel: old, big, little, wooden, brown, deep, green, heavy
    """),
    clothes=WordList(f"""
        scarf: {COLORS}, striped, warm, soft, long, woolen, thick
        hat: {COLORS}, striped, warm, soft, pointed, woolen, thick
        sweater: {COLORS}, striped, warm, soft, long, woolen, thick
        shawl: {COLORS}, striped, warm, soft, long, woolen, thick
        blanket: {COLORS}, striped, warm, soft, long, woolen, thick
        vest: {COLORS}, striped, warm, soft, long, woolen, thick
    """),
    instrument=WordList("""
        drum: old, little, red, blue, shiny, new; sound=Boom, boom
        flute: old, little, silver, wooden, shiny, new; sound=Toot, toot
        trumpet: old, little, golden, silver, shiny, new; sound=Toot, toot
        horn: old, little, golden, silver, shiny, new; sound=Toot, toot
        fiddle: old, little, brown, wooden, shiny, new; sound=Squeak, squeak
        violin: old, little, brown, wooden, shiny, new; sound=Squeak, squeak
        guitar: old, little, red, brown, wooden, new; sound=Plink, plonk
        banjo: old, little, red, brown, wooden, new; sound=Plink, plonk
        piano: old, little, black, brown, white, new; sound=Plink, plonk
        harp: old, little, golden, brown, wooden, new; sound=Plink, plonk
    """),
    # dogs of all kinds
    dog=WordList("""
        dog: brown, black, white, spotted, small, big, friendly, shaggy
        puppy: brown, black, white, spotted, small, fluffy, playful, clumsy
        poodle: brown, black, white, gray, small, fluffy, friendly, lively
        terrier: brown, black, white, gray, small, shaggy, friendly, lively
        spaniel: brown, black, white, golden, small, shaggy, friendly, lively
        beagle: brown, spotted, small, friendly, lively, playful, clumsy, fat
        sheepdog: black, white, gray, big, shaggy, friendly, lively, fluffy
        hound: brown, black, gray, spotted, big, friendly, lively, lazy
    """),
    # what is needed for baking
    ingredient=WordList("flour\nsugar\nbutter\nmilk\nhoney\ncream\nbaking powder\nsalt"),
    # what keeps a light in the dark
    light=WordList("""
        lantern: old, big, little, red, yellow, bright
        flashlight: old, big, little, red, yellow, bright
        lamp: old, big, little, red, yellow, bright
        candle: old, big, little, red, yellow, white
    """),
    # what a tent in a room is made of
    cover=WordList(f"""
        blanket: {COLORS}, big, old, woolen, striped
        sheet: {COLORS}, big, old, cotton, striped
        quilt: {COLORS}, big, old, patchwork, striped
        tablecloth: {COLORS}, big, old, cotton, striped
        curtain: {COLORS}, big, old, cotton, striped
        bedspread: {COLORS}, big, old, cotton, striped
    """),
    # what a small thing can be kept in
    vessel=WordList("""
        vase: old, blue, white, tall, little, painted
        teapot: old, blue, white, round, little, painted
        jar: old, blue, brown, tall, little, glass
        cup: old, blue, white, broken, little, painted
        mug: old, blue, white, brown, little, painted
        bowl: old, blue, white, brown, little, wooden
        pot: old, blue, black, brown, little, copper
        tin: old, blue, red, round, little, painted
    """),
    weather=WordList("sunny\nrainy\nwindy\ncloudy\nsnowy\ncold\nwarm\nfoggy"),
    sad=WordList("sad\nunhappy\nupset\nmiserable\ngloomy\ntearful\nheartbroken\ndownhearted"),
    glad=WordList("happy\nglad\npleased\ndelighted\njoyful\nthankful\noverjoyed\ncontent"),
    scared=WordList("scared\nafraid\nfrightened\nnervous\nuneasy\nworried\nalarmed\nterrified"),
    cross=WordList("angry\ncross\nannoyed\ngrumpy\nmad\nsulky"),
)

# {role: the list that it draws from}
ROLES = dict(
    hero="name",
    friend="name",
    neighbor="name",
    trait="trait",
    elder="elder",
    pet="pet",
    pet_name="pet_name",
    toy="toy",
    treat="treat",
    soup="soup",
    fruit="fruit",
    spot="spot",
    other_spot="spot",
    container="container",
    clothes="clothes",
    instrument="instrument",
    dog="dog",
    ingredient="ingredient",
    light="light",
    cover="cover",
    vessel="vessel",
    weather="weather",
    sad="sad",
    glad="glad",
    scared="scared",
    cross="cross",
)

# Phrases that plots share, without anything to remember.
PHRASES = dict(
    # when
    soon="(soon|before long|in a little while|after a while|a little later|not long after|in no time|a bit later)",
    then="(then|next|after that|a moment later|with that|right after that|straight away|at once)",
    at_last="(at last|in the end|finally|at long last)",
    night="(that night|that evening|at bedtime|before bed|late that day|when the stars came out|as the sun went down|"
    "after supper)",
    # where {hero} lives
    somewhere="(by the sea|near the woods|on a farm|at the edge of town|on a quiet street|in a small village|"
    "on a green hill|next to a park)",
    # how
    very="(very|so|really|quite)",
    kindly="(kindly|gently|softly|warmly|cheerfully|with a smile|with a nod|in a friendly voice)",
    happily="(happily|merrily|gladly|cheerfully|brightly|with a big smile|with a laugh|with a happy sigh)",
    sadly="(sadly|quietly|softly|unhappily|glumly|with a sigh|in a small voice|in a low voice)",
    # what they say
    yes="(of course|sure|yes|gladly|all right|certainly|why not|with pleasure)",
    thanks="(thank you|thank you so much|thank you very much|thanks|thanks a lot|many thanks|a thousand thanks|"
    "oh, thank you)",
    smiled="(smiled|laughed|nodded|grinned)",
)

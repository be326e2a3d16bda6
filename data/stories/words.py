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


def entries(words, **fields):
    """The list of some single words."""
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

GIRLS = entries(
    "Alice Anna Bella Clara Daisy Ella Emily Emma Grace Hannah Jane Julia Kate Laura Lily Lisa Lucy Mary Mia Molly "
    "Nancy Nina Nora Olivia Rachel Rosa Ruby Sally Sarah Sophie Susan Zoe",
    **SHE,
)
BOYS = entries(
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
    trait=joined(
        entries("careful patient quiet gentle calm shy thoughtful polite", kind="quiet"),
        entries("brave curious lively cheerful bold playful merry eager", kind="bold"),
    ),
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
    pet_name=entries(
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
        under the desk
        under the sofa
        under the window
        under the piano
        behind the sofa
        behind the door
        behind the curtain
        behind the armchair
        behind the piano
        behind the bookcase
        behind the stove
        behind the cupboard
        in the closet
        in the attic
        in the cellar
        in the hall
        in the kitchen
        in the bathroom
        in the bedroom
        in the pantry
        in the garage
        in the living room
        next to the stove
        next to the fireplace
        next to the bookcase
        next to the front door
        next to the back door
        next to the window
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
    weather=entries("sunny rainy windy cloudy snowy cold warm foggy stormy frosty misty chilly mild breezy gray hot"),
    sad=entries(
        "sad unhappy upset miserable gloomy tearful heartbroken downhearted troubled glum sorrowful disappointed hopeless worried dejected down"
    ),
    glad=entries(
        "happy glad pleased delighted joyful thankful overjoyed content grateful thrilled merry jolly cheery satisfied carefree lighthearted"
    ),
    scared=entries(
        "scared afraid frightened nervous uneasy worried alarmed terrified anxious fearful shaky startled tense panicky jumpy spooked"
    ),
    cross=entries("angry cross annoyed grumpy mad sulky grouchy furious"),
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

# Phrases that plots share, without anything to remember. All options of a phrase fit wherever the first one fits.
PHRASES = dict(
    # when
    soon="(soon|before long|in a little while|after a while|a little later|not long after|in no time|a bit later|"
    "a short time later|shortly after|a few minutes later|a minute later|five minutes later|ten minutes later|"
    "half an hour later|an hour later)",
    then="(then|next|after that|a moment later|with that|right after that|straight away|at once)",
    at_last="(at last|in the end|finally|at long last)",
    night="(that night|that evening|at bedtime|before bed|late that day|when the stars came out|as the sun went down|"
    "after supper|at the end of the day|when it got dark|when the moon rose|after the sun had set|"
    "when the day was over|that same evening|when it was time for bed|after dinner)",
    # where {hero} lives
    somewhere="(by the sea|near the woods|on a farm|at the edge of town|on a quiet street|in a small village|"
    "on a green hill|next to a park|in a small town|in a big city|in an old house|in a red house|in a white house|"
    "in a little cottage|near a lake|by a river|near a school|next to a bakery|above a bakery|above a shop|"
    "near the mountains|in a green valley|at the end of a lane|on a long street|beside an old mill|behind a church|"
    "near a bridge|by a pond|near the beach|across from a park|near a market|next to a garden)",
    # how
    very="(very|so|really|quite)",
    kindly="(kindly|gently|softly|warmly|cheerfully|sweetly|quickly|calmly|politely|patiently|helpfully|brightly|"
    "eagerly|right away|at once|with a smile|with a nod|with a grin|with a laugh|with a wink|with a kind smile|"
    "with a warm smile|with a big smile|with a quick nod|in a kind voice|in a warm voice|in a calm voice|"
    "in a friendly voice|in a soft voice|in a gentle voice|with kind eyes|with twinkling eyes)",
    happily="(happily|merrily|gladly|cheerfully|brightly|joyfully|loudly|proudly|warmly|eagerly|excitedly|"
    "with a smile|with a laugh|with a grin|with a giggle|with a cheer|with a big smile|with a wide grin|"
    "with a happy sigh|with a little dance|with a little jump|with shining eyes|with sparkling eyes|"
    "with rosy cheeks|with great joy|with a happy laugh|with a happy smile|with a happy grin|in a happy voice|"
    "in a loud voice|in a cheerful voice|in a glad voice)",
    sadly="(sadly|quietly|softly|unhappily|glumly|gloomily|weakly|faintly|with a sigh|with a sniff|with a sob|"
    "with a frown|with a deep sigh|with a little sigh|with a long sigh|with a sad sigh|with a little sob|"
    "with a loud sniff|in a small voice|in a low voice|in a sad voice|in a weak voice|in a shaky voice|"
    "in a tiny voice|in a quiet voice|in a soft voice|with wet eyes|with sad eyes|with teary eyes|"
    "with a trembling lip|with a lump in the throat|with drooping shoulders)",
    # what they say
    yes="(of course|sure|yes|gladly|all right|certainly|why not|with pleasure)",
    thanks="(thank you|thank you so much|thank you very much|thanks|thanks a lot|many thanks|a thousand thanks|"
    "oh, thank you)",
    smiled="(smiled|laughed|nodded|grinned)",
)

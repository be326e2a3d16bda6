"""The words of the stories: lists with the adjectives that fit each word, the roles that draw from them, and phrases.

A line of a list is `word / word: adjective, adjective, ...; field=text; field=text`: words with what fits all of them.
Adjectives and fields are optional. A line may be wrapped after a comma or a slash. An entry with adjectives has the
fields `look` and `full` ("red", "red kite") where it is drawn with one. A star shows where the adjective goes, if not
before the word ("under the * bed").
"""

import re


class Entry:
    """A word and its fields, as attributes: `word`, `key` (the word again), `look`, `full` and those of its line."""

    def __init__(self, word, look="", **fields):
        self.word = self.key = word.replace("* ", "")
        self.look = look  # "" if it has none
        if "* " in word:
            self.full = word.replace("*", look) if look else self.word
        else:
            self.full = f"{look} {word}" if look else word
        self.kinds = tuple(fields.items()) or self.key  # what a plot can tell apart
        self.__dict__.update(fields)


class WordList:
    """The entries of a list, and those with one of their adjectives each.

    lines: the list's text   common: fields of all entries
    """

    def __init__(self, lines, **common):
        entries, pairs = [], []
        for line in filter(None, map(str.strip, re.sub(r"([,/])\s*\n", r"\1 ", lines).split("\n"))):
            described, *fields = line.split(";")
            words, _, looks = described.partition(":")
            fields = common | dict(map(str.strip, field.split("=")) for field in fields)
            for word in map(str.strip, words.split("/")):
                entries.append(Entry(word, **fields))
                pairs += [Entry(word, look.strip(), **fields) for look in looks.split(",")]
        self.entries, self.pairs = tuple(entries), tuple(pairs)
        self.words = frozenset(entry.word for entry in entries)


def entries(words, **fields):
    """The list of some single words."""
    return WordList("\n".join(words.split()), **fields)


def both(looks, more):
    """The adjectives that have one of each of two lists."""
    return ", ".join(f"{look} {other}" for look in looks.split(", ") for other in more.split(", "))


def joined(*lists):
    """One list of the entries of several."""
    found = WordList("")
    found.entries = tuple(entry for one in lists for entry in one.entries)
    found.pairs = tuple(entry for one in lists for entry in one.pairs)
    found.words = frozenset(entry.word for entry in found.entries)
    return found


SHE = dict(he="she", him="her", his="her", girl="girl")
HE = dict(he="he", him="him", his="his", girl="boy")

GIRLS = entries(
    "Amy Ann Anna Bella Beth Clara Daisy Ella Emma Eva Grace Holly Jane Jill Julia Kate Laura Lily Lisa Lucy Mary Mia "
    "Molly Nina Nora Rosa Ruby Sally Sara Sue Tina Zoe",
    **SHE,
)
BOYS = entries(
    "Adam Andy Ben Bill Bob Carl Dan Dave Eric Frank Fred Jack Jake Jim Joe John Josh Leo Luke Mark Matt Max Mike Nick "
    "Noah Owen Paul Pete Sam Ted Tim Tom",
    **HE,
)
COLORS = "red, blue, green, yellow, orange, purple, white, black, brown, pink, violet"
# Adjectives that fit all words of a list
BRIGHT = both(
    "big, little, new, old, pretty, fine, nice, lovely", COLORS + ", striped, spotted, gray, golden, plain, bright"
)
WILD = both("little, young, tiny, thin, small, pretty, poor, sweet", "wild, gray, hungry, tired, wet, cold, lame, weak")
KEPT = both(
    "little, young, big, small, old, pretty, fat, clever", "brown, black, white, spotted, gray, hungry, tame, tan"
)
FISH = both(
    "little, young, big, small, old, pretty, fat, clever", "spotted, hungry, quiet, tame, gold, shiny, round, slow"
)
BIRD = both("little, young, big, small, old, pretty, fat, clever", "green, red, blue, gray, white, yellow, tame, loud")
WIRE = both(
    "old, big, long, strong, dirty, heavy, large, ugly", "broken, rusty, torn, green, gray, crooked, wire, garden"
)
THORNY = both(
    "old, big, thick, wild, tall, huge, broad, large", "green, thorny, prickly, rose, berry, dark, wet, brown"
)
MUDDY = both(
    "old, big, deep, long, narrow, huge, small, large", "muddy, dirty, slippery, wet, cold, dark, black, dusty"
)
PLACE = both(
    "big, little, wide, lovely, empty, pretty, old, large", "green, sunny, windy, quiet, peaceful, grassy, sandy, shady"
)
WATER = both(
    "calm, little, wide, lovely, pretty, deep, long, quiet", "blue, clear, green, cold, cool, sunny, peaceful, muddy"
)
LANDMARK = both(
    "old, big, little, broken, lonely, strange, huge, tiny", "mossy, gray, black, dusty, brown, white, dark, crooked"
)
SHELTER = both(
    "old, big, little, empty, small, lonely, large, strange", "dark, dry, dusty, gray, white, brown, quiet, crooked"
)
TREE = both(
    "tall, old, big, huge, broad, mighty, young, slim", "green, crooked, leafy, shady, dark, bent, lonely, gnarled"
)
TOOL = both(
    "long, strong, light, thin, heavy, big, good, sturdy", "old, wooden, brown, straight, smooth, rough, gray, new"
)
SIZE = both(
    "little, big, tiny, huge, small, large, fine, tall", "round, square, secret, cozy, crooked, strong, funny, pretty"
)
CROP = both(
    "big, fine, huge, plump, large, lovely, heavy, giant", "tasty, fresh, ripe, sweet, tender, juicy, crisp, perfect"
)
DRAWN = both("big, little, happy, tiny, huge, funny, jolly, pretty", COLORS)
PRIZE = both(
    "big, little, pretty, fine, shiny, small, lovely, nice", "golden, silver, red, blue, green, white, purple, yellow"
)
EVENT = both(
    "big, great, little, famous, lovely, new, grand, fine",
    "merry, loud, colorful, funny, village, summer, street, children's",
)

FURRY = both("big, small, young, old, fat, thin, sleepy, quick", "gray, black, white, brown, golden, spotted, fluffy")
FEATHERED = both("big, small, young, old, fat, thin, sleepy, quick", "red, blue, green, yellow, white, gray, spotted")
SHELLED = both("big, small, young, old, fat, thin, sleepy, slow", "green, brown, black, gray, yellow, spotted, striped")
KNITTED = both("warm, soft, long, thick, big, new, pretty, fine", COLORS)
DEEP = both("old, big, little, deep, round, new, plain, pretty", COLORS)
HEAVY = both("old, big, little, deep, heavy, new, plain, pretty", COLORS)
CLAY = both("old, big, little, tall, round, new, plain, pretty", COLORS)
CLOTH = both("old, big, soft, thick, clean, new, plain, pretty", COLORS)
LIGHT = both("old, big, little, bright, round, new, plain, pretty", COLORS)
SOUNDING = both("old, big, little, shiny, dusty, new, fine, pretty", COLORS)

LISTS = dict(
    name=joined(GIRLS, BOYS),
    girl=GIRLS,
    boy=BOYS,
    # kind: how such a child goes about things. Nothing else has these words. So a story has one of them, and a small
    # model learns to look it up.
    trait=joined(
        entries(
            "careful cautious shy timid modest sensible tidy thoughtful polite patient bashful neat obedient humble "
            "dreamy watchful",
            kind="quiet",
        ),
        entries(
            "brave bold daring fearless eager energetic confident cheeky noisy adventurous curious lively playful "
            "spirited plucky impatient",
            kind="bold",
        ),
    ),
    elder=joined(
        WordList("mom\ngrandma\naunt", **SHE),
        WordList("dad\ngrandpa\nuncle", **HE),
    ),
    pet=WordList(f"""
        dog / puppy / cat / kitten / rabbit / hamster / mouse: {FURRY}
        parrot: {FEATHERED}
    """),
    pet_name=entries(
        "Biscuit Bramble Bubbles Button Cocoa Cookie Domino Fluffy Ginger Honey Jingles Lucky Marble Mittens Muffin "
        "Nibbles Nutmeg Patch Peanut Pebbles Pepper Pickles Poppy Pudding Rusty Scruffy Shadow Smoky Snowball Socks "
        "Sparky Waffles Buddy Bandit Barney Bingo Blacky Caramel Chip Clover Cricket Dusty Flash Freckles Goldie "
        "Hazel Jelly Jumbo Kiki Lulu Mango Mocha Noodle Olive Pancake Pippin Pixie Rocket Rosie Sandy Spike Tiger "
        "Toffee Whiskers"
    ),
    toy=WordList(f"""
        kite / ball / drum / top / whistle / sled / wagon / yo-yo / robot / train / puppet / doll / truck / plane /
            scooter / hoop / mask / crown / cape / toy car / toy boat / toy horse / teddy bear / jump rope: {BRIGHT}
    """),
    # a treat that can be cut in half
    treat=WordList("""
        cake: apple, carrot, chocolate, lemon, honey, nut, plum, cherry, coconut, banana, sponge, coffee, almond,
            berry, orange, ginger
        pie: apple, cherry, plum, peach, berry, pumpkin, pear, lemon, grape, meat, cheese, pecan, banana, fish, fig,
            potato
        sandwich: cheese, ham, egg, jam, tomato, butter, chicken, tuna, salad, honey, turkey, bacon, cucumber, toast,
            sausage, salmon
        muffin: banana, blueberry, chocolate, carrot, lemon, nut, pumpkin, raisin, apple, honey, cherry, coconut,
            corn, oat, orange, peach
        bun: honey, cinnamon, raisin, sugar, butter, nut, milk, poppy seed, cherry, cheese, chocolate, coconut, jam,
            lemon, apple, almond
        tart: apple, cherry, plum, peach, berry, lemon, pear, grape, apricot, nut, honey, chocolate, tomato, onion,
            cheese, orange
        pancake: apple, banana, blueberry, chocolate, pumpkin, potato, oat, honey, berry, cherry, corn, nut, lemon,
            coconut, cheese, butter
        waffle: apple, banana, blueberry, chocolate, pumpkin, nut, oat, honey, berry, cherry, corn, lemon, coconut,
            cheese, butter, sugar
    """),
    # what is baked for a birthday
    bake=WordList("""
        cake: apple, carrot, chocolate, lemon, honey, nut, plum, cherry, coconut, banana, sponge, coffee, almond,
            berry, orange, ginger
        pie: apple, cherry, plum, peach, berry, pumpkin, pear, lemon, grape, apricot, cream, pecan, banana, blueberry,
            fig, nut
        tart: apple, cherry, plum, peach, berry, lemon, pear, grape, apricot, nut, honey, chocolate, cream, fig,
            almond, orange
        cheesecake: apple, carrot, chocolate, lemon, honey, nut, plum, cherry, coconut, banana, coffee, almond, berry,
            orange, ginger, peach
    """),
    soup=WordList("""
        soup: tomato, pea, bean, potato, carrot, chicken, onion, pumpkin, noodle, corn, fish, mushroom, cabbage, leek,
            spinach, turkey
        stew: tomato, bean, potato, carrot, chicken, beef, fish, mushroom, pumpkin, lamb, onion, cabbage, pea, turkey,
            corn, pepper
    """),
    # where something of any size can be in a house
    spot=WordList("""
        under the * bed: old, big, little, soft, wooden, white, high, warm
        under the * table: old, big, little, round, wooden, white, long, low
        under the * stairs: old, steep, wooden, dark, white, narrow, back, cellar
        under the * bench: old, big, little, long, wooden, white, low, broken
        under the * desk: old, big, little, brown, wooden, white, long, dusty
        under the * sofa / behind the * sofa / behind the * armchair / next to the * armchair: old, big, little,
            brown, green, blue, soft, dusty
        under the * window / next to the * window: big, little, round, high, open, wide, kitchen, bedroom
        under the * piano / behind the * piano: old, big, little, brown, black, white, dusty, heavy
        behind the * door: old, big, little, brown, green, blue, heavy, front
        behind the * curtain: old, long, thick, white, green, blue, red, dusty
        behind the * bookcase / behind the * cupboard / next to the * bookcase / next to the * cupboard: old, big,
            tall, brown, white, high, heavy, dusty
        behind the * stove / next to the * stove: old, big, little, black, white, warm, heavy, iron
        in the * closet: old, big, little, dark, empty, dusty, narrow, hall
        in the * attic: old, big, little, dark, empty, dusty, cold, quiet
        in the * cellar / in the * garage: old, big, little, dark, empty, dusty, cold, damp
        in the * hall: old, big, long, dark, empty, wide, cold, narrow
        in the * kitchen: old, big, little, bright, empty, sunny, warm, busy
        in the * bathroom: old, big, little, bright, empty, clean, warm, blue
        in the * bedroom: old, big, little, bright, empty, sunny, warm, blue
        in the * pantry: old, big, little, dark, empty, dusty, cold, narrow
        in the * living room: old, big, little, bright, empty, sunny, warm, quiet
        next to the * fireplace: old, big, little, black, warm, stone, brick, white
    """),
    container=WordList(f"""
        basket / box / bag / chest / suitcase / bucket / crate / barrel: {DEEP}
    """),
    clothes=WordList(f"""
        scarf / hat / sweater / shawl / vest / cap / cape / jacket: {KNITTED}
    """),
    instrument=WordList(f"""
        drum / flute / trumpet / horn / fiddle / violin / guitar / banjo / recorder / clarinet / accordion /
            ukulele: {SOUNDING}
    """),
    # dogs of all kinds
    dog=WordList(f"""
        dog / puppy / poodle / terrier / spaniel / beagle / sheepdog / hound: {FURRY}
    """),
    # pets that hide, with what they like to eat
    hider=WordList(f"""
        cat: {FURRY}; eats=fish
        kitten: {FURRY}; eats=cream
        rabbit: {FURRY}; eats=lettuce
        hamster: {FURRY}; eats=corn
        mouse: {FURRY}; eats=cheese
        puppy: {FURRY}; eats=ham
        canary: {FEATHERED}; eats=seeds
        turtle: {SHELLED}; eats=salad
    """),
    illness=WordList("a cold\na fever\na cough\na sore throat\na headache\na stomachache\na toothache\nan earache"),
    # what is needed for baking
    ingredient=WordList("flour\nsugar\nbutter\nmilk\nhoney\ncream\nbaking powder\nsalt"),
    # what keeps a light in the dark
    light=WordList(f"""
        lantern / flashlight / lamp / candle: {LIGHT}
    """),
    # what a tent in a room is made of
    cover=WordList(f"""
        blanket / sheet / quilt / tablecloth / curtain / bedspread / rug / carpet: {CLOTH}
    """),
    # what a small thing can be kept in
    vessel=WordList(f"""
        vase / teapot / jar / cup / mug / bowl / pot / can: {CLAY}
    """),
    # what soup is carried in
    pot=WordList(f"""
        pot / jar / bowl / kettle / can / jug / pan / bucket: {CLAY}
    """),
    # what dirty things and dogs are washed in
    tub=WordList(f"""
        tub / washtub / bathtub / barrel / trough / pool: {DEEP}
    """),
    # what flour and milk are kept in
    store=WordList(f"""
        jar / can / bowl / pot / mug / jug / box / crock: {CLAY}
    """),
    # what can be locked
    chest=WordList(f"""
        chest / trunk / suitcase / box / case / cabinet: {HEAVY}
    """),
    # whom a story in a book is about
    tale=WordList("""
        dragon: green, red, black, golden, young, old, lonely, friendly, sleepy, hungry, lazy, clever, kind, little,
            huge, magic
        giant: green, red, blue, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, kind, clumsy,
            huge, grumpy
        pirate: fat, thin, tall, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, kind, clumsy,
            bearded, famous
        king: fat, thin, tall, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, kind, bearded,
            rich, famous
        knight: fat, thin, tall, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, kind, clumsy,
            black, famous
        wizard: fat, thin, tall, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, kind, bearded,
            white, famous
        princess: pale, proud, tall, silly, young, kind, lonely, friendly, sleepy, hungry, lazy, clever, graceful, poor,
            rich, famous
        fox: red, white, gray, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, proud, magic, thin,
            little
        bear: brown, white, black, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, proud, clumsy,
            fat, huge
        whale: blue, white, gray, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, proud, magic,
            fat, huge
        robot: blue, red, silver, silly, new, old, lonely, friendly, sleepy, rusty, lazy, clever, proud, clumsy,
            loud, huge
        ghost: white, green, gray, silly, young, old, lonely, friendly, sleepy, hungry, lazy, clever, kind, clumsy,
            loud, little
    """),
    # what mends a toy
    glue=WordList("glue\ntape\nstring\nwire\nribbon\nthread\npaste\nneedle and thread"),
    # furniture that holds up a tent
    frame=WordList("chairs\ntables\nstools\nbenches\nboxes\ncrates\narmchairs\nbroomsticks"),
    room=WordList("""
        in the * attic: old, big, little, dark, empty, dusty, cold, quiet
        in the * cellar / in the * garage: old, big, little, dark, empty, dusty, cold, damp
        in the * hall: old, big, long, dark, empty, wide, cold, narrow
        in the * kitchen: old, big, little, bright, empty, sunny, warm, busy
        in the * bedroom: old, big, little, bright, empty, sunny, warm, blue
        in the * living room / in the * playroom: old, big, little, bright, empty, sunny, warm, quiet
    """),
    sad=entries(
        "sad unhappy upset miserable gloomy tearful discouraged downhearted troubled "
        "glum sorrowful disappointed distressed worried dejected down"
    ),
    glad=entries(
        "happy glad pleased joyful thankful content grateful merry jolly "
        "cheery satisfied carefree lighthearted peaceful hopeful proud"
    ),
    scared=entries(
        "scared afraid frightened nervous uneasy worried alarmed concerned anxious "
        "fearful shaky startled tense unsettled jumpy spooked"
    ),
    cross=entries("angry cross annoyed grumpy mad sulky grouchy furious"),
    # Outdoors: animals with what they like to eat and where they live
    wild=WordList(f"""
        duckling: {WILD}; eats=oats; home=the duck pond
        squirrel: {WILD}; eats=nuts; home=the oak tree
        rabbit: {WILD}; eats=clover; home=its burrow
        kitten: {WILD}; eats=fish; home=the barn
        puppy: {WILD}; eats=meat; home=the farm
        lamb: {WILD}; eats=hay; home=the meadow
        hedgehog: {WILD}; eats=worms; home=the hedge
        sparrow: {WILD}; eats=seeds; home=its nest
        mouse: {WILD}; eats=cheese; home=its mouse hole
        turtle: {WILD}; eats=lettuce; home=the river
        fawn: {WILD}; eats=leaves; home=the forest
        crow: {WILD}; eats=bread; home=the tall pine
        gosling: {WILD}; eats=grass; home=the lake
        robin: {WILD}; eats=berries; home=the orchard
        goat: {WILD}; eats=carrots; home=the hill
        chipmunk: {WILD}; eats=acorns; home=the hollow log
    """),
    # animals that are kept, with what they are given
    kept=WordList(f"""
        cat / kitten: {KEPT}; eats=fish
        hamster: {KEPT}; eats=seeds
        pony / donkey: {KEPT}; eats=hay
        parrot: {BIRD}; eats=nuts
        goat / sheep: {KEPT}; eats=grass
        rabbit: {KEPT}; eats=carrots
        turtle: {FISH}; eats=lettuce
        hen: {KEPT}; eats=corn
        puppy: {KEPT}; eats=meat
        guinea pig: {KEPT}; eats=lettuce
        mouse: {KEPT}; eats=cheese
        canary: {BIRD}; eats=seeds
        duck: {BIRD}; eats=oats
    """),
    trap=WordList(f"""
        fence / net / gate: {WIRE}
        bush / hedge / thicket: {THORNY}
        ditch / hole / drain / pit / pipe / den: {MUDDY}
    """),
    # places out of doors
    open_place=WordList(f"""
        meadow / park / garden / orchard / hill / beach / field / playground / valley / schoolyard / courtyard /
            lawn / pasture / square / farmyard / clearing: {PLACE}
    """),
    water=WordList(f"""
        river / stream / lake / pond / canal / brook / creek / bay / pool / lagoon / harbor / inlet: {WATER}
    """),
    landmark=WordList(f"""
        bridge / well / log / rock / hut / gate / tower / bench / stump / signpost / windmill / cave / fence / wall /
            wagon / statue: {LANDMARK}
    """),
    shelter=WordList(f"""
        barn / shed / cave / mill / boathouse / cabin / chapel / stable / tent / hut / garage / cottage / tunnel /
            castle / greenhouse / lighthouse: {SHELTER}
    """),
    tree=WordList(f"""
        oak / maple / pine / birch / willow / elm / beech / walnut tree / chestnut tree / poplar / spruce / cedar /
            pear tree / linden / ash tree / plum tree: {TREE}
    """),
    # things out of doors
    flyer=WordList(f"""
        dragon kite / fish kite / bird kite / star kite / butterfly kite / box kite / snake kite / ship kite /
            balloon / toy plane / toy rocket / paper plane / toy helicopter / owl kite / moon kite /
            bee kite: {BRIGHT}
    """),
    boat=WordList(f"""
        sailboat / steamboat / tugboat / ferry / pirate ship / raft / canoe / lifeboat / rowboat / paper boat /
            houseboat / fishing boat / speedboat / gondola / submarine / motorboat: {BRIGHT}
    """),
    tool=WordList(f"""
        stick / rake / broom / pole / oar / fishing rod / hoe / branch / shovel / net / cane / paddle / mop /
            ski pole / walking stick / umbrella: {TOOL}
    """),
    wear=WordList(f"""
        coat / jacket / sweater / raincoat / shirt / blazer / vest / poncho / parka / cardigan / cloak / sweatshirt /
            cape / jersey / pullover / anorak: {BRIGHT}
    """),
    color=entries("red blue green yellow orange purple white pink brown gray black golden silver tan violet scarlet"),
    number=entries(
        "three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    ),
    body=entries("knee foot hand elbow ankle toe arm leg"),
    # what children build, and of what
    building=WordList(f"""
        hut / fort / playhouse / castle / tower / doghouse / cabin / shed / clubhouse / cottage / birdhouse / house /
            hideout / stable / den / pavilion: {SIZE}
    """),
    weak=entries("leaves straw reeds twigs paper sand cardboard hay grass feathers petals moss bark ferns cloth wool"),
    strong=entries(
        "boards logs stones bricks planks beams rocks tiles poles posts slabs crates pipes timbers boulders blocks"
    ),
    crop=WordList(f"""
        pumpkin: {CROP}; many=pumpkins; dish=pie
        carrot: {CROP}; many=carrots; dish=soup
        bean: {CROP}; many=beans; dish=stew
        tomato: {CROP}; many=tomatoes; dish=soup
        cucumber: {CROP}; many=cucumbers; dish=salad
        radish: {CROP}; many=radishes; dish=salad
        onion: {CROP}; many=onions; dish=soup
        potato: {CROP}; many=potatoes; dish=soup
        melon: {CROP}; many=melons; dish=salad
        beet: {CROP}; many=beets; dish=soup
        cabbage: {CROP}; many=cabbages; dish=stew
        turnip: {CROP}; many=turnips; dish=stew
        strawberry: {CROP}; many=strawberries; dish=jam
        pepper: {CROP}; many=peppers; dish=salad
        squash: {CROP}; many=squashes; dish=pie
        leek: {CROP}; many=leeks; dish=soup
    """),
    present=WordList(f"""
        teapot / scarf / candle / cup / basket / vase / lamp / plate / umbrella / necklace / cushion / mirror / bowl /
            clock / shawl / fan: {BRIGHT}
    """),
    prize=WordList(f"""
        cup / medal / ribbon / trophy / crown / badge / flag / pennant / ring / star / bell / shield / belt /
            whistle / pin / banner: {PRIZE}
    """),
    school_thing=WordList(f"""
        pencil / crayon / eraser / ruler / paintbrush / notebook / marker / pen / book / folder / glue stick /
            compass / lunch box / pencil case / bookmark / brush: {BRIGHT}
    """),
    # what a class draws
    subject=WordList(f"""
        house / castle / ship / dragon / horse / whale / flower / rocket / tree / snowman / lion / robot / king /
            clown / giraffe / butterfly: {DRAWN}
    """),
    teacher=WordList(
        "Miss Baker\nMiss Carter\nMiss Cook\nMiss Fisher\nMiss Miller\nMiss Parker\nMiss Taylor\nMiss Turner\n"
        "Miss Bell\nMiss Clark\nMiss Foster\nMiss Hill\nMiss Hunter\nMiss Mason\nMiss Shepherd\nMiss Weaver"
    ),
    fragile=WordList(f"""
        flowerpot / lantern / birdhouse / jug / vase / bowl / lamp / window box / plate / cup / mug / teapot /
            pitcher / mirror / clock / jar: {BRIGHT}
    """),
    chore=WordList("""
        rake the leaves; did=raked the leaves
        sweep the path; did=swept the path
        water the roses; did=watered the roses
        pick the apples; did=picked the apples
        paint the fence; did=painted the fence
        feed the hens; did=fed the hens
        weed the garden; did=weeded the garden
        carry the wood; did=carried the wood
        wash the windows; did=washed the windows
        clean the shed; did=cleaned the shed
        stack the boxes; did=stacked the boxes
        brush the pony; did=brushed the pony
        cut the grass; did=cut the grass
        dig up the beets; did=dug up the beets
        dust the shelves; did=dusted the shelves
        polish the spoons; did=polished the spoons
    """),
    event=WordList(f"""
        circus / fair / parade / puppet show / market / festival / concert / ball game / carnival / rodeo /
            magic show / boat race / dance / play / bake sale / flower show: {EVENT}
    """),
)

# {role: the list that it draws from}
ROLES = dict(
    hero="name",
    friend="name",
    trait="trait",
    elder="elder",
    pet="pet",
    pet_name="pet_name",
    toy="toy",
    treat="treat",
    soup="soup",
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
    illness="illness",
    other_treat="treat",
    hider="hider",
    bake="bake",
    pot="pot",
    tub="tub",
    store="store",
    chest="chest",
    tale="tale",
    frame="frame",
    room="room",
    glue="glue",
    sad="sad",
    glad="glad",
    scared="scared",
    cross="cross",
    # outdoors
    beast="wild",
    kept="kept",
    trap="trap",
    place="open_place",
    water="water",
    mark="landmark",
    next_mark="landmark",
    shelter="shelter",
    tree="tree",
    flyer="flyer",
    boat="boat",
    tool="tool",
    wear="wear",
    color="color",
    number="number",
    body="body",
    building="building",
    weak="weak",
    strong="strong",
    crop="crop",
    present="present",
    prize="prize",
    school_thing="school_thing",
    subject="subject",
    other_subject="subject",
    teacher="teacher",
    fragile="fragile",
    chore="chore",
    event="event",
)

# Phrases that plots share, without anything to remember. All options of a phrase fit wherever the first one fits.
PHRASES = dict(
    # when
    soon="((soon|before long|in a little while|after a while|a little later|not long after|in no time|a bit later|a "
    "short time later|shortly after|in a moment|in a short time|a moment later|half an hour later|an hour later|some "
    "time later)|(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty) "
    "minutes later)",
    night="(that night|that evening|at bedtime|before bed|late that day|when the stars came out|as the sun went down|"
    "after supper|at the end of the day|when it got dark|when the moon rose|after the sun had set|when the day was "
    "over|that same evening|when it was time for bed|after dinner|when the first star came out|when the lamps were "
    "lit|when the birds went to sleep|when the house was quiet|when the sky turned dark|after sunset|at sunset|at "
    "dusk|at nightfall|late in the evening|later that day|later that evening|that very night|after a good supper|"
    "after a warm supper|after a big dinner)",
    # where {hero} lives
    somewhere="((by the sea|near the woods|on a farm|at the edge of town|on a quiet street|in a small village|on a "
    "green hill|next to a park|in a small town|in a big city|at the end of a lane|across from a school|near a lake|"
    "by a river|near a school|next to a bakery|above a bakery|above a shop|near the mountains|in a green valley|"
    "behind a barn|on a long street|beside an old mill|behind a church|near a bridge|by a pond|near the beach|across "
    "from a park|near a market|next to a garden|near a station|by a stream)|in a (little|big|small|red|white|blue|"
    "green|brown|yellow|gray|tall|narrow|quiet|cozy|sunny|crooked) (house|cottage|cabin|farmhouse)|near a (little|"
    "big|quiet|blue|green|deep|wide|cold|pretty|lovely|dark|wild|small|clear|sunny|long) (lake|river|forest|pond|"
    "park|wood|canal|beach))",
    # how
    very="(very|so|really|quite|truly|ever so|so very|very, very)",
    kindly="((kindly|gently|softly|warmly|cheerfully|sweetly|quickly|calmly|politely|patiently|helpfully|brightly|"
    "eagerly|thoughtfully|firmly|quietly|bravely|merrily|at once|gladly|tenderly|lovingly|wisely|lightly|happily|"
    "cheerily|reassuringly|earnestly|comfortingly|promptly|nicely|encouragingly)|with a (kind|warm|big|little|quick|"
    "wide|friendly|gentle|happy|bright|tender|soft|sweet|broad|merry|calm) (smile|nod|grin|laugh|wink|chuckle|giggle|"
    "glance))",
    happily="((happily|merrily|gladly|cheerfully|brightly|joyfully|fondly|proudly|warmly|eagerly|excitedly|"
    "gratefully|sweetly|softly|quickly|politely)|with a (happy|merry|glad|cheerful|bright|joyful|lovely|proud|warm|"
    "big|wide|broad|great|little|quick|sweet) (smile|laugh|grin|cheer|giggle|chuckle|sigh|nod))",
    sadly="((sadly|quietly|softly|unhappily|glumly|gloomily|weakly|faintly|miserably|tearfully|bitterly|hopelessly|"
    "sorrowfully|mournfully|wearily|timidly)|with a (deep|little|long|sad|loud|soft|heavy|shaky|quiet|small|big|"
    "tired|tiny|weak|faint|great) (sigh|sob|sniff|moan)|in a (small|low|sad|weak|shaky|tiny|quiet|soft|thin|faint|"
    "hoarse|feeble|trembling|tired|hollow|choked) voice)",
    # what happens, in many words
    meal="((breakfast|lunch|dinner|school|a snack|a nap|a bath|a walk)|a (short|long|little|quick|quiet|nice|lovely|"
    "pleasant) (nap|walk|rest|bath))",
    dear="(dear|kind|loving|busy|funny|friendly|gentle|wise|good|old|jolly|clever|cheerful|merry|tender|strong|"
    "charming|calm|caring|sweet|tall|sunny|smart|lovable|quiet|helpful|honest|beloved|happy|generous|cheery|warm)",
    gone="(gone|missing|lost|not there|nowhere to be seen|nowhere to be found|not in its place|not where it should "
    "be|nowhere around|nowhere in sight|out of sight|not there anymore|no longer there|suddenly gone|simply gone|no "
    "longer around)",
    felt="(felt|was|looked|seemed)",
    looked="(looked|searched|peeked|peered|hunted|looked hard|looked twice|searched and searched)",
    found_nothing="(found|saw) only (an old|a lost|a tiny|a dusty|a torn|a broken|a single|a little) (sock|button|"
    "coin|pencil|ribbon|slipper|spoon|newspaper|feather|leaf|key|comb|marble|glove|card|shoe)",
    hurried="(ran|hurried|rushed|raced|went|walked|dashed|marched)",
    friendly="(best|good|dear|close|old|kind|funny|loyal|cheerful|clever|trusty|merry|jolly|sweet|true|devoted|"
    "faithful|helpful|honest|generous|gentle|smart|wise|happy|charming|great|silly|bright|caring|lovable|tender|"
    "sunny)",
    came="((came by|came over|came to play|came to visit|stopped by|dropped by|rang the bell|knocked on the door|"
    "knocked on the window|tapped on the window|looked in at the door|looked in at the window|walked in|ran in|came "
    "inside|came upstairs)|came (running|skipping|walking|hopping|racing|strolling|marching|rushing) (in|by|over|"
    "along|up the path|down the street|through the gate|around the corner))",
    thought="((thought|thought hard|thought for a moment|thought for a while|thought and thought|thought about it|"
    "closed {hero.his} eyes|looked at the floor|looked at the ceiling|looked up|sat down to think|stood still|took a "
    "deep breath|frowned|shut {hero.his} eyes|waited a moment)|(scratched|rubbed|touched|tapped) {hero.his} (head|"
    "chin|nose|ear|forehead|cheek|knee|neck))",
    hug="a (little|big|warm|long|quick|sweet|loving|gentle|soft|happy|great|tender|proud|fond|nice|friendly) (hug|"
    "kiss|smile|pat on the back|squeeze|cuddle|wave|nod)",
    tasty="((delicious|tasty|yummy|wonderful|perfect|lovely|excellent|splendid)|(very|so|really|just) (good|sweet|"
    "nice|fine)|(the best|the sweetest|the finest|the nicest) (ever|of all)|(warm|fresh|soft|sweet) and (tasty|"
    "delicious|good|light))",
    state="((safe and sound|a little dusty|covered in dust|upside down|as good as new|all alone|just as before|quite "
    "safe|a bit dusty|full of dust|right where it was left|in plain sight|all in one piece|looking lonely|just fine|"
    "still there)|(next to|beside|close to|right by) (an old|a lost|a tiny|a dusty|a torn|a broken|a single|a "
    "little) (sock|button|coin|pencil|ribbon|slipper|spoon|newspaper|feather|leaf|key|comb|marble|glove|card|shoe))",
    a_while="((until dinner|until supper|until bedtime|until dark|until noon|for hours|for a long time|for a while|"
    "all day|all day long|the whole day|for hours and hours|again and again|the rest of the day|without a break|"
    "without a rest)|for (about|almost|more than|nearly|over|exactly|at least|close to) (ten minutes|twenty minutes|"
    "thirty minutes|half an hour|an hour|two hours|three hours|four hours))",
    cheer="(do not worry|do not cry|cheer up|do not give up|do not be sad|I will help you|let me help you|I can help|"
    "we will find a way|let us think|never mind|it will be all right|I know what to do|leave it to me|I have an idea|"
    "we can do it|we can fix this|it is not so bad|we will see|all will be well|everything will be fine|it will be "
    "fine|stay calm|just wait|keep calm|do not fret|never fear|chin up|there, there|I am here|no need to cry|no need "
    "to worry|hush now|take heart|hold on|easy now|look up|smile|breathe|be strong|be happy|be calm|stay strong|stay "
    "hopeful|keep smiling|trust me|wait and see|we will manage|we will fix it|we can help|I can fix it|I will fix it|"
    "this will pass|it will pass|that can happen|it happens|no harm done|it is all right|it is fine|I understand|I "
    "know|hush, hush|have no fear|have hope)",
    oh="(oh no|oh dear|oh my|no, no|how awful|how sad|what a pity|what bad luck|oh|oh, no, no|my goodness|goodness "
    "me|dear me|oh goodness|good grief|what now)",
    as_new="(as (good|fresh|bright|fine|nice|pretty|soft|clean) as (new|before|ever|can be)|(fresh|soft|bright|nice) "
    "and clean|clean (again|at last|once more|and dry))",
    busy="(at|near|by|beside) the (window|table|door|stove|gate|fence|sink|big desk|piano|bookcase|back door|front "
    "door|fireplace|garden wall|kitchen table|apple tree)",
    home_day="(Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|day)",
    mixed="((mixed|stirred|kneaded|whisked|beat|shook|measured|rolled) and (baked|poured|tasted|sifted|waited|"
    "decorated|sang|hummed))",
    how_washed="with a (big|small|soft|hard|new|thick|wet|long) (brush|sponge|rag|cloth|mop|towel|piece of soap|"
    "bar of soap)",
    sounds="a (loud|soft|strange|low|high|sudden|long|short|scary|weak|deep|dull|faint|sharp|slow|weird) (bump|thump|"
    "scratch|squeak|creak|rattle|clank|crash|knock|hiss|rustle|groan|bang|tap|moan|thud)",
    sternly="((sternly|loudly|crossly|sharply|angrily|firmly|gruffly|coldly)|with a (dark|deep|big|long|short|"
    "stern|sharp|cross) frown|in a (loud|deep|cold|sharp|stern|cross|gruff|hard) voice)",
    ate="(ate|nibbled|munched|gobbled) (it (all|slowly|quickly|happily)|a (little|lot|bit|mouthful))",
    reached="(reached|grabbed|snatched|stretched) for it with (one hand|both hands|one arm|both arms)",
    called="(called|coaxed|whistled to|sang to|talked to|whispered to|hummed to|begged)",
    stormy="(stormy|windy|rainy|dark|cold|foggy|quiet|snowy|moonless|cloudy|misty|frosty|chilly|warm|black|starry)",
    suddenly="(suddenly|all at once|at midnight|in the dark|before long|after bedtime|late at night|in the middle of "
    "the night|just before midnight|just after midnight|at ten o'clock|at eleven o'clock|at one o'clock|at two "
    "o'clock|at three o'clock|at four o'clock)",
    laughed="(laughed|giggled|chuckled|cheered) (softly|loudly|happily|merrily|with relief|in surprise|with joy|for "
    "a while)",
    soundly="(soundly|deeply|peacefully|quietly|calmly|well|tightly|happily) (until (morning|dawn|sunrise|six "
    "o'clock|seven o'clock|eight o'clock|nine o'clock|breakfast))",
    mine="(it is mine|that is mine|give it to me|let go|I want it|I had it first|it is my turn|hands off)",
    pulled="(pulled|tugged|tore|yanked|jerked|dragged|twisted|shook) (harder|hard|and pushed|and shouted|back and "
    "forth|with all their might|from both sides|faster and faster)",
    lonely_bed="(stayed|lay|had to stay|had to rest|rested|had to lie|had to lie down|was) (in bed|at home|in the "
    "house|under a blanket)",
    mistake="(too (short|long|wide|narrow|tight|loose|thin|thick)|full of (holes|knots|loops|gaps)|(crooked|uneven|"
    "lumpy|wrinkled))",
    cold_day="(cold|chilly|frosty|snowy|icy|windy|freezing|stormy)",
    tumble="(fell down|came down|fell over|collapsed|crashed down|slid down|sank to the floor|tumbled down)",
    played="(fast|slow|long|short|happy|merry|lovely|pretty|wild|new|sweet|jolly|bright|simple|cheerful|funny) "
    "(song|tune|dance|march|waltz|piece|melody|ballad)",
    clapped="(clapped|cheered|danced|sang along|hummed along|tapped the floor|stamped the floor|jumped up) (loudly|"
    "happily|wildly|merrily|with joy|with delight|again and again|from start to end)",
    days_later="(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen) (days|weeks) later",
    sounded="(like (an old|an angry|a hungry|a sick|a lonely|a sleepy|a big|a sad) (cat|goose|pig|cow|frog|door|owl|"
    "goat)|(awful|terrible|horrible|dreadful|loud and bad|harsh|shrill|flat))",
    dug="(dug|looked|searched|reached|hunted|rummaged|groped|felt) (deep|around|about|again)",
    praise="(bravo|well done|how lovely|wonderful|good job|great work|how nice|very good)",
    junk="(old|dirty|torn|lost|broken|dusty|loose|empty) (socks|books|boxes|bottles|shirts|papers|crayons|blocks)",
    age="(five|six|seven|eight|nine|ten|eleven|twelve)",
    wet_day="(rainy|wet|stormy|gray|muddy|drizzly|showery|damp) (Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|"
    "Sunday|morning)",
    muddy="(muddy|dirty|brown|wet|big|dark|gray|black)",
    little_head="(little|tiny|small|soft|furry|small brown|hungry|tiny black) (head|nose|ear|face)",
    came_out="(jumped|climbed|crept|ran|rolled|hopped|crawled|tumbled) (out|free) (at once|at last|happily|safely)",
    told_story="(long|short|scary|funny|silly|strange|true|secret)",
    so_warm="(warm|soft|cozy|pretty|perfect|beautiful|lovely|just right)",
    old_key="(little|rusty|golden|silver|heavy|brass|black|shiny|long|thin|copper|tiny|bright|dusty|green|white)",
    mess="(a mess|a big mess|messy|untidy|in a mess|full of junk|upside down|a terrible mess)",
    played_inside="(sang (old|new|silly|happy|sweet|loud|long|merry) (songs|tunes|rounds|ballads)|told (long|short|"
    "silly|funny|old|new|strange|clever) (jokes|stories|riddles|tales)|drew (big|little|silly|funny|pretty|happy|"
    "strange|round) (faces|cats|dogs|houses|ships|trees|stars|birds)|built (big|little|tall|round|funny|pretty|tiny|"
    "huge) (towers|castles|bridges|houses)|folded (red|blue|green|yellow|white|pink|big|little) paper (hats|boats|"
    "birds|stars)|danced (fast|slow|wild|silly|happy|funny|old|new) (dances|waltzes|polkas|jigs)|whistled (old|new|"
    "silly|happy|sweet|loud|long|merry) (songs|tunes|marches|melodies)|played (cards|checkers|dominoes|pirates|"
    "school|hide-and-seek|store|house))",
    game="(tag|catch|pirates|leapfrog|hide-and-seek|soccer|knights|explorers)",
    deeply="(soundly|deeply|peacefully|quietly|calmly|well|happily|safely)",
    bit="(bit|crumb|little piece|small piece|big piece|mouthful|large piece|bite)",
    in_the_morning="(in the morning|the next morning|at sunrise|at dawn|at breakfast|when the sun came up|when the "
    "rooster crowed|after a long sleep)",
    tight="(well|very well|fast|tight|firmly|at once|like iron|like new)",
    came_with="came (running|walking|hopping|racing|strolling|marching|rushing|hurrying) (in|by|over|along|up the "
    "path|down the street|through the gate|around the corner)",
    nice_child="(kind|funny|cheerful|clever|merry|jolly|sweet|charming|helpful|bright|gentle|smart|happy|sunny|"
    "good|silly)",
    every_day="(morning|afternoon|evening|day|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|weekend|"
    "second day|third day|school day|holiday)",
    # what they say
    wait="(wait|just wait|be calm|wait a little|wait a bit|wait a while|let us wait|please wait|give it time|not "
    "so fast|go slowly|be gentle|easy now|no hurry|do not rush|take your time)",
    welcome="(welcome|hello|hello there|hi|hi there|good day|welcome home|there you are)",
    thanks="((thank you|thanks|oh, thank you|oh, thanks|many thanks|a thousand thanks|a million thanks|you are the "
    "best)|(thank you|thanks) (so much|very much|again|once more|for everything|for this|for your help|for your "
    "kindness)|you are (so|very|really|too) (kind|good|nice|sweet))",
    # outdoors: how they move and talk, and what it is like
    fine="(sunny|bright|warm|clear|lovely|beautiful|fine|mild|cool|fresh|quiet|calm|golden|pleasant|breezy|gorgeous|"
    "glorious|hazy|dry|mellow|balmy|peaceful|still|splendid|cloudless|delightful|wonderful|pretty|nice|perfect|"
    "cheerful|sparkling)",
    one_day="One <fine> (spring|summer|fall|April|May|June|July|August|September|October|Monday|Tuesday|Wednesday|"
    "Thursday|Friday|Saturday|Sunday) (morning|afternoon)",
    next_day="(the next day|the next morning|a day later|one day later|the following day|the following morning|the "
    "day after|two days later)",
    went="(went|walked|ran|hurried|strolled|hiked|wandered|skipped|marched|rushed|raced|trotted|dashed|jogged|headed|"
    "hopped|bounded|scampered|scurried|sauntered|tramped|trudged|strode|sped|danced|bustled|bounced|paraded|roamed|"
    "rambled|ambled|sprinted)",
    spoke="(said|called|cried|exclaimed|declared|announced|whispered|murmured)",
    became="(felt|was|looked|seemed|became|got)",
    rough="(strong|sudden|wild|big|cold|rough|mighty|sharp|fierce|loud|quick|heavy|powerful|chilly|stiff|huge|"
    "howling|roaring|wintry|great|swift|harsh|violent|nasty|terrible|freezing|mean|furious|whirling|whistling|brisk|"
    "frosty)",
    wind="(wind|gust|gale|storm)",
    pal="(friend|playmate|classmate|cousin|pal|buddy|neighbor|schoolmate|teammate|companion|chum|partner)",
    gently="(slowly|softly|silently|lightly|tenderly|neatly|noiselessly|attentively|smoothly|delicately|lovingly|"
    "seriously|diligently|nicely|properly|earnestly|kindly|sweetly|skillfully|deftly|mildly|warmly|faithfully|"
    "thoroughly)",
    boldly="(quickly|swiftly|happily|nimbly|briskly|excitedly|joyfully|speedily|proudly|gladly|promptly|rapidly|"
    "smartly|readily|hastily|instantly|lightly|easily|skillfully|busily|heartily|willingly|cleverly|firmly|"
    "vigorously|gleefully|enthusiastically|expertly|courageously|wildly|keenly|heroically)",
    had_fun="(sang (old|new|silly|happy|sweet|loud|long|merry) songs|told (long|short|silly|funny|old|new|strange|"
    "clever) (jokes|stories|riddles|tales)|picked (red|blue|yellow|white|pink|tall|little|sweet) flowers|chased (red|"
    "blue|yellow|white|orange|big|little|pretty) butterflies|watched (big|little|brown|black|blue|busy|loud|pretty) "
    "birds|collected (red|yellow|green|brown|big|little|pretty|dry) leaves|blew (big|little|round|shiny|pretty|huge|"
    "tiny|funny) bubbles|ran (long|short|quick|wild|silly|funny|merry|exciting) races|played (tag|catch|leapfrog|"
    "hopscotch|hide-and-seek|pirates|soccer|marbles)|counted (big|little|white|gray|fluffy|round|funny|pretty) "
    "clouds|found (big|little|red|black|green|shiny|funny|pretty) beetles|whistled (old|new|silly|happy|sweet|loud|"
    "long|merry) tunes|drew (big|little|silly|funny|pretty|happy|strange|round) faces in the dirt|built (big|little|"
    "tall|round|funny|pretty|tiny|huge) castles|jumped over (big|little|old|mossy|round|gray|rotten|fallen) logs|"
    "rolled down (big|little|steep|green|soft|grassy|long|tall) hills)",
    nice="(nice|fine|good|great|wonderful|lovely|splendid|perfect|beautiful|marvelous|fantastic|excellent|amazing|"
    "delightful|super|terrific)",
    sorry="(sorry|forgive me|I am sorry|I am (so|very|really|truly|terribly|deeply|awfully) sorry|please (forgive me|"
    "do not be angry|listen to me|hear me)|it was (me|my fault|an accident|my mistake))",
    knocked_over="(knocked over|ran into|fell over|kicked over|bumped into|pushed over|tripped over|dropped)",
    clothing="(shoes|socks|boots|feet|legs|knees|pants|sleeves|hands|toes|coats|faces|arms|fingers|noses|ankles)",
    promised="(a promise is a promise|you gave your word|keep your word|keep your promise|you can go later|you have "
    "to wait|first do what you promised|think of your promise)",
    several="(three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen)",
    visit_time="(day|week|month|morning|evening|spring|summer|fall|winter|Monday|Tuesday|Wednesday|Thursday|Friday|"
    "Saturday|Sunday)",
    rain="(heavy|warm|long|gentle|soft|steady|cool|summer|strong|big|fine|light|lovely|loud|good|welcome)",
)

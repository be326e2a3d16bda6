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
    # Outdoors: animals with what they like to eat and where they live
    wild=WordList("""
        duckling: little, yellow, brown, fluffy, gray, wet; eats=oats; home=the duck pond; house=box
        squirrel: little, red, gray, brown, young, thin; eats=nuts; home=the oak tree; house=box
        rabbit: little, white, gray, brown, young, wild; eats=clover; home=the burrow; house=hutch
        kitten: little, white, gray, black, striped, thin; eats=fish; home=the barn; house=basket
        puppy: little, white, brown, black, spotted, thin; eats=meat; home=the farm; house=basket
        lamb: little, white, black, young, woolly, thin; eats=hay; home=the meadow; house=stall
        hedgehog: little, brown, gray, young, prickly, thin; eats=worms; home=the hedge; house=box
        sparrow: little, brown, gray, young, thin, wild; eats=seeds; home=the nest; house=cage
        mouse: little, white, gray, brown, young, thin; eats=cheese; home=the mouse hole; house=jar
        turtle: little, green, brown, young, spotted, wild; eats=lettuce; home=the river; house=tub
        fawn: little, brown, young, spotted, thin, wild; eats=leaves; home=the forest; house=pen
        crow: little, black, gray, young, thin, wild; eats=bread; home=the tall pine; house=cage
    """),
    # animals that are kept, with what they are given
    kept=WordList("""
        goldfish: little, fat, shiny, pretty, hungry; eats=flakes; house=bowl
        hamster: little, golden, brown, white, hungry; eats=seeds; house=cage
        pony: little, brown, black, white, hungry; eats=hay; house=stable
        parrot: green, red, blue, gray, hungry; eats=nuts; house=cage
        goat: little, brown, black, white, hungry; eats=grass; house=shed
        rabbit: gray, brown, white, fat, hungry; eats=carrots; house=hutch
        turtle: little, green, brown, old, hungry; eats=lettuce; house=tank
        hen: fat, brown, black, white, hungry; eats=corn; house=coop
        kitten: gray, black, white, striped, hungry; eats=fish; house=basket
        puppy: brown, black, white, spotted, hungry; eats=meat; house=kennel
    """),
    trap=WordList("""
        fence: old, wooden, wire, broken, high
        net: old, fishing, torn, green, strong
        bush: thorny, thick, wild, green, berry
        ditch: deep, muddy, narrow, wet, cold
        hole: deep, muddy, narrow, dark, cold
        drain: deep, muddy, narrow, dark, old
    """),
    # places out of doors
    open_place=WordList("""
        meadow: green, wide, sunny, quiet, big; at=in
        park: green, old, sunny, quiet, big; at=in
        garden: green, old, sunny, quiet, big; at=in
        orchard: green, old, sunny, quiet, big; at=in
        hill: green, high, sunny, windy, big; at=on
        beach: white, wide, sunny, windy, long; at=on
        field: green, wide, sunny, windy, big; at=in
        dune: white, high, sunny, windy, big; at=on
    """),
    water=WordList("""
        river: wide, quiet, clear, blue, little
        stream: quick, quiet, clear, cold, little
        lake: wide, quiet, clear, blue, little
        pond: green, quiet, clear, round, little
        canal: long, quiet, straight, old, little
        brook: quick, quiet, clear, cold, little
        creek: quick, quiet, clear, cold, little
        bay: wide, quiet, clear, blue, little
    """),
    landmark=WordList("""
        bridge: old, wooden, stone, narrow, white, broken
        well: old, deep, stone, dry, mossy, round
        log: old, hollow, mossy, big, fallen, rotten
        rock: big, gray, mossy, round, white, pointed
        hut: old, little, wooden, empty, crooked, green
        gate: old, iron, wooden, white, broken, green
        tower: old, tall, stone, round, empty, gray
        bench: old, wooden, stone, green, mossy, broken
        stump: old, big, rotten, mossy, broad, hollow
        signpost: old, crooked, wooden, white, broken, tall
        windmill: old, tall, wooden, white, broken, gray
        cave: little, dark, deep, mossy, empty, narrow
    """),
    shelter=WordList("""
        barn: old, red, big, empty, wooden, dark
        shed: old, little, green, empty, wooden, dark
        cave: deep, little, dry, empty, big, dark
        mill: old, white, big, empty, wooden, dark
        boathouse: old, little, blue, empty, wooden, dark
        cabin: old, little, brown, empty, wooden, dark
        chapel: old, little, white, empty, stone, dark
        stable: old, little, brown, empty, wooden, dark
    """),
    tree=WordList("""
        oak: tall, old, big, crooked, leafy
        maple: tall, old, big, red, leafy
        pine: tall, old, big, crooked, dark
        birch: tall, old, big, slim, white
        willow: tall, old, big, crooked, leafy
        elm: tall, old, big, crooked, leafy
        beech: tall, old, big, broad, leafy
        walnut tree: tall, old, big, crooked, leafy
    """),
    # things out of doors
    flyer=WordList(f"""
        dragon kite: {COLORS}, paper, striped
        fish kite: {COLORS}, paper, striped
        bird kite: {COLORS}, paper, striped
        star kite: {COLORS}, paper, striped
        butterfly kite: {COLORS}, paper, striped
        box kite: {COLORS}, paper, striped
        snake kite: {COLORS}, paper, striped
        ship kite: {COLORS}, paper, striped
    """),
    boat=WordList(f"""
        sailboat: {COLORS}, wooden, little
        steamboat: {COLORS}, tin, little
        tugboat: {COLORS}, tin, little
        ferry: {COLORS}, wooden, little
        pirate ship: {COLORS}, wooden, little
        raft: {COLORS}, wooden, little
        canoe: {COLORS}, wooden, little
        lifeboat: {COLORS}, tin, little
    """),
    tool=WordList("""
        stick: long, strong, straight, thin
        rake: long, old, wooden, garden
        broom: long, old, brown, garden
        pole: long, strong, straight, thin
        oar: long, strong, old, wooden
        fishing rod: long, strong, old, thin
        hoe: long, old, wooden, garden
        branch: long, strong, straight, dry
    """),
    wear=WordList(f"""
        coat: {COLORS}, new
        jacket: {COLORS}, new
        sweater: {COLORS}, new
        raincoat: {COLORS}, new
        shirt: {COLORS}, new
        scarf: {COLORS}, new
        cap: {COLORS}, new
        hat: {COLORS}, new
    """),
    color=WordList("red\nblue\ngreen\nyellow\norange\npurple\nwhite\npink"),
    number=WordList("three\nfour\nfive\nsix\nseven\neight\nnine\nten"),
    day=WordList("Monday\nTuesday\nWednesday\nThursday\nFriday\nSaturday\nSunday"),
    # what children build, and of what
    building=WordList("""
        hut: little, big, secret, round; at=in
        fort: little, big, secret, round; at=in
        playhouse: little, big, secret, round; at=in
        castle: little, big, secret, round; at=in
        tower: little, big, tall, round; at=in
        doghouse: little, big, square, round; at=in
    """),
    weak=WordList("leaves\nstraw\nreeds\ntwigs\npaper\nsand\ncardboard\nhay"),
    strong=WordList("boards\nlogs\nstones\nbricks\nplanks\nbeams\nrocks\ntiles"),
    crop=WordList("""
        pumpkin: big, round, sweet, golden; many=pumpkins; dish=pie
        carrot: big, long, sweet, orange; many=carrots; dish=soup
        bean: big, long, green, tender; many=beans; dish=stew
        tomato: big, round, juicy, red; many=tomatoes; dish=soup
        cucumber: big, long, green, juicy; many=cucumbers; dish=salad
        radish: big, round, crisp, red; many=radishes; dish=salad
        onion: big, round, white, golden; many=onions; dish=soup
        potato: big, round, brown, golden; many=potatoes; dish=soup
        melon: big, round, sweet, juicy; many=melons; dish=salad
        beet: big, round, sweet, red; many=beets; dish=soup
        cabbage: big, round, green, crisp; many=cabbages; dish=stew
        turnip: big, round, white, sweet; many=turnips; dish=stew
    """),
    present=WordList(f"""
        teapot: {COLORS}, silver, pretty
        scarf: {COLORS}, silk, pretty
        candle: {COLORS}, round, pretty
        cup: {COLORS}, silver, pretty
        basket: {COLORS}, straw, pretty
        vase: {COLORS}, glass, pretty
        lamp: {COLORS}, glass, pretty
        plate: {COLORS}, silver, pretty
        umbrella: {COLORS}, silk, pretty
        necklace: {COLORS}, silver, pretty
        cushion: {COLORS}, silk, pretty
        mirror: {COLORS}, silver, pretty
    """),
    prize=WordList("""
        cup: golden, silver, shiny, big
        medal: golden, silver, shiny, big
        ribbon: golden, silver, red, blue
        trophy: golden, silver, shiny, big
        crown: golden, silver, shiny, paper
        badge: golden, silver, shiny, red
    """),
    school_thing=WordList(f"""
        pencil: {COLORS}
        crayon: {COLORS}
        eraser: {COLORS}
        ruler: {COLORS}
        paintbrush: {COLORS}
        notebook: {COLORS}
        marker: {COLORS}
        pen: {COLORS}
    """),
    # what a class draws
    subject=WordList("""
        house: little, big, red, blue, yellow, white
        castle: little, big, gray, blue, golden, white
        ship: little, big, red, blue, golden, white
        dragon: little, big, red, green, golden, purple
        horse: little, big, brown, black, golden, white
        whale: little, big, gray, blue, happy, white
        flower: little, big, red, blue, yellow, white
        rocket: little, big, red, blue, silver, white
        tree: little, big, green, crooked, tall, old
        snowman: little, big, fat, round, happy, white
    """),
    teacher=WordList(
        "Miss Baker\nMiss Carter\nMiss Cook\nMiss Fisher\nMiss Miller\nMiss Parker\nMiss Taylor\nMiss Turner"
    ),
    fragile=WordList(f"""
        flowerpot: {COLORS}, clay, pretty
        lantern: {COLORS}, glass, pretty
        birdhouse: {COLORS}, wooden, pretty
        jug: {COLORS}, clay, pretty
        vase: {COLORS}, glass, pretty
        bowl: {COLORS}, clay, pretty
        lamp: {COLORS}, glass, pretty
        window box: {COLORS}, wooden, pretty
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
    """),
    event=WordList("circus\nfair\nparade\npuppet show\nmarket\nfestival\npicnic\nball game"),
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
    # outdoors
    beast="wild",
    kept="kept",
    trap="trap",
    place="open_place",
    water="water",
    mark="landmark",
    next_mark="landmark",
    last_mark="landmark",
    shelter="shelter",
    tree="tree",
    flyer="flyer",
    boat="boat",
    tool="tool",
    wear="wear",
    color="color",
    number="number",
    day="day",
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
    # what happens, in many words
    day="{weather} (Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|day)",
    meal="(breakfast|lunch|dinner|school|a snack|a nap|a bath|a short walk)",
    dear="(dear|kind|loving|busy|funny|friendly|gentle|wise)",
    gone="(gone|missing|lost|not there|nowhere to be seen|nowhere to be found|not in its place|not where it should be)",
    felt="(felt|was)",
    looked="(looked|searched|peeked|peered|hunted|looked hard|looked twice|searched and searched)",
    found_nothing="(found nothing|saw nothing|found only dust|found only an old sock|found only a lost button|"
    "found only crumbs|found only a coin|found only a pencil|found only a ribbon|found only a slipper|"
    "found only a spoon|found only an old newspaper|saw only shadows|saw only cobwebs|saw only a spider|saw only a fly)",
    hurried="(ran|hurried|rushed|raced|went|walked|dashed|marched)",
    friendly="(best|good|dear|close|old|kind|funny|loyal|cheerful|clever|trusty|merry|jolly|sweet|true|lively)",
    came="(came by|came over|came to play|came to visit|stopped by|dropped by|rang the bell|knocked on the door|"
    "knocked on the window|tapped on the window|looked in at the door|looked in at the window|walked in|ran in|"
    "came through the gate|came up the path)",
    thought="(thought|thought hard|thought for a moment|thought for a while|thought and thought|thought about it|"
    "scratched {hero.his} head|rubbed {hero.his} chin|rubbed {hero.his} nose|closed {hero.his} eyes|"
    "looked at the floor|looked at the ceiling|looked up|sat down to think|stood still|took a deep breath)",
    hug="(a hug|a big hug|a warm hug|a long hug|a tight hug|a quick hug|a kiss|a big kiss|a pat on the back|"
    "a high five|a big smile|a warm smile|a wide smile|a proud smile|a little bow|a deep bow)",
    tasty="(delicious|tasty|yummy|wonderful|perfect|lovely|very good|so good|really good|just right|fresh and warm|"
    "soft and warm|sweet and soft|the best ever|better than ever|gone in no time)",
    # what they say
    yes="(of course|sure|yes|gladly|all right|certainly|why not|with pleasure)",
    thanks="(thank you|thank you so much|thank you very much|thank you for your help|thank you, thank you|thanks|"
    "thanks a lot|thanks so much|thanks for everything|many thanks|a thousand thanks|a million thanks|oh, thank you|"
    "oh, thanks|you are so kind|you are the best)",
    smiled="(smiled|laughed|nodded|grinned)",
    # outdoors: how they move and talk, and what it is like
    went="(went|walked|ran|hurried|strolled|hiked|set off|wandered)",
    rushed="(ran|hurried|rushed|raced)",
    cried="(cried|called|shouted|exclaimed)",
    told="(said|answered|replied|explained)",
    fine="(sunny|bright|warm|clear|lovely|beautiful|fine|mild)",
    daytime="(morning|afternoon|day)",
    season="(spring|summer|fall)",
    near="(near|next to|beside|close to|not far from)",
    nicely="(nice|fine|good|great|wonderful|lovely|splendid|perfect)",
)

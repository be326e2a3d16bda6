"""The embedded corpus: small stories from a grammar that knows its own entropy exactly.

A story is a number. Its remainders, one after another, pick a word from a list or one of several ways to go on; all are equally likely, so a story
that met lists of n1, n2, ... options has probability 1 / (n1 n2 ...) and holds log2(n1 n2 ...) bits. The text determines every choice (`read` finds them
again), hence no model can, on average, predict the bytes of a corpus in fewer bits than the sum over its stories.

How a script is written:  [thing]  any word of the list `thing`           [a thing]  the same with its article      [things]  its plural
                          {hero}   who or what has that role; drawn once  (x|y)      goes on as x or as y           {he} {his} {him} {boy}  fit the hero
No list gives the same word twice in a paragraph, nor ever again a word that has a role.
"""
import math
import re
from typing import NamedTuple

import numpy as np

WORDS_OF_64 = 32  # random words for a story: 2,048 bits, four times what one holds, so that every remainder is uniform to 1 in 2^1000

# No word of a list begins another one of it, so that a reader knows which one it sees.
WORDS = {name: tuple(words.split(", ") if "," in words else words.split()) for name, words in dict(
    # people
    girl="Alma Anya Clara Cindy Dee Flora Greta Hope Amy Ann Ava Bea Beth Cara Cleo Dora Ella Elsa Emma Eve Fay Gail Gwen Ida Iris Ivy Jane "
         "Jean Jill Joan Joy June Kate Kim Lena Lily Lola Lucy Mary Maya Mia Nell Nina Nora Pam Rita Rosa Ruby Ruth Sara Sue Tess Una Vera Zoe",
    boy="Abe Alf Amos Clive Doug Dirk Hal Ivan Adam Alan Alec Ben Bill Bob Carl Dan Dave Eli Eric Evan Finn Fred Glen Gus Hans Hugo Ian Jack "
        "Jake Jim Joe Josh Ken Kit Kyle Leo Liam Luke Mark Matt Max Ned Neil Nick Noah Otto Owen Paul Pete Ray Rob Sam Ted Tim Tom",
    kin="granny grandad uncle aunt cousin nan teacher brother sister",
    keen="bold brave bright busy calm clever cool fair fast fit frank free funny gentle good happy honest jolly keen kind lively loyal merry "
         "mild modest neat nice polite proud quick quiet shy silly smart sly strong sure sweet swift tall tidy tough warm wild wise witty young "
         "nimble plucky noble small",
    glad="glad happy proud merry calm jolly pleased joyful warm safe lucky content brave free loved cosy hopeful bright strong fine good great "
         "grand rich tall light young kind keen bold lively sunny rosy snug smart sure swift fresh new quick tough wise clever fit funny neat "
         "noble plucky sweet witty nimble mighty perky chirpy",
    sad="sad upset cross low gloomy blue tired hurt glum lost shaky weary grumpy lonely sorry worried cold small weak numb stiff sore flat grim "
        "moody tense dizzy dull limp shy faint sour stuck ill hungry timid wet quiet fussy mad jumpy sick",
    # things
    odd="nice fine neat odd funny pretty lovely plain good great grand smart cool cute rare fancy lucky magic secret dear handy famous simple "
        "silly sweet jolly cheap proper royal strange weird quaint humble dainty modern special useful strong noble crazy perfect super prime "
        "posh slick smooth light tidy bold chic classy costly eerie exotic faded glossy homely jaunty lush nifty perky plush prized rustic "
        "sleek solid stout sturdy swish trim trusty unique vivid wacky wee",
    red="red blue green pink white black brown grey gold silver yellow purple orange cream tan striped spotted rose plum lime mint teal amber "
        "coral lilac navy ruby jade ivory beige olive peach lemon big small tiny little old new shiny dusty clean muddy damp wet worn bright "
        "dark pale warm cold soft sticky dry bent bumpy slim thin thick hot icy rosy scarlet copper bronze wine frosty rusty sandy silky sooty "
        "snowy smoky chipped stained tatty violet maroon indigo",
    thing="axe badge bag ball banjo basket bat bead bell belt bib book boot bow box brick brush bucket button cap card case chain clock coat "
          "coin comb cork crown cup disc dish doll drum fan flag flute fork frame gem glove gong hat harp helmet hook hoop horn jar jug kettle "
          "key kite lamp lens lid log map mask medal mirror mop mug nail net oar pad pan pen pin pipe plate pot pouch purse puzzle quilt rag "
          "rake ring rope rug sack saw scarf shawl shell shirt shoe skirt sled sock spade sponge spoon stamp stick stone strap sword tape tent "
          "tie tile toy train tray truck urn vase vest wand watch wheel whistle wig",
    bag="bag box jar pot tin cup bin sack pan tub bowl mug case chest crate hat boot sock shoe drum cart vase jug basin urn pouch purse net",
    bed="bed box rug chair desk sofa bench table shelf cart bush tree log rock wall gate hedge tent door stool bin crate ladder barrel fence "
        "piano stove mat shed stump sink bath lamp clock plant pole post pipe tub van cot oak stone",
    card="card glue tape wood wool paper string cloth felt clay paint wire foil cork sticks beads pins shells leaves straw twine ribbon foam "
         "nails thread yarn chalk wax sand moss lace silk tin rope rags bark hay mud stones bricks gum reeds twigs logs",
    craft="kite boat hat mask flag sled bag lamp drum doll crown basket castle robot rocket puppet train fort house bird clock cart chair tower "
          "ship bus barn bell box bear fish cat crab duck fan gate owl plane snake star tent tree truck vase whale",
    food="figs plums pears nuts eggs jam rice bread cake soup pie tarts buns corn peas beans cheese ham toast honey grapes dates apples pasta "
         "melon leeks carrots kale pizza salad rolls stew chips mints fudge toffee jelly oats limes kiwis prunes olives beets fish yams broth "
         "curry lemons mangoes onions pecans pork ribs rusks sweets tofu tuna turnips wraps crisps crepes cod prawns beef scones muffins "
         "waffles noodles herbs cress dips mince mousse yogurt",
    plant="beans peas roses tulips lilies daisies poppies melons carrots leeks onions herbs berries beets ferns figs oats plums pears limes "
          "pumpkins turnips radishes lemons",
    # animals
    shy="shy kind wise brave lame hungry tired gentle clever funny noisy quiet quick slow proud timid jolly sweet merry lazy happy silly busy "
        "cheeky tame wild calm bold vain lively cute odd old young sly mild cross keen dear fussy giddy glad loud meek nice polite posh smart "
        "smug strong swift tough weary witty bright fair fit good honest loyal modest neat nimble noble plucky sure",
    tiny="tiny small little big fat thin plump soft fluffy wet muddy clean black white grey brown tan cream golden spotted striped pale dark "
         "long tall short neat damp smooth silky dusty fuzzy lean slim round dry huge rosy shiny sooty woolly curly warm cold ginger hairy "
         "lanky stout tubby sleek sandy",
    animal="ant bat bear bee bird boar bug calf cat chick clam colt cow crab crow cub deer dog dove duck eel elk emu ewe fawn finch fish fly "
           "foal fox frog gnat goat goose grub gull hare hawk hen heron hog horse jay koala lamb lark lion llama mole moose moth mouse mule "
           "newt otter owl panda pig pony pup rat raven robin seal sheep shrew skunk slug snail snake stag stork swan swift tiger toad vole "
           "wasp whale wolf worm wren yak zebra rabbit turtle sparrow donkey monkey parrot camel",
    pet="kitten pup lamb calf foal chick goat hen duck cat dog rabbit hare fawn mouse bird owl fox mole pony mule goose cub swan robin crow "
        "toad colt ewe wren",
    # places, times, numbers
    place="bank barn bay beach bog brook bridge camp castle cave church cliff coast cove creek dam den dock dune fair farm field forest fort "
          "garden gate glen grove hall harbour hill hut inn lake lane lodge market marsh mill mine moat moor museum oak orchard park path pier "
          "pond pool port quay ridge river road school sea shed shop shore spring stable stall station stream swamp temple tower town vale "
          "village well wharf wood yard zoo",
    quiet="quiet old busy big little sunny windy green pretty wide lovely cosy calm dusty muddy dim dark cold cool warm new misty foggy wet dry "
          "grand fine small tiny shady leafy sandy rocky grassy noisy famous secret mossy snug plain royal bare bleak breezy bright chilly damp "
          "dull odd still stony white black brown golden red blue pink",
    under="under behind beside near below by",
    cold="cold warm cool dry mild sunny windy foggy misty cloudy bright grey clear calm quiet fine lovely dull breezy fresh golden lazy busy "
         "slow",
    day="day morning Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    two="two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty",
    # deeds
    skill="swim sew knit bake draw paint sing skate row fish climb juggle whistle read write count dance dive ski cook weave carve spell surf",
    fear="thunder, the dark, deep water, loud bangs, big dogs, spiders, bees, heights, ghosts, owls, the wind, mice, clowns, trains, shadows, "
         "ladders, the cellar, crowds, bats, geese, tunnels, snakes, the attic, storms",
    ran="went ran walked hopped skipped raced rode sped crept trotted jogged hiked dashed rushed danced marched strolled hurried skated "
        "wandered trudged cycled strode ambled drifted headed zoomed climbed crawled leapt rolled",
    sang="sang danced ran jumped played laughed hid dug swam climbed clapped cheered drew painted chatted hummed hopped read skipped rolled "
         "waved spun leapt baked raced rowed joked cooked fished skated swung acted talked ate slid rode wrote sewed smiled rested camped hiked "
         "jogged paddled splashed whistled giggled drummed twirled marched bounced tumbled grinned kicked knitted napped sawed skied surfed "
         "sailed sketched dived dozed raked biked bowled bowed",
    cried="cried called shouted yelled gasped sang laughed cheered",
    soon="Soon Then Later Next Now",
    said="said called whispered sang added replied",
    looked="looked peered searched hunted dug",
    found="found saw had liked spotted",
    met="met saw fed patted followed heard hugged chased greeted passed liked found",
    drew="drew painted sketched made cut sewed",
    brought="brought found gave had lent sent got",
    oh="Oh My Wow Look Yes Well Ah Hey",
).items()}

PHRASES = dict(
    treasure="[a odd] [red] [thing]", creature="[a shy] [tiny] [animal]", somewhere="[a quiet] [place]", box="[a odd] [red] [bag]", spot="[under] [a odd] [red] [bed]",
    ending="""(All day, [name] [sang], [name] [sang], [name] [sang] and [name] [sang].|At noon, [name] [brought] [food], [name] [brought] [food] and [name] [brought] <treasure>.
        |Then [name], [name], [name] and [name] [met] <creature>.) That night, {hero} dreamed of <creature>, <treasure> and <somewhere>.""",
    beats="(beats|tops|is worth|is like) <treasure>.")

ROLES = dict(hero="name", friend="name", thing="thing", snack="food", pet="pet", craft="craft", plant="plant", skill="skill", fear="fear", kin="kin")

OPENING = """
{hero} (loved [food], [food], [food] and <creature> by <somewhere>|was [keen], [keen], [keen], [keen] and [keen]|lived by <somewhere> with [name], [name], [name] and [name]).
        {He} (had <treasure>, <treasure> and <creature>|kept <creature>, <creature> and <treasure>). One [cold] day, {he}"""

PLOTS = dict(
    lost="""
lost [a odd] [red] {thing}. [Sad], [sad] and [sad], {he} [ran] to {friend}.

[name] [looked] in <box>, [name] [looked] by <somewhere>, [name] [found] <treasure> and {friend} [found] <creature>, but where was the {thing}?

[Soon] {friend} saw the {thing} <spot>! "[Oh], thank you!" [cried] {hero}, [glad] and [glad], and gave {friend} <treasure>, [food] and [food].
<ending> A good friend <beats>
""", gift="""
got <box> from {friend}. In it lay [a odd] [red] {thing}, [card] and [card].

"[Oh], thank you, {friend}!" [cried] {hero}, [glad] and [glad]. "I like it more than [food], [food], <creature> or <treasure>."
[name] [found] <treasure>, [name] [found] <creature>, [name] [found] <treasure>, but the {thing} was best.

[Soon] {hero} gave {friend} <treasure>, <treasure>, [food] and [food]. <ending> A thank you <beats>
""", share="""
packed {snack}, [food], [food] and [food] in <box> and [ran] to <somewhere>.

There sat {friend} with no food, [sad], [sad] and [sad]. "[Oh], eat half of my {snack}!" [cried] {hero}.
[Soon] [name] [brought] [food], [name] [brought] [food], [name] [brought] [food] and [name] [brought] <creature>.

{friend} felt [glad], [glad] and [glad], and gave {hero} <treasure>, <treasure> and [a red] [thing]. <ending> A shared lunch <beats>
""", rescue="""
found [a shy] [tiny] {pet} <spot>. It was [sad], [sad] and [sad].

"[Oh], poor {pet}!" [cried] {hero}. {friend} [brought] [food], [name] [brought] [card], [name] [brought] [card] and [name] [brought] <treasure>.
They made a bed of [card], [card] and [card] in <box>.

[Soon] the {pet} felt [glad], [glad] and [glad]. {hero} named it [name]. It [met] <creature>, [met] <creature> and [met] [name].
<ending> A kind deed <beats>
""", learn="""
could not {skill}. [name], [name], [name] and [name] could, so {hero} felt [sad], [sad] and [sad].

{friend} [brought] <treasure>, [name] [brought] <creature>, and {friend} [said], "Be [keen], [keen] and [keen], {hero}!"
So {he} tried to {skill} by <somewhere>, by <somewhere> and by <somewhere>.

After [two] days, {hero} could {skill}! {friend} [sang], [name] [sang] and [name] [sang]. <ending> A brave try <beats>
""", visit="""
took [food], [food] and [a odd] [red] {thing} to {his} {kin} by <somewhere>. {He} [met] <creature>, [met] <creature> and [met] [name].

"[Oh], come in, {hero}!" [cried] {his} {kin}. "I have [food], [food], [food] and <box> of [food]."
The house had <treasure>, <treasure>, <creature> and <treasure>.

[Glad] and [glad], {hero} gave {his} {kin} the {thing}, and [name] [found] <treasure>. <ending> A visit <beats>
""", rain="""
met {friend}, [name], [name], [name] and [name] by <somewhere>. {friend} [brought] <treasure>, but then it began to rain.

[Sad] and [sad], they [ran] home and made a tent of [card], [card] and <treasure>.
{hero} [drew] <creature>, [name] [drew] <treasure>, [name] [drew] <creature> and {friend} [drew] <somewhere>.

[Soon] the sun came out, but {hero} felt too [glad], [glad] and [glad] to stop. <ending> A friend in the rain <beats>
""", make="""
made [a odd] [red] {craft}. {He} took [card], [card], [card] and <treasure>, but the {craft} broke. {hero} felt [sad], [sad] and [sad].

"[Oh], try [card], {hero}!" [cried] {friend}. [name] [brought] [card], [name] [brought] [card], [name] [brought] <treasure> and [name] [brought] <box> of [card].

[Soon] the {craft} was [odd], [odd] and [red], and stood by <somewhere>. "Thank you!" [cried] {hero}. <ending> A helping hand <beats>
""", fear="""
was afraid of {fear}. {He} hid <spot> with <creature>, [sad], [sad] and [sad].

"I was afraid of {fear} too, {hero}," [said] {friend}. "Think of [food], <creature>, <treasure> and <somewhere>."
{hero} thought of <treasure>, <creature>, <somewhere>, [name], [name] and [name].

[Soon] {hero} felt [glad], [glad] and [glad]. {friend} [sang], [name] [sang] and [name] [sang]. <ending> A brave heart <beats>
""", grow="""
planted {plant}, [plant] and [plant] by <somewhere>. {He} gave the {plant} water from <box> each day.

Then <creature>, <creature> and <creature> ate [two] leaves. [Sad] and [sad], {hero} [ran] to {friend}.
[name] [brought] [card], [name] [brought] [card], and {friend} made a fence of [card], [card] and <treasure>.

[Soon] the {plant} were [red], [red] and [red]. {hero} gave some to {friend}, [name], [name], [name] and [name]. <ending> A little care <beats>
""")

IRREGULAR = dict(deer="deer", sheep="sheep", fish="fish", mouse="mice", goose="geese", calf="calves", wolf="wolves", scarf="scarves", shelf="shelves",
                 elk="elk", moose="moose", lens="lenses", swine="swine")
PRONOUNS = dict(girl=dict(he="she", his="her", him="her", He="She", boy="girl"), boy=dict(he="he", his="his", him="him", He="He", boy="boy"))
WORDS["name"] = WORDS["girl"] + WORDS["boy"]
SEPARATOR = "\n\n"


class Slot(NamedTuple):
    """A place in a script for one word: of the list `source`, as `options` spell it there; `role` keeps it for later places."""
    source: str
    options: tuple
    role: str


def with_article(word):
    return ("an " if word[0] in "aeiou" and not word.startswith(("uni", "use")) else "a ") + word


def plural(word):
    if word in IRREGULAR:
        return IRREGULAR[word]
    return word[:-1] + "ies" if re.search("[^aeiou]y$", word) else word + ("es" if re.search("(s|x|z|ch|sh)$", word) else "s")


def slot(token):
    """The `Slot` of [word], [a word], [words], [Word], {role}."""
    if token[0] == "{":
        role = token[1:-1]
        return Slot(ROLES.get(role), WORDS.get(ROLES.get(role)), role)
    article, name = re.fullmatch(r"\[(a )?(.*)\]", token).groups()
    source = name.lower() if name.lower() in WORDS else name.lower()[:-1]
    options = WORDS[source]
    if source != name.lower():
        options = tuple(map(plural, options))
    if article:
        options = tuple(map(with_article, options))
    if name[0].isupper():
        options = tuple(word[0].upper() + word[1:] for word in options)
    return Slot(source, options, None)


def compiled(script):
    """The parts of a script: literal strings, `Slot`s, and tuples of alternatives, each a list of parts."""
    while "<" in script:
        script = re.sub("<(.*?)>", lambda match: PHRASES[match[1]], script)
    script = "\n".join(" ".join(paragraph.split()) for paragraph in script.split("\n\n"))
    stack = [[[]]]
    for token in re.findall(r"[^\[\]{}()|\n]+|\[.*?\]|{.*?}|.|\n", re.sub(r"\s*\|\s*", "|", script)):
        if token == "(":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == ")":
            ways = tuple(stack.pop())
            stack[-1][-1].append(ways)
        else:
            stack[-1][-1].append(slot(token) if token[0] in "[{" else token)
    return stack[0][0]


BEGINNING, MIDDLES = [*compiled(OPENING), " "], {plot: compiled(script) for plot, script in PLOTS.items()}


class Telling:
    """One story as it is told. `choose(n, told, options)` gives the number, below n, of the way it goes on: told() is the text so far and
    options() how each of the n ways begins. `facts`: who and what has each role, and the plot."""

    def __init__(self, choose):
        self.choose, self.text, self.facts = choose, [], {}
        self.kept, self.taken = [], {}  # words with a role, and words told in this paragraph: {list: numbers}

    def told(self):
        return "".join(self.text)

    def whole(self):
        """The text of a whole story."""
        self.play(BEGINNING)
        plots = tuple(MIDDLES)
        self.facts["plot"] = plots[self.choose(len(plots), self.told, lambda: [self.start(MIDDLES[plot]) for plot in plots])]
        self.play(MIDDLES[self.facts["plot"]])
        return self.told() + SEPARATOR

    def play(self, parts):
        for part in parts:
            kind = part.__class__
            if kind is str:
                self.text.append(part)
                if part == "\n":
                    self.taken.clear()
                    for source, number in self.kept:
                        self.taken.setdefault(source, []).append(number)
            elif kind is Slot:
                self.text.append(self.facts[part.role] if part.role in self.facts else self.word(part))
            else:
                self.play(part[self.choose(len(part), self.told, lambda: [self.start(way) for way in part])])

    def word(self, slot):
        """A word of the slot's list that was not told in this paragraph; a role keeps it for the whole story."""
        options, taken = slot.options, self.taken.setdefault(slot.source, [])
        number = self.choose(len(options) - len(taken), self.told, lambda: [word for n, word in enumerate(options) if n not in taken])
        for other in sorted(taken):
            number += number >= other
        taken.append(number)
        if slot.role:
            self.facts[slot.role] = options[number]
            self.kept.append((slot.source, number))
            if slot.role == "hero":
                self.facts.update(PRONOUNS["girl" if number < len(WORDS["girl"]) else "boy"])
        return options[number]

    def start(self, parts):
        """What is certain of how these parts begin."""
        known = ""
        for part in parts:
            if part.__class__ is str:
                known += part
            elif part.__class__ is Slot and part.role in self.facts:
                known += self.facts[part.role]
            else:
                break
        return known


def stories(seed):
    """Endless (text, bits): stories that end with a blank line and what each holds. Story k depends on `seed` and k only (Philox words)."""
    source = np.random.Philox(key=seed)
    while True:
        numbers = source.random_raw(WORDS_OF_64 * 64).astype("<u8").tobytes()
        for at in range(0, len(numbers), 8 * WORDS_OF_64):
            number, ways = int.from_bytes(numbers[at:at + 8 * WORDS_OF_64], "little"), 1

            def choose(n, told, options):
                nonlocal number, ways
                number, way = divmod(number, n)
                ways *= n
                return way
            yield Telling(choose).whole(), math.log2(ways)


def write(n_bytes, seed):
    """Whole stories (text, bits) of `stories(seed)` until at least `n_bytes` have been written."""
    size = 0
    for text, bits in stories(seed):
        if size >= n_bytes:
            return
        size += len(text)
        yield text, bits


def read(text):
    """The bits of one story, found from its text alone. ValueError if no telling, or more than one, gives this text."""
    ways = 1

    def choose(n, told, options):
        nonlocal ways
        at = len(told())
        fits = [way for way, option in enumerate(options()) if text.startswith(option, at)]
        if len(fits) != 1:
            raise ValueError(f"{len(fits)} ways to go on after {told()[-40:]!r}")
        ways *= n
        return fits[0]
    if Telling(choose).whole() != text:
        raise ValueError("the text goes on as no story does")
    return math.log2(ways)

"""The embedded corpus: small stories from a grammar that knows its own entropy exactly.

A story is a number. Its remainders, one after another, pick a word from a list or one of several ways to go on; all are equally likely,
so a story that met lists of n1, n2, ... options has probability 1 / (n1 n2 ...) and holds log2(n1 n2 ...) bits. The text determines
every choice (`read` finds them again), hence no model can, on average, predict the bytes of a corpus in fewer bits than the sum over
its stories.

How a script is written:  [thing]  any word of the list `thing`           [a thing]  the same with its article      [Thing]  capitalised
                          {hero}   who or what has that role; drawn once  (x|y)      goes on as x or as y           {he} {his} {him}  fit the hero
                          <ending> a phrase that many scripts share       an empty line begins a paragraph
No list gives the same word twice in a paragraph, nor ever again a word that has a role.
"""

import math
import re
from typing import NamedTuple

import numpy as np

WORDS_OF_64 = 32  # random words for a story: 2,048 bits, four times what one holds, so that every remainder is uniform to 1 in 2^1000

# No word of a list begins another one of it, so that a reader knows which one it sees.
WORDS = {
    name: tuple(words.split())
    for name, words in dict(
        # people
        girl="Alma Amy Ann Anya Ava Bea Beth Cara Cleo Dee Dora Ella Elsa Emma Eve Fay Gail Gwen Ida Iris Ivy Jane Jean Jill Joan Joy June "
        "Kate Kim Lena Lily Lola Lucy Mary Maya Mia Nell Nina Nora Pam Rita Rosa Ruby Ruth Sara Sue Tess Una Vera Zoe Cora Dot Fern Gina "
        "Hana Jess Lara Liz Nan Opal Pia Thea",
        boy="Abe Adam Alan Alec Alf Ben Bill Bob Carl Dan Dave Dirk Doug Eli Eric Evan Finn Fred Glen Gus Hal Hans Hugo Ian Jack Jake Jim Joe "
        "Josh Ken Kit Kyle Leo Liam Luke Mark Matt Max Ned Neil Nick Noah Otto Owen Paul Pete Ray Rob Sam Ted Tim Tom Amir Art Burt Cal "
        "Drew Gabe Hank Kurt Lou Nat Rex",
        # what people, animals and things are like
        shy="shy kind wise brave gentle clever funny noisy quiet quick slow proud timid jolly sweet merry lazy happy silly busy cheeky calm "
        "bold lively cute young sly mild keen fussy giddy loud meek nice polite posh smart smug strong swift tough witty bright fair fit "
        "good honest loyal modest neat nimble noble plucky sure tidy eager cool tame wild warm old odd glad dear plump soft",
        glad="glad happy proud merry calm jolly joyful warm safe lucky brave loved cosy bright strong fine good great grand rich tall light "
        "young kind keen bold lively sunny rosy snug smart sure swift fresh quick tough wise clever cool",
        sad="sad upset cross low gloomy blue tired hurt glum lost shaky weary grumpy lonely sorry worried cold small weak numb stiff sore "
        "flat grim moody tense dizzy dull limp shy faint sour",
        odd="nice fine neat odd funny pretty lovely plain good great grand smart cool rare fancy lucky magic secret dear famous simple silly "
        "sweet jolly proper royal strange weird quaint humble dainty modern special useful crazy perfect smooth tidy eerie exotic faded "
        "homely lush nifty prized rustic solid sturdy swish trim unique vivid wacky posh quiet old cosy new cheap super soft wee dull "
        "bonny classy lively jaunty perky plush comic snug zany daft fab swell dandy ideal prime spare chic costly deluxe gaudy main",
        red="red blue green pink white black brown grey gold silver yellow purple orange cream tan rose plum lime mint teal amber coral lilac "
        "navy ruby jade ivory beige olive peach lemon copper bronze violet maroon indigo snowy sandy sooty smoky frosty dusty muddy damp "
        "wet clean warm cold dark pale bright shiny small big tiny little huge striped spotted mossy icy ginger wine rusty scarlet azure "
        "pearl hazel mauve khaki crimson tawny inky silky fuzzy glossy round slim thin tall sleek hot chilly",
        # things, food, animals, places
        thing="axe badge bag ball banjo bat bead bell belt bib book boot bow box brick brush button cap card case chain clock coat coin comb "
        "cork crown cup disc dish doll drum fan flag flute fork frame gem glove gong hat harp hook hoop horn jar jug kettle key kite "
        "lamp lens lid log map mask medal mirror mop mug nail oar pad pan pen pin pipe plate pot pouch purse puzzle quilt rag rake ring "
        "rope rug sack saw scarf shawl shell shirt shoe skirt sled sock spade spoon stamp stick stone strap sword tape tent tie tile "
        "toy train tray truck urn vase vest wand watch wheel wig basket bucket fiddle lute dart kazoo lasso lock net puck pebble ruler "
        "sash scroll spear tub torch trowel viola wallet zip bonnet cane chime fez ribbon",
        food="figs plums pears nuts eggs jam rice bread cake soup pie tarts buns corn peas beans cheese ham toast honey grapes dates apples "
        "pasta melon leeks kale pizza salad rolls stew chips mints fudge toffee jelly oats limes kiwis prunes olives beets fish yams "
        "broth curry lemons onions pecans pork ribs rusks sweets tofu tuna wraps crisps crepes cod prawns beef scones herbs cress dips "
        "mince mousse yogurt",
        animal="ant bat bear bee bird boar bug calf cat chick clam colt cow crab crow cub deer dog dove duck eel elk emu ewe fawn finch fish "
        "fly foal fox frog gnat goat goose grub gull hare hawk hen heron hog horse jay koala lamb lark lion llama mole moose moth "
        "mouse mule newt otter owl panda pig pony pup rat raven robin seal sheep shrew skunk slug snail snake stag stork swan swift "
        "tiger toad vole wasp whale wolf worm wren yak zebra ram sow gecko bison tapir vixen lynx pug squid mink mite beaver badger",
        place="bank barn bay beach bog brook bridge camp castle cave church cliff coast cove creek dam den dock dune fair farm field forest "
        "fort garden gate glen grove hall hill hut inn lake lane lodge market marsh mill mine moat moor museum oak park path pier pond "
        "pool port quay ridge river road school sea shed shop shore spring stable stall stream swamp temple tower town vale well wharf "
        "wood yard zoo",
        # deeds
        sang="sang danced ran jumped played laughed hid dug swam climbed clapped cheered drew painted chatted hummed hopped read skipped "
        "rolled waved spun leapt baked raced rowed joked cooked fished skated swung acted talked ate slid rode wrote sewed smiled rested "
        "camped hiked jogged paddled giggled drummed twirled marched bounced tumbled grinned kicked napped skied surfed sailed dived "
        "dozed biked bowled bowed",
        ran="went ran walked hopped skipped raced rode sped crept trotted jogged hiked dashed rushed danced marched",
        brought="brought found gave had lent sent got took",
        met="met saw fed patted followed hugged chased passed",
        cried="cried called shouted yelled gasped sang laughed cheered",
        # times and spots
        cold="cold warm cool dry mild sunny windy foggy misty grey clear calm quiet fine lovely dull",
        under="under behind beside near",
    ).items()
}
WORDS["name"] = WORDS["girl"] + WORDS["boy"]

PHRASES = dict(
    treasure="[a odd] [red] [thing]",
    creature="[a shy] [red] [animal]",
    somewhere="[a odd] [red] [place]",
    hurry="[Sad], [sad] and [sad], {he} [ran] to {friend}.",
    thanks='"Thank you, {friend}!" [cried] {hero}, [glad] and [glad].',
    ending="""Friends came: [name] [sang], [name] [sang], [name] [sang] and [name] [sang].
        [name] [brought] [food], [name] [brought] [food] and [name] [brought] <treasure>.
        At night, {hero} dreamed of <creature>, <treasure> and <somewhere>.""",
    beats="(beats|tops|is worth|is like) <treasure>.",
)

ROLES = dict(hero="name", friend="name", thing="thing", snack="food", beast="animal")

OPENING = """
{hero} (loved [food], [food], [food] and <creature>|was [shy], [shy], [shy] and [shy]|lived by <somewhere> with <creature>).
{He} had <treasure>, <treasure> and <treasure>. One [cold] day, {he}"""

PLOTS = dict(
    lost="""
lost [a odd] [red] {thing}. <hurry>

They looked [under] <treasure>, <treasure> and <treasure>, and [met] <creature> and <creature>. But where was the {thing}?

At last, {friend} found the {thing} by <somewhere>! <thanks> {He} gave {friend} [food], [food] and [food]. <ending> A good friend <beats>
""",
    gift="""
got a gift from {friend}. It was [a odd] [red] {thing}. <thanks>

"I like the {thing} more than [food], [food], [food] or <creature>," said {hero}.
{He} took it to <somewhere>, and [met] <creature>, <creature> and <creature>.

So {hero} gave {friend} a gift, too: <treasure>, <treasure> and <treasure>. <ending> A thank you <beats>
""",
    share="""
packed {snack}, [food], [food] and [food], and [ran] to <somewhere>.

There sat {friend}, [sad], [sad] and [sad]. {friend} had no food. So {hero} gave {friend} half of the {snack}, and [food] and [food].

"Thank you, {hero}!" [cried] {friend}, [glad] and [glad], and gave {him} <treasure>, <treasure> and <treasure>. <ending> A shared lunch <beats>
""",
    rescue="""
saw [a shy] [red] {beast} stuck [under] <treasure>. <hurry>

"Poor {beast}!" said {friend}. They gave it [food], [food] and [food], and pulled with <treasure>, <treasure> and <treasure>.

At last, the {beast} was free, [glad], [glad] and [glad]. It [sang], [sang] and [sang] with <creature> and <creature>. <ending> A kind deed <beats>
""",
    learn="""
wished to draw [a shy] [red] {beast}, but the {beast} looked like <treasure>. <hurry>

"Be [shy], [shy] and [shy], and try again," said {friend}. So {he} drew <creature>, <creature> and <somewhere>.

At last, {he} drew the {beast}, and it looked [shy], [shy] and [shy]! <thanks> <ending> A brave try <beats>
""",
    visit="""
went to see {his} gran by <somewhere>. {He} [met] <creature>, <creature> and <creature>.

"Come in, {hero}!" said gran. "I have [food], [food], [food] and [food]." Her house was full: it had <treasure>, <treasure> and <creature>.

{hero} gave gran [a odd] [red] {thing}. "Thank you, {hero}!" [cried] gran, [glad] and [glad], and put the {thing} [under] <treasure>.
<ending> A visit <beats>
""",
    rain="""
went to play by <somewhere>, but it began to rain. <hurry>

"We can play inside," said {friend}. They ate [food], [food] and [food], and drew <creature>, <creature>, <treasure> and <somewhere>.

At last, the sun came out, but they felt too [glad], [glad] and [glad] to stop. <ending> A friend in the rain <beats>
""",
    make="""
made [a odd] [red] {thing} from <treasure> and <treasure>, but the {thing} broke. <hurry>

"Try again," said {friend}. "Use <treasure>, <treasure> or <treasure>." {friend} held it, and {hero} [sang], [sang] and [sang].

At last, the {thing} was done. It was [odd], [odd] and [odd]. <thanks> <ending> A helping hand <beats>
""",
    fear="""
heard a noise [under] <treasure> by <somewhere>. <hurry>

"Let us look," said {friend}. They took <treasure>, <treasure> and <treasure>, and [ran] past <creature> and <creature>.

At last, they saw that it was only [a shy] [red] {beast}. They gave the {beast} [food], [food] and [food], and felt [glad] and [glad].
<ending> A brave heart <beats>
""",
    grow="""
put a seed by <somewhere>. But <creature>, <creature> and <creature> sat on it. <hurry>

"Make a fence," said {friend}. So they took <treasure>, <treasure> and <treasure>, and {hero} [sang], [sang] and [sang] to the seed.

At last, it was a plant with [food], [food] and [food]. <thanks> <ending> A little care <beats>
""",
)

PRONOUNS = dict(girl=dict(he="she", his="her", him="her", He="She"), boy=dict(he="he", his="his", him="him", He="He"))
SEPARATOR = "\n\n"


class Slot(NamedTuple):
    """A place in a script for one word: of the list `source`, as `options` spell it there; `role` keeps it for later places."""

    source: str
    options: tuple
    role: str


def with_article(word):
    return ("an " if re.match("[aeio]|u(?!ni|se)|honest", word) else "a ") + word


def slot(token, roles):
    """The `Slot` of [word], [a word], [Word], {role}."""
    if token[0] == "{":
        role = token[1:-1]
        return Slot(roles.get(role), WORDS.get(roles.get(role)), role)
    article, name = re.fullmatch(r"\[(a )?(.*)\]", token).groups()
    options = WORDS[name.lower()]
    if article:
        options = tuple(map(with_article, options))
    if name[0].isupper():
        options = tuple(word[0].upper() + word[1:] for word in options)
    return Slot(name.lower(), options, None)


def compiled(script, roles=ROLES):
    """The parts of a script: literal strings, `Slot`s, and tuples of alternatives, each a list of parts. `roles`: the list each is of."""
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
            stack[-1][-1].append(slot(token, roles) if token[0] in "[{" else token)
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
        self.facts["plot"] = plots[
            self.choose(len(plots), self.told, lambda: [self.start(MIDDLES[plot]) for plot in plots])
        ]
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
        number = self.choose(
            len(options) - len(taken), self.told, lambda: [word for n, word in enumerate(options) if n not in taken]
        )
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


def numbers(seed):
    """Endless random numbers, one for each text. Number k depends on `seed` and k only (Philox words)."""
    source = np.random.Philox(key=seed)
    while True:
        words = source.random_raw(WORDS_OF_64 * 64).astype("<u8").tobytes()
        for at in range(0, len(words), 8 * WORDS_OF_64):
            yield int.from_bytes(words[at : at + 8 * WORDS_OF_64], "little")


def stories(seed):
    """Endless (text, bits): stories that end with a blank line and what each holds. Story k depends on `seed` and k only."""
    for number in numbers(seed):
        ways = 1

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

"""The embedded corpus `stories`: short stories from a grammar whose entropy is known exactly.

A story is decoded from one random integer. Each choice, a word from a list or a branch of the script, takes the
remainder of the integer by the number of options, so all options are equally likely. A story whose choices had n1, n2,
... options has probability 1 / (n1 n2 ...) and carries log2(n1 n2 ...) bits. The text determines every choice
(`bits_of` recovers them), so the sum of these bits is the entropy of a corpus, and no model can predict it in fewer
bits on average.

The syntax of a script:
    [thing] [Thing]   a random word of the list `thing`, as it is or capitalized
    [a thing]         such a word with its article
    {hero}            the word that has this role, drawn where it first occurs
    {he} {his} {him}  the hero's pronouns; {He} is capitalized
    (x|y)             x or y
    <ending>          a phrase that several scripts share
An empty line starts a paragraph. Within a paragraph no list yields the same word twice, and a word with a role is
never drawn again.
"""

import math
import re
from typing import NamedTuple

import numpy as np

# Random 64-bit words per story: 2,048 bits, four times what a story needs, so remainders are uniform to 1 in 2^1000.
WORDS_OF_64 = 32

# No word of a list is a prefix of another one in it, so the text shows which word was drawn.
WORDS = {
    name: tuple(words.split())
    for name, words in dict(
        # people
        girl="Alma Amy Ann Anya Ava Bea Beth Cara Cleo Dee Dora Ella Elsa Emma Eve Fay Gail Gwen Ida Iris Ivy Jane "
        "Jean Jill Joan Joy June Kate Kim Lena Lily Lola Lucy Mary Maya Mia Nell Nina Nora Pam Rita Rosa Ruby "
        "Ruth Sara Sue Tess Una Vera Zoe Cora Dot Fern Gina Hana Jess Lara Liz Nan Opal Pia Thea",
        boy="Abe Adam Alan Alec Alf Ben Bill Bob Carl Dan Dave Dirk Doug Eli Eric Evan Finn Fred Glen Gus Hal "
        "Hans Hugo Ian Jack Jake Jim Joe Josh Ken Kit Kyle Leo Liam Luke Mark Matt Max Ned Neil Nick Noah "
        "Otto Owen Paul Pete Ray Rob Sam Ted Tim Tom Amir Art Burt Cal Drew Gabe Hank Kurt Lou Nat Rex",
        # adjectives of people, animals and things
        shy="shy kind wise brave gentle clever funny noisy quiet quick slow proud timid jolly sweet merry lazy "
        "happy silly busy cheeky calm bold lively cute young sly mild keen fussy giddy loud meek nice polite "
        "posh smart smug strong swift tough witty bright fair fit good honest loyal modest neat nimble noble "
        "plucky sure tidy eager cool tame wild warm old odd glad dear plump soft",
        glad="glad happy proud merry calm jolly joyful warm safe lucky brave loved cosy bright strong fine good "
        "great grand rich tall light young kind keen bold lively sunny rosy snug smart sure swift fresh quick "
        "tough wise clever cool",
        sad="sad upset cross low gloomy blue tired hurt glum lost shaky weary grumpy lonely sorry worried cold "
        "small weak numb stiff sore flat grim moody tense dizzy dull limp shy faint sour",
        odd="nice fine neat odd funny pretty lovely plain good great grand smart cool rare fancy lucky magic "
        "secret dear famous simple silly sweet jolly proper royal strange weird quaint humble dainty modern "
        "special useful crazy perfect smooth tidy eerie exotic faded homely lush nifty prized rustic solid "
        "sturdy swish trim unique vivid wacky posh quiet old cosy new cheap super soft wee dull bonny classy "
        "lively jaunty perky plush comic snug zany daft fab swell dandy ideal prime spare chic costly deluxe "
        "gaudy main",
        red="red blue green pink white black brown grey gold silver yellow purple orange cream tan rose plum lime "
        "mint teal amber coral lilac navy ruby jade ivory beige olive peach lemon copper bronze violet maroon "
        "indigo snowy sandy sooty smoky frosty dusty muddy damp wet clean warm cold dark pale bright shiny "
        "small big tiny little huge striped spotted mossy icy ginger wine rusty scarlet azure pearl hazel "
        "mauve khaki crimson tawny inky silky fuzzy glossy round slim thin tall sleek hot chilly",
        # things, food, animals, places
        thing="axe badge bag ball banjo bat bead bell belt bib book boot bow box brick brush button cap card case "
        "chain clock coat coin comb cork crown cup disc dish doll drum fan flag flute fork frame gem glove "
        "gong hat harp hook hoop horn jar jug kettle key kite lamp lens lid log map mask medal mirror mop mug "
        "nail oar pad pan pen pin pipe plate pot pouch purse puzzle quilt rag rake ring rope rug sack saw "
        "scarf shawl shell shirt shoe skirt sled sock spade spoon stamp stick stone strap sword tape tent tie "
        "tile toy train tray truck urn vase vest wand watch wheel wig basket bucket fiddle lute dart kazoo "
        "lasso lock net puck pebble ruler sash scroll spear tub torch trowel viola wallet zip bonnet cane "
        "chime fez ribbon",
        food="figs plums pears nuts eggs jam rice bread cake soup pie tarts buns corn peas beans cheese ham toast "
        "honey grapes dates apples pasta melon leeks kale pizza salad rolls stew chips mints fudge toffee "
        "jelly oats limes kiwis prunes olives beets fish yams broth curry lemons onions pecans pork ribs "
        "rusks sweets tofu tuna wraps crisps crepes cod prawns beef scones herbs cress dips mince mousse "
        "yogurt",
        animal="ant bat bear bee bird boar bug calf cat chick clam colt cow crab crow cub deer dog dove duck eel elk "
        "emu ewe fawn finch fish fly foal fox frog gnat goat goose grub gull hare hawk hen heron hog horse "
        "jay koala lamb lark lion llama mole moose moth mouse mule newt otter owl panda pig pony pup rat "
        "raven robin seal sheep shrew skunk slug snail snake stag stork swan swift tiger toad vole wasp whale "
        "wolf worm wren yak zebra ram sow gecko bison tapir vixen lynx pug squid mink mite beaver badger",
        place="bank barn bay beach bog brook bridge camp castle cave church cliff coast cove creek dam den dock "
        "dune fair farm field forest fort garden gate glen grove hall hill hut inn lake lane lodge market "
        "marsh mill mine moat moor museum oak park path pier pond pool port quay ridge river road school sea "
        "shed shop shore spring stable stall stream swamp temple tower town vale well wharf wood yard zoo",
        # actions
        sang="sang danced ran jumped played laughed hid dug swam climbed clapped cheered drew painted chatted "
        "hummed hopped read skipped rolled waved spun leapt baked raced rowed joked cooked fished skated "
        "swung acted talked ate slid rode wrote sewed smiled rested camped hiked jogged paddled giggled "
        "drummed twirled marched bounced tumbled grinned kicked napped skied surfed sailed dived dozed biked "
        "bowled bowed",
        ran="went ran walked hopped skipped raced rode sped crept trotted jogged hiked dashed rushed danced marched",
        brought="brought found gave had lent sent got took",
        met="met saw fed patted followed hugged chased passed",
        cried="cried called shouted yelled gasped sang laughed cheered",
        # weather, positions
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
{hero} (loved [food], [food], [food] and <creature>|was [shy], [shy], [shy] and [shy]|lived by <somewhere> with
<creature>).
{He} had <treasure>, <treasure> and <treasure>. One [cold] day, {he}"""

PLOTS = dict(
    lost="""
lost [a odd] [red] {thing}. <hurry>

They looked [under] <treasure>, <treasure> and <treasure>, and [met] <creature> and <creature>. But where was
the {thing}?

At last, {friend} found the {thing} by <somewhere>! <thanks> {He} gave {friend} [food], [food] and [food].
<ending> A good friend <beats>
""",
    gift="""
got a gift from {friend}. It was [a odd] [red] {thing}. <thanks>

"I like the {thing} more than [food], [food], [food] or <creature>," said {hero}.
{He} took it to <somewhere>, and [met] <creature>, <creature> and <creature>.

So {hero} gave {friend} a gift, too: <treasure>, <treasure> and <treasure>. <ending> A thank you <beats>
""",
    share="""
packed {snack}, [food], [food] and [food], and [ran] to <somewhere>.

There sat {friend}, [sad], [sad] and [sad]. {friend} had no food. So {hero} gave {friend} half of the {snack},
and [food] and [food].

"Thank you, {hero}!" [cried] {friend}, [glad] and [glad], and gave {him} <treasure>, <treasure> and <treasure>.
<ending> A shared lunch <beats>
""",
    rescue="""
saw [a shy] [red] {beast} stuck [under] <treasure>. <hurry>

"Poor {beast}!" said {friend}. They gave it [food], [food] and [food], and pulled with <treasure>, <treasure>
and <treasure>.

At last, the {beast} was free, [glad], [glad] and [glad]. It [sang], [sang] and [sang] with <creature> and
<creature>. <ending> A kind deed <beats>
""",
    learn="""
wished to draw [a shy] [red] {beast}, but the {beast} looked like <treasure>. <hurry>

"Be [shy], [shy] and [shy], and try again," said {friend}. So {he} drew <creature>, <creature> and <somewhere>.

At last, {he} drew the {beast}, and it looked [shy], [shy] and [shy]! <thanks> <ending> A brave try <beats>
""",
    visit="""
went to see {his} gran by <somewhere>. {He} [met] <creature>, <creature> and <creature>.

"Come in, {hero}!" said gran. "I have [food], [food], [food] and [food]." Her house was full: it had <treasure>,
<treasure> and <creature>.

{hero} gave gran [a odd] [red] {thing}. "Thank you, {hero}!" [cried] gran, [glad] and [glad], and put the
{thing} [under] <treasure>.
<ending> A visit <beats>
""",
    rain="""
went to play by <somewhere>, but it began to rain. <hurry>

"We can play inside," said {friend}. They ate [food], [food] and [food], and drew <creature>, <creature>,
<treasure> and <somewhere>.

At last, the sun came out, but they felt too [glad], [glad] and [glad] to stop. <ending> A friend in the rain <beats>
""",
    make="""
made [a odd] [red] {thing} from <treasure> and <treasure>, but the {thing} broke. <hurry>

"Try again," said {friend}. "Use <treasure>, <treasure> or <treasure>." {friend} held it, and {hero} [sang],
[sang] and [sang].

At last, the {thing} was done. It was [odd], [odd] and [odd]. <thanks> <ending> A helping hand <beats>
""",
    fear="""
heard a noise [under] <treasure> by <somewhere>. <hurry>

"Let us look," said {friend}. They took <treasure>, <treasure> and <treasure>, and [ran] past <creature> and
<creature>.

At last, they saw that it was only [a shy] [red] {beast}. They gave the {beast} [food], [food] and [food], and
felt [glad] and [glad].
<ending> A brave heart <beats>
""",
    grow="""
put a seed by <somewhere>. But <creature>, <creature> and <creature> sat on it. <hurry>

"Make a fence," said {friend}. So they took <treasure>, <treasure> and <treasure>, and {hero} [sang], [sang] and
[sang] to the seed.

At last, it was a plant with [food], [food] and [food]. <thanks> <ending> A little care <beats>
""",
)

PRONOUNS = dict(girl=dict(he="she", his="her", him="her", He="She"), boy=dict(he="he", his="his", him="him", He="He"))
SEPARATOR = "\n\n"


class Slot(NamedTuple):
    """Where a script takes a word."""

    source: str  # name of the list
    options: tuple  # its words as they are spelled here
    role: str  # under which the word is kept for the rest of the story, or None


def with_article(word):
    """The word after "a" or "an"."""
    return ("an " if re.match("[aeio]|u(?!ni|se)|honest", word) else "a ") + word


def parse_slot(token, roles):
    """The `Slot` of a token [word], [a word], [Word] or {role}."""
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


def parse_script(script, roles=ROLES):
    """The parts of a script: strings, `Slot`s, and tuples of branches, where each branch is a list of parts.

    roles: {role: name of the list that its word is drawn from}
    """
    while "<" in script:
        script = re.sub("<(.*?)>", lambda match: PHRASES[match[1]], script)
    script = "\n".join(" ".join(paragraph.split()) for paragraph in script.split("\n\n"))
    stack = [[[]]]  # for each open parenthesis its branches so far
    for token in re.findall(r"[^\[\]{}()|\n]+|\[.*?\]|{.*?}|.|\n", re.sub(r"\s*\|\s*", "|", script)):
        if token == "(":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == ")":
            branches = tuple(stack.pop())
            stack[-1][-1].append(branches)
        else:
            stack[-1][-1].append(parse_slot(token, roles) if token[0] in "[{" else token)
    return stack[0][0]


BEGINNING, MIDDLES = [*parse_script(OPENING), " "], {plot: parse_script(script) for plot, script in PLOTS.items()}


class StoryWriter:
    """Expands scripts into the text of one story.

    choose: function (n, text_so_far, options) -> number below n of the option to take. text_so_far() is the text up to
    here, options() the list of what each option would add first. Both are functions, because only `bits_of` needs them.
    """

    def __init__(self, choose):
        self.choose, self.text = choose, []
        self.facts = {}  # {role: word}, and the plot
        self.drawn = {}  # {list: numbers of the words that this paragraph may not draw again}
        self.with_role = []  # (list, number) of each word with a role, which no later paragraph may draw

    def text_so_far(self):
        return "".join(self.text)

    def story(self):
        """The text of a whole story, with the separator after it."""
        self.expand(BEGINNING)
        plots = tuple(MIDDLES)
        plot = plots[self.choose(len(plots), self.text_so_far, lambda: [self.prefix(MIDDLES[plot]) for plot in plots])]
        self.facts["plot"] = plot
        self.expand(MIDDLES[plot])
        return self.text_so_far() + SEPARATOR

    def expand(self, parts):
        """Append the text of these parts to the story."""
        for part in parts:
            kind = part.__class__
            if kind is str:
                self.text.append(part)
                if part == "\n":
                    self.drawn.clear()
                    for source, number in self.with_role:
                        self.drawn.setdefault(source, []).append(number)
            elif kind is Slot:
                self.text.append(self.facts[part.role] if part.role in self.facts else self.draw(part))
            else:
                branch = self.choose(len(part), self.text_so_far, lambda: [self.prefix(branch) for branch in part])
                self.expand(part[branch])

    def draw(self, slot):
        """A word of the slot's list that this paragraph has not drawn yet."""
        options, drawn = slot.options, self.drawn.setdefault(slot.source, [])
        number = self.choose(
            len(options) - len(drawn),
            self.text_so_far,
            lambda: [word for n, word in enumerate(options) if n not in drawn],
        )
        for other in sorted(drawn):  # from the number among the remaining words to the number in the list
            number += number >= other
        drawn.append(number)
        if slot.role:
            self.facts[slot.role] = options[number]
            self.with_role.append((slot.source, number))
            if slot.role == "hero":
                self.facts.update(PRONOUNS["girl" if number < len(WORDS["girl"]) else "boy"])
        return options[number]

    def prefix(self, parts):
        """The text with which these parts start whatever is chosen next."""
        known = ""
        for part in parts:
            if part.__class__ is str:
                known += part
            elif part.__class__ is Slot and part.role in self.facts:
                known += self.facts[part.role]
            else:
                break
        return known


def random_integers(seed):
    """Endless random integers, one per story. Integer k depends on `seed` and k only (Philox)."""
    source = np.random.Philox(key=seed)
    while True:
        words = source.random_raw(WORDS_OF_64 * 64).astype("<u8").tobytes()
        for at in range(0, len(words), 8 * WORDS_OF_64):
            yield int.from_bytes(words[at : at + 8 * WORDS_OF_64], "little")


def stories(seed):
    """Endless (text, bits): stories that end with a blank line. Story k depends on `seed` and k only."""
    for integer in random_integers(seed):
        outcomes = 1

        def choose(n, text_so_far, options):
            nonlocal integer, outcomes
            integer, option = divmod(integer, n)
            outcomes *= n
            return option

        yield StoryWriter(choose).story(), math.log2(outcomes)


def write(n_bytes, seed):
    """Yield (text, bits) of whole stories of `stories(seed)` until they have at least `n_bytes`."""
    size = 0
    for text, bits in stories(seed):
        if size >= n_bytes:
            return
        size += len(text)
        yield text, bits


def bits_of(text):
    """The information of one story in bits, recovered from its text alone.

    ValueError unless exactly one sequence of choices writes this text.
    """
    outcomes = 1

    def choose(n, text_so_far, options):
        nonlocal outcomes
        at = len(text_so_far())
        fits = [number for number, option in enumerate(options()) if text.startswith(option, at)]
        if len(fits) != 1:
            raise ValueError(f"{len(fits)} options fit the text after {text_so_far()[-40:]!r}")
        outcomes *= n
        return fits[0]

    if StoryWriter(choose).story() != text:
        raise ValueError("the text differs from the story that its choices write")
    return math.log2(outcomes)

"""Plots out of doors: in the garden, the woods and the town, by the water and at school."""

from slm_np.data.stories.shared import bedtime, met, opening, thanks


def kite_in_tree(t):
    """A kite is caught in a tree; a careful child reaches it with a tool, a bold one climbs."""
    opening(t)
    met(t)
    t(
        "One windy <daytime>, they (took|carried|brought) {hero.his} {flyer.full} to the {place.full} (and let it fly|"
        "to fly it|to see how high it would go)."
    )
    t(
        "(At first|For a while|For an hour), (all went well|it flew well|they had a lot of fun). "
        "<Then> a (strong|sudden|wild|big) (wind|gust) (came|blew), "
        "(the string broke|the string snapped), and the {flyer} (got stuck|was caught|landed) (high|high up) in {a tree.full}."
    )
    t.paragraph()
    t('"(My|Oh no, my|Oh dear, my|Look, my) {flyer}!" <cried> {hero}. {Hero.He} (was|felt) <very> {sad}.')
    t('"Do not be {sad}," said {friend} <kindly>. "We will (get it down|get it back|think of something)."')
    if t["trait"].kind == "quiet":
        t(
            "{hero} was too {trait} to climb the {tree}. {Hero.He} (looked around|walked around the tree|thought for a moment) "
            "(and found|and came back with) {a tool.full}."
        )
        t(
            "{friend} (lifted|raised|held) the {tool} (up high|as high as {friend.he} could), and {friend.he} (gave|gently gave) "
            "the {flyer} (a push|a poke|a little push). (It came loose|It slipped free) and (fell|dropped|floated) (down|to the ground)."
        )
        t.ask("How did they get the {flyer} down?", "With {a tool.full}.")
        t.ask("What did {hero} find?", "{A tool.full}.")
        t.ask("Who gave the {flyer} a push?", "{friend}.")
    else:
        t(
            "{hero} was a {trait} {hero.girl}, so {hero.he} climbed (up the {tree}|from branch to branch) and "
            "(pulled it out|pulled it loose|set it free). But {hero.he} tore {hero.his} {wear.full} (on a twig|on a branch)."
        )
        t(
            '"(I tore|Oh, I tore|Look, I tore) my {wear}," said {hero} when {hero.he} was (down|on the ground) again. '
            '"(I can|Let me|I will) help you (mend|fix|sew) it," {friend} <told>.'
        )
        t.ask("How did they get the {flyer} down?", "{hero} climbed the {tree}.")
        t.ask("What did {hero} tear?", "{Hero.His} {wear}.")
        t.ask("Who helped to mend the {wear}?", "{friend}.")
    t.paragraph()
    t(
        "The {flyer} had a (little|small|tiny) hole. They (mended|fixed|covered) it with {color} paper, and (now it looked|it looked) "
        "(even better|even prettier|nicer) than before."
    )
    thanks(t, "friend")
    t(
        "They tied a (new|strong|new, strong) string to the {flyer} with its {color} (spot|patch), and this time they "
        "(flew it|let it fly) far away from the {tree}."
    )
    bedtime(t)
    t.ask("Where did the {flyer} get stuck?", "In {a tree.full}.")
    t.ask("Why was {hero} {sad}?", "The {flyer} was stuck in the {tree}.")
    t.ask("How did {hero} feel at bedtime?", "{Glad}.")
    t.ask("What color was the paper?", "{Color}.")
    t.ask("What happened before the {flyer} got stuck?", "The string broke.")
    t.ask("Where did they fly the {flyer}?", "{Place.at} the {place.full}.")


def lost_in_the_woods(t):
    """Two children lose their way and find it by what they passed, in reverse order."""
    opening(t)
    met(t)
    t(
        "One <fine> <daytime>, they <went> into the (woods|forest) to (look for|pick|find) (mushrooms|berries|nuts|flowers)."
    )
    t(
        "(First|At first), they (passed|came to|walked by) {a mark.full}. (Then|After that), they (passed|came to|walked by) {a next_mark.full}. "
        "(They talked and laughed|They sang songs|They told each other jokes), and nobody (watched|looked at|thought about) the (path|way)."
    )
    t.paragraph()
    t(
        "<Soon> it (got|grew) (dark|foggy|late), and the path was gone. "
        '"(Where are we|Where is the path|Which way is home)?" {friend} (asked|whispered). {Friend.He} (was|felt) <very> {scared}.'
    )
    t('"(We are lost|I do not know|I am not sure)," {hero} (said|answered|told {friend.him}). "(But do not|Please do not|You must not) be {scared}."')
    if t["trait"].kind == "quiet":
        t(
            "{hero} was a {trait} {hero.girl}. {Hero.He} (sat down|stood still|closed {hero.his} eyes) and (thought|thought about the way|tried to remember). "
            '"(We just passed|I remember|The last thing we saw was) the {next_mark}," {hero.he} (said|told {friend.him}). "(Let us|We must) look for (it|that)."'
        )
        t.ask("What did {hero} remember?", "The {next_mark}.")
    else:
        t(
            "{hero} was a {trait} {hero.girl}. {Hero.He} climbed (up|to the top of) {a tree.full} and (looked|gazed) (around|in every direction). "
            '"I can see the {next_mark}," {hero.he} (called|shouted) (from the {tree}|down). "(It is|It is right) over there!"'
        )
        t.ask("What did {hero} climb?", "{A tree.full}.")
    t(
        "They (held|took) (hands|each other by the hand) and <went> (slowly|carefully|bravely) (through the trees|through the bushes) "
        "(until|till) they (reached|found|came to) the {next_mark}."
    )
    t.paragraph()
    t(
        'There {friend} (pointed|looked) (ahead|down the path). "(There|Look, there|I see it, there) is the {mark}! '
        '(Now I know|I know|From there I know) the way," {friend.he} <cried>. {Friend.He} was not {scared} (anymore|any longer).'
    )
    t(
        "(On the other side|At the end of the path|Behind the {mark}) (stood|waited) {hero.his} {elder} with a {wear.full} "
        "(for {hero}|in {elder.his} hand). \"(You are|Both of you are) (late|very late),\" said {hero.his} {elder}. "
        '"(Here|Come here and) (put on|take) your {wear}. (It is cold|The air is cold|It got cold)."'
    )
    t(
        "At home there was {a soup.full} (for all of them|for everyone|on the table), and the (hot|warm) {soup} "
        "(tasted|was) (good|so good|wonderful)."
    )
    bedtime(t)
    t.ask("Who was {scared}?", "{friend}.")
    t.ask("What did they pass first?", "{A mark.full}.")
    t.ask("What did they pass after the {mark}?", "{A next_mark.full}.")
    t.ask("Why was {friend} {scared}?", "They were lost.")
    t.ask("Who waited with {a wear.full}?", "{hero}'s {elder}.")
    t.ask("What did they eat at home?", "{Soup.full}.")
    t.ask("Where were they lost?", "In the woods.")


def stuck_animal(t):
    """A wild animal is stuck and hurt; it is freed, fed and brought home when it is well."""
    opening(t)
    t(
        "One (cold|wet|gray|rainy|stormy) <daytime>, {hero.he} (heard|noticed) a (strange|small|sad|soft|faint|thin) (sound|cry|noise) (on the way home|behind the house|on the way to school). "
        "{A beast.full} was (stuck|caught|trapped) in {a trap.full}."
    )
    t(
        '"(Poor|You poor|Oh, you poor) {beast}," said {hero}. (The {beast} was shaking|It was cold and wet|It was shaking with cold), and its (leg|foot) was (hurt|sore).'
    )
    t.paragraph()
    if t["trait"].kind == "quiet":
        t(
            "{hero} was {trait}, and {hero.he} did not want to scare it. {Hero.He} (sat down|knelt down) (next to|beside|near) the {trap} and "
            "(talked to it|sang to it|hummed a song) until it was calm."
        )
        t.choose(
            "Then {hero.he} (slowly|gently|carefully) (lifted|took|helped) the {beast} out and (wrapped|tucked) it in {hero.his} {wear.full}.",
            "Then {hero.he} (slowly|gently|carefully) got it out and (carried|took) the {beast} home in {hero.his} {wear.full}.",
        )
    else:
        t(
            "{hero} was {trait}, and {hero.he} did not wait. {Hero.He} (reached|crawled|climbed) (right|straight) into the {trap} (and did not mind|without a thought about) (the dirt|the mud|the cold)."
        )
        t.choose(
            "With both hands {hero.he} (lifted|pulled|helped) the {beast} out and (wrapped|tucked) it in {hero.his} {wear.full}.",
            "With both hands {hero.he} got it out and (carried|took) the {beast} home in {hero.his} {wear.full}.",
        )
    t(
        '"(May|Can) we keep it until it is well?" {hero.he} asked {hero.his} {elder}. "<Yes>," {elder.he} (said|answered) <kindly>, and '
        "(made|built) a (soft|warm|cozy) bed in (an old|a clean|a big) {beast.house}."
    )
    t(
        "(Every day|Each morning|Morning and evening) {hero} (gave|brought) the {beast} {beast.eats} and (fresh|clean) water. "
        "(It ate|It loved) the {beast.eats}, and its (leg|foot) got (better|stronger) (day by day|every day|bit by bit)."
    )
    t.paragraph()
    t(
        "After {number} days, the {beast} (could walk|could move|was well) again. {hero} (was|felt) {sad}, (for|because) {hero.he} (liked|loved) it (so much|very much). "
        '"(It wants|It needs|It has) to go home," said {hero.his} {elder}. "(Do not|Try not to) be {sad}."'
    )
    t(
        "So {hero} (put on|took) the {wear} and (brought|carried|took) the {beast} to {beast.home}. "
        "(It looked back|It turned around) (once|one more time), as if to say, \"<Thanks>.\""
    )
    t(
        "{number} days later, something (moved|rustled) (in front of the house|at the garden gate|under the window). It was the {beast}, (fat|strong) and (healthy|well), and "
        "{hero} was {glad} to (see it|meet it) again. (It often came back|It came every week|It came again and again) for {beast.eats}, and {hero} stayed {glad}."
    )
    t.ask("What animal was stuck?", "{A beast.full}.")
    t.ask("Where was the {beast} stuck?", "In {a trap.full}.")
    t.ask("What did the {beast} eat?", "{Beast.eats}.")
    t.ask("Who made a bed for the {beast}?", "{hero}'s {elder}.")
    t.ask("Why was {hero} {sad}?", "The {beast} had to go home.")
    t.ask("Where was the home of the {beast}?", "{Beast.home}.")
    t.ask("How did {hero} feel when the {beast} came back?", "{Glad}.")


def hut_of_straw(t):
    """What is built of weak stuff falls down; what is built of strong stuff stays."""
    opening(t)
    met(t)
    t(
        "One <fine> <daytime>, {friend} (said|had an idea), \"Let us build {a building.full}!\" "
        "So they <went> to the {place.full} and (gathered|collected|looked for) {weak}."
    )
    t(
        "(They worked|They were busy) (all morning|for hours|for a long time) and (piled|put|stacked) the {weak} (on top of each other|together). "
        "(By noon|At noon|After lunch), the {building} was (done|finished|ready). \"(It is|Now it is|I think it is) <nicely>,\" said {friend}."
    )
    t.paragraph()
    after = t.choose(
        "But in the night (a storm came|there was a storm|it was stormy), and the wind (blew|swept) (everything|all the {weak}) away.",
        "But in the night (it rained|there was heavy rain|it poured), and the rain (washed|carried) (everything|all the {weak}) away.",
        "But in the night (a cow|a big dog|a deer) (ran|walked|stumbled) (right|straight) into it, and (everything|all the {weak}) fell down.",
    )
    t('In the morning, the {building} was (gone|no more). "(All our work|So much work) for nothing!" <cried> {friend}, who was <very> {sad}.')
    if t["trait"].kind == "quiet":
        t(
            '{hero} was {trait} and (looked at it|thought) for a (while|moment). "(We used|It was made of|We took) {weak}," {hero.he} (said|told {friend.him}). '
            '"(They are|That is) too (weak|light). (We need|Let us take|Let us find) {strong}."'
        )
    else:
        t(
            '"(Do not be|Why are you|You need not be) {sad}," said {hero} (with a laugh|at once). {Hero.He} was as {trait} as (ever|always). "(We will|Let us) (start again|try again|build a new one), '
            'and this time we (take|use) {strong}."'
        )
    t(
        "{hero.His} {elder} (had|knew where to find) (some|many|enough) {strong}, and they (carried|brought|dragged) (them|all of them) to the {place} in a (wagon|cart|wheelbarrow)."
    )
    t.paragraph()
    t(
        "(It was|That was) hard work, and it took {number} days. "
        "(They made|They built) the (walls|sides) of {strong} and (painted|covered) the roof {color}."
    )
    ending = ("The next storm (came|blew)", "The next rain (came|fell)", "The next visitor (came|ran into it)")[after]
    t(ending + ", but the {building} (stood|did not fall|did not move), and the {color} roof (stayed|was still) in its place.")
    t(
        '"(It took|We needed|That took) {number} days, (but|and) it was worth it," said {friend}. {Friend.He} was not {sad} (anymore|any longer|at all).'
    )
    bedtime(t)
    t.ask("What did they build?", "{A building.full}.")
    t.ask("What did they build it of first?", "{Weak}.")
    t.ask("What did they build it of the second time?", "{Strong}.")
    t.ask("Where did they build it?", "{Place.at} the {place.full}.")
    t.ask("Who was {sad} in the morning?", "{friend}.")
    t.ask("How many days did it take?", "{Number}.")
    t.ask("Who had {strong}?", "{hero}'s {elder}.")


PLOTS = dict(
    kite_in_tree=kite_in_tree,
    lost_in_the_woods=lost_in_the_woods,
    stuck_animal=stuck_animal,
    hut_of_straw=hut_of_straw,
)

"""Plots out of doors: in the garden, the woods and the town, by the water and at school."""

from slm_np.data.stories.shared import bedtime, opening, thanks


def kite_in_tree(t):
    """A toy that flies is caught in a tree: a quiet child finds a tool, a bold one climbs."""
    opening(t)
    t(
        "<one_day>, {hero.he} <went> to the {place.full} with {a flyer.full} and {hero.his} <friendly> friend {friend}. "
        "<Soon>, a <rough> wind blew the {flyer} into {a tree.full}."
    )
    t.paragraph()
    t('"<Oh_no>, my {flyer}!" {hero} <cried> <sadly>. {Hero.He} <felt> <very> {sad}.')
    t('"Do not be {sad}," said {friend} <kindly>. "<Let_us_help>."')
    if t["trait"].kind == "quiet":
        t(
            "{friend} found {a tool.full}. {hero} was {trait} and <gently> (poked|pushed|nudged|tapped) the {flyer} with "
            "the {tool} until it fell out of the {tree}."
        )
        t.ask("What did {friend} find?", "{A tool.full}.")
        t.ask("How did {hero} get the {flyer} out of the {tree}?", "With the {tool}.")
    else:
        t(
            "But {hero} was {trait} and <boldly> climbed the {tree}. {Hero.He} got the {flyer} but tore {hero.his} "
            "{wear.full}. {friend} <gently> (sewed|mended|fixed|patched) the {wear}."
        )
        t.ask("What did {hero} tear?", "{Hero.His} {wear.full}.")
        t.ask("Who (sewed|mended|fixed|patched) the {wear}?".replace("(sewed|mended|fixed|patched)", "repaired"), "{friend}.")
    t.paragraph()
    thanks(t, "friend")
    t(
        "They flew the {flyer} (far away from|on the other side of|nowhere near) the {tree} and <had_fun> "
        "{place.at} the {place}. {hero} was {glad}."
    )
    bedtime(t)
    t.ask("Where did the wind blow the {flyer}?", "Into {a tree.full}.")
    t.ask("Why was {hero} {sad}?", "Because the {flyer} was in the {tree}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("Where did {hero} and {friend} go?", "To the {place.full}.")
    t.ask("Whose {flyer} was it?", "{hero}'s.")
    t.ask("Who went to the {place} with {hero}?", "{friend}.")


def lost_in_the_woods(t):
    """Two children lose their way, and go back from landmark to landmark."""
    opening(t)
    t(
        "<one_day>, {hero.he} <went> into the woods with {hero.his} <friendly> friend {friend}. They passed "
        "{a mark.full} and later {a next_mark.full}, and they <had_fun>."
    )
    t.paragraph()
    t(
        '<Soon>, it got (dark|foggy|late|misty), and the path was (gone|lost). "(Where are we|Where is the path|Are we lost|'
        'Which way is home|What shall we do|How do we get home|Do you know the way|Where do we go now)?" {friend} asked <sadly>. '
        "{Friend.He} <felt> <very> {scared}."
    )
    t('"Do not be {scared}," said {hero} <kindly>. "<Let_us_help>."')
    if t["trait"].kind == "quiet":
        t(
            '{Hero.He} was {trait} and <thought>. "We came from the {next_mark}," {hero.he} <told>.'
        )
        t.ask("How did {hero} find the way?", "{Hero.He} thought about it.")
    else:
        t(
            '{Hero.He} was {trait} and <boldly> climbed {a tree.full}. "I see the {next_mark} from this {tree}," '
            "{hero.he} <told>."
        )
        t.ask("What did {hero} climb?", "{A tree.full}.")
        t.ask("Where was {hero} when {hero.he} saw the {next_mark}?", "In the {tree}.")
    t(
        "They <went> back to the {next_mark} and then to the {mark}. There {hero}'s {elder} was waiting with "
        "{a wear.full} for {hero.him} and {a treat.full} for {friend}."
    )
    t.paragraph()
    t(
        '{friend} was not {scared} anymore and ate the {treat} <happily>. {hero} put on the {wear} and was {glad}.'
    )
    bedtime(t)
    t.ask("What did they pass first?", "{A mark.full}.")
    t.ask("What did they pass after the {mark}?", "{A next_mark.full}.")
    t.ask("Why was {friend} {scared}?", "Because they were lost.")
    t.ask("Where were they lost?", "In the woods.")
    t.ask("Who was waiting at the {mark}?", "{hero}'s {elder}.")
    t.ask("What did {friend} eat?", "{A treat.full}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def stuck_animal(t):
    """A wild animal is stuck; it is freed, fed until it is well, and brought home."""
    opening(t)
    t(
        "<one_day>, {hero.he} heard a (faint|soft|strange|sad|thin|small|weak|low) (sound|cry|noise). {A beast.full} was "
        "(stuck|caught|trapped) in {a trap.full}."
    )
    t('"<Oh_no>, a {beast}!" {hero} <cried>. {Hero.He} <felt> <very> {sad}.')
    t.paragraph()
    if t["trait"].kind == "quiet":
        t(
            "{Hero.He} was {trait} and <gently> (hummed|whispered|talked|sang) to the {beast} until it was calm. Then {hero.he} "
            "freed it from the {trap} and took it home in {hero.his} {wear.full}."
        )
    else:
        t(
            "{Hero.He} was {trait} and <boldly> (reached|crawled|climbed|jumped) into the {trap}. {Hero.He} freed the {beast} "
            "and took it home in {hero.his} {wear.full}."
        )
    t('"May we keep it?" {hero.he} asked {hero.his} <dear> {elder}. "Until it is well," said {hero.his} {elder} <kindly>.')
    t(
        "They made a bed of (moss|straw|hay|wool) in {a container.full}, and {hero} fed the {beast} {beast.eats} (every day|every morning|"
        "every evening|day and night)."
    )
    t.paragraph()
    t(
        "After {number} days, the {beast} was strong again. {hero} put on the {wear} and took the {container} "
        "to {beast.home}, and the {beast} <boldly> (ran|hurried|went) (home|off|away)."
    )
    t(
        "{Hero.He} was {sad} (at first|for a while|for a bit|for an hour). But {number} days later, the {beast} "
        "came (back|to visit|again), and {hero} was {glad}. They gave it {beast.eats}."
    )
    bedtime(t)
    t.ask("What animal was in the {trap}?", "{A beast.full}.")
    t.ask("Where was the {beast} stuck?", "In {a trap.full}.")
    t.ask("What did the {beast} eat?", "{Beast.eats}.")
    t.ask("Where did {hero} take the {beast} in the end?", "To {beast.home}.")
    t.ask("How did {hero} feel when the {beast} came back?", "{Glad}.")
    t.ask("Who freed the {beast}?", "{hero}.")
    t.ask("What was the bed of the {beast} in?", "{A container.full}.")


def hut_of_straw(t):
    """What is built of weak stuff falls down; what is built of strong stuff stays."""
    opening(t)
    t(
        "<one_day>, {hero.he} <went> to the {place.full} with {hero.his} <friendly> friend {friend}. "
        "They built {a building.full} of {weak}, and it looked <nice>."
    )
    why = t.choose(
        "But <night>, a <rough> wind blew, and the {weak} (blew|flew|tumbled) away.",
        "But <night>, a <rough> rain fell, and the {weak} (washed|floated|slid) away.",
    )
    t.ask("What (blew|washed) the {weak} away?".replace("(blew|washed)", "took"), ("The wind.", "The rain.")[why])
    t.paragraph()
    t('"<Oh_no>, our {building}!" {friend} <cried> <sadly>. {Friend.He} <felt> <very> {sad}.')
    t('"Do not be {sad}," said {hero} <kindly>. "<Let_us_help>."')
    if t["trait"].kind == "quiet":
        t('{Hero.He} was {trait} and <thought>. "The {weak} were not strong," {hero.he} <told>. "Let us take {strong}."')
    else:
        t('{Hero.He} was {trait} and <boldly> got {strong}. "They are stronger than {weak}," {hero.he} <told>.')
    t(
        "{hero.His} {elder} helped them, and after {number} days the {building} of {strong} was "
        "(ready|done|finished|complete). It was even <nice>."
    )


PLOTS = dict(
    kite_in_tree=kite_in_tree,
    lost_in_the_woods=lost_in_the_woods,
    stuck_animal=stuck_animal,
)

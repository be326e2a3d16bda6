"""Plots out of doors: in the garden, the woods and the town, by the water and at school."""

from slm_np.data.stories.shared import bedtime, opening, thanks


def flyer_in_tree(t):
    """A toy that flies is caught in a tree: a quiet child uses a tool, a bold one climbs."""
    opening(t)
    t("<one_day>, {hero.he} <went> to the {place.full} with {hero.his} <friendly> friend {friend} and {a flyer.full}.")
    t("<Soon>, a <rough> wind blew the {flyer} into {a tree.full}. {hero} <became> <very> {sad}.")
    t.paragraph()
    t('"Do not be {sad}. <Cheer>," {friend} <spoke> <kindly>.')
    if t["trait"].kind == "quiet":
        t("{Friend.He} had {a tool.full}, and {hero}, who was {trait}, <gently> freed the {flyer} with the {tool}.")
        t.ask("What did {friend} have?", "{A tool.full}.")
        t.ask("How did {hero} get the {flyer} back?", "With the {tool}.")
    else:
        t(
            "But {hero} was {trait} and <boldly> climbed up. {Hero.He} freed the {flyer}, but tore {hero.his} {wear.full}."
        )
        t("{friend} <gently> mended the {wear}.")
        t.ask("What did {hero} tear?", "{Hero.His} {wear.full}.")
        t.ask("Who mended the {wear}?", "{friend}.")
    t.paragraph()
    thanks(t, "friend")
    t("They went far from the {tree} and <had_fun> {place.at} the {place}. {hero} was {glad}.")
    bedtime(t)
    t.ask("Where did the wind blow the {flyer}?", "Into {a tree.full}.")
    t.ask("Why was {hero} {sad}?", "Because the {flyer} was in the {tree}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("Where did {hero} and {friend} go that day?", "To the {place.full}.")
    t.ask("Who went to the {place} with {hero}?", "{friend}.")


def lost_in_the_woods(t):
    """Two children lose their way, and go back from landmark to landmark."""
    opening(t)
    t("<one_day>, {hero.he} <went> into the woods with {hero.his} <friendly> friend {friend}.")
    t("They passed {a mark.full}, then {a next_mark.full}, and <had_fun>.")
    t("<Soon>, it got (dark|foggy|late|misty), and they were lost. {friend} <became> <very> {scared}.")
    t.paragraph()
    t('"Do not be {scared}. <Cheer>," {hero} <spoke> <kindly>.')
    if t["trait"].kind == "quiet":
        t('{Hero.He} was {trait} and <thought>. "We came from the {next_mark}," {hero.he} <told>.')
        t.ask("How did {hero} find the way?", "{Hero.He} thought about it.")
    else:
        t('{Hero.He} was {trait} and <boldly> climbed a tree. "I see the {next_mark}," {hero.he} <told>.')
        t.ask("How did {hero} find the way?", "{Hero.He} climbed a tree.")
    t(
        "They <went> to the {next_mark} and on to the {mark}. There stood {hero}'s {elder} with "
        "{a treat.full} and {a wear.full}."
    )
    t.paragraph()
    t("{friend} was not {scared} anymore and ate the {treat} <happily>. {hero} put on the {wear} and was {glad}.")
    bedtime(t)
    t.ask("What did they pass first?", "{A mark.full}.")
    t.ask("What did they pass after the {mark}?", "{A next_mark.full}.")
    t.ask("Why was {friend} {scared}?", "Because they were lost.")
    t.ask("Where were they lost?", "In the woods.")
    t.ask("Who stood at the {mark}?", "{hero}'s {elder}.")
    t.ask("What did {friend} eat?", "{A treat.full}.")
    t.ask("Who put on {a wear.full}?", "{hero}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def stuck_animal(t):
    """A wild animal is stuck; it is freed, fed until it is well, and brought home."""
    opening(t)
    t("<one_day>, {hero.he} <went> out and found {a beast.full}. It was (stuck|caught|trapped) in {a trap.full}.")
    if t["trait"].kind == "quiet":
        t(
            "{hero} was {trait} and <gently> talked to the {beast} (until it was calm|to calm it down|for a while|for a bit)."
        )
        t("Then {hero.he} freed it from the {trap} and took it home in {hero.his} {wear.full}.")
    else:
        t("{hero} was {trait} and <boldly> (reached|crawled|climbed|went) right into the {trap}.")
        t("{Hero.He} freed the {beast} and took it home in {hero.his} {wear.full}.")
    t.paragraph()
    t(
        '"(We can keep it|It can stay|Let us feed it|We will help it) until it is well," said {hero.his} {elder} <kindly>.'
    )
    t("They put it in {a container.full} and gave it {beast.eats} <a_while>.")
    t("After {number} days, the {beast} was well. {hero} <felt> {sad} to lose it, but put on the {wear},")
    t("took the {container} to {beast.home} and <gently> let the {beast} go.")
    t.paragraph()
    t(
        "{number} days later, {hero} was not {sad} anymore: The {beast} came back for {beast.eats}! {Hero.He} was {glad}."
    )
    bedtime(t)
    t.ask("What animal did {hero} find?", "{A beast.full}.")
    t.ask("Where was the {beast} stuck?", "In {a trap.full}.")
    t.ask("What did the {beast} eat?", "{Beast.eats}.")
    t.ask("Where did {hero} let the {beast} go?", "At {beast.home}.")
    t.ask("Why was {hero} {sad}?", "Because {hero.he} had to let the {beast} go.")
    t.ask("How did {hero} feel when the {beast} came back?", "{Glad}.")
    t.ask("Who freed the {beast}?", "{hero}.")


PLOTS = dict(
    flyer_in_tree=flyer_in_tree,
    lost_in_the_woods=lost_in_the_woods,
    stuck_animal=stuck_animal,
)

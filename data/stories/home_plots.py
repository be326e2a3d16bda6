"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import bedtime, opening, thanks, visitor


def lost_toy(t):
    """A toy is gone, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.His} favorite (toy|thing) was {a toy.full}.")
    t("One <day>, {hero.he} (left|forgot) it {spot.full}.")
    t("After <meal>, the {toy} was <gone>, and {hero} <felt> {sad}.")
    if t["trait"].kind == "quiet":
        t("{Hero.He} (looked|searched|peeked|peered) (carefully|slowly|calmly|quietly) {other_spot.full},")
    else:
        t("{Hero.He} (ran|rushed|raced|dashed) to look {other_spot.full},")
    t("but {hero.he} <found_nothing>.")
    t.paragraph()
    visitor(t)
    t('"<Cheer>," said {friend} <kindly>. "Where was it last?"')
    t('{hero} <thought>. "{Spot}!" {hero.he} <cried>.')
    t("They <hurried> to look, and there it was, <state>.")
    t.paragraph()
    thanks(t, "friend")
    t("They played with the {toy} <a_while>.")
    bedtime(t)
    t.ask("What did {hero} lose?", "The {toy.full}.")
    t.ask("Who helped {hero} to look?", "{friend}.")
    t.ask("Whose {toy} was it?", "{hero}'s.")
    t.ask("Where did {hero} look first?", "{Other_spot}.")
    t.ask("Where was the {toy}?", "{Spot}.")
    t.ask("Why was {hero} {sad}?", "The {toy} was gone.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What was the weather like that day?", "It was {weather}.")


def birthday_baking(t):
    """Something to bake with is missing on a birthday, and a friend has it."""
    opening(t)
    t(
        "On {hero.his} {elder}'s birthday, a <day>, {hero} (wanted|planned|hoped|decided) to "
        "(bake|make) {a bake.full}."
    )
    t("But the {vessel.full} for the {ingredient} was empty.")
    t.paragraph()
    t("So {hero} <hurried> to {hero.his} <friendly> friend {friend}, who was <busy>.")
    if t["trait"].kind == "quiet":
        t('"May I have some {ingredient}, please?" {hero} asked (softly|quietly|politely|shyly).')
    else:
        t('"I need some {ingredient}!" {hero} (said|called|cried|shouted) (from far away|out of breath|at once|loudly).')
    t('"<Yes>," said {friend} <kindly>, and filled the {vessel} (to the top|to the brim|halfway|with a spoon).')
    thanks(t, "friend")
    t.paragraph()
    t("Then {hero} <worked> <a_while>.")
    if t.choose("The {bake} came out (a little|a bit|rather) (dark|flat|crooked|burnt), ", "The {bake} came out (golden|round|high|brown) and ") == 0:
        t("but it was <tasty>.")
    bedtime(t)


PLOTS = dict(lost_toy=lost_toy)

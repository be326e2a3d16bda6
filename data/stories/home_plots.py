"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import bedtime, opening, thanks, visitor


def lost_toy(t):
    """A toy is gone, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.His} favorite (toy|thing) was {a toy.full}.")
    t("One <day>, {hero.he} (left|forgot) it {spot.full}.")
    t("After <meal>, the {toy} was <gone>, and {hero} <felt> {sad}.")
    if t["trait"].kind == "quiet":
        t("{Hero.He} <looked> (carefully|slowly|calmly|quietly) {other_spot.full}, but {hero.he} <found_nothing>.")
    else:
        t("{Hero.He} (ran|rushed|raced|dashed) to look {other_spot.full}, but {hero.he} <found_nothing>.")
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
    t.ask("Where did {hero} look first?", "{Other_spot}.")
    t.ask("Where was the {toy}?", "{Spot}.")
    t.ask("How did {hero} feel when the {toy} was gone?", "{Sad}.")
    t.ask("What was the weather like that day?", "It was {weather}.")


PLOTS = dict(lost_toy=lost_toy)

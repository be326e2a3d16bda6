"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import bedtime, opening, thanks, visitor


def lost_toy(t):
    """A toy is gone, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.His} favorite toy was {a toy.full}.")
    t("One <day>, {hero.he} (left|forgot) it {spot}.")
    t("After (breakfast|lunch|dinner|a snack|a nap|a bath|a story|a short walk), the {toy} was <gone>.")
    t("{hero} <felt> <very> {sad}.")
    if t["trait"].kind == "quiet":
        t("{Hero.He} <looked> (carefully|slowly|calmly|quietly) {other_spot}, but {hero.he} <found_nothing>.")
    else:
        t("{Hero.He} (ran|rushed|raced|dashed) to look {other_spot}, but {hero.he} <found_nothing>.")
    t.paragraph()
    visitor(t)
    t('"I lost my {toy}," said {hero} <sadly>.')
    t('"Where did you (play with|have|see|leave) it last?" asked {friend} <kindly>.')
    t('{hero} <thought>. "{Spot}!" {hero.he} (said|cried|called|shouted).')
    t("They <hurried> there, and there it was, ")
    t.paragraph()
    thanks(t, "friend")
    bedtime(t)
    t.ask("What did {hero} lose?", "The {toy.full}.")
    t.ask("Who helped {hero} to look?", "{friend}.")
    t.ask("Where did {hero} look first?", "{Other_spot}.")
    t.ask("How did {hero} feel when the {toy} was gone?", "{Sad}.")
    t.ask("What was the weather like that morning?", "It was {weather}.")


PLOTS = dict(lost_toy=lost_toy)

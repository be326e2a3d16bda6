"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import bedtime, met, opening, thanks


def lost_toy(t):
    """A toy is gone, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.His} favorite toy was {a toy.full}.")
    t(
        "One {weather} morning, {hero.he} (played with it|had fun with it) {spot} until "
        "(lunch was ready|it was time for lunch|{hero.his} {elder} called {hero.him}|{hero.he} was hungry)."
    )
    t("After lunch, the {toy} was (gone|missing|lost|nowhere to be seen), and {hero} felt <very> {sad}.")
    if t["trait"].kind == "quiet":
        t("{Hero.He} (looked|searched) (carefully|slowly|calmly|quietly) {other_spot}, but it was not there.")
    else:
        t("{Hero.He} (ran|rushed|raced|dashed) to look {other_spot}, but it was not there.")
    t.ask("What did {hero} lose?", "The {toy.full}.")
    t.ask("Where did {hero} look first?", "{Other_spot}.")
    t.ask("How did {hero} feel when the {toy} was gone?", "{Sad}.")
    t.ask("What was the weather like that morning?", "It was {weather}.")
    t.paragraph()
    how = t.choose(
        "<Soon>, {hero.his} friend {friend} came (to play|over|by|to visit).",
        "<Soon>, {hero.his} friend {friend} knocked (at|on) the (door|window).",
    )
    t('"Have you seen my {toy}?" (asked {hero}|{hero} asked) <sadly>.')
    if how == 0:
        t('"No, but I (can|will) help you (look for|find) it," said {friend} <kindly>.')
    else:
        t('"No," said {friend} <kindly>. "Let us (look for|find) it together."')
    t('"Where did you (play with|have|see|use) it last?"')
    t('{hero} thought (hard|for a moment|about the morning|and thought). "{Spot}!" {hero.he} said.')
    t("They looked {spot}, and (sure enough|indeed|really), the {toy} was (still |)there!")
    t.paragraph()
    t('"<Thanks>, {friend}!" said {hero} <happily>. {Hero.He} was {glad}, (and|so) they played with the {toy} ')
    t.ask("Who helped {hero} to look?", "{friend}.")


PLOTS = dict(lost_toy=lost_toy)

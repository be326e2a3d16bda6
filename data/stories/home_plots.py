"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import opening


def lost_toy(t):
    """A toy is lost, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.He} had {a toy.full}, and {hero.he} took it everywhere.")
    t.choose("After lunch the {toy} was gone.", "In the evening the {toy} was gone.")
    if t["trait"].kind == "quiet":
        t("{hero} looked in one room after the other.")
    else:
        t("{hero} ran through the house (and called|and cried).")
    t.paragraph()
    t('"Have you seen my {toy}?" {hero.he} asked {friend}. <Soon> they found it.')
    t.ask("Who lost the {toy}?", "{hero}.")
    t.ask("Why was {hero} sad?", "The {toy} was gone.")


PLOTS = dict(lost_toy=lost_toy)

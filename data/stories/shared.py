"""What several plots tell in the same way: openings, thanks and endings."""


def opening(t):
    """Who the story is about: {hero}, {trait} and {elder}, who lives with {hero}."""
    t.choose(
        "{hero} was {a trait} {hero.girl} of <age> who lived <somewhere> with {hero.his} <dear> {elder}.",
        "Once upon a time, {a trait} {hero.girl} of <age> named {hero} lived <somewhere> with {hero.his} <dear> "
        "{elder}.",
        "{hero}, {a trait} {hero.girl} of <age>, lived <somewhere> with {hero.his} <dear> {elder}.",
        "{hero} lived <somewhere> with {hero.his} <dear> {elder}. {Hero.He} was {a trait} {hero.girl} of <age>.",
    )


def visitor(t):
    """{friend} comes to {hero}."""
    t("<Soon>, {hero.his} <friendly> <pal> {friend} <came>.")


def comfort(t, helper, feeling):
    """The role `helper` comforts somebody who has the role `feeling`."""
    t(f'"Do not be {{{feeling}}}. <Cheer>," {{{helper}}} <spoke> <kindly>.')


def thanks(t, helper):
    """{hero} thanks the role `helper`."""
    t(f'"<Thanks>, {{{helper}}}!" <spoke> {{hero}} <happily>.')


def bedtime(t):
    """{hero} is close to {elder}, and feels {glad}."""
    t("<Night>, {hero} gave {hero.his} {elder} <hug> and still (felt|looked|seemed) <very> {glad}.")

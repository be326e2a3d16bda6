"""What several plots tell in the same way: openings, thanks and endings."""


def opening(t):
    """Who the story is about: {hero}, {trait} and {elder}, who lives with {hero}."""
    # A name comes after a space, as elsewhere in the story: with learned tokens "Joe" and " Joe" are two.
    t.choose(
        "{A trait} {hero.girl} of <age> named {hero} lived <somewhere> with {hero.his} <dear> {elder}.",
        "Once upon a time, {a trait} {hero.girl} of <age> named {hero} lived <somewhere> with {hero.his} <dear> "
        "{elder}.",
        "(Little|Young) {hero}, {a trait} {hero.girl} of <age>, lived <somewhere> with {hero.his} <dear> {elder}.",
        "Once there was {a trait} {hero.girl} of <age> named {hero}. "
        "{Hero.He} lived <somewhere> with {hero.his} <dear> {elder}.",
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
    t("<Night>, {hero} gave {hero.his} {elder} <hug> and (still |)(felt|looked|seemed|was) <very> {glad}.")

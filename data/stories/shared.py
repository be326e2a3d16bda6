"""What several plots tell in the same way: openings, thanks and endings."""


def opening(t):
    """Who the story is about: {hero}, {trait} and {elder}, who lives with {hero}."""
    t.choose(
        "{hero} was {a trait} {hero.girl} who lived <somewhere> with {hero.his} <dear> {elder}.",
        "Once upon a time, {a trait} {hero.girl} named {hero} lived <somewhere> with {hero.his} <dear> {elder}.",
        "{hero}, {a trait} {hero.girl}, lived <somewhere> with {hero.his} <dear> {elder}.",
        "{hero} lived <somewhere> with {hero.his} <dear> {elder}. {Hero.He} was {a trait} {hero.girl}.",
    )


def met(t):
    """{friend}, whom {hero} knows."""
    t(
        "{Hero.His} <friendly> friend was {a friend.girl} named {friend}, who lived "
        "(next door|across the street|just around the corner|not far away)."
    )


def visitor(t):
    """{friend} comes to {hero}."""
    t("<Soon>, {hero.his} <friendly> friend {friend} <came>.")


def thanks(t, helper):
    """{hero} thanks the role `helper`."""
    t(f'"<Thanks>, {{{helper}}}!" said {{hero}} <happily>.')


def bedtime(t):
    """{hero} tells {elder} about the day, and feels {glad}."""
    t.choose(
        "<Night>, {hero} told {hero.his} {elder} (everything|all about it|the whole story|what had happened).",
        "<Night>, {hero} gave {hero.his} {elder} <hug>.",
    )
    t("{Hero.He} <felt> <very> {glad}.")

"""What several plots tell in the same way: openings, thanks and endings."""


def opening(t):
    """Who the story is about: {hero}, {trait} and {elder}, who lives with {hero}."""
    t.choose(
        "{hero} was {a trait} {hero.girl} who lived <somewhere> with {hero.his} {elder}.",
        "Once upon a time, {a trait} {hero.girl} named {hero} lived <somewhere> with {hero.his} {elder}.",
        "There once was {a trait} {hero.girl} named {hero}, who lived <somewhere> with {hero.his} {elder}.",
        "{hero} lived <somewhere> with {hero.his} {elder}. {Hero.He} was {a trait} {hero.girl}.",
    )


def met(t):
    """{friend}, who lives near {hero}."""
    t(
        "{Hero.His} best friend was {a friend.girl} named {friend}, who lived "
        "(next door|across the street|just around the corner|two houses away)."
    )


def thanks(t, helper):
    """{hero} thanks the role `helper`, and feels {glad}."""
    t(f'"<Thanks>, {{{helper}}}!" said {{hero}} <happily>.')


def bedtime(t):
    """{hero} tells {elder} about the day and falls asleep {glad}."""
    t(
        "<Night>, {hero} (told {hero.his} {elder} (everything|all about it|the whole story)|"
        "(sat|talked) with {hero.his} {elder} (for a while|for a long time|by the window)), "
        "and {hero.he} fell asleep (feeling|and was still|quite|very) {glad}."
    )

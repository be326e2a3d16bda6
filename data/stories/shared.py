"""What several plots tell in the same way: openings, thanks and endings."""


def opening(t):
    """Who the story is about: {hero}, {trait} and {elder}, who lives with {hero}."""
    t.choose(
        "{hero} was {a trait} {hero.girl} who lived <somewhere> with {hero.his} {elder}.",
        "Once upon a time, {a trait} {hero.girl} named {hero} lived <somewhere> with {hero.his} {elder}.",
        "{hero}, {a trait} {hero.girl}, lived <somewhere> with {hero.his} {elder}.",
        "{hero} lived <somewhere> with {hero.his} {elder}. {Hero.He} was {a trait} {hero.girl}.",
    )


def visitor(t):
    """{friend} comes to {hero}."""
    t("<Soon>, {hero.his} <friendly> friend {friend} <came>.")


def thank(t, helper):
    """{hero} thanks the role `helper`."""
    t(f'"<Thanks>, {{{helper}}}!" said {{hero}} <happily>.')


def ending(t):
    """{hero} tells {elder} about the day and falls asleep {glad}."""
    t(
        "<Night>, {hero} (told {hero.his} {elder} (everything|all about it|the whole story|what had happened)|"
        "gave {hero.his} {elder} <hug>), "
        "(and {hero.he} fell asleep|then fell asleep|went to bed|lay down to sleep) (feeling|and felt) <very> {glad}."
    )

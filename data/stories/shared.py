"""What several plots tell in the same way: openings, weather, farewells and endings."""


def opening(t):
    """Who the story is about: {hero} and {trait}."""
    t("(Everyone knew that|In a little house lived a child, and) {hero} was {a trait} {hero.girl}.")

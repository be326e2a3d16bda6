"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import bedtime, opening, thanks, visitor


def lost_toy(t):
    """A toy is gone, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.His} favorite (toy|thing) was {a toy.full}.")
    t("One <day>, {hero.he} (left|forgot) it {spot.full}.")
    t("After <meal>, the {toy} was <gone>, and {hero} <felt> <very> {sad}.")
    if t["trait"].kind == "quiet":
        t("{Hero.He} (looked|searched|peeked|peered) (carefully|slowly|calmly|quietly) {other_spot.full},")
    else:
        t("{Hero.He} (ran|rushed|raced|dashed) to look {other_spot.full},")
    t("but {hero.he} <found_nothing>.")
    t.paragraph()
    visitor(t)
    t('"<Cheer>," said {friend} <kindly>. "Where was it last?"')
    t('{hero} <thought>. "{Spot}!" {hero.he} (said|cried|called|shouted).')
    t("They <hurried> to look, and there it was, <state>.")
    t.paragraph()
    thanks(t, "friend")
    t("They played with the {toy} <a_while>.")
    bedtime(t)
    t.ask("What did {hero} lose?", "The {toy.full}.")
    t.ask("Who helped {hero} to look?", "{friend}.")
    t.ask("Whose {toy} was it?", "{hero}'s.")
    t.ask("Where did {hero} look first?", "{Other_spot}.")
    t.ask("Where was the {toy} in the end?", "{Spot}.")
    t.ask("Why was {hero} {sad}?", "The {toy} was gone.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What was the weather like that day?", "It was {weather}.")
    t.ask("What happened after {friend} came?", "They found the {toy}.")


def birthday_baking(t):
    """Something to bake with is missing on a birthday, and a friend has it."""
    opening(t)
    t("One <day>, {hero.he} (wanted|planned|hoped|decided) to bake {a bake.full} for {hero.his} {elder}'s birthday.")
    t("But the {vessel.full} for the {ingredient} was empty, and {hero} <felt> <very> {sad}.")
    t.paragraph()
    if t["trait"].kind == "quiet":
        t(
            "{Hero.He} walked (slowly|quietly|carefully|calmly) to {hero.his} <friendly> friend {friend}, "
            "who was <busy>. "
            '"May I have some {ingredient}, please?" {hero} (asked|whispered) (softly|politely|shyly|gently).'
        )
    else:
        t(
            "{Hero.He} ran (quickly|at once|straight|right away) to {hero.his} <friendly> friend {friend}, "
            "who was <busy>. "
            '"I need some {ingredient}!" {hero} (cried|called) (loudly|from afar|out of breath|in a hurry).'
        )
    t('"<Yes>," said {friend} <kindly>, and filled the {vessel} (to the top|to the brim|halfway|with a big spoon).')
    thanks(t, "friend")
    t.paragraph()
    t("At home, {hero} (mixed and stirred|stirred and baked|mixed and baked|worked and worked) <a_while>.")
    burnt = t.choose(
        "The {bake} came out (a bit|a little|rather|slightly) (dark|flat|crooked|hard), but {hero.his} {elder} loved it.",
        "The {bake} came out (golden|round|high|light) and was <tasty>.",
    )
    t("{friend} got (the first|the last|the biggest|a big|a huge|an extra|the best|the second) piece.")
    bedtime(t)
    t.ask("What did {hero} bake?", "{A bake.full}.")
    t.ask("Whose birthday was it?", "{Hero.His} {elder}'s.")
    t.ask("What was missing?", "The {ingredient}.")
    t.ask("Who gave {hero} the {ingredient}?", "{friend}.")
    t.ask("Why did {hero} go to {friend}?", "There was no {ingredient}.")
    t.ask("How did {hero} feel when the {vessel} was empty?", "{Sad}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened before {hero} baked?", "{friend} filled the {vessel}.")
    if burnt == 0:
        t.ask("Who loved the {bake}?", "{Hero.His} {elder}.")


def muddy_dog(t):
    """A dog runs through the mud and over something clean; whoever owns it makes all clean again."""
    opening(t)
    t("{hero} had {a dog.full} named {pet_name}.")
    t(
        "One rainy (Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|day), {pet_name} (jumped|ran|rolled|fell) "
        "into a (big|deep|brown|huge) puddle and came home (muddy|dirty|brown|dripping) from (nose to tail|head to toe|"
        "top to bottom|ear to paw)."
    )
    t("There were (muddy|dirty|brown|wet) (prints|tracks|spots|marks) all over the {cover.full} {spot.full}!")
    t.paragraph()
    t('{Hero.His} {elder} <felt> {cross}. "<Oh>! Who did this to my {cover}?" {elder.he} (said|asked|cried|called).')
    t('{hero} <thought>. "{pet_name} did, but I will wash it," {hero.he} said <sadly>.')
    if t["trait"].kind == "quiet":
        t("{Hero.He} (calmly|slowly|quietly|carefully) filled {a tub.full} with (warm|hot) water")
        t("and (gently|softly|lightly|patiently) washed the {dog} with (soap|a brush|a sponge|an old rag).")
        t.ask("How did {hero} wash the {dog}?", "With water from {a tub.full}.")
    else:
        t("{Hero.He} (quickly|happily|loudly|bravely) filled {a tub.full} with (warm|cold) water")
        t("and (jumped|climbed|hopped|leaped) right in with the {dog} and (soap|a brush|a sponge|an old rag).")
    t("Then {hero.he} washed the {cover}, too, <a_while>.")
    t.paragraph()
    t("At last, {pet_name} was clean and the {cover} lay {spot} again, <as_new>.")
    bedtime(t)


PLOTS = dict(lost_toy=lost_toy, birthday_baking=birthday_baking, muddy_dog=muddy_dog)

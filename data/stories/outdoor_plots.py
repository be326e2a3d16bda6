"""Plots out of doors: in the garden, the woods and the town, by the water and at school."""

from slm_np.data.stories.shared import bedtime, comfort, opening, thanks


def flyer_in_tree(t):
    """A toy that flies is caught in a tree: a quiet child uses a tool, a bold one climbs."""
    opening(t)
    t("<one_day>, {hero.he} <went> to the {place.full} with {hero.his} <friendly> <pal> {friend} and {a flyer.full}.")
    t("<Soon>, a <rough> <wind> blew it into {a tree.full}. {hero} <became> <very> {sad}.")
    t.paragraph()
    comfort(t, "friend", "sad")
    if t["trait"].kind == "quiet":
        t("{Friend.He} had {a tool.full}. {hero} was {trait} and <gently> used the {tool} to get it down.")
        t.ask("What did {friend} have?", "{A tool}.")
        t.ask("How did {hero} get the {flyer} back?", "With the {tool}.")
    else:
        t(
            "{hero} was {trait} and <boldly> climbed up, but tore {hero.his} {wear.full}. {friend} <gently> mended "
            "the {wear}."
        )
        t.ask("What did {hero} tear?", "{Hero.His} {wear}.")
        t.ask("Who mended the {wear}?", "{friend}.")
    t.paragraph()
    thanks(t, "friend")
    t("They left the {tree}, took the {flyer} back to the {place} and <had_fun>. {hero} was {glad}.")
    bedtime(t)
    t.ask("Where did the wind blow the {flyer}?", "Into {a tree}.")
    t.ask("Why was {hero} {sad}?", "Because the {flyer} was in the {tree}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("Where did {hero} and {friend} go that day?", "To the {place}.")
    t.ask("Who went to the {place} with {hero}?", "{friend}.")
    t.ask("What happened before {hero} was {sad}?", "The wind blew the {flyer} into the {tree}.")


def lost_in_the_woods(t):
    """Two children lose their way, and go back from landmark to landmark."""
    opening(t)
    t("<one_day>, {hero.he} <went> into the woods with {hero.his} <friendly> <pal> {friend}.")
    t("They passed {a mark.full}, then {a next_mark.full}, and <had_fun>.")
    t("<Soon>, they were lost. {friend} <became> <very> {scared}.")
    t.paragraph()
    comfort(t, "hero", "scared")
    if t["trait"].kind == "quiet":
        t("{Hero.He} was {trait} and <thought>. They had come from the {next_mark}!")
        t.ask("How did {hero} find the way?", "{Hero.He} thought about it.")
    else:
        t("{Hero.He} was {trait} and <boldly> climbed a tree. There was the {next_mark}!")
        t.ask("How did {hero} find the way?", "{Hero.He} climbed a tree.")
    t("They <went> back to it and <went> on to the {mark}. There was {hero}'s {elder} with {a treat.full}.")
    t.paragraph()
    t("{friend} ate the {treat} <happily>, and {hero} <became> {glad}.")
    bedtime(t)
    t.ask("What did they pass first?", "{A mark}.")
    t.ask("What did they pass after the {mark}?", "{A next_mark}.")
    t.ask("Why was {friend} {scared}?", "Because they were lost.")
    t.ask("Where were they lost?", "In the woods.")
    t.ask("Who was waiting at the {mark}?", "{hero}'s {elder}.")
    t.ask("What did {friend} eat?", "{A treat}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def stuck_animal(t):
    """A wild animal is stuck; it is freed, fed until it is well, and brought home."""
    opening(t)
    t("<one_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} found {a beast.full}.")
    t("It was (stuck|caught|trapped|jammed) in {a trap.full}, and {friend} <became> <very> {sad}.")
    t.paragraph()
    comfort(t, "hero", "sad")
    if t["trait"].kind == "quiet":
        t("{Hero.He} was {trait}, <gently> freed it from the {trap} and laid it on {hero.his} {wear.full}.")
        t.ask("What did {hero} lay the {beast} on?", "{Hero.His} {wear}.")
    else:
        t("{Hero.He} was {trait}, <boldly> pulled it out of the {trap} and wrapped it in {hero.his} {wear.full}.")
        t.ask("What did {hero} wrap the {beast} in?", "{Hero.His} {wear}.")
    t("It slept on the {wear}, and for <several> (days|weeks) they <gently> fed it {beast.eats}.")
    t.paragraph()
    t(
        "When it was <very> (strong|healthy|frisky|fat|big|well|merry|hungry), they <went> to {beast.home} and let "
        "it go. {hero} was {glad}."
    )
    t("The {beast} came to visit every <visit_time>.")
    bedtime(t)
    t.ask("What happened before {friend} was {sad}?", "They found {a beast}.")
    t.ask("What animal did they find?", "{A beast}.")
    t.ask("Where was the {beast} stuck?", "In {a trap}.")
    t.ask("What did the {beast} eat?", "{Beast.eats}.")
    t.ask("Where did they let the {beast} go?", "At {beast.home}.")
    t.ask("Why was {friend} {sad}?", "Because the {beast} was stuck.")
    t.ask("Who freed the {beast}?", "{hero}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def hut_of_straw(t):
    """What is built of weak stuff falls down; what is built of strong stuff stays."""
    opening(t)
    t("<one_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} built {a building.full} of {weak}.")
    t("But <night>, a <rough> <wind> blew it into {a tree.full}. {friend} <became> <very> {sad}.")
    t.paragraph()
    comfort(t, "hero", "sad")
    if t["trait"].kind == "quiet":
        t("{Hero.He} was {trait} and <thought>. The {weak} had been too light!")
        t.ask("What did {hero} do first after the {building} was gone?", "{Hero.He} thought.")
    else:
        t("{Hero.He} was {trait} and <boldly> took the {weak} away.")
        t.ask("What did {hero} do first after the {building} was gone?", "{Hero.He} took the {weak} away.")
    t("For <several> (hours|days|weeks|mornings), they <gently> built a new {building} of {strong}.")
    t.paragraph()
    t("A <rough> <wind> shook the {tree}, but not the {strong}. {hero} was {glad}, and they <had_fun>.")
    bedtime(t)
    t.ask("What did they build?", "{A building}.")
    t.ask("What did they build it of first?", "{Weak}.")
    t.ask("What did they build it of later?", "{Strong}.")
    t.ask("What happened before {friend} was {sad}?", "The {building} was blown into the {tree}.")
    t.ask("Where did the {building} land?", "In {a tree}.")
    t.ask("Why was {friend} {sad}?", "Because the {building} was gone.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def the_race(t):
    """A friend falls in a race, and a prize is not the most important thing."""
    opening(t)
    t("<one_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} ran a race to {a tree.full} for {a prize.full}.")
    t("<Soon>, {friend} fell near {a mark.full}, hurt {friend.his} {body} and <became> <very> {sad}.")
    t.paragraph()
    if t["trait"].kind == "quiet":
        comfort(t, "hero", "sad")
        t("{Hero.He} was {trait} and <gently> put {hero.his} {wear.full} around the {body}.")
        t("With the {wear}, {friend} <went> from the {mark} to the {tree}, and they shared the {prize}.")
        t.ask("What did {hero} put around {friend}'s {body}?", "{Hero.His} {wear}.")
        t.ask("Who got the {prize}?", "Both of them.")
    else:
        t("{hero} was {trait} and <boldly> ran to the {tree}, but then {hero.he} <went> back to the {mark}.")
        comfort(t, "hero", "sad")
        t("{Hero.He} <gently> washed the {body} and gave {friend} the {prize}.")
        t.ask("Who got to the {tree} first?", "{hero}.")
        t.ask("Who got the {prize} in the end?", "{friend}.")
    t.paragraph()
    t('"<Thanks>, {hero}!" {friend} <spoke> <happily>. {hero} was {glad}, and they <had_fun>.')
    bedtime(t)
    t.ask("Where did they run to?", "To {a tree}.")
    t.ask("Where did {friend} fall?", "Near {a mark}.")
    t.ask("What was the prize?", "{A prize}.")
    t.ask("What did {friend} hurt?", "{Friend.His} {body}.")
    t.ask("What happened before {friend} was {sad}?", "{Friend.He} fell.")
    t.ask("Why was {friend} {sad}?", "Because {friend.he} fell and hurt {friend.his} {body}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def lost_coins(t):
    """Coins are lost and found again, and buy what they were for."""
    opening(t)
    t("<one_day>, {hero.he} <went> to buy {a present.full} for {hero.his} {elder}.")
    t("<Soon>, {number} coins fell out of {hero.his} {wear.full}. {hero} <became> <very> {sad}.")
    t.paragraph()
    t('"Do not be {sad}. <Cheer>," {hero.his} <friendly> <pal> {friend} <spoke> <kindly>.')
    if t["trait"].kind == "quiet":
        t("{hero} was {trait}, <gently> looked around with {friend} and found all {number} near {a mark.full}.")
        t.ask("Who found the coins?", "{hero}.")
    else:
        t("{hero} was {trait} and <boldly> ran back, and {friend} found all {number} near {a mark.full}.")
        t.ask("Who found the coins?", "{friend}.")
    t("They left the {mark} and <went> to the shop, and {hero} bought the {present}.")
    t.paragraph()
    t('{Hero.His} {elder} <gently> mended the {wear}. "The {present} is <nice>," {elder.he} <spoke> <happily>.')
    t("{hero} was {glad}.")
    bedtime(t)
    t.ask("What did {hero} buy?", "{A present}.")
    t.ask("Who was the {present} for?", "{hero}'s {elder}.")
    t.ask("Where were the coins found?", "Near {a mark}.")
    t.ask("Why was {hero} {sad}?", "Because the coins were gone.")
    t.ask("How many coins fell out of the {wear}?", "{Number}.")
    t.ask("Who mended the {wear}?", "{hero}'s {elder}.")
    t.ask("What happened after they left the {mark}?", "{hero} bought the {present}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def boat_adrift(t):
    """A toy boat drifts away: a quiet child makes waves, a bold one gets wet."""
    opening(t)
    t("<one_day>, {hero.he} <went> to {a water.full} with {hero.his} <friendly> <pal> {friend} and {a boat.full}.")
    t("<Soon>, a <rough> <wind> blew it far out. {hero} <became> <very> {sad}.")
    t.paragraph()
    comfort(t, "friend", "sad")
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <gently> threw <several> stones behind it. The waves pushed it back!")
        t.ask("How did {hero} get the {boat} back?", "{Hero.He} threw stones behind it.")
        t.ask("Who threw stones?", "{hero}.")
    else:
        t(
            "{hero} was {trait} and <boldly> swam after it in {hero.his} {wear.full}. {friend} <gently> dried the "
            "{wear}."
        )
        t.ask("How did {hero} get the {boat} back?", "{Hero.He} swam after it.")
        t.ask("Who dried the {wear}?", "{friend}.")
    t.paragraph()
    thanks(t, "friend")
    t("{Hero.He} was {glad}. They tied {a color} string to the {boat} and <had_fun> by the {water}.")
    bedtime(t)
    t.ask("What did {hero} take to the {water}?", "{A boat}.")
    t.ask("Where did they go?", "To {a water}.")
    t.ask("What color was the string?", "{Color}.")
    t.ask("Why was {hero} {sad}?", "Because the wind blew the {boat} far out.")
    t.ask("Who comforted {hero}?", "{friend}.")
    t.ask("What happened after they got the {boat} back?", "They tied a string to it.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def thunderstorm(t):
    """A storm frightens a friend; it passes and leaves mud."""
    opening(t)
    t("<one_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} <went> to the {place.full} and <had_fun>.")
    t("<Soon>, a <rough> storm came. They hid in {a shelter.full}, and {friend} <became> <very> {scared}.")
    t.paragraph()
    comfort(t, "hero", "scared")
    if t["trait"].kind == "quiet":
        t("{Hero.He} was {trait} and <gently> broke {a treat.full} in two. They ate the {treat} <happily>.")
        t.ask("What did they eat?", "{A treat}.")
        t.ask("Who broke the {treat} in two?", "{hero}.")
    else:
        t(
            "{Hero.He} was {trait} and <boldly> gave {friend} {hero.his} {wear.full}. {friend} put on the {wear} "
            "<happily>."
        )
        t.ask("What did {hero} give to {friend}?", "{Hero.His} {wear}.")
        t.ask("Who put on the {wear}?", "{friend}.")
    t.paragraph()
    t("<Soon>, the sun came out, and they <went> from the {shelter} back to the {place}.")
    t("It was muddy now, and their <clothing> got dirty, but {hero} was {glad}.")
    bedtime(t)
    t.ask("Where did they hide?", "In {a shelter}.")
    t.ask("Why did they hide?", "Because a storm came.")
    t.ask("Who was {scared}?", "{friend}.")
    t.ask("Where did they go that day?", "To the {place}.")
    t.ask("What happened after the storm?", "The sun came out.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def shared_lunch(t):
    """A friend's lunch is eaten by an animal; lunch is shared, and shared back."""
    opening(t)
    t("<one_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} <went> to {a tree.full} and <had_fun>.")
    t("<Soon>, {a beast.full} ate {friend}'s {treat.full}. {friend} <became> <very> {sad}.")
    t.paragraph()
    comfort(t, "hero", "sad")
    if t["trait"].kind == "quiet":
        t(
            "{Hero.He} was {trait} and <gently> gave the {beast} {beast.eats}, then cut {hero.his} "
            "{other_treat.full} in two."
        )
        t.ask("Who gave the {beast} {beast.eats}?", "{hero}.")
    else:
        t("{Hero.He} was {trait} and <boldly> chased the {beast} away, then cut {hero.his} {other_treat.full} in two.")
        t.ask("Who chased the {beast} away?", "{hero}.")
    t('"<Thanks>, {hero}!" {friend} <spoke> <happily> and ate the {other_treat}.')
    t.paragraph()
    t("<Next_day>, {friend} brought a new {treat} to the {tree} and shared it. {hero} was {glad}.")
    bedtime(t)
    t.ask("What did {hero} cut in two?", "{Hero.His} {other_treat}.")
    t.ask("What animal ate {friend}'s {treat}?", "{A beast}.")
    t.ask("Where did they go?", "To {a tree}.")
    t.ask("Why was {friend} {sad}?", "Because the {treat} was gone.")
    t.ask("What happened before {friend} was {sad}?", "The {beast} ate the {treat}.")
    t.ask("Whose {treat} was eaten?", "{friend}'s.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def kept_promise(t):
    """A child keeps a promise although there is something nicer to do."""
    opening(t)
    t("<one_day>, {hero.he} promised {hero.his} <friendly> <pal> {friend} to feed {friend.his} {kept.full}.")
    t("<Soon>, there was {a event.full} in town, and {hero} <became> <very> {sad}.")
    t.paragraph()
    t('"Do not be {sad}. <Promised>," {hero.his} {elder} <spoke> <kindly>.')
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <thought>. Then {hero.he} <went> past the {event} and <gently> fed the {kept}.")
        t.ask("What did {hero} do before {hero.he} fed the {kept}?", "{Hero.He} thought.")
    else:
        t("{hero} was {trait} and <went> to the {event}, but then <boldly> turned around and <gently> fed the {kept}.")
        t.ask("What did {hero} do before {hero.he} fed the {kept}?", "{Hero.He} turned around.")
    t("It ate the {kept.eats} <happily>.")
    t.paragraph()
    t('<Next_day>, {friend} (came|came back|came home|returned). "<Thanks>, {hero}!" {friend.he} <spoke> <happily>.')
    t("They <went> to the {event} and <had_fun>. {hero} was {glad}.")
    bedtime(t)
    t.ask("What animal did {hero} feed?", "{A kept}.")
    t.ask("Whose {kept} was it?", "{friend}'s.")
    t.ask("What did the {kept} eat?", "{Kept.eats}.")
    t.ask("Why was {hero} {sad}?", "Because {hero.he} could not go to the {event} yet.")
    t.ask("Where did they go in the end?", "To the {event}.")
    t.ask("What happened after {friend} came?", "They went to the {event}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def first_day_at_school(t):
    """A child is afraid of a new school, and makes a friend by helping."""
    opening(t)
    t(
        "One <fine> (Monday|Tuesday|Wednesday|Thursday|Friday|August|September|fall) morning, {hero.he} <went> to a "
        "new "
        "school and <became> <very> {scared}."
    )
    t('"Do not be {scared}. <Cheer>," {hero.his} <dear> teacher {teacher} <spoke> <kindly>.')
    t.paragraph()
    t(
        "<Soon>, {friend}, who sat (next to|in front of|behind|across from|near|close to|beside|not far from) "
        "{hero.him}, lost {friend.his} {school_thing.full}."
    )
    if t["trait"].kind == "quiet":
        t("{hero} was {trait}, <gently> looked around and found the {school_thing} under the desk.")
    else:
        t("{hero} was {trait}, <boldly> crawled under the desk and found the {school_thing}.")
    t.ask("Where was the {school_thing}?", "Under the desk.")
    t('"<Thanks>, {hero}!" {friend} <spoke> <happily>.')
    t.paragraph()
    t("{friend} drew {a subject.full}, and {hero} drew {a other_subject.full}.")
    t(
        "{teacher} <gently> hung the {subject} and the {other_subject} on the (wall|door|window|board). {hero} was "
        "{glad}."
    )
    bedtime(t)
    t.ask("Why was {hero} {scared}?", "Because the school was new.")
    t.ask("What did {friend} lose?", "{Friend.His} {school_thing}.")
    t.ask("Who found the {school_thing}?", "{hero}.")
    t.ask("What happened after {hero} found the {school_thing}?", "{friend} thanked {hero.him}.")
    t.ask("What did {friend} draw?", "{A subject}.")
    t.ask("What did {hero} draw?", "{A other_subject}.")
    t.ask("Who was the teacher?", "{teacher}.")
    t.ask("Where did {hero} go that morning?", "To a new school.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def broken_pot(t):
    """Something of a friend is broken; it is owned up to, and made good by work."""
    opening(t)
    t("<one_day>, {hero.he} <went> to {hero.his} <friendly> <pal> {friend} and <had_fun>.")
    t("<Soon>, {hero} <knocked_over> {a fragile.full}. It broke, and {hero} <became> <very> {scared}.")
    t.paragraph()
    if t["trait"].kind == "quiet":
        t('{Hero.He} was {trait} and <thought>. "<Sorry>. I broke your {fragile}," {hero.he} told {friend} <sadly>.')
        t.ask("What did {hero} do before {hero.he} told {friend}?", "{Hero.He} thought.")
    else:
        t(
            '{Hero.He} was {trait} and <boldly> ran to {friend}. "<Sorry>. I broke your {fragile}," {hero.he} said '
            "<sadly>."
        )
        t.ask("What did {hero} do after the {fragile} broke?", "{Hero.He} ran to {friend}.")
    t('"Do not be {scared}. You can {chore}," {friend} <spoke> <kindly>.')
    t("So {hero} <gently> {chore.did} for <several> (hours|days|weeks|mornings).")
    t.paragraph()
    t("Then {friend} gave {hero.him} {a treat.full}. {hero} ate the {treat} <happily> and was {glad}.")
    bedtime(t)
    t.ask("What did {hero} break?", "{A fragile}.")
    t.ask("Whose {fragile} was it?", "{friend}'s.")
    t.ask("Why was {hero} {scared}?", "Because {hero.he} broke the {fragile}.")
    t.ask("What did {hero} get from {friend}?", "{A treat}.")
    t.ask("Who gave {hero} {a treat}?", "{friend}.")
    t.ask("What happened before {hero} was {scared}?", "The {fragile} broke.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def slow_seed(t):
    """A seed takes its time: a quiet child waters it, a bold one digs it up."""
    opening(t)
    t("<one_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} planted a seed near {a mark.full}.")
    t(
        "<Next_day>, {hero} <became> <very> {sad}. (It did not grow|Nothing grew|Nothing happened|There was nothing "
        "to see)!"
    )
    t.paragraph()
    comfort(t, "friend", "sad")
    if t["trait"].kind == "quiet":
        t("{hero} was {trait}, <went> to the {mark} every (morning|evening|day|week) and <gently> watered the seed.")
        t.ask("What did {hero} do with the seed?", "{Hero.He} watered it.")
    else:
        t("{hero} was {trait} and <boldly> dug up the seed near the {mark}. {friend} <gently> put it back.")
        t.ask("What did {hero} do with the seed?", "{Hero.He} dug it up.")
    t(
        "A <rain> rain fell, the sun shone (brightly|warmly|again|all day), and after <several> (days|weeks), there "
        "was {a crop.full}!"
    )
    t.paragraph()
    thanks(t, "friend")
    t("{Hero.He} was {glad}. They <gently> made {crop} {crop.dish} and ate it <happily>.")
    bedtime(t)
    t.ask("What grew from the seed?", "{A crop}.")
    t.ask("Where did they plant the seed?", "Near {a mark}.")
    t.ask("Why was {hero} {sad}?", "Because the seed did not grow.")
    t.ask("What did they eat?", "{Crop} {crop.dish}.")
    t.ask("Who planted the seed with {hero}?", "{friend}.")
    t.ask("What happened after the rain fell?", "The sun shone.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


PLOTS = dict(
    flyer_in_tree=flyer_in_tree,
    lost_in_the_woods=lost_in_the_woods,
    stuck_animal=stuck_animal,
    hut_of_straw=hut_of_straw,
    the_race=the_race,
    lost_coins=lost_coins,
    boat_adrift=boat_adrift,
    thunderstorm=thunderstorm,
    shared_lunch=shared_lunch,
    kept_promise=kept_promise,
    first_day_at_school=first_day_at_school,
    broken_pot=broken_pot,
    slow_seed=slow_seed,
)

"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import bedtime, comfort, opening, thanks, visitor


def lost_toy(t):
    """A toy is gone, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.His} favorite (toy|thing) was {a toy.full}.")
    t("<one_day>, {hero.he} (left|forgot) it {spot.full}.")
    t("After <meal>, the {toy} was <gone>, and {hero} <became> <very> {sad}.")
    t.paragraph()
    visitor(t)
    comfort(t, "friend", "sad")
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <gently> (looked|searched|peeked|peered) {other_spot.full}, but <found_nothing>.")
    else:
        t("{hero} was {trait} and <boldly> (ran|rushed|raced|dashed) to look {other_spot.full}, but <found_nothing>.")
    t('"It is not {other_spot}," {friend} said <sadly>. "{Spot}!" {hero} cried <happily>.')
    t("They <hurried> to look, and there was the {toy}, <state>.")
    t.paragraph()
    t("{hero} was {glad}. They played with it <a_while>.")
    bedtime(t)
    t.ask("What did {hero} lose?", "The {toy}.")
    t.ask("Who helped {hero} to look?", "{friend}.")
    t.ask("Whose {toy} was it?", "{hero}'s.")
    t.ask("Where did they look first?", "{Other_spot}.")
    t.ask("Where was the {toy} in the end?", "{Spot}.")
    t.ask("Why was {hero} {sad}?", "Because the {toy} was gone.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened before {friend} came?", "{hero} lost the {toy}.")


def birthday_baking(t):
    """Something to bake with is missing on a birthday, and a friend has it."""
    opening(t)
    t("<one_day>, {hero.he} wanted to bake {a bake.full} for {hero.his} {elder}'s birthday.")
    t("But the {store.full} for the {ingredient} was empty, and {hero} <became> <very> {sad}.")
    t.paragraph()
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <gently> walked to {hero.his} <friendly> <pal> {friend}, who was <busy>.")
        t('"May I have some {ingredient}?" {hero.he} asked <sadly>.')
    else:
        t("{hero} was {trait} and <boldly> ran to {hero.his} <friendly> <pal> {friend}, who was <busy>.")
        t('"I need some {ingredient}!" {hero.he} cried <happily>.')
    t('"Do not be {sad}. <Cheer>," {friend} <spoke> <kindly>, and filled the {store}.')
    t.paragraph()
    t("{hero} <mixed> <a_while>. The {bake} was <tasty>. They all <played_inside>, and {hero} was {glad}.")
    bedtime(t)
    t.ask("What did {hero} bake?", "{A bake}.")
    t.ask("Whose birthday was it?", "{Hero.His} {elder}'s.")
    t.ask("What was missing?", "The {ingredient}.")
    t.ask("Who filled the {store}?", "{friend}.")
    t.ask("Why did {hero} go to {friend}?", "Because the {store} was empty.")
    t.ask("How did {hero} feel when the {store} was empty?", "{Sad}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened before {hero} baked?", "{friend} filled the {store}.")


def muddy_dog(t):
    """A dog runs through the mud and over something clean, and the child washes both."""
    opening(t)
    t("{Hero.He} had {a dog.full} named {pet_name}.")
    t("One <wet_day>, {pet_name} (jumped|ran|rolled|fell) into a <muddy> puddle.")
    t("<Soon>, there were <muddy> (prints|tracks|spots|marks) on the {cover.full} {spot.full}.")
    t('"<Oh>!" said {hero.his} {elder} <sternly>. {Elder.He} was <very> {cross}.')
    t.paragraph()
    t('"I can wash {pet_name}," said {hero} <sadly>.')
    if t["trait"].kind == "quiet":
        t("{Hero.He} was {trait} and <gently> washed the {dog} in {a tub.full} <how_washed>.")
    else:
        t("{Hero.He} was {trait}, <boldly> jumped into {a tub.full} with the {dog} and washed it <how_washed>.")
    t("Then {hero.he} washed the {cover} in the {tub} <a_while>.")
    t.paragraph()
    t("<Soon>, it lay {spot} again, <as_new>. {hero} was {glad}.")
    t('"<Praise>! I am not {cross} anymore," said {hero.his} {elder} <happily>.')
    bedtime(t)
    t.ask("Who made the {cover} dirty?", "{pet_name}.")
    t.ask("Whose {dog} was {pet_name}?", "{hero}'s.")
    t.ask("What got dirty?", "The {cover}.")
    t.ask("Where was the {cover}?", "{Spot}.")
    t.ask("Why was the {cover} dirty?", "Because {pet_name} was in a puddle.")
    t.ask("How did {hero.his} {elder} feel about the dirty {cover}?", "{Cross}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after {hero} washed the {dog}?", "{Hero.He} washed the {cover}.")


def shy_pet(t):
    """A new pet hides; pulling does not help, but waiting with food does."""
    opening(t)
    t("<one_day>, {hero.his} {elder} came home with {a hider.full} in {a container.full}.")
    t("Its name was {pet_name}. It <felt> <very> {scared} and hid {spot.full}.")
    t.paragraph()
    if t["trait"].kind == "bold":
        t("{hero} was {trait} and <boldly> <reached>, but it did not come.")
        t.ask("What happened after {pet_name} hid?", "{hero} reached for it.")
    else:
        t("{hero} was {trait} and <gently> <called> it, but it did not come.")
        t.ask("What happened after {pet_name} hid?", "{hero} tried to get it out.")
    t('"<Wait>. {pet_name} is {scared}," {hero.his} {elder} <spoke> <kindly>.')
    t("So {hero} put some {hider.eats} in {a vessel.full} and waited <a_while>.")
    t("<Soon>, a <little_head> moved {spot}. {pet_name} came and <ate> from the {vessel}!")
    t.paragraph()
    t('"<Welcome>, {pet_name}!" {hero} said <happily>. {Hero.He} was {glad}.')
    t("<Night>, the {hider} slept <deeply> in the {container}, and {hero} <felt> <very> {glad}.")
    t.ask("Who came home with {a hider}?", "{Hero.His} {elder}.")
    t.ask("What was the name of the {hider}?", "{pet_name}.")
    t.ask("What did the {hider} eat?", "Some {hider.eats}.")
    t.ask("Where did {pet_name} hide?", "{Spot}.")
    t.ask("Where did the {hider} sleep?", "In the {container}.")
    t.ask("Why did {pet_name} hide?", "Because it was {scared}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def night_noise(t):
    """A noise in the night is only a pet that is stuck."""
    opening(t)
    t("One <stormy> night, {hero.his} <friendly> <pal> {friend} slept over.")
    t("<Suddenly>, they heard <sounds> {spot.full}. {friend} <became> <very> {scared}.")
    t.paragraph()
    comfort(t, "hero", "scared")
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <gently> took {a light.full} there.")
    else:
        t("{hero} was {trait} and <boldly> took {a light.full} there.")
    t("{Spot}, in the light of the {light}, they saw {pet_name}, {hero}'s {pet.full}, stuck in {a container.full}!")
    t("They tipped the {container}, and the {pet} <came_out>. {hero} was {glad}, and {friend} <laughed>.")
    t.paragraph()
    t("They gave {pet_name} a <bit> of {a treat.full}, finished the {treat} and slept <soundly>.")
    t("<In_the_morning>, {hero} gave {hero.his} {elder} <hug> and <felt> <very> {glad}.")
    t.ask("Who slept over?", "{friend}.")
    t.ask("Whose {pet} was {pet_name}?", "{hero}'s.")
    t.ask("Who made the noise?", "{pet_name}.")
    t.ask("What did {hero} take?", "{A light}.")
    t.ask("Where was the noise?", "{Spot}.")
    t.ask("Where was the {pet} stuck?", "In {a container}.")
    t.ask("How did {friend} feel about the noise?", "{Scared}.")
    t.ask("Why was there a noise?", "Because the {pet} was stuck.")
    t.ask("What happened after {pet_name} was free?", "They ate {a treat}.")


def take_turns(t):
    """Two want one toy and break it; it is mended, and they take turns."""
    opening(t)
    t("<one_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} got {a toy.full} from {hero.his} {elder}.")
    t('"<Mine>!" {hero} said <sternly>. "<Mine>!" {friend} said <sternly>.')
    t("They <pulled>, and the {toy} broke. {hero} and {friend} were <very> {sad}.")
    t.paragraph()
    t('"Do not be {sad}. <Cheer>," {hero.his} {elder} <spoke> <kindly>, and mended it with {glue}.')
    if t["trait"].kind == "quiet":
        t("The {glue} held <tight>. {hero} was {trait} and <gently> gave the {toy} to {friend}.")
        t("{friend} had it <a_while>, then {hero} had it <a_while>.")
        t.ask("Who had the {toy} first?", "{friend}.")
    else:
        t("The {glue} held <tight>. {hero} was {trait} and <boldly> took the {toy}.")
        t("{hero} had it <a_while>, then {friend} had it <a_while>.")
        t.ask("Who had the {toy} first?", "{hero}.")
    t.paragraph()
    t("<Soon>, they (ate|shared|split|finished) {a treat.full}. The {treat} was <tasty>.")
    t("They <played_inside>, and {hero} was {glad}.")
    bedtime(t)
    t.ask("Who mended the {toy}?", "{Hero.His} {elder}.")
    t.ask("What did they both want?", "The {toy}.")
    t.ask("What was the {toy} mended with?", "With {glue}.")
    t.ask("What did they eat?", "{A treat}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("Why did the {toy} break?", "Because they both wanted it.")
    t.ask("How did they feel about the broken {toy}?", "{Sad}.")
    t.ask("What happened after the {toy} broke?", "{Hero.His} {elder} mended it.")


def sick_friend(t):
    """A friend is ill and gets soup and a story, and later gives the same back."""
    opening(t)
    t("<one_day>, {hero.his} <friendly> <pal> {friend} had {illness}, <became> <very> {sad} and <lonely_bed>.")
    t("So {hero.his} {elder} made {soup.full}, and {hero} took it to {friend} in {a pot.full}.")
    t.paragraph()
    comfort(t, "hero", "sad")
    if t["trait"].kind == "quiet":
        t("{Hero.He} was {trait} and <gently> read {friend.him} a story about {a tale.full}.")
    else:
        t("{Hero.He} was {trait} and <boldly> played {friend.him} a story about {a tale.full}.")
    t('"<Thanks>, {hero}!" {friend} said <happily>. The {soup} was <tasty>, and <days_later>, {friend.he} was well.')
    t.paragraph()
    t("<Days_later>, {hero} had {illness}, too. {friend} <came_with> with {soup.full} in the {pot}.")
    t(
        "{Friend.He} told {hero.him} <told_story> (jokes|stories|tales|riddles) about the {tale}, and <days_later>, "
        "{hero} was well."
    )
    t.ask("Who was sick first?", "{friend}.")
    t.ask("Who made the first {soup}?", "{Hero.His} {elder}.")
    t.ask("What was the story about?", "{A tale}.")
    t.ask("What did {hero} take to {friend}?", "{Soup.full}.")
    t.ask("Where was the {soup}?", "In {a pot}.")
    t.ask("Why was {friend} {sad}?", "Because {friend.he} had {illness}.")
    t.ask("How did {friend} feel before {hero} came?", "{Sad}.")
    t.ask("What happened after {hero} had {illness}?", "{friend} came with {soup.full}.")


def knitted_gift(t):
    """Something warm is knitted for one who is cold; the first try is no good."""
    opening(t)
    t("One <cold_day> <home_day>, {hero.his} {elder} was cold, and {hero} wanted to knit {a clothes.full}.")
    t(
        "{Hero.He} <hurried> to {hero.his} <friendly> <pal> {friend}, who had "
        "(soft|thick|fine|warm|fluffy|good|strong|new) wool in {a container.full}."
    )
    t.paragraph()
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <gently> knitted <a_while>, but the {clothes} was <mistake>.")
    else:
        t("{hero} was {trait} and <boldly> knitted <a_while>, but the {clothes} was <mistake>.")
    t("{Hero.He} <became> <very> {sad}.")
    comfort(t, "friend", "sad")
    t("They took more wool from the {container}, <played_inside> and knitted <a_while>.")
    t.paragraph()
    t("<Days_later>, {hero} gave {hero.his} {elder} the {clothes}. It was <so_warm>, and {hero} was {glad}.")
    bedtime(t)
    t.ask("Who had wool?", "{friend}.")
    t.ask("Who was cold?", "{Hero.His} {elder}.")
    t.ask("What did {hero} knit?", "{A clothes}.")
    t.ask("Where was the wool?", "In {a container}.")
    t.ask("Why did {hero} want to knit?", "Because {hero.his} {elder} was cold.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened before {hero} knitted again?", "{friend} comforted {hero.him}.")


def blanket_fort(t):
    """It is wet outside, so two build a tent in the house; it falls down and is built again."""
    opening(t)
    t("One <wet_day>, {hero.he} and {hero.his} <friendly> <pal> {friend} built a tent {room.full}.")
    t("It was made of {a cover.full} and two {frame}. In it they told a <told_story> story about {a tale.full}.")
    t.paragraph()
    fell = t.choose(
        "<Soon>, {pet_name}, {hero}'s {pet.full}, jumped on the {cover}, and the tent <tumble>.",
        "<Soon>, {pet_name}, {hero}'s {pet.full}, ran into the {frame}, and the tent <tumble>.",
    )
    t("{friend} <became> <very> {sad}.")
    comfort(t, "hero", "sad")
    if t["trait"].kind == "quiet":
        t("{Hero.He} was {trait} and <gently> put (three|four|five|six) more {frame} under the {cover}.")
    else:
        t("{Hero.He} was {trait} and <boldly> put (three|four|five|six) more {frame} under the {cover}.")
    t.paragraph()
    t("{pet_name} the {pet} lay {room}, too, and they told of the {tale} <a_while>. {hero} was {glad}.")
    bedtime(t)
    if fell == 0:
        t.ask("Why did the tent fall down?", "Because {pet_name} jumped on the {cover}.")
    else:
        t.ask("Why did the tent fall down?", "Because {pet_name} ran into the {frame}.")
    t.ask("Who built a tent with {hero}?", "{friend}.")
    t.ask("Whose {pet} was {pet_name}?", "{hero}'s.")
    t.ask("What was the tent made of?", "{A cover} and some {frame}.")
    t.ask("Where was the tent?", "{Room}.")
    t.ask("How did {friend} feel about the tent?", "{Sad}.")
    t.ask("What was the story about?", "{A tale}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after the tent fell down?", "{hero} comforted {friend}.")


def new_neighbor(t):
    """A new child next door misses a toy, and it is in the last place that they look."""
    opening(t)
    t("<one_day>, a <nice_child> {friend.girl} named {friend} moved in next door.")
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <gently> brought over {a bake.full} from {hero.his} {elder}.")
    else:
        t("{hero} was {trait} and <boldly> ran over with {a bake.full} from {hero.his} {elder}.")
    t('"<Welcome>! I am {hero}," {hero.he} said <kindly>.')
    t.paragraph()
    t('"I am {friend}, and I lost my {toy.full}," said {friend} <sadly>. {Friend.He} <felt> <very> {sad}.')
    comfort(t, "hero", "sad")
    t("They <looked> {spot.full}, but <found_nothing>. Then {hero} <dug> in {a container.full}.")
    t("The {toy} was not {spot}, but in the {container}, <state>!")
    t.paragraph()
    t("They (ate|shared|split|finished) the {bake} and played <a_while>. {hero} was {glad}.")
    bedtime(t)
    t.ask("Who moved in next door?", "{friend}.")
    t.ask("Who made the {bake}?", "{Hero.His} {elder}.")
    t.ask("Whose {toy} was lost?", "{friend}'s.")
    t.ask("What did {friend} lose?", "The {toy}.")
    t.ask("What did {hero} take to {friend}?", "{A bake}.")
    t.ask("Where was the {toy}?", "In the {container}.")
    t.ask("Where did they look first?", "{Spot}.")
    t.ask("Why was {friend} {sad}?", "Because {friend.he} lost the {toy}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after they found the {toy}?", "They ate the {bake}.")


def first_music(t):
    """An instrument sounds awful, until it is practiced."""
    opening(t)
    t("<one_day>, {hero.he} found {a instrument.full} {spot.full} and played it.")
    t("It sounded <sounded>! {Hero.His} {elder} covered {elder.his} ears, and {hero} <became> <very> {sad}.")
    t.paragraph()
    visitor(t)
    comfort(t, "friend", "sad")
    if t["trait"].kind == "quiet":
        t("So {hero}, who was {trait}, <gently> practiced on the {instrument} <a_while> every <every_day>.")
    else:
        t("So {hero}, who was {trait}, <boldly> practiced on the {instrument} <a_while> every <every_day>.")
    t.paragraph()
    t("<Days_later>, {hero} played a <played> for {friend} and {hero.his} {elder}. They <clapped>.")
    t("{hero} <gently> put the {instrument} {spot} again and was {glad}.")
    bedtime(t)
    t.ask("Who comforted {hero}?", "{friend}.")
    t.ask("Who covered {elder.his} ears?", "{Hero.His} {elder}.")
    t.ask("What did {hero} find?", "{A instrument}.")
    t.ask("Where did {hero} find the {instrument}?", "{Spot}.")
    t.ask("Why was {hero} {sad}?", "Because the {instrument} sounded bad.")
    t.ask("How did {hero} feel in the end?", "{Glad}.")
    t.ask("How did {hero} learn to play?", "{Hero.He} practiced.")
    t.ask("What happened before {hero} played for {friend}?", "{Hero.He} practiced.")


def old_box(t):
    """Something locked is found; its key is in something else, and in it is a toy of long ago."""
    opening(t)
    t("<one_day>, {hero.he} found {a chest.full} {spot.full}. It was locked.")
    t('"I lost the key when I was <age>," said {hero.his} {elder} <sadly>. {Elder.He} <felt> <very> {sad}.')
    t.paragraph()
    comfort(t, "hero", "sad")
    visitor(t)
    if t["trait"].kind == "quiet":
        t("{hero} was {trait} and <gently> moved {a vessel.full}. Out of the {vessel} fell a <old_key> key!")
    else:
        t("{hero} was {trait} and <boldly> shook {a vessel.full}. Out of the {vessel} fell a <old_key> key!")
    t("They <hurried> back to the {chest} {spot}. The key fit, and in it was {a toy.full}.")
    t.paragraph()
    t('"My {toy}!" cried {hero.his} {elder} <happily>. They all <played_inside>, and {hero} was {glad}.')
    bedtime(t)
    t.ask("Who lost the key?", "{Hero.His} {elder}.")
    t.ask("Who came to {hero}?", "{friend}.")
    t.ask("Whose {toy} was it?", "{Hero.His} {elder}'s.")
    t.ask("What was in the {chest}?", "{A toy}.")
    t.ask("Where was the key?", "In the {vessel}.")
    t.ask("Where did {hero} find the {chest}?", "{Spot}.")
    t.ask("Why was {hero.his} {elder} {sad}?", "Because {elder.he} lost the key.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after {hero} found the key?", "They opened the {chest}.")


def messy_room(t):
    """What is needed cannot be found in a mess; tidying up finds it, and a toy as well."""
    opening(t)
    t("One <cold_day> <home_day>, {hero.he} could not find {hero.his} {clothes.full}, for {hero.his} room was <mess>.")
    visitor(t)
    t('"I cannot go out," {hero} said <sadly>. {Hero.He} <felt> <very> {sad}.')
    t.paragraph()
    comfort(t, "friend", "sad")
    t("They put <junk> into {a container.full}.")
    if t["trait"].kind == "quiet":
        t("{hero}, who was {trait}, <gently> swept {spot.full}.")
    else:
        t("{hero}, who was {trait}, <boldly> crawled around {spot.full}.")
    t("There, {spot}, was the {clothes}, and next to it a lost {toy.full}!")
    t.paragraph()
    thanks(t, "friend")
    t("They closed the {container}, took the {toy} outside and played <game> <a_while>. {hero} was {glad}.")
    bedtime(t)
    t.ask("Who helped {hero} to tidy up?", "{friend}.")
    t.ask("Whose {clothes} was missing?", "{hero}'s.")
    t.ask("What did {hero} need?", "The {clothes}.")
    t.ask("What was next to the {clothes}?", "The {toy}.")
    t.ask("Where was the {clothes}?", "{Spot}.")
    t.ask("Why was {hero} {sad}?", "Because {hero.he} could not find the {clothes}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened before they found the {clothes}?", "They put things into {a container}.")


PLOTS = dict(
    lost_toy=lost_toy,
    birthday_baking=birthday_baking,
    muddy_dog=muddy_dog,
    shy_pet=shy_pet,
    night_noise=night_noise,
    take_turns=take_turns,
    sick_friend=sick_friend,
    knitted_gift=knitted_gift,
    blanket_fort=blanket_fort,
    new_neighbor=new_neighbor,
    first_music=first_music,
    old_box=old_box,
    messy_room=messy_room,
)

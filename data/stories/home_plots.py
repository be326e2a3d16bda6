"""Plots at home: family, pets, food and toys."""

from slm_np.data.stories.shared import bedtime, night, opening, thanks, visitor


def lost_toy(t):
    """A toy is gone, a friend helps to look, and it is where it was left."""
    opening(t)
    t("{Hero.His} favorite (toy|thing) was {a toy.full}.")
    t("One <day>, {hero.he} (left|forgot) it {spot.full}.")
    t("After <meal>, the {toy} was <gone>, and {hero} <felt> <very> {sad}.")
    if t["trait"].kind == "quiet":
        t("{Hero.He} <quietly> (looked|searched|peeked|peered) {other_spot.full},")
    else:
        t("{Hero.He} <quickly> (ran|rushed|raced|dashed) to look {other_spot.full},")
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
        t("{Hero.He} walked <quietly> to {hero.his} <friendly> friend {friend}, who was <busy>.")
        t('"May I have some {ingredient}, please?" {hero} asked <kindly>.')
    else:
        t("{Hero.He} ran <quickly> to {hero.his} <friendly> friend {friend}, who was <busy>.")
        t('"I need some {ingredient}!" {hero} called <kindly>.')
    t('"<Yes>," said {friend} <kindly>, and filled the {vessel}.')
    thanks(t, "friend")
    t.paragraph()
    t("{hero} <mixed> <a_while>.")
    t.choose(
        "The {bake} was (a bit|a little|rather|slightly) (dark|flat|crooked|hard), but {hero.his} {elder} loved it.",
        "The {bake} was <tasty>, and {hero.his} {elder} loved it.",
    )
    t("{friend} got a (big|huge|second|thick|large|very big|giant|nice) piece.")
    bedtime(t)
    t.ask("What did {hero} bake?", "{A bake.full}.")
    t.ask("Whose birthday was it?", "{Hero.His} {elder}'s.")
    t.ask("What was missing?", "The {ingredient}.")
    t.ask("Who had some {ingredient}?", "{friend}.")
    t.ask("Why did {hero} go to {friend}?", "The {vessel} was empty.")
    t.ask("How did {hero} feel when the {vessel} was empty?", "{Sad}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened before {hero} baked?", "{friend} filled the {vessel}.")


def muddy_dog(t):
    """A dog runs through the mud and over something clean, and the child makes all clean again."""
    opening(t)
    t("{Hero.He} had {a dog.full} named {pet_name}.")
    t(
        "One rainy <home_day>, {pet_name} (jumped|ran|rolled|fell) into a (big|deep|brown|huge|dirty|wide|long|cold) "
        "puddle (near|behind|next to|in front of) the house."
    )
    t(
        "<Soon>, there were (muddy|dirty|brown|wet|big|dark|ugly|black) (prints|tracks|spots|marks) on the {cover.full} "
        "{spot.full}."
    )
    t.paragraph()
    t("{Hero.His} {elder} <felt> <very> {cross}.")
    t('"<Oh>! Who did this?" {elder.he} asked <sternly>.')
    t('{hero} <thought>. "{pet_name} did, but I will wash the {cover}," {hero.he} said <sadly>.')
    if t["trait"].kind == "quiet":
        t("{Hero.He} <quietly> put the {dog} in {a tub.full} and washed it <how_washed>.")
    else:
        t("{Hero.He} <quickly> took the {dog} into {a tub.full} and washed it <how_washed>.")
    t("Then {hero.he} washed the {cover} <a_while>. <Soon>, it was <as_new>, and {pet_name} was clean.")
    t.paragraph()
    t('"<Praise>!" said {hero.his} {elder} <happily>.')
    night(t)
    t.ask("Who jumped into the puddle?", "{pet_name}.")
    t.ask("Whose {dog} was {pet_name}?", "{hero}'s.")
    t.ask("What got dirty?", "The {cover.full}.")
    t.ask("Where was the {cover}?", "{Spot}.")
    t.ask("Why was the {cover} dirty?", "{pet_name} was muddy.")
    t.ask("How did {hero.his} {elder} feel about the {cover}?", "{Cross}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after {hero} washed the {dog}?", "{Hero.He} washed the {cover}.")


def shy_pet(t):
    """A new pet hides; pulling does not help, but waiting with food does."""
    opening(t)
    t("One <day>, {hero.his} {elder} came home with {a hider.full} in {a container.full}.")
    t("Its name was {pet_name}. It <felt> <very> {scared} and hid {spot.full}.")
    t.paragraph()
    if t["trait"].kind == "bold":
        t("{hero} <quickly> <reached> for {pet_name}, but the {hider} only crept (deeper|farther) in.")
        t.ask("What happened before {hero.his} {elder} told {hero} to wait?", "{hero} reached for {pet_name}.")
    else:
        t("{hero} <quietly> sat down on the floor and <called> {pet_name}, but the {hider} did not (come|move).")
        t.ask("What happened before {hero.his} {elder} told {hero} to wait?", "{hero} sat down on the floor.")
    t('"<Wait>," said {hero.his} {elder} <kindly>. "{pet_name} is {scared}."')
    t("So {hero} put some {hider.eats} in {a vessel.full} and waited <a_while>.")
    t("<Soon>, a (little|tiny|small|soft|shy|curious|hungry|careful) head came out. {pet_name} <ate>!")
    t.paragraph()
    t('"<Welcome>, {pet_name}!" said {hero} <happily>.')
    t("<Night>, the {hider} slept in the {container}, and {hero} <felt> <very> {glad}.")
    t.ask("Who came home with {a hider}?", "{Hero.His} {elder}.")
    t.ask("What was the name of the {hider}?", "{pet_name}.")
    t.ask("What did the {hider} eat?", "Some {hider.eats}.")
    t.ask("Where did {pet_name} hide?", "{Spot}.")
    t.ask("Where did the {hider} sleep?", "In the {container}.")
    t.ask("Why did {pet_name} hide?", "It was {scared}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")


def night_noise(t):
    """A noise in the night is only a pet that is stuck."""
    opening(t)
    t("One <stormy> night, {hero.his} <friendly> friend {friend} slept over.")
    t("<Suddenly>, they heard <sounds> {spot.full}.")
    t('"<Oh>! What is that?" {friend} (whispered|asked|said|breathed) <sadly>. {Friend.He} <felt> <very> {scared}.')
    t.paragraph()
    if t["trait"].kind == "quiet":
        t("{hero} took {a light.full}, and they (walked|tiptoed|crept|sneaked) <quietly> through the dark.")
    else:
        t("{hero} took {a light.full}, and they (walked|marched|hurried|rushed) <quickly> through the dark.")
    t("It was {pet_name}, {hero}'s {pet.full}! It had (fallen|climbed|jumped|crept) into {a container.full}.")
    t("{hero} (pulled|lifted|helped|got) {pet_name} out <kindly>, and {friend} <laughed>.")
    t.paragraph()
    t("They (ate|shared|split|finished) {a treat.full}, and the {pet} (ate|got|had|nibbled) the crumbs.")
    t("Then they slept <soundly>, and {friend} was not {scared} anymore.")
    t('"<Morning>," said {hero.his} {elder} <kindly> the next day.')
    t.ask("Who slept over?", "{friend}.")
    t.ask("Whose {pet} was {pet_name}?", "{hero}'s.")
    t.ask("What made the noise?", "{pet_name}.")
    t.ask("What did {hero} take?", "{A light.full}.")
    t.ask("Where was the noise?", "{Spot}.")
    t.ask("Where was the {pet} stuck?", "In {a container.full}.")
    t.ask("How did {friend} feel about the noise?", "{Scared}.")
    t.ask("Why did they hear a noise?", "The {pet} was stuck in {a container}.")
    t.ask("What happened after {pet_name} was out?", "They ate {a treat.full}.")


def take_turns(t):
    """Two want one toy and break it; it is mended, and they take turns."""
    opening(t)
    t("One <day>, {hero.his} <friendly> friend {friend} <came>. {Hero.His} {elder} gave them {a toy.full}.")
    t('"<Mine>!" said {hero}. "<Mine>!" said {friend}.')
    t("They <pulled>, and the {toy} came apart. They <felt> <very> {sad}.")
    t.paragraph()
    t('"<Cheer>," said {hero.his} {elder} <kindly>, and mended it with {glue} <busy>.')
    if t["trait"].kind == "quiet":
        t('"You (may go|go|can play|can be) first, {friend}," said {hero} <kindly>.')
        t("So {friend} had the {toy} <a_while>, and then {hero} had it <a_while>.")
        t.ask("Who had the {toy} first?", "{friend}.")
    else:
        t('"You (may go|go|can play|can be) first, {hero}," said {friend} <kindly>.')
        t("So {hero} had the {toy} <a_while>, and then {friend} had it <a_while>.")
        t.ask("Who had the {toy} first?", "{hero}.")
    t.paragraph()
    t("After that, they (ate|shared|split|finished) {a treat.full}. The {treat} was <tasty>.")
    night(t)
    t.ask("Who mended the {toy}?", "{Hero.His} {elder}.")
    t.ask("What did they both want?", "The {toy.full}.")
    t.ask("What was the {toy} mended with?", "With {glue}.")
    t.ask("Why did the {toy} come apart?", "They both pulled it.")
    t.ask("How did they feel about the {toy}?", "{Sad}.")
    t.ask("What did they eat?", "{A treat.full}.")
    t.ask("What happened after the {toy} came apart?", "{Hero.His} {elder} mended it.")


def sick_friend(t):
    """A friend is ill and gets soup and a story, and later gives the same back."""
    opening(t)
    t("One <day>, {hero.his} <friendly> friend {friend} had {illness}, <felt> <very> {sad} and <lonely_bed>.")
    t(
        "So {hero} and {hero.his} {elder} made {soup.full} <busy>, and {hero} (took|brought|carried) it to {friend} in {a pot.full}."
    )
    t.paragraph()
    t('"<Thanks>, {hero}!" said {friend} <sadly>.')
    if t["trait"].kind == "quiet":
        t("{hero} sat down and <quietly> read {friend.him} a (long|short|nice|good) story about {a tale.full}.")
    else:
        t("{hero} jumped up and <quickly> played {friend.him} a (long|short|funny|wild) story about {a tale.full}.")
    t("The {soup} was <tasty>, and <soon>, {friend} was <recover>.")
    t.paragraph()
    t("<Days_later>, {hero} had {illness}. Now {friend} <came> with {soup.full} in the {pot}.")
    t("{Friend.He} told {hero.him} the story about the {tale} again, and {hero} <felt> <very> {glad}.")
    t.ask("Who was sick first?", "{friend}.")
    t.ask("Who helped {hero} to make the {soup}?", "{Hero.His} {elder}.")
    t.ask("What was the story about?", "{A tale.full}.")
    t.ask("What did {hero} take to {friend}?", "{Soup.full}.")
    t.ask("Where was the {soup}?", "In the {pot.full}.")
    t.ask("Why did {friend} feel {sad}?", "{Friend.He} had {illness}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after {hero} got sick?", "{friend} came with the {soup}.")


def knitted_gift(t):
    """Something warm is knitted for one who is cold; the first try is no good."""
    opening(t)
    t("One <cold_day> <home_day>, {hero} saw that {hero.his} {elder} was cold and <felt> <very> {sad}.")
    t("{Hero.He} <hurried> to {hero.his} <friendly> friend {friend}, who knitted {a clothes.full} <busy>.")
    t('"Please teach me to knit," said {hero} <kindly>. "<Yes>," said {friend} <kindly>.')
    t.paragraph()
    if t["trait"].kind == "quiet":
        t("{hero} knitted <quietly> <a_while>, but {hero.his} first {clothes} was <mistake>.")
    else:
        t("{hero} knitted <quickly> <a_while>, but {hero.his} first {clothes} was <mistake>.")
    t('"<Cheer>," said {friend} <kindly>. So {hero} began again, with {color} wool from {a container.full}.')
    t.paragraph()
    t("<Days_later>, {hero} gave {hero.his} {elder} {a color} {clothes} and <hug>.")
    t("{Hero.His} {elder} <worn>. {hero} <felt> <very> {glad}, and the {container} was empty.")
    t.ask("Who taught {hero} to knit?", "{friend}.")
    t.ask("Who was cold?", "{Hero.His} {elder}.")
    t.ask("What did {hero} knit?", "{A clothes}.")
    t.ask("What color was the wool?", "{Color}.")
    t.ask("Where was the wool?", "In the {container.full}.")
    t.ask("Why did {hero} want to knit?", "{Hero.His} {elder} was cold.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened before {hero} began again?", "The first {clothes} went wrong.")


def blanket_fort(t):
    """It is wet outside, so two build a tent in the house; it falls down and is built again."""
    opening(t)
    t("One <home_day>, it <rainy>, so {hero} and {hero.his} <friendly> friend {friend} had to stay inside.")
    t("They built a tent from {a cover.full} and two {frame} in the {room}.")
    t("In it they (ate|shared|split|finished) {a treat.full} and told a story about {a tale.full}.")
    t.paragraph()
    fell = t.choose(
        "<Soon>, {pet_name}, {hero}'s {pet.full}, jumped on the {cover}, and the tent <tumble>.",
        "<Soon>, {pet_name}, {hero}'s {pet.full}, ran into the {frame}, and the tent <tumble>.",
    )
    t('"<Oh>!" said {friend} <sadly>. {Friend.He} <felt> <very> {sad}.')
    if t["trait"].kind == "quiet":
        t('"<Cheer>," said {hero} <kindly>, and <quietly> put four {frame} under the {cover}.')
    else:
        t('"<Cheer>," said {hero} <kindly>, and <quickly> put four {frame} under the {cover}.')
    t("Now the tent stood <a_while>, and the {pet} got a bit of the {treat}.")
    t.paragraph()
    bedtime(t)
    if fell == 0:
        t.ask("Why did the tent fall down?", "{pet_name} jumped on the {cover}.")
    else:
        t.ask("Why did the tent fall down?", "{pet_name} ran into the {frame}.")
    t.ask("Who built the tent with {hero}?", "{friend}.")
    t.ask("Whose {pet} was {pet_name}?", "{hero}'s.")
    t.ask("What was the tent made of?", "{A cover.full} and some {frame}.")
    t.ask("Where was the tent?", "In the {room}.")
    t.ask("How did {friend} feel about the tent?", "{Sad}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after the tent fell down?", "{hero} built it again.")


def new_neighbor(t):
    """A new child next door misses a toy, and it is in the last place that they look."""
    opening(t)
    t("One <day>, a <friendly> {friend.girl} named {friend} moved in next door.")
    if t["trait"].kind == "quiet":
        t("{hero} and {hero.his} {elder} baked {a bake.full}, and {hero} <quietly> took it over.")
    else:
        t("{hero} and {hero.his} {elder} baked {a bake.full}, and {hero} <quickly> ran over with it.")
    t('"<Welcome>! I am {hero}," {hero.he} said <kindly>.')
    t.paragraph()
    t('"I lost my {toy.full}," said {friend} <sadly>. {Friend.He} <felt> <very> {sad}.')
    t('"<Cheer>," said {hero} <kindly>. They <dug> in {a container.full}, but <found_nothing>.')
    t("<Soon>, {hero} <hurried> to {a other_container.full} {spot.full}, and there was the {toy}!")
    t.paragraph()
    t('"<Thanks>, {hero}!" said {friend} <happily>.')
    t("They (ate|shared|split|finished) the {bake} and played <a_while>. {hero} <felt> <very> {glad}.")
    t.ask("Who moved in next door?", "{friend}.")
    t.ask("Who helped {hero} to bake?", "{Hero.His} {elder}.")
    t.ask("What did {friend} lose?", "The {toy.full}.")
    t.ask("What did {hero} take to {friend}?", "{A bake.full}.")
    t.ask("Where was the {toy}?", "In the {other_container.full}.")
    t.ask("Where did they look first?", "In the {container.full}.")
    t.ask("Why was {friend} {sad}?", "{Friend.He} lost the {toy}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after they found the {toy}?", "They ate the {bake}.")


def first_music(t):
    """An instrument sounds awful, until it is practiced."""
    opening(t)
    t("One <day>, {hero.he} found {a instrument.full} {spot.full} and played it.")
    t("It sounded <sounded>! {Hero.His} {elder} covered {elder.his} ears, and {hero} <felt> <very> {sad}.")
    t.paragraph()
    visitor(t)
    t('"<Cheer>," said {friend} <kindly>. "Just practice."')
    if t["trait"].kind == "quiet":
        t("So {hero} <quietly> practiced on the {instrument} <a_while> every (day|morning|evening|afternoon).")
    else:
        t("So {hero} <quickly> practiced on the {instrument} <a_while> every (day|morning|evening|afternoon).")
    t.paragraph()
    t("<Days_later>, {hero} played a <played> for {friend} and {hero.his} {elder}.")
    t("They <clapped>, and {hero} <felt> <very> {glad}.")
    t('"<Praise>!" said {hero.his} {elder} <happily>, and put the {instrument} {spot} again.')
    t.ask("Who told {hero} to practice?", "{friend}.")
    t.ask("Who covered {elder.his} ears?", "{Hero.His} {elder}.")
    t.ask("What did {hero} find?", "{A instrument.full}.")
    t.ask("Where did {hero} find the {instrument}?", "{Spot}.")
    t.ask("Why was {hero} {sad}?", "The {instrument} sounded bad.")
    t.ask("How did {hero} feel in the end?", "{Glad}.")
    t.ask("How did {hero} learn to play?", "{Hero.He} practiced.")
    t.ask("What happened before {hero} played for them?", "{hero} practiced.")


def old_box(t):
    """Something locked is found; its key is in something else, and in it is a toy of long ago."""
    opening(t)
    t("One <day>, {hero} found {a container.full} {spot.full}, but it was locked.")
    t('"I lost the key," said {hero.his} {elder} <sadly>.')
    t.paragraph()
    visitor(t)
    if t["trait"].kind == "quiet":
        t("They <quietly> (looked|searched|peeked|peered) {other_spot.full}, but <found_nothing>.")
    else:
        t("They <quickly> (ran|rushed|raced|dashed) to look {other_spot.full}, but <found_nothing>.")
    t("{hero} <felt> <very> {sad}.")
    t("Then {friend} (shook|turned over|picked up|lifted) {a vessel.full}, and out fell {a key.full}!")
    thanks(t, "friend")
    t.paragraph()
    t("The {key} fit, and in the {container} was {a toy.full}.")
    t('"My {toy}!" said {hero.his} {elder} <happily>. "I had it when I was (five|six|seven|eight)."')
    t("They all played with it <a_while>. {hero} <felt> <very> {glad}.")
    t.ask("Who found the {key}?", "{friend}.")
    t.ask("Who had lost the key?", "{Hero.His} {elder}.")
    t.ask("Whose {toy} was in the {container}?", "{Hero.His} {elder}'s.")
    t.ask("What was in the {container}?", "{A toy.full}.")
    t.ask("Where was the {key}?", "In the {vessel.full}.")
    t.ask("Where did {hero} find the {container}?", "{Spot}.")
    t.ask("How did {hero} feel at the end?", "{Glad}.")
    t.ask("What happened after they found the {key}?", "They opened the {container}.")


def messy_room(t):
    """What is needed cannot be found in a mess; tidying up finds it, and a toy as well."""
    opening(t)
    t("{Hero.His} room was (a mess|a big mess|messy|untidy|in a mess|full of junk|upside down|a terrible mess).")
    t("One <cold_day> <home_day>, {hero.his} <friendly> friend {friend} <came>.")
    t(
        '"Let us (play|go|run|race) outside!" said {friend} <happily>. But {hero} could not find {hero.his} {clothes.full}.'
    )
    if t["trait"].kind == "quiet":
        t("{Hero.He} <quietly> (looked|searched|peeked|peered) {spot.full}, but <found_nothing>.")
    else:
        t("{Hero.He} <quickly> (ran|rushed|raced|dashed) to look {spot.full}, but <found_nothing>.")
    t("{hero} <felt> <very> {sad}.")
    t.paragraph()
    t('"<Cheer>," said {friend} <kindly>. "Let us tidy up."')
    t("They put <junk> into {a container.full} <a_while>.")
    t("<At_last>, {other_spot.full}, there was the {clothes}, and next to it a long-lost {toy.full}!")
    t.paragraph()
    thanks(t, "friend")
    t("They (ran|raced|went|hurried) outside with the {toy}, and {hero} was not {sad} anymore.")
    bedtime(t)


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

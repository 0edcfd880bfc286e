//! A seeded grammar of short stories: the only text that the embedded model was trained on.
//!
//! Each story has a hero, a friend, a place, a thing that is lost or wanted, and a reason. They recur throughout the story, so
//! a model must remember them to reach a low perplexity. Everything here was written for this project; nothing is taken from
//! a data set. A seed gives the same text on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator with the seed `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A uniform number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next_u64()) * end as u128) >> 64) as usize
    }

    /// A standard normal deviate (Box and Muller 1958).
    pub fn normal(&mut self) -> f32 {
        let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let (a, b) = (unit(self.next_u64()), unit(self.next_u64()));
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }

    /// An entry of a list.
    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// An entry of a list other than `excluded`.
    fn pick_other<'a>(&mut self, list: &[&'a str], excluded: &str) -> &'a str {
        loop {
            let entry = self.pick(list);
            if entry != excluded {
                return entry;
            }
        }
    }
}

/// A name with its subject, object and possessive pronouns.
type Person = (&'static str, &'static str, &'static str, &'static str);

const PEOPLE: [Person; 24] = [
    ("Ada", "she", "her", "her"),
    ("Bruno", "he", "him", "his"),
    ("Clara", "she", "her", "her"),
    ("Dario", "he", "him", "his"),
    ("Edith", "she", "her", "her"),
    ("Felix", "he", "him", "his"),
    ("Greta", "she", "her", "her"),
    ("Hugo", "he", "him", "his"),
    ("Ines", "she", "her", "her"),
    ("Jonas", "he", "him", "his"),
    ("Kira", "she", "her", "her"),
    ("Lino", "he", "him", "his"),
    ("Mara", "she", "her", "her"),
    ("Nils", "he", "him", "his"),
    ("Olga", "she", "her", "her"),
    ("Pavel", "he", "him", "his"),
    ("Rosa", "she", "her", "her"),
    ("Stefan", "he", "him", "his"),
    ("Tilda", "she", "her", "her"),
    ("Urs", "he", "him", "his"),
    ("Vera", "she", "her", "her"),
    ("Wim", "he", "him", "his"),
    ("Yara", "she", "her", "her"),
    ("Zeno", "he", "him", "his"),
];
const TRADES: [&str; 16] = [
    "baker",
    "clockmaker",
    "ferryman",
    "gardener",
    "glassblower",
    "librarian",
    "lighthouse keeper",
    "mason",
    "miller",
    "painter",
    "potter",
    "shepherd",
    "tailor",
    "teacher",
    "violin maker",
    "weaver",
];
const PLACES: [&str; 18] = [
    "the old mill",
    "the harbour",
    "the north tower",
    "the orchard",
    "the quarry",
    "the railway station",
    "the river bank",
    "the market square",
    "the glass house",
    "the stone bridge",
    "the windy hill",
    "the empty school",
    "the salt cellar",
    "the lighthouse",
    "the pine forest",
    "the frozen lake",
    "the town hall",
    "the narrow lane",
];
const THINGS: [&str; 22] = [
    "lantern",
    "brass key",
    "map",
    "violin",
    "wooden boat",
    "letter",
    "compass",
    "kettle",
    "ladder",
    "notebook",
    "umbrella",
    "clock",
    "basket",
    "rope",
    "telescope",
    "hammer",
    "ring",
    "coat",
    "drum",
    "bell",
    "mirror",
    "saddle",
];
const COLOURS: [&str; 12] = [
    "red", "blue", "green", "yellow", "grey", "white", "black", "brown", "silver", "golden",
    "purple", "orange",
];
const WEATHER: [(&str, &str); 10] = [
    ("it rained all night", "wet"),
    ("a thick fog lay over the roofs", "pale"),
    ("the sun burned from early morning", "hot"),
    ("snow fell without a sound", "white"),
    ("a storm came in from the sea", "loud"),
    ("the frost drew flowers on the windows", "cold"),
    ("a warm wind blew from the south", "mild"),
    ("the first leaves turned and fell", "quiet"),
    ("hail beat on the doors", "rough"),
    ("the sky was clear and full of swallows", "bright"),
];
const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const ANIMALS: [&str; 12] = [
    "dog", "goat", "crow", "cat", "horse", "goose", "hedgehog", "owl", "donkey", "squirrel",
    "heron", "fox",
];
const FEELINGS: [(&str, &str); 8] = [
    ("afraid", "courage"),
    ("tired", "rest"),
    ("angry", "patience"),
    ("lonely", "company"),
    ("curious", "answers"),
    ("hungry", "bread"),
    ("proud", "praise"),
    ("worried", "good news"),
];
const NUMBERS: [&str; 11] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
];
const FRUIT: [&str; 8] = [
    "apples", "pears", "plums", "nuts", "eggs", "candles", "coins", "loaves",
];
const LESSONS: [&str; 8] = [
    "what is shared is never lost",
    "a slow step is still a step",
    "the one who asks finds the way",
    "a small light is enough in the dark",
    "work that is begun is half done",
    "a friend is worth more than a prize",
    "one should look twice before one despairs",
    "the truth weighs less than a lie",
];

/// The fixed cast and props of one story.
struct Story {
    hero: Person,
    friend: Person,
    trade: &'static str,
    thing: &'static str,
    colour: &'static str,
    home: &'static str,
    place: &'static str,
    animal: &'static str,
    weather: (&'static str, &'static str),
    feeling: (&'static str, &'static str),
    day: usize,
}

/// One story, ending with a blank line.
pub fn story(random: &mut Random) -> String {
    let hero = PEOPLE[random.below(PEOPLE.len())];
    let friend = loop {
        let person = PEOPLE[random.below(PEOPLE.len())];
        if person.0 != hero.0 {
            break person;
        }
    };
    let home = random.pick(&PLACES);
    let story = Story {
        hero,
        friend,
        trade: random.pick(&TRADES),
        thing: random.pick(&THINGS),
        colour: random.pick(&COLOURS),
        home,
        place: random.pick_other(&PLACES, home),
        animal: random.pick(&ANIMALS),
        weather: WEATHER[random.below(WEATHER.len())],
        feeling: FEELINGS[random.below(FEELINGS.len())],
        day: random.below(DAYS.len()),
    };
    let mut parts = vec![story.opening(random), story.loss(random)];
    let middle_parts = 1 + random.below(3);
    let first = random.below(4);
    for step in 0..middle_parts {
        parts.push(match (first + step) % 4 {
            0 => story.counting(random),
            1 => story.talk(random),
            2 => story.animal_helps(random),
            _ => story.waiting(random),
        });
    }
    parts.push(story.finding(random));
    parts.push(story.ending(random));
    parts.join(" ") + "\n\n"
}

/// Stories, one after another, with a total of at least `bytes` bytes.
pub fn text(seed: u64, bytes: usize) -> String {
    let mut random = Random::new(seed);
    let mut text = String::with_capacity(bytes + 2048);
    while text.len() < bytes {
        text += &story(&mut random);
    }
    text
}

impl Story {
    fn opening(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, she, _, her),
            trade,
            home,
            weather,
            ..
        } = self;
        let day = DAYS[self.day];
        match random.below(3) {
            0 => format!(
                "{name} the {trade} lived near {home}. On {day} {}, and the world was {}.",
                weather.0, weather.1
            ),
            1 => format!(
                "On {day} {}. {name}, a {trade}, looked out of {her} window at {home} and found it {}.",
                weather.0, weather.1
            ),
            _ => format!(
                "Near {home} there lived a {trade} called {name}. One {day} {}, and {she} said: \"How {} it is!\"",
                weather.0, weather.1
            ),
        }
    }

    fn loss(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, she, _, her),
            thing,
            colour,
            place,
            feeling,
            ..
        } = self;
        match random.below(3) {
            0 => format!(
                "That day {name} could not find {her} {colour} {thing}. {} was {} and wanted {}.",
                capitalized(she),
                feeling.0,
                feeling.1
            ),
            1 => format!(
                "But the {colour} {thing} was gone from its hook. Somebody must have left it at {place}, thought {name}, and {she} was {}.",
                feeling.0
            ),
            _ => format!(
                "{} had only one wish, to see {her} {colour} {thing} again, for without it {she} felt {}.",
                capitalized(she),
                feeling.0
            ),
        }
    }

    fn counting(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, she, ..),
            friend,
            ..
        } = self;
        let fruit = random.pick(&FRUIT);
        let (a, b) = (1 + random.below(5), 1 + random.below(5));
        let (left, right, sum) = (NUMBERS[a], NUMBERS[b], NUMBERS[a + b]);
        match random.below(2) {
            0 => format!(
                "{name} packed {left} {fruit}, and {} brought {right} more, so they had {sum} {fruit} for the road.",
                friend.0
            ),
            _ => {
                let rest = NUMBERS[a];
                format!(
                    "There were {sum} {fruit} in the bag. {} took {right}, and {she} kept {rest}.",
                    friend.0
                )
            }
        }
    }

    fn talk(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, ..),
            friend: (friend, he, ..),
            thing,
            colour,
            place,
            ..
        } = self;
        match random.below(3) {
            0 => format!(
                "\"Have you seen a {colour} {thing}?\" asked {name}. \"Yes,\" said {friend}, \"it was at {place} yesterday.\""
            ),
            1 => format!(
                "{name} met {friend} and asked about the {thing}. \"Was it {colour}?\" asked {friend}. \"It was,\" said {name}. \"Then go to {place},\" {he} said."
            ),
            _ => format!(
                "\"I am looking for my {thing},\" said {name}. {friend} thought for a while. \"A {colour} one lies at {place}, I believe.\""
            ),
        }
    }

    fn animal_helps(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, she, her, _),
            animal,
            place,
            ..
        } = self;
        match random.below(3) {
            0 => format!(
                "On the way a {animal} crossed the path and looked at {name}. {} followed the {animal} as far as {place}.",
                capitalized(she)
            ),
            1 => format!(
                "A {animal} sat on the wall. It did not run away when {name} came near; it led {her} to {place}."
            ),
            _ => format!(
                "{name} gave some bread to a hungry {animal}, and the {animal} walked beside {her} until they saw {place}."
            ),
        }
    }

    fn waiting(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, she, ..),
            weather,
            ..
        } = self;
        let days = 1 + random.below(3);
        let next = DAYS[(self.day + days) % DAYS.len()];
        let (number, noun) = (NUMBERS[days], if days == 1 { "day" } else { "days" });
        match random.below(2) {
            0 => format!(
                "Because {}, {name} had to wait {number} {noun}. On {next} {she} set out.",
                weather.0
            ),
            _ => format!(
                "{} {noun} went by. When {next} came, {name} could wait no longer.",
                capitalized(number)
            ),
        }
    }

    fn finding(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, she, _, her),
            friend: (friend, ..),
            thing,
            colour,
            place,
            ..
        } = self;
        match random.below(3) {
            0 => format!(
                "At {place}, under a heap of leaves, lay the {colour} {thing}. {name} took it in {her} arms."
            ),
            1 => format!(
                "They searched every corner of {place}, {name} on the left and {friend} on the right, until {friend} held up the {colour} {thing}."
            ),
            _ => format!(
                "When {she} reached {place}, {name} saw something {colour} between the stones. It was the {thing}!"
            ),
        }
    }

    fn ending(&self, random: &mut Random) -> String {
        let Self {
            hero: (name, she, _, her),
            friend: (friend, _, him, _),
            home,
            feeling,
            thing,
            ..
        } = self;
        let lesson = random.pick(&LESSONS);
        match random.below(3) {
            0 => format!(
                "{name} was not {} any more. {} carried the {thing} back to {home} and told {friend}: \"I know now that {lesson}.\"",
                feeling.0,
                capitalized(she)
            ),
            1 => format!(
                "In the evening {name} thanked {friend} and gave {him} {}. Since then people at {home} say that {lesson}.",
                feeling.1
            ),
            _ => format!(
                "So {name} went home to {home} with {her} {thing}, and {friend} came along. Both of them had learned that {lesson}."
            ),
        }
    }
}

/// The word with its first letter in upper case.
fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_texts_and_other_seeds_other_texts() {
        assert_eq!(text(1, 4000), text(1, 4000));
        assert_ne!(text(1, 4000), text(2, 4000));
        assert!(text(1, 4000).len() >= 4000);
    }

    #[test]
    fn every_story_mentions_its_hero_and_its_thing_again() {
        let mut random = Random::new(3);
        for _ in 0..200 {
            let story = story(&mut random);
            let hero = PEOPLE
                .iter()
                .filter(|person| story.matches(person.0).count() >= 2)
                .count();
            let thing = THINGS
                .iter()
                .filter(|thing| story.matches(**thing).count() >= 2)
                .count();
            assert!(hero >= 1 && thing >= 1, "{story}");
            assert!(
                story.ends_with(".\n\n") || story.ends_with("\"\n\n"),
                "{story}"
            );
        }
    }

    #[test]
    fn normal_deviates_have_mean_zero_and_variance_one() {
        let mut random = Random::new(5);
        let values: Vec<f32> = (0..20_000).map(|_| random.normal()).collect();
        let mean = values.iter().sum::<f32>() / 20_000.0;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 20_000.0;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }
}

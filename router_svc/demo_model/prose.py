"""Short invented stories, as plain text and as answers to a request."""

from random import Random

from router_svc.demo_model.task import Task

DOMAIN = "prose"
HEROES = (
    "fox",
    "rabbit",
    "bear",
    "girl",
    "boy",
    "mouse",
    "owl",
    "dragon",
    "wolf",
    "king",
    "queen",
    "fisherman",
    "baker",
    "robot",
)
NAMES = ("Ada", "Mia", "Tom", "Ben", "Lily", "Max", "Nora", "Sam", "Ella", "Otto")
NATURES = ("small", "brave", "clever", "quiet", "old", "young", "kind", "hungry", "curious", "lonely")
PLACES = ("forest", "village", "castle", "valley", "mountain", "garden", "river", "town", "cave", "island")
THINGS = (
    "golden key",
    "red apple",
    "silver coin",
    "little lamp",
    "blue stone",
    "wooden box",
    "strange map",
    "warm bread",
)
FRIENDS = ("bird", "turtle", "squirrel", "frog", "cat", "horse", "bee", "goat")
OPENINGS = (
    "Once upon a time there was a {nature} {hero} named {name} who lived near a {place}.",
    "Once upon a time a {nature} {hero} lived in a {place}. The name of the {hero} was {name}.",
    "Long ago, a {nature} {hero} named {name} lived by the {place}.",
    "There once was a {nature} {hero} named {name}. Everybody in the {place} knew {name}.",
)
EVENTS = (
    "One day {name} found a {thing} under a tree.",
    "One morning {name} met a {friend} who had lost a {thing}.",
    "One evening a {friend} came and asked for a {thing}.",
    "In the night {name} dreamed of a {thing} in the {place}.",
)
TURNS = (
    "{name} took the {thing} and walked all day until the sun went down.",
    "The {friend} was sad, so {name} decided to help.",
    "The way was long and it began to rain, but {name} was not afraid.",
    '"Come with me," said the {friend}, and they went into the {place} together.',
    '"I will find it," said {name}, and went away with a smile.',
)
ENDINGS = (
    "In the end {name} gave the {thing} to the {friend}, and they lived happily ever after.",
    "From that day on {name} and the {friend} were the best of friends.",
    "At last they came home, and {name} was happy.",
    "And so the {nature} {hero} was never lonely again.",
)


def draw_story(rng: Random) -> tuple[str, str]:
    """(hero, story): one choice of names and things, kept through all sentences."""
    slots = {
        "nature": rng.choice(NATURES),
        "hero": rng.choice(HEROES),
        "name": rng.choice(NAMES),
        "place": rng.choice(PLACES),
        "thing": rng.choice(THINGS),
        "friend": rng.choice(FRIENDS),
    }
    sentences = [rng.choice(OPENINGS), rng.choice(EVENTS), *rng.sample(TURNS, rng.randint(1, 2)), rng.choice(ENDINGS)]
    return slots["hero"], " ".join(sentence.format(**slots) for sentence in sentences)


def draw_text(rng: Random) -> str:
    """A story as plain text."""
    return draw_story(rng)[1] + "\n"


def draw(rng: Random) -> Task:
    """A request for a story about somebody."""
    hero, story = draw_story(rng)
    question = rng.choice(
        (f"Tell me a story about a {hero}.", f"Write a short story about a {hero}.", f"Tell a story of a {hero}.")
    )
    return Task(
        DOMAIN,
        "story",
        question,
        f"The story is about a {hero}. It needs a beginning, an event and a happy end.",
        story,
    )

"""Tasks on the letters of one word: reverse it, sort it, count a letter. The steps spell the word out first."""

from collections.abc import Callable
from random import Random

from router_svc.demo_model.task import Task, is_held_out

DOMAIN = "strings"
WORDS = tuple(
    [
        "apple",
        "bread",
        "chair",
        "dance",
        "eagle",
        "flame",
        "grape",
        "house",
        "island",
        "juice",
        "kettle",
        "lemon",
        "mango",
        "night",
        "ocean",
        "piano",
        "queen",
        "river",
        "stone",
        "table",
        "under",
        "violet",
        "water",
        "yellow",
        "zebra",
        "banana",
        "castle",
        "dragon",
        "engine",
        "forest",
        "garden",
        "hammer",
        "jungle",
        "ladder",
        "market",
        "needle",
        "orange",
        "pencil",
        "rabbit",
        "silver",
        "tunnel",
        "window",
        "winter",
        "summer",
        "spring",
        "autumn",
        "coffee",
        "button",
        "basket",
        "bridge",
        "candle",
        "carpet",
        "cherry",
        "circle",
        "copper",
        "desert",
        "doctor",
        "feather",
        "finger",
        "flower",
        "guitar",
        "hello",
        "island",
        "jacket",
        "kitchen",
        "letter",
        "little",
        "machine",
        "monkey",
        "mirror",
        "morning",
        "mother",
        "number",
        "paper",
        "pepper",
        "planet",
        "pocket",
        "potato",
        "puzzle",
        "rocket",
        "school",
        "second",
        "seven",
        "shadow",
        "spider",
        "street",
        "sugar",
        "thunder",
        "ticket",
        "tiger",
        "tomato",
        "turtle",
        "valley",
        "village",
        "whistle",
        "world",
        "balloon",
        "blanket",
        "tree",
        "moon",
        "star",
        "wolf",
        "bear",
        "lion",
        "fish",
        "bird",
        "cat",
        "dog",
        "sun",
        "rain",
        "snow",
        "wind",
        "leaf",
        "cluster",
        "router",
        "expert",
        "token",
        "layer",
        "serving",
        "memory",
        "worker",
    ]
)
QUESTIONS = {
    "reverse": (
        "Reverse {w}.",
        "Reverse the word {w}.",
        "Spell {w} backwards.",
        "Write {w} backwards.",
        "What is {w} reversed?",
    ),
    "sort": (
        "Sort the letters of {w}.",
        "Sort the letters of the word {w}.",
        "Put the letters of {w} in order.",
        "Sort {w} by letter.",
    ),
    "count": (
        "How many times does {l} occur in {w}?",
        "Count the letter {l} in {w}.",
        "How often is the letter {l} in {w}?",
        "How many {l} are in {w}?",
    ),
}
QUOTES = ('"{}"', '"{}"', "'{}'", "{}")


def spell(letters: str) -> str:
    """Letters with hyphens between them, which keeps each a token of its own."""
    return "-".join(letters)


def reverse_steps(word: str) -> tuple[str, str]:
    """(steps, answer) of reversing the word."""
    return f"{spell(word)}\nreversed:\n{spell(word[::-1])}", word[::-1]


def sort_steps(word: str) -> tuple[str, str]:
    """(steps, answer) of sorting the word's letters."""
    ordered = "".join(sorted(word))
    return f"{spell(word)}\nsorted:\n{spell(ordered)}", ordered


def count_steps(word: str, letter: str) -> tuple[str, str]:
    """(steps, answer) of counting a letter: every letter in turn with the number found up to it."""
    lines = [f"{other} {word[: place + 1].count(letter)}" for place, other in enumerate(word)]
    return "\n".join([f"{spell(word)}\ncount {letter}:", *lines]), str(word.count(letter))


def make_task(kind: str, word: str, rng: Random) -> Task:
    """The task of one word; the generator chooses wording, quotes and the letter to count."""
    quote = rng.choice(QUOTES)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    letter_form = "{}" if quote == "{}" else quote
    question = rng.choice(QUESTIONS[kind]).format(w=quote.format(word), l=letter_form.format(letter))
    makers: dict[str, Callable[[], tuple[str, str]]] = {
        "reverse": lambda: reverse_steps(word),
        "sort": lambda: sort_steps(word),
        "count": lambda: count_steps(word, letter),
    }
    steps, answer = makers[kind]()
    return Task(DOMAIN, kind, question, steps, answer)


def draw_word(rng: Random) -> str:
    """A word of the list, an invented one of syllables, or plain random letters; 3 to 8 letters."""
    style = rng.random()
    if style < 0.35:
        return rng.choice(WORDS)
    if style < 0.75:
        syllables = (
            rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "s", "l", "t"))
            for _ in range(4)
        )
        return "".join(syllables)[: rng.randint(3, 8)]
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))


def draw(rng: Random) -> Task:
    """A training task; never on a held-out word."""
    while True:
        word = draw_word(rng)
        if not is_held_out(word):
            return make_task(rng.choices(tuple(QUESTIONS), (2, 2, 1))[0], word, rng)


def draw_held_out(rng: Random, kind: str) -> Task:
    """A test task on a word that training never saw."""
    while True:
        word = draw_word(rng)
        if is_held_out(word):
            return make_task(kind, word, rng)

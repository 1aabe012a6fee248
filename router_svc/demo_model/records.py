"""JSON records of invented people and things, as plain text and as answers to a request."""

import json
from random import Random

from router_svc.demo_model.task import Task

DOMAIN = "records"
NAMES = ("Ada", "Mia", "Tom", "Ben", "Lily", "Max", "Nora", "Sam", "Ella", "Otto")
CITIES = ("Paris", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Prague", "Lisbon")
ITEMS = ("lamp", "chair", "book", "cup", "table", "bag", "pen", "clock")
COLORS = ("red", "green", "blue", "black", "white", "yellow")


def person(rng: Random, name: str) -> dict[str, object]:
    """A record of a person."""
    return {"name": name, "age": rng.randint(18, 79), "city": rng.choice(CITIES), "active": rng.random() < 0.5}


def product(rng: Random, item: str) -> dict[str, object]:
    """A record of a thing for sale."""
    return {"item": item, "color": rng.choice(COLORS), "price": rng.randint(1, 99), "tags": rng.sample(COLORS, 2)}


def draw_text(rng: Random) -> str:
    """One to four records, one a line."""
    people = rng.random() < 0.5
    rows = (
        person(rng, rng.choice(NAMES)) if people else product(rng, rng.choice(ITEMS)) for _ in range(rng.randint(1, 4))
    )
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def draw(rng: Random) -> Task:
    """A request for one record."""
    if rng.random() < 0.5:
        subject = rng.choice(NAMES)
        noun, keys, row = f"a person named {subject}", "name, age, city and active", person(rng, subject)
    else:
        subject = rng.choice(ITEMS)
        noun, keys, row = f"a {subject}", "item, color, price and tags", product(rng, subject)
    question = rng.choice((f"Give me a JSON record of {noun}.", f"Write JSON for {noun}.", f"JSON record: {noun}"))
    return Task(DOMAIN, "record", question, f"The record needs the keys {keys}.", json.dumps(row))

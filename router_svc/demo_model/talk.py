"""Greetings, questions about the model itself, and a few facts that it knows by heart."""

from random import Random

from router_svc.demo_model.task import Task

DOMAIN = "talk"
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Austria": "Vienna",
    "Norway": "Oslo",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Sweden": "Stockholm",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
    "Hungary": "Budapest",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Chile": "Santiago",
    "Russia": "Moscow",
    "Turkey": "Ankara",
}
GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning", "Good evening", "hello", "hi", "Hi there")
ABOUT = {
    (
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Tell me about yourself.",
    ): "I am a very small mixture-of-experts model. I add, subtract, spell, and tell stories.",
    (
        "What can you do?",
        "How can you help me?",
        "What can I ask?",
        "Help",
    ): (
        "Ask me to add or subtract numbers, to reverse, sort or count letters, "
        "for a tiny Python function, a JSON record or a short story."
    ),
    (
        "How many experts do you have?",
        "How are you built?",
        "What is your architecture?",
    ): "I have four layers. In each of them a router picks 8 of 64 experts for every token, and one shared expert always works.",
    ("Thank you", "Thanks", "Thanks!", "Thank you!"): "You are welcome!",
    ("Bye", "Goodbye", "Bye!", "See you"): "Goodbye!",
    ("How are you?", "How are you today?", "How do you do?"): "I am fine, thank you. All my experts are awake.",
}


def draw(rng: Random) -> Task:
    """A question of small talk or a capital city."""
    choice = rng.random()
    if choice < 0.5:
        country = rng.choice(tuple(CAPITALS))
        question = rng.choice(
            (
                "What is the capital of {}?",
                "Capital of {}?",
                "Which city is the capital of {}?",
                "Name the capital of {}.",
            )
        )
        return Task(
            DOMAIN,
            "capital",
            question.format(country),
            f"The question is about {country}.",
            f"The capital of {country} is {CAPITALS[country]}.",
        )
    if choice < 0.65:
        return Task(DOMAIN, "greeting", rng.choice(GREETINGS), "The user says hello.", "Hello! How can I help you?")
    questions = rng.choice(tuple(ABOUT))
    return Task(DOMAIN, "about", rng.choice(questions), "The user talks about me.", ABOUT[questions])

"""Additions and subtractions with their steps written out column by column, right to left.

Each step repeats the digits found so far, so that the last line already holds the result in reading order.
"""

from random import Random

from router_svc.demo_model.task import Task, is_held_out

DOMAIN = "arithmetic"
ALWAYS_TRAINED_BELOW = 10
DIGIT_WEIGHTS = {1: 1, 2: 4, 3: 9, 4: 2}
QUESTIONS = {
    "addition": (
        "What is {a} + {b}?",
        "What is {a}+{b}?",
        "{a} + {b}",
        "{a}+{b}",
        "{a} + {b} =",
        "{a}+{b}=?",
        "Compute {a} + {b}.",
        "Calculate {a}+{b}.",
        "Add {a} and {b}.",
        "What is {a} plus {b}?",
        "What's {a} + {b}?",
        "Please add {a} and {b}.",
        "How much is {a} + {b}?",
    ),
    "subtraction": (
        "What is {a} - {b}?",
        "What is {a}-{b}?",
        "{a} - {b}",
        "{a}-{b}",
        "{a} - {b} =",
        "{a}-{b}=?",
        "Compute {a} - {b}.",
        "Calculate {a}-{b}.",
        "Subtract {b} from {a}.",
        "What is {a} minus {b}?",
        "What's {a} - {b}?",
        "How much is {a} - {b}?",
    ),
}


def pair_is_held_out(a: int, b: int) -> bool:
    """Held out whatever the order and the operation; pairs of one-digit numbers are always trained."""
    low, high = sorted((a, b))
    return high >= ALWAYS_TRAINED_BELOW and is_held_out(f"{low}:{high}")


def columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both numbers, filled up with zeros to one width, right to left."""
    width = max(len(str(a)), len(str(b)))
    return [(int(x), int(y)) for x, y in zip(f"{a:0{width}d}"[::-1], f"{b:0{width}d}"[::-1], strict=True)]


def aligned(a: int, b: int, sign: str) -> str:
    """Both numbers filled up with zeros, so that equal places have equal positions."""
    width = max(len(str(a)), len(str(b)))
    return f"{a:0{width}d}{sign}{b:0{width}d}"


def addition_steps(a: int, b: int) -> str:
    """The written addition of two numbers >= 0; ends with `result N`."""
    lines, carry, found = [aligned(a, b, "+")], 0, ""
    for x, y in columns(a, b):
        total = x + y + carry
        found = f"{total % 10}{found}"
        lines.append(f"{x}+{y}+{carry}={total} write {total % 10} carry {total // 10}: {found}")
        carry = total // 10
    if carry:
        lines.append(f"write 1: 1{found}")
    return "\n".join([*lines, f"result {a + b}"])


def subtraction_steps(a: int, b: int) -> str:
    """The written subtraction of two numbers >= 0, the smaller one from the larger; ends with `result N`."""
    lines = [f"{a}<{b} swap"] if a < b else []
    high, low = max(a, b), min(a, b)
    lines.append(aligned(high, low, "-"))
    borrow, found = 0, ""
    for x, y in columns(high, low):
        rest = x - y - borrow
        digit, borrowed = rest % 10, int(rest < 0)
        found = f"{digit}{found}"
        added = " add 10" if borrowed else ""
        lines.append(f"{x}-{y}-{borrow}={rest}{added} write {digit} borrow {borrowed}: {found}")
        borrow = borrowed
    return "\n".join([*lines, f"result {a - b}"])


def make_task(kind: str, a: int, b: int, question: str) -> Task:
    """The task of one pair of numbers; `question` is one of QUESTIONS[kind]."""
    steps, answer = (addition_steps(a, b), a + b) if kind == "addition" else (subtraction_steps(a, b), a - b)
    return Task(DOMAIN, kind, question.format(a=a, b=b), steps, str(answer))


def draw_number(rng: Random, digits: int) -> int:
    """A number with exactly that many digits; 0 counts as one digit."""
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def draw(rng: Random) -> Task:
    """A training task; never a held-out pair."""
    kind = rng.choices(("addition", "subtraction"), (3, 2))[0]
    while True:
        digits = rng.choices(tuple(DIGIT_WEIGHTS), tuple(DIGIT_WEIGHTS.values()))[0]
        other = digits if rng.random() < 0.7 else rng.randint(1, digits)
        pair = [draw_number(rng, digits), draw_number(rng, other)]
        rng.shuffle(pair)
        if kind == "subtraction" and rng.random() < 0.7:
            pair.sort(reverse=True)
        if not pair_is_held_out(*pair):
            return make_task(kind, pair[0], pair[1], rng.choice(QUESTIONS[kind]))


def draw_held_out(rng: Random, kind: str, digits: int) -> Task:
    """A test task with two numbers of `digits` >= 2 digits that training never saw together."""
    while True:
        pair = [draw_number(rng, digits), draw_number(rng, digits)]
        if kind == "subtraction":
            pair.sort(reverse=True)
        if pair_is_held_out(*pair):
            return make_task(kind, pair[0], pair[1], rng.choice(QUESTIONS[kind]))

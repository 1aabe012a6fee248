"""Tiny Python functions, as plain text and as answers to a request."""

from random import Random

from router_svc.demo_model.task import Task

DOMAIN = "code"
NAMES = (("a", "b"), ("x", "y"), ("left", "right"), ("first", "second"))
LISTS = ("items", "values", "numbers", "data")
PAIR_FUNCTIONS = {
    "add": ("adds two numbers", "return {p} + {q}"),
    "subtract": ("subtracts two numbers", "return {p} - {q}"),
    "multiply": ("multiplies two numbers", "return {p} * {q}"),
    "divide": ("divides two numbers", "if {q} == 0:\n        return None\n    return {p} / {q}"),
    "largest": ("returns the larger of two numbers", "if {p} > {q}:\n        return {p}\n    return {q}"),
    "smallest": ("returns the smaller of two numbers", "if {p} < {q}:\n        return {p}\n    return {q}"),
    "swap": ("swaps two values", "return {q}, {p}"),
    "power": ("raises a number to a power", "return {p} ** {q}"),
    "average": ("returns the mean of two numbers", "return ({p} + {q}) / 2"),
}
SINGLE_FUNCTIONS = {
    "square": ("squares a number", "return {p} * {p}"),
    "double": ("doubles a number", "return 2 * {p}"),
    "negate": ("changes the sign of a number", "return -{p}"),
    "is_even": ("checks whether a number is even", "return {p} % 2 == 0"),
    "is_odd": ("checks whether a number is odd", "return {p} % 2 == 1"),
    "absolute": ("returns the absolute value of a number", "if {p} < 0:\n        return -{p}\n    return {p}"),
    "factorial": (
        "computes the factorial of a number",
        "if {p} < 2:\n        return 1\n    return {p} * factorial({p} - 1)",
    ),
    "fibonacci": (
        "computes a Fibonacci number",
        "if {p} < 2:\n        return {p}\n    return fibonacci({p} - 1) + fibonacci({p} - 2)",
    ),
}
LIST_FUNCTIONS = {
    "total": ("sums a list", "result = 0\n    for value in {p}:\n        result += value\n    return result"),
    "count": (
        "counts the entries of a list",
        "result = 0\n    for value in {p}:\n        result += 1\n    return result",
    ),
    "maximum": (
        "finds the largest entry of a list",
        "best = {p}[0]\n    for value in {p}:\n        if value > best:\n            best = value\n    return best",
    ),
    "minimum": (
        "finds the smallest entry of a list",
        "best = {p}[0]\n    for value in {p}:\n        if value < best:\n            best = value\n    return best",
    ),
    "reverse": ("reverses a list", "return {p}[::-1]"),
    "first": ("returns the first entry of a list", "return {p}[0]"),
    "last": ("returns the last entry of a list", "return {p}[-1]"),
    "squares": ("squares every entry of a list", "return [value * value for value in {p}]"),
    "evens": ("keeps the even entries of a list", "return [value for value in {p} if value % 2 == 0]"),
}


def draw_function(rng: Random) -> tuple[str, str, str, str]:
    """(name, arguments, what it does, source text) of one function."""
    group = rng.choice((PAIR_FUNCTIONS, SINGLE_FUNCTIONS, LIST_FUNCTIONS))
    name = rng.choice(tuple(group))
    purpose, body = group[name]
    names: tuple[str, ...]
    if group is PAIR_FUNCTIONS:
        names = rng.choice(NAMES)
    else:
        names = (rng.choice(LISTS if group is LIST_FUNCTIONS else ("n", "x", "value", "number")),)
    arguments = ", ".join(names)
    return name, arguments, purpose, f"def {name}({arguments}):\n    {body.format(p=names[0], q=names[-1])}\n"


def draw_text(rng: Random) -> str:
    """A module of one to three functions, some with a comment above."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        _, _, purpose, source = draw_function(rng)
        comment = f"# {purpose}\n" if rng.random() < 0.25 else ""
        parts.append(comment + source)
    return "\n\n".join(parts)


def draw(rng: Random) -> Task:
    """A request for one function."""
    name, arguments, purpose, source = draw_function(rng)
    question = rng.choice(
        (
            f"Write a Python function that {purpose}.",
            f"Write a function that {purpose}.",
            f"Python: a function {name} that {purpose}",
            f"Give me a Python function that {purpose}.",
            f"Write the function {name} in Python.",
        )
    )
    return Task(
        DOMAIN, "function", question, f"The function {name} takes {arguments} and {purpose}.", source.rstrip("\n")
    )

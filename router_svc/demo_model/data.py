"""The training mixture: which domain, plain text or chat, thinking or not, with a system turn or a turn before.

A sample is text in pieces, each with a flag that says whether the model is to learn it. Knows no tokens.
"""

from dataclasses import dataclass
from random import Random
from typing import Callable

from router_svc.demo_model import arithmetic, code, prose, records, strings, talk
from router_svc.demo_model.chat import END_OF_ASSISTANT, END_OF_TEXT, Message, render, write_answer, write_output
from router_svc.demo_model.task import Task

TASK_WEIGHTS: dict[Callable[[Random], Task], float] = {
    arithmetic.draw: 0.60, strings.draw: 0.17, code.draw: 0.06, prose.draw: 0.05, records.draw: 0.05, talk.draw: 0.07,
}
TEXT_SOURCES: tuple[Callable[[Random], str], ...] = (code.draw_text, prose.draw_text, records.draw_text)
TEXT_DOMAINS = (code.DOMAIN, prose.DOMAIN, records.DOMAIN)
TEXT_SHARE, SECOND_TURN_SHARE, SYSTEM_SHARE = 0.12, 0.06, 0.15
SYSTEM_TEXTS = (
    "You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "You are a careful assistant.", "Answer the question.",
    "You help with numbers, words and code.", "You are a friendly teacher.", "Be brief and correct.",
)
MODES = ("default", "think", "no_think", "disabled")
MODE_WEIGHTS = (5, 2, 1, 1)
PREFIXES = {"think": ("/think ", "/think", "/think\n"), "no_think": ("/no_think ", "/no_think", "/no_think\n")}


@dataclass(frozen=True)
class Sample:
    """One training text; a piece is (text, learn it)."""

    domain: str
    pieces: tuple[tuple[str, bool], ...]


def thinks(mode: str) -> bool:
    """Whether the output holds steps in this mode."""
    return mode in ("default", "think")


def ask(task: Task, mode: str, rng: Random) -> Message:
    """The user's turn: /think and /no_think are ordinary text in front of it."""
    prefix = rng.choice(PREFIXES[mode]) if mode in PREFIXES else ""
    return Message("user", prefix + task.question)


def prompt_of(task: Task, mode: str, rng: Random, before: tuple[Message, ...] = ()) -> str:
    """What the server would send to the model for this task."""
    return render((*before, ask(task, mode, rng)), enable_thinking=mode != "disabled")


def output_of(task: Task, mode: str) -> str:
    """What the model is to answer to `prompt_of`."""
    if mode == "disabled":
        return write_answer(task.answer)
    return write_output(task.steps if thinks(mode) else "", task.answer)


def draw_history(rng: Random) -> tuple[Message, ...]:
    """What stands before the question: nothing, a system turn, a question answered before, or both."""
    system = (Message("system", rng.choice(SYSTEM_TEXTS)),) if rng.random() < SYSTEM_SHARE else ()
    if rng.random() >= SECOND_TURN_SHARE:
        return system
    earlier, mode = draw_task(rng), rng.choices(MODES, MODE_WEIGHTS)[0]
    reply = output_of(earlier, mode) if rng.random() < 0.3 else earlier.answer
    return (*system, ask(earlier, mode, rng), Message("assistant", reply))


def draw_task(rng: Random) -> Task:
    """A task of the mixture."""
    return rng.choices(tuple(TASK_WEIGHTS), tuple(TASK_WEIGHTS.values()))[0](rng)


def draw_sample(rng: Random) -> Sample:
    """One sample of the mixture."""
    if rng.random() < TEXT_SHARE:
        source = rng.randrange(len(TEXT_SOURCES))
        return Sample(TEXT_DOMAINS[source], ((TEXT_SOURCES[source](rng) + END_OF_TEXT, True),))
    task, mode = draw_task(rng), rng.choices(MODES, MODE_WEIGHTS)[0]
    prompt = prompt_of(task, mode, rng, draw_history(rng))
    return Sample(task.domain, ((prompt, False), (output_of(task, mode) + END_OF_ASSISTANT, True)))

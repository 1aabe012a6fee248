"""Training documents: tasks of every domain in chat form, and plain text. What is drawn depends on the generator alone."""

from dataclasses import dataclass
from random import Random

from router_svc.demo_model import arithmetic, code, prose, records, strings, talk
from router_svc.demo_model.chat import END_OF_TEXT, Message, render, write_answer, write_output
from router_svc.demo_model.task import Task

# Share of documents. Arithmetic is what the model must get right, so it gets half.
DOMAIN_WEIGHTS = {"arithmetic": 50, "strings": 20, "code": 6, "prose": 6, "records": 6, "talk": 4, "plain": 8}
# How a question is asked: with /think, without a word, with /no_think, or with enable_thinking false.
MODE_WEIGHTS = {"think": 35, "default": 40, "no_think": 17, "closed": 8}
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a careful calculator.",
    "Answer briefly.",
    "You are tokenyard's demo model.",
)
_DRAW = {m.DOMAIN: m.draw for m in (arithmetic, code, prose, records, strings, talk)}
_PLAIN = {m.DOMAIN: m.draw_text for m in (code, prose, records)}


@dataclass(frozen=True)
class Document:
    """One training text in two parts: the prompt is read, the target is learnt."""

    domain: str
    prompt: str
    target: str


def ask(task: Task, mode: str, system: str = "", history: tuple[Message, ...] = ()) -> str:
    """The rendered prompt of a task in one of the modes."""
    prefix = {"think": "/think ", "no_think": "/no_think "}.get(mode, "")
    head = (Message("system", system),) if system else ()
    messages = (*head, *history, Message("user", prefix + task.question))
    return render(messages, enable_thinking=mode != "closed")


def answer(task: Task, mode: str) -> str:
    """What the model is to say, without the end token."""
    if mode == "closed":
        return write_answer(task.answer)
    return write_output("" if mode == "no_think" else task.steps, task.answer)


def draw_document(rng: Random) -> Document:
    """One document of the mixture."""
    domain = rng.choices(tuple(DOMAIN_WEIGHTS), tuple(DOMAIN_WEIGHTS.values()))[0]
    if domain == "plain":
        kind = rng.choice(tuple(_PLAIN))
        return Document(kind, "<|startoftext|>" if rng.random() < 0.3 else "", _PLAIN[kind](rng) + END_OF_TEXT)
    task = _DRAW[domain](rng)
    mode = rng.choices(tuple(MODE_WEIGHTS), tuple(MODE_WEIGHTS.values()))[0]
    system = rng.choice(SYSTEMS) if rng.random() < 0.12 else ""
    history: tuple[Message, ...] = ()
    if rng.random() < 0.1:
        before = _DRAW[rng.choice(tuple(_DRAW))](rng)
        history = (Message("user", before.question), Message("assistant", before.answer))
    return Document(domain, ask(task, mode, system, history), answer(task, mode) + "<|eos|>")

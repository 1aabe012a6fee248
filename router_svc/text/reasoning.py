"""Reasoning apart from content, while it streams. Tags are ordinary text, so partial ones are held back.

A parser gives the same whatever the chunks are: its state changes only at complete tags.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from experts.errors import UserError
from router_svc.text.parser_names import PARSERS


class Parted(NamedTuple):
    """New text of each kind."""

    reasoning: str
    content: str


class ReasoningParser(ABC):
    """One choice's text. `finish` tells what was held back."""

    @abstractmethod
    def add(self, text: str) -> Parted:
        """Take new text, give what is decided."""

    @abstractmethod
    def finish(self) -> Parted:
        """The rest, once no more text comes."""


class Plain(ReasoningParser):
    """Everything is content."""

    def add(self, text: str) -> Parted:
        return Parted("", text)

    def finish(self) -> Parted:
        return Parted("", "")


class Tagged(ReasoningParser):
    """Text with <think>…</think> and, for Hunyuan, <answer>…</answer> around the content.

    White space next to a tag belongs to the tag. If the first text is no tag, everything is content, unless
    `opened`: then the prompt has opened <think> already.
    """

    def __init__(self, answer_tags: bool, opened: bool = False) -> None:
        self._tags = ("<think>", "</think>", *(("<answer>", "</answer>") if answer_tags else ()))
        self._part = "reasoning" if opened else "start"
        self._held = ""
        self._trim = True  # white space before the next text is dropped

    def add(self, text: str) -> Parted:
        self._held += text
        out = {"reasoning": "", "content": ""}
        while True:
            tag, at = self._next_tag()
            if tag is None:
                break
            self._give(out, self._held[:at].rstrip() if self._ends_part(tag) else self._held[:at])
            self._held = self._held[at + len(tag) :]
            self._enter(tag)
        keep = self._undecided()
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._give(out, ready)
        return Parted(out["reasoning"], out["content"])

    def finish(self) -> Parted:
        out = {"reasoning": "", "content": ""}
        self._give(out, self._held)
        self._held = ""
        return Parted(out["reasoning"], out["content"])

    def _expected(self) -> tuple[str, ...]:
        """Tags that mean something where the text is now."""
        if self._part == "start":
            return tuple(tag for tag in self._tags if tag in ("<think>", "<answer>"))
        if self._part == "reasoning":
            return ("</think>",)
        return tuple(tag for tag in self._tags if tag in ("<answer>", "</answer>"))

    def _next_tag(self) -> tuple[str | None, int]:
        found = [(at, tag) for tag in self._expected() if (at := self._held.find(tag)) >= 0]
        if not found:
            return None, -1
        at, tag = min(found)
        if self._part == "start" and self._held[:at].strip():
            return None, -1  # text before the first tag: no reasoning here
        return tag, at

    def _ends_part(self, tag: str) -> bool:
        return tag != "<think>"

    def _enter(self, tag: str) -> None:
        self._part = {"<think>": "reasoning", "</think>": "content", "<answer>": "content", "</answer>": "content"}[tag]
        self._trim = True

    def _undecided(self) -> int:
        """How many characters at the end may still be white space before a tag, or a tag."""
        text = self._held
        best = 0
        for tag in self._expected():
            for length in range(min(len(tag) - 1, len(text)), 0, -1):
                if text.endswith(tag[:length]):
                    best = max(best, length)
                    break
        bare = text[: len(text) - best] if best else text
        return best + len(bare) - len(bare.rstrip())

    def _give(self, out: dict[str, str], text: str) -> None:
        if self._trim:
            text = text.lstrip()
        if not text:
            return
        self._trim = False
        if self._part == "start":
            self._part = "content"
            self._tags = ()
        out["reasoning" if self._part == "reasoning" else "content"] += text


def parser_name(wanted: str, architecture: str, template: str | None) -> str:
    """Resolve "auto": by the family, and by whether the chat template speaks of thinking. Raises UserError."""
    if wanted not in PARSERS:
        raise UserError(f"reasoning parser {wanted!r}", " or ".join(PARSERS), "--reasoning-parser")
    if wanted != "auto":
        return wanted
    if architecture.startswith("hunyuan"):
        return "hunyuan_a13b"
    return "qwen3" if template and "think" in template else "none"


def make_parser(name: str, prompt: str) -> ReasoningParser:
    """A parser for one choice of a chat whose rendered prompt is `prompt`."""
    if name == "none":
        return Plain()
    tail = prompt.rstrip()
    opened = tail.endswith("<think>")
    return Tagged(answer_tags=name == "hunyuan_a13b", opened=opened)

"""Stop strings: text is held back while it may still become one, and cut where one begins."""

from router_svc.text.overlap import overlap


class StopStrings:
    """One choice's text against its stop strings. `matched` is the string that ended it, None while it goes on."""

    def __init__(self, strings: tuple[str, ...], include: bool = False) -> None:
        """include: the text keeps the string that ends it."""
        self._strings, self._include = strings, include
        self._held = ""
        self.matched: str | None = None

    def add(self, text: str, counts: bool = True) -> str:
        """The text that is safe to hand out now. counts: False where a string that ends within `text` does not match."""
        if not self._strings:
            return text
        self._held += text
        found = [(at, s) for s in self._strings if (at := self._held.find(s)) >= 0] if counts else []
        if found:
            at, self.matched = min(found)
            out, self._held = self._held[: at + len(self.matched) * self._include], ""
            return out
        keep = max(overlap(self._held, s) for s in self._strings)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        out, self._held = self._held, ""
        return out

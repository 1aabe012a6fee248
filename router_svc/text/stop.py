"""Stop strings: text is held back while it may still become one, and cut where one begins."""


class StopStrings:
    """One choice's text against its stop strings. `matched` is the string that ended it, None while it goes on."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._held = ""
        self.matched: str | None = None

    def add(self, text: str) -> str:
        """The text that is safe to hand out now."""
        if not self._strings:
            return text
        self._held += text
        found = [(at, s) for s in self._strings if (at := self._held.find(s)) >= 0]
        if found:
            at, self.matched = min(found)
            out, self._held = self._held[:at], ""
            return out
        keep = max(_overlap(self._held, s) for s in self._strings)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

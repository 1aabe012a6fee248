"""Errors that a user can mend, in one line. Knows nothing of how they are shown."""


class UserError(Exception):
    """Wrong use or wrong input: says what was found, what was expected and where.

    The command line prints it as one line and exits with 2; a server answers 400 / INVALID_ARGUMENT.
    """

    def __init__(self, found: str, expected: str, where: str) -> None:
        super().__init__(f"{where}: found {found}, expected {expected}")
        self.found = found
        self.expected = expected
        self.where = where

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        return (type(self), (self.found, self.expected, self.where))  # crosses processes whole


class RankLost(Exception):
    """An exchange with other ranks broke: a member died, hung past the deadline, or left the epoch.

    died: rank and incarnation of a member whose process is known to be dead
    """

    def __init__(self, epoch: int, step: int, detail: str, died: tuple[int, int] | None = None) -> None:
        super().__init__(f"epoch {epoch}, step {step}: {detail}")
        self.died = died
        self.epoch = epoch
        self.step = step
        self.detail = detail

    def __reduce__(self) -> tuple[type["RankLost"], tuple[int, int, str, tuple[int, int] | None]]:
        return (type(self), (self.epoch, self.step, self.detail, self.died))

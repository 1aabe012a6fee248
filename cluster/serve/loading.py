"""Progress while ranks load: bars in a terminal, a line per finished rank otherwise."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from cluster.serve.notes import say
from experts.epoch.membership import Member


class LoadingView:
    """A context manager; `update` may be called from any thread."""

    def __init__(self, seats: tuple[Member, ...]) -> None:
        self._roles = {seat.rank: seat.role for seat in seats}
        self._finished: set[int] = set()
        self._bars: dict[int, TaskID] = {}
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = Progress(*columns, transient=True, console=Console(stderr=True))

    def __enter__(self) -> "LoadingView":
        if self._progress is not None:
            self._progress.start()
            for rank, role in self._roles.items():
                self._bars[rank] = self._progress.add_task(f"rank {rank} ({role})", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, rank: int, done: int, total: int) -> None:
        """Rank `rank` has loaded `done` of `total` bytes."""
        if self._progress is not None:
            self._progress.update(self._bars[rank], completed=done, total=total)
        elif done >= total and rank not in self._finished:
            self._finished.add(rank)
            self.note(f"rank {rank} ({self._roles[rank]}): loaded {total / 1e6:.1f} MB")

    def note(self, text: str) -> None:
        """A line beside the bars."""
        if self._progress is not None:
            self._progress.console.print(text)
        else:
            say(text)

"""Live progress: bars with an estimated end while a person watches, plain lines when the output is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Column

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines about the same task."""


class Display:
    """Shows named tasks as they go on; `update` may be called as often as one likes. A `quiet` one shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(elapsed_when_finished=False),
            # What is left of the line, so that a long detail never squeezes the rest.
            TextColumn("[dim]{task.fields[detail]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        self._bars = (
            Progress(*columns, console=self.console, expand=True) if self.console.is_terminal and not quiet else None
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._shown: dict[str, float] = {}

    def __enter__(self) -> Display:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(text, markup=False, soft_wrap=True)

    def update(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Show that `done` of `total` steps of `what` are done; after its end another one of that name may begin."""
        if self._bars:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, detail=detail)
            elif self._bars.tasks[self._tasks[what]].finished and done < total:
                self._bars.reset(self._tasks[what], total=total)
            self._bars.update(self._tasks[what], completed=done, total=total, detail=detail)
            return
        now = time.monotonic()
        started, first = self._started.setdefault(what, (now, done))
        soon = now - self._shown.get(what, -PLAIN_INTERVAL) < PLAIN_INTERVAL
        if done < total and (soon or total == 1):
            return
        self._shown[what] = now
        if done >= total:
            del self._started[what], self._shown[what]
        spent, steps = now - started, done - first
        if done >= total:
            timing = f"done in {spent:.0f} s" if spent >= 1 else "done"
        else:
            timing = f"about {spent / steps * (total - done):.0f} s left" if steps else ""
        far = f"{what}: {done}/{total}" if total > 1 else what
        self.say("  ".join(part for part in (far, timing, detail) if part))

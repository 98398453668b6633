"""Progress bars on stderr: with an ETA at a terminal, silent on a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, note: str = "") -> None:
        """One unit of work is done; `note` says how it stands."""


class _Silent:
    def advance(self, note: str = "") -> None:
        pass


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Progress]:
    """Show a bar for `total` units of work, `done` of which are behind us; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, completed=done, note="")

        class _Bar:
            def advance(self, note: str = "") -> None:
                bars.update(task, advance=1, note=note)

        yield _Bar()

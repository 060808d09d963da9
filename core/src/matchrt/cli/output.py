"""Tables, JSON and progress bars, and where each of them goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from matchrt.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table.")


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, default=str, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """A table on stdout; its cells are plain text, never markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[Text(str(cell)) for cell in row])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    console.print(table)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Names and values, one a line, on stdout."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        click.echo(f"{name:<{width}}  {value}")


def warn(message: str) -> None:
    """One line on stderr."""
    click.echo(f"matchrt: {message}", err=True)


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """Progress on stderr, if that is a terminal; otherwise silence."""
    if quiet or not click.get_text_stream("stderr").isatty():  # type: ignore[operator]
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)


class _Bars:
    """Stages as bars, one below the other; a nested stage is indented and goes when it is done."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._open: list[tuple[Any, str]] = []

    def start(self, stage: str, total: int | None) -> None:
        name = "  " * len(self._open) + stage
        self._open.append((self._bars.add_task(name, total=total), name))

    def advance(self, steps: int = 1, detail: str = "") -> None:
        if self._open:
            task, name = self._open[-1]
            self._bars.update(task, advance=steps, description=f"{name} {detail}".rstrip())

    def finish(self) -> None:
        if not self._open:
            return
        done, name = self._open.pop()
        if self._open:
            self._bars.remove_task(done)
            return
        task = next(t for t in self._bars.tasks if t.id == done)
        total = task.total or 1
        self._bars.update(done, completed=total, total=total, description=name)

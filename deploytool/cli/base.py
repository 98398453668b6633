"""What commands share: options, lists of values, output, and how expected failures end."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import click

from deploytool.errors import DeploytoolError

F = TypeVar("F", bound=Callable[..., Any])
CONDITIONINGS = click.Choice(["switch", "interpolate"])


class OneLineError(click.ClickException):
    """An expected failure: one line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo("error: " + printable(" ".join(self.message.split())), err=True)


class Commands(click.Group):
    """A group whose commands end expected failures with one line and exit code 1, and warn in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; usage errors stay click's, with exit code 2."""
        try:
            with warnings_in_one_line():
                return super().invoke(ctx)
        except DeploytoolError as error:
            raise OneLineError(str(error)) from None
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            raise OneLineError(
                "interrupted; what was finished is kept: train and build go on with --resume, others when called again"
            ) from None
        except MemoryError:
            raise OneLineError("out of memory; try a smaller batch, fewer images or a smaller model") from None
        except OSError as error:  # a full disk or a read-only folder is the user's to mend, not a bug
            raise OneLineError(f"{error.filename or 'the system'}: {error.strerror or error}") from None


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print deploytool's own warnings as `warning: ...`, each line once, without path and code; others as before."""
    before, printed = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.partition(".")[0] != "deploytool":
            before(message, category, filename, lineno, file, line)
            return
        text = "warning: " + printable(" ".join(str(message).split()))
        if text not in printed:
            printed.add(text)
            click.echo(text, err=True)

    with warnings.catch_warnings():  # gives `showwarning` back
        warnings.showwarning = show
        yield


class NumberList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on alone
    """Numbers separated by commas."""

    name = "number,..."
    kind: type = float
    expected = "numbers separated by commas, as in 0,0.2,1"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Parse `0,0.2,1`."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} must be {self.expected}", param, ctx)


class CountList(NumberList):
    """Whole numbers separated by commas."""

    kind = int
    expected = "whole numbers separated by commas, as in 1,2"


class NameList(NumberList):
    """Names separated by commas."""

    name = "name,..."
    kind = str


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")(command)


def set_option(command: F) -> F:
    """Add `--set`."""
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one value; repeat.")(
        command
    )


def threshold_option(command: F) -> F:
    """Add `--lambda-threshold`."""
    return click.option(
        "--lambda-threshold", type=float, metavar="T", help="0 or 0.5: lambda above it selects BN_A (switch)."
    )(command)


def width_option(command: F) -> F:
    """Add `--width`."""
    return click.option("--width", type=float, metavar="W", help="A width of a slimmable file. [the widest]")(command)


def precision_option(command: F) -> F:
    """Add `--precision`."""
    return click.option(
        "--precision", type=click.Choice(["int8", "float32"]), help="[int8, where FILE was exported for it]"
    )(command)


def device_option(command: F) -> F:
    """Add `--device`."""
    return click.option(
        "--device", default="auto", show_default=True, help="A torch device; auto: a GPU where there is one."
    )(command)


def threads_option(command: F) -> F:
    """Add `--threads`."""
    return click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads. [what this machine allows]")(
        command
    )


def emit(document: Any, as_json: bool, text: Callable[[], str]) -> None:
    """Print one JSON document or the text for people."""
    click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else printable(text()))


def printable(text: str) -> str:
    """Replace control characters: names inside a model file must not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)

"""The command line: one file a verb, each imported only when it runs.

Results go to stdout (a table for people, `--json` for programs), everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage,
3 verification fell short, 4 the environment lacks something.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

import click

from matchrt.errors import MatchrtError

VERBS = {
    "demo": "See it work: convert shipped weights, match shipped photographs, write a report.",
    "models": "List the matchers, their variants and licences.",
    "fetch": "Download a matcher's published weights.",
    "convert": "Turn a checkpoint into a checked bundle.",
    "build": "Build the engines of a bundle for one backend.",
    "verify": "Compare an engine with the PyTorch network on image pairs.",
    "match": "Match two images with a bundle.",
    "bench": "Time bundles against each other and against PyTorch.",
    "inspect": "Tell what a checkpoint or a bundle holds.",
    "engines": "List, check, explain and remove built engines.",
    "plugins": "List the plugins, also those that failed, with the cause.",
    "doctor": "Look at this machine and this Python, and say what repairs what is not good.",
}


class LazyGroup(click.Group):
    """Core's verbs by file name, and what plugins add. Listing the verbs imports none of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked_plugins = False
        self.refused: list[str] = []

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core's verbs in the order of work, then those of plugins."""
        self._ask_plugins()
        return [*VERBS, *sorted(n for n in self.commands if n not in VERBS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb called `cmd_name`."""
        if cmd_name in VERBS:
            import importlib

            command = importlib.import_module(f"matchrt.cli.{cmd_name}").command
            assert isinstance(command, click.Command)
            return command
        self._ask_plugins()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with one line each."""
        names = self.list_commands(ctx)
        rows = [(n, VERBS.get(n) or (self.commands[n].get_short_help_str(80))) for n in names]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a plugin's verb; a taken one is refused."""
        key = name or cmd.name
        if key in VERBS or key in self.commands:
            raise MatchrtError(f"the verb {key!r} is taken")
        super().add_command(cmd, name)

    def _ask_plugins(self) -> None:
        if self._asked_plugins:
            return
        self._asked_plugins = True
        from matchrt.plugins import get_plugins

        for plugin in get_plugins().loaded:
            register = getattr(plugin.module, "register_commands", None)
            if register is None:
                continue
            try:
                register(self)
            except Exception as error:
                self.refused.append(f"{plugin.found.name} ({plugin.found.distribution}): {error}")


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="matchrt", prog_name="matchrt")
@click.option("--debug", is_flag=True, envvar="MATCHRT_DEBUG", help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Image-matcher checkpoints to verified bundles and engines, and matches from them."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run the command line; the exit code is returned. Deliberate errors become one line and a hint on stderr."""
    debug = "--debug" in argv or bool(os.environ.get("MATCHRT_DEBUG"))
    # `--debug` is accepted anywhere, because it is added to a command that just failed.
    arguments = [a for a in argv if a != "--debug"]
    try:
        code = cli.main(args=list(arguments), prog_name="matchrt", standalone_mode=False, obj=tuple(arguments))
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return _fail("stopped", None, 130, arguments)
    except KeyboardInterrupt:
        return _fail("stopped", None, 130, arguments)
    except click.ClickException as error:
        hint = None
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"see `{error.ctx.command_path} --help`"
        return _fail(error.format_message(), hint, error.exit_code, arguments)
    except MatchrtError as error:
        if debug:
            raise
        return _fail(error.message, error.hint, error.exit_code, arguments)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except OSError as error:
        if debug:
            raise
        message, hint = _explain(error)
        return _fail(message, hint, 1, arguments)


def _explain(error: OSError) -> tuple[str, str | None]:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}; nothing was left half-written", "free some space, or write elsewhere with -o"
    return f"{error.strerror or error}{where}", "add --debug for the traceback"


def _fail(message: str, hint: str | None, code: int, argv: list[str]) -> int:
    click.echo(f"matchrt: {message}", err=True)
    if hint:
        click.echo(f"  -> {hint}", err=True)
    if "--json" in argv:
        click.echo(json.dumps({"error": message, "hint": hint, "exit_code": code}))
    return code

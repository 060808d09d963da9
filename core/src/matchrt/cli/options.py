"""Options that several verbs share: settings of the matcher, by `--set`, by file, and by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from matchrt.errors import UsageError
from matchrt.model import Settings
from matchrt.settings import format_value, read_settings_file

set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the matcher; see `matchrt models --json`.",
)
config_option = click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings from a TOML file."
)
explain_option = click.option(
    "--explain", "show_settings", is_flag=True, help="Show each setting with where its value came from."
)

backend_option = click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the backend, for example device=cpu."
)
checkpoint_option = click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="[ROLE=]FILE",
    help="The file that the bundle was made from, for backend torch.",
)


class SettingsCommand(click.Command):
    """Reads an option that it does not know as a setting: `--top-k 500` as `--set top_k=500`, a bare `--mutual` as true."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite unknown long options, then parse."""
        known = {name for p in self.get_params(ctx) for name in (*p.opts, *p.secondary_opts)}
        flags = {name for p in self.get_params(ctx) if getattr(p, "is_flag", False) for name in p.opts}
        rewritten: list[str] = []
        position = 0
        while position < len(args):
            word = args[position]
            name, equals, value = word.partition("=")
            position += 1
            if not name.startswith("--") or name == "--":
                rewritten.append(word)
            elif name in known:
                rewritten.append(word)
                if not equals and name not in flags and position < len(args):
                    rewritten.append(args[position])
                    position += 1
            else:
                following = args[position] if position < len(args) else "--"
                if not equals:
                    value = "true" if following.startswith("--") else following
                    position += not following.startswith("--")
                rewritten += ["--set", f"{name[2:].replace('-', '_')}={value}"]
        return super().parse_args(ctx, rewritten)


def parse_assignments(assignments: tuple[str, ...], **named: object) -> dict[str, object]:
    """Settings from NAME=VALUE texts and from named options that were given. Raises `UsageError`."""
    chosen: dict[str, object] = {name: value for name, value in named.items() if value is not None}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE, got {text!r}")
        chosen[name.strip()] = value.strip()
    return chosen


def backend_options(options: tuple[str, ...], checkpoints: tuple[str, ...] = ()) -> dict[str, object]:
    """Backend options from NAME=VALUE texts and from `--checkpoint`. Raises `UsageError`."""
    chosen: dict[str, object] = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--option takes NAME=VALUE, got {text!r}")
        chosen[name.strip()] = value.strip()
    if checkpoints:
        chosen["checkpoint"] = list(checkpoints)
    return chosen


def file_settings(path: Path | None) -> Mapping[str, object]:
    """The settings of `--config`, or none."""
    return {} if path is None else read_settings_file(path)


def explain(settings: Settings) -> None:
    """Each setting, its value and its origin, on stderr."""
    width = max((len(n) for n in settings), default=0)
    for name in settings:
        click.echo(f"{name:<{width}}  {format_value(settings[name])}  ({settings.origin(name)})", err=True)

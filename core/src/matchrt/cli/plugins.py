"""`matchrt plugins`."""

from __future__ import annotations

from typing import Any

import click

from matchrt.cli.output import json_option, print_json, print_table
from matchrt.plugins import Plugins, get_plugins


@click.command("plugins")
@json_option
@click.option("--strict", is_flag=True, help="Exit with 1 if a plugin failed.")
@click.pass_context
def command(ctx: click.Context, as_json: bool, strict: bool) -> int:
    """List the plugins, also those that failed, with the cause and the distribution to blame.

    MATCHRT_PLUGINS (allow) and MATCHRT_DISABLE_PLUGINS (block) are comma-separated entry-point or distribution names.
    """
    plugins = get_plugins()
    refused = _refused_verbs(ctx)
    if as_json:
        print_json({**describe(plugins), "refused_verbs": refused})
    else:
        _show(plugins, refused)
    return 1 if strict and (plugins.failed or refused) else 0


def _refused_verbs(ctx: click.Context) -> list[str]:
    from matchrt.cli import LazyGroup

    group = ctx.find_root().command
    if not isinstance(group, LazyGroup):
        return []
    group.list_commands(ctx)
    return group.refused


def _show(plugins: Plugins, refused: list[str]) -> None:
    rows: list[tuple[str, ...]] = []
    for p in plugins.loaded:
        gives = [f"matcher {m.id}" for m in p.matchers] + [f"backend {b.name}" for b in p.backends]
        gives += [f"format {w.name}" for w in p.writers] or ([] if gives else [", ".join(p.hooks)])
        rows.append((p.found.name, f"{p.found.distribution} {p.found.version}".strip(), "loaded", ", ".join(gives)))
    for f in plugins.failed:
        rows.append((f.found.name, f"{f.found.distribution} {f.found.version}", "FAILED", "\n".join(f.causes)))
    for d in plugins.disabled:
        rows.append((d.found.name, f"{d.found.distribution} {d.found.version}", "disabled", d.reason))
    print_table(("plugin", "distribution", "state", "gives, or cause"), rows)
    for line in refused:
        click.echo(f"refused verb of {line}")


def describe(plugins: Plugins) -> dict[str, Any]:
    """The plugins as `--json` prints them."""

    def identity(found: Any) -> dict[str, str]:
        return {
            "name": found.name,
            "distribution": found.distribution,
            "version": found.version,
            "module": found.value,
        }

    return {
        "loaded": [
            {
                **identity(p.found),
                "hooks": list(p.hooks),
                "matchers": [m.id for m in p.matchers],
                "backends": [b.name for b in p.backends],
                "formats": [w.name for w in p.writers],
            }
            for p in plugins.loaded
        ],
        "failed": [{**identity(f.found), "causes": list(f.causes), "traceback": f.trace} for f in plugins.failed],
        "disabled": [{**identity(d.found), "reason": d.reason} for d in plugins.disabled],
    }

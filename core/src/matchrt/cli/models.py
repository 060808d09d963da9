"""`matchrt models`."""

from __future__ import annotations

from typing import Any

import click

from matchrt.cli.output import json_option, print_json, print_table, warn
from matchrt.model import MatcherSpec, Variant
from matchrt.plugins import Plugins, get_plugins


@click.command("models")
@json_option
def command(as_json: bool) -> None:
    """List the matchers, their variants and licences."""
    plugins = get_plugins()
    if as_json:
        print_json([_describe(plugins, m) for m in plugins.matchers.values()])
        return
    rows = [
        (f"{m.id}:{v.name}" + (" (default)" if v is m.default_variant and len(m.variants) > 1 else ""),
         m.family.value, _licences(m, v), v.description)
        for m in plugins.matchers.values()
        for v in m.variants
    ]  # fmt: skip
    print_table(("matcher:variant", "family", "weights' licence", "what it is"), rows)
    for failed in plugins.failed:
        warn(f"plugin {failed.found.name} ({failed.found.distribution}) failed to load; see `matchrt plugins`")


def _licences(matcher: MatcherSpec, variant: Variant) -> str:
    return "; ".join(dict.fromkeys(w.licence for w in variant.weights)) or matcher.licence


def _describe(plugins: Plugins, matcher: MatcherSpec) -> dict[str, Any]:
    return {
        "id": matcher.id,
        "title": matcher.title,
        "family": matcher.family.value,
        "licence": matcher.licence,
        "paper": matcher.paper,
        "url": matcher.url,
        "plugin": plugins.owner(matcher).found.distribution,
        "variants": [
            {
                "name": v.name,
                "default": v is matcher.default_variant,
                "description": v.description,
                "networks": [n.name for n in matcher.networks_of(v)],
                "weights": [
                    {
                        "role": w.role or "main",
                        "filename": w.filename,
                        "url": w.url,
                        "sha256": w.sha256,
                        "size": w.size,
                        "licence": w.licence,
                        "free_licence": w.free_licence,
                        "shipped": bool(w.package),
                    }
                    for w in v.weights
                ],
            }
            for v in matcher.variants
        ],
        "settings": [
            {
                "name": s.name,
                "kind": s.kind,
                "default": s.default,
                "stage": s.stage,
                "help": s.help,
                "minimum": s.minimum,
                "maximum": s.maximum,
                "choices": list(s.choices),
                "optional": s.optional,
            }
            for s in matcher.settings
        ],
    }

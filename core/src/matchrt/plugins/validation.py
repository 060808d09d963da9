"""Check a plugin module against the hook specifications and report everything that is wrong at once."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pluggy

from matchrt import hooks
from matchrt.model import API_VERSION

HOOK_NAMES = hooks.REGISTRATION_HOOKS + hooks.STAGE_HOOKS
_MARK = hooks.PROJECT + "_impl"


def problems_of(module: object) -> list[str]:
    """Every reason why `module` cannot be used as a plugin; empty if there is none."""
    if not isinstance(module, ModuleType):
        return [f"the entry point names a {type(module).__name__}, not a module"]
    problem = _version_problem(module)
    if problem:
        return [problem]
    problems = []
    for name, function in sorted(vars(module).items()):
        if inspect.isfunction(function):
            problems += _function_problems(name, function)
    return problems


def implemented_hooks(module: object) -> tuple[str, ...]:
    """Names of the hooks that `module` implements."""
    return tuple(n for n in HOOK_NAMES if hasattr(getattr(module, n, None), _MARK)) + tuple(
        sorted(
            spec
            for f in vars(module).values()
            if inspect.isfunction(f) and (spec := (getattr(f, _MARK, None) or {}).get("specname")) in HOOK_NAMES
        )
    )


def _version_problem(module: ModuleType) -> str | None:
    version = getattr(module, "MATCHRT_API_VERSION", None)
    if version is None:
        return f"it declares no API version; add MATCHRT_API_VERSION = {API_VERSION} to {module.__name__}"
    if version != API_VERSION:
        newer = "newer" if isinstance(version, int) and version > API_VERSION else "other"
        return f"it was written for API version {version}, this matchrt has {API_VERSION}; " + (
            "upgrade matchrt" if newer == "newer" else "upgrade the plugin"
        )
    return None


def _function_problems(name: str, function: Callable[..., Any]) -> list[str]:
    mark = getattr(function, _MARK, None)
    if mark is None:
        if name in HOOK_NAMES:
            return [f"{name}() is named like a hook but is not marked with @hookimpl"]
        return []
    hook = mark.get("specname") or name
    if hook not in HOOK_NAMES:
        close = difflib.get_close_matches(hook, HOOK_NAMES, n=1)
        return [f"{hook}() is not a hook" + (f"; did you mean {close[0]}()?" if close else "")]
    wanted = pluggy._hooks.varnames(getattr(hooks, hook))[0]
    given, defaults = pluggy._hooks.varnames(function)
    unknown = [a for a in (*given, *defaults) if a not in wanted]
    problems = []
    for argument in unknown:
        close = difflib.get_close_matches(argument, wanted, n=1)
        problems.append(
            f"{hook}() takes no argument {argument!r}"
            + (f"; did you mean {close[0]!r}?" if close else f"; it has: {', '.join(wanted) or 'none'}")
        )
    return problems

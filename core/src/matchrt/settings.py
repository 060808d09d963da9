"""Settings: what a matcher lets its users choose, where each value came from, and one way to resolve them.

Order: defaults < variant < what the weights decide < file (TOML) < environment (`MATCHRT_SET_NAME`) < flag.
Unknown names are errors with the nearest right name.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matchrt.errors import UsageError

_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)

Kind = Literal["int", "float", "bool", "str", "size"]
Value = int | float | bool | str | tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One choice. `stage` says when it takes effect: baked at "convert", or free at every "match".

    `kind` "size" is (height, width), written HxW. `optional` allows None ("none" in text).
    """

    name: str
    kind: Kind
    default: Value
    help: str
    stage: Literal["convert", "match"]
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    multiple_of: int | None = None

    def parse(self, raw: object, origin: str = "value") -> Value:
        """`raw` (text or a typed value) as this setting's type. Raises `UsageError` that names the setting and the range."""
        try:
            value = _convert(self, raw)
        except (TypeError, ValueError, KeyError):
            raise UsageError(f"{self.name}: {raw!r} ({origin}) is not {_wanted(self)}") from None
        if value is not None:
            self._check(value, origin)
        return value

    def _check(self, value: Value, origin: str) -> None:
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, str) or number is None:
                continue
            low, high = self.minimum, self.maximum
            if (low is not None and number < low) or (high is not None and number > high):
                bounds = (
                    f"at least {low:g}"
                    if high is None
                    else f"at most {high:g}"
                    if low is None
                    else f"{low:g} to {high:g}"
                )
                raise UsageError(f"{self.name}: {format_value(value)} ({origin}) is out of range; it must be {bounds}")
            if self.multiple_of and number % self.multiple_of:
                near = _near(value, self.multiple_of)
                raise UsageError(
                    f"{self.name}: {format_value(value)} ({origin}) is not a multiple of {self.multiple_of}",
                    hint=f"nearest: {format_value(near)}",
                )
        if self.choices and value not in self.choices:
            raise UsageError(f"{self.name}: {value!r} ({origin}) is not one of {', '.join(self.choices)}")


def _near(value: Value, divisor: int) -> Value:
    """The multiple of `divisor` that is nearest to each of the numbers, and not 0."""
    if isinstance(value, tuple):
        return max(1, round(value[0] / divisor)) * divisor, max(1, round(value[1] / divisor)) * divisor
    assert isinstance(value, (int, float))
    return max(1, round(value / divisor)) * divisor


def _wanted(setting: Setting) -> str:
    kinds = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a text",
        "size": "a size HxW",
    }
    return kinds[setting.kind] + (" or none" if setting.optional else "")


def _convert(setting: Setting, raw: object) -> Value:
    if raw is None or (isinstance(raw, str) and raw.lower() == "none"):
        if setting.optional:
            return None
        raise ValueError
    if setting.kind == "size":
        return parse_size(raw)
    if setting.kind == "bool":
        return _BOOLEANS[str(raw).lower()]
    if isinstance(raw, bool):
        raise ValueError
    if setting.kind == "int":
        if isinstance(raw, float) and raw != int(raw):
            raise ValueError
        return int(raw)  # type: ignore[call-overload,no-any-return]
    if setting.kind == "float":
        value = float(raw)  # type: ignore[arg-type]
        if value != value:
            raise ValueError
        return value
    return str(raw)


def parse_size(raw: object) -> tuple[int, int]:
    """(height, width) from "480x640", or from two numbers. Raises ValueError."""
    parts: Sequence[object] = raw.lower().split("x") if isinstance(raw, str) else tuple(raw)  # type: ignore[arg-type]
    height, width = (int(p) for p in parts)  # type: ignore[call-overload]
    if height < 1 or width < 1:
        raise ValueError
    return height, width


def format_value(value: Value) -> str:
    """`value` as it is written on the command line."""
    return f"{value[0]}x{value[1]}" if isinstance(value, tuple) else "none" if value is None else str(value)


class Settings(Mapping[str, Value]):
    """Resolved settings by name, with the origin of each value (`origin("threshold")` is "default", "flag", …)."""

    def __init__(self, values: Mapping[str, Value], origins: Mapping[str, str] | None = None) -> None:
        self._values = dict(values)
        self._origins = dict(origins or {})

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({self._values!r})"

    def origin(self, name: str) -> str:
        """Where the value of `name` came from."""
        return self._origins.get(name, "default")

    def integer(self, name: str) -> int:
        """The whole number called `name`."""
        value = self._values[name]
        if not isinstance(value, int):
            raise TypeError(f"setting {name!r} is {value!r}, not a whole number")
        return value

    def number(self, name: str) -> float:
        """The number called `name`."""
        value = self._values[name]
        if isinstance(value, (str, tuple)) or value is None:
            raise TypeError(f"setting {name!r} is {value!r}, not a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """The switch called `name`."""
        return bool(self._values[name])

    def text(self, name: str) -> str:
        """The text called `name`."""
        return str(self._values[name])

    def size(self, name: str) -> tuple[int, int] | None:
        """The size called `name`, or None."""
        value = self._values[name]
        return value if isinstance(value, tuple) else None

    def replace(self, origin: str, **values: Value) -> Settings:
        """A copy with `values` set, each marked as coming from `origin`."""
        return Settings({**self._values, **values}, {**self._origins, **dict.fromkeys(values, origin)})


def resolve(
    settings: Sequence[Setting],
    *layers: tuple[str, Mapping[str, object]],
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from their defaults, overridden by `layers` ((origin, values), weakest first).

    A layer whose origin is "flag" is applied after the environment. Raises `UsageError` for an unknown name or a bad value.
    """
    known = {s.name: s for s in settings}
    values: dict[str, Value] = {s.name: s.default for s in settings}
    origins = dict.fromkeys(values, "default")
    variables = os.environ if environment is None else environment
    env = {n: variables[v] for n in known if (v := "MATCHRT_SET_" + n.upper()) in variables}
    weaker = [layer for layer in layers if layer[0] != "flag"]
    flags = [layer for layer in layers if layer[0] == "flag"]
    for origin, chosen in [*weaker, ("environment", env), *flags]:
        for name, raw in chosen.items():
            if name not in known:
                raise UsageError(f"unknown setting {name!r} ({origin})", hint=_nearest(name, known))
            values[name] = known[name].parse(raw, origin)
            origins[name] = origin
    return Settings(values, origins)


def _nearest(name: str, known: Mapping[str, Setting]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known settings: " + (", ".join(sorted(known)) or "none")


def read_settings_file(path: Path) -> dict[str, object]:
    """The settings of a TOML file (table `[settings]`, or the top level). Raises `UsageError`."""
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib  # type: ignore[no-redef,import-not-found,unused-ignore]
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    table = data.get("settings", data)
    if not isinstance(table, dict):
        raise UsageError(f"{path}: [settings] must be a table")
    return dict(table)

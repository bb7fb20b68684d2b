"""What every part of a scale's file is checked by: keys, types, `key=value` strings, names that occur once."""

from pathlib import Path
from typing import Any

from dlm.errors import UserError

Number = (int, float)
RESERVED = {"study", "scale", "cell", "arm", "seed", "epochs", "output_dir"}


def check_keys(where: str, found: Any, known: dict[str, Any], required: tuple[str, ...]) -> None:
    """Raises UserError for anything but a mapping with these keys, of these types."""
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a mapping, not {found!r}")
    for key, value in found.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        kind = known[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            name = "number" if kinds == Number else " or ".join(k.__name__ for k in kinds)
            raise UserError(f"{where}: {key} must be of type {name}, not {value!r}")
    for key in required:
        if key not in found:
            raise UserError(f"{where}: has no {key!r}")


def arm_name(arm: Any) -> str:
    return repr(arm.get("arm", "?") if isinstance(arm, dict) else arm)


def once(file: Path, what: str, found: list[Any]) -> None:
    for name in found:
        if found.count(name) > 1:
            raise UserError(f"{file}: two times the same {what}: {name}")


def keyed(where: str, overrides: list[Any]) -> dict[str, str]:
    """{key: value} of `key=value` strings. Raises UserError for another form, or two values of one key."""
    found: dict[str, str] = {}
    for override in overrides:
        key, equals, value = str(override).partition("=")
        if not equals:
            raise UserError(f"{where}: {override!r} is no key=value")
        if key in RESERVED:
            raise UserError(f"{where}: {override}: the plan sets {key} by itself")
        if key in found and not same(found[key], value):
            raise UserError(f"{where}: {key} is given twice, as {found[key]} and as {value}")
        found[key] = value
    return found


def same(one: str, other: str) -> bool:
    """Whether two values on a command line mean the same: 1e-3 is 0.001."""
    return one == other or yaml_number(one) == yaml_number(other) is not None


def yaml_number(text: str) -> float | None:
    return float(text) if text.replace(".", "", 1).replace("e-", "", 1).replace("e", "", 1).isdecimal() else None

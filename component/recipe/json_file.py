"""Read one flat JSON of arguments, override keys from the command line, and check values against their types."""

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


def read_json(path: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file cannot be read, is not a JSON object, or has a key twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            given = json.load(file, object_pairs_hook=_unique_keys)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {_fault(error)} in line {error.lineno}, column {error.colno}."
        ) from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: {error}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path} must contain one JSON object of keys and values, not a {type(given).__name__}.")
    return given


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        raise ValueError(f"the key `{repeated}` is given twice")
    return dict(pairs)


def _fault(error: json.JSONDecodeError) -> str:
    # Up to Python 3.12, json says for `{"a": 1,}` that the next key is missing.
    comma = error.doc.rfind(",", 0, error.pos + 1)
    is_trailing = comma >= 0 and error.doc[comma + 1 :].lstrip()[:1] in ("}", "]")
    return "a comma before the closing bracket" if is_trailing else error.msg


def read_overrides(items: Sequence[str], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Read "key=value" items. A value that is not JSON is text, and so is a number for a key that takes only text.

    Args:
        hints: key → type.

    Raises:
        ValueError: an item has no "=".
    """
    given = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: expected key=value.")
        try:
            value = json.loads(text)
        except (RecursionError, ValueError):
            value = text
        options = _options(hints.get(key, Any))
        is_text = str in options and isinstance(value, (bool, int, float)) and type(value) not in options
        given[key] = text if is_text else value
    return given


def as_type(key: str, value: Any, hint: Any) -> Any:
    """Check a JSON value against a field's type. Numbers and booleans written as strings are converted.

    Raises:
        ValueError: the value has another type.
    """
    options = _options(hint)
    if value is None and type(None) in options:
        return None
    if isinstance(value, str) and str in options:
        return value
    if isinstance(value, list) and list[str] in options and all(isinstance(text, str) for text in value):
        return value
    if isinstance(value, dict) and dict[str, float] in options:
        return {name: as_type(f"{key}.{name}", number, float) for name, number in value.items()}
    if bool in options and (word := str(value).lower()) in ("true", "false", "1", "0"):
        return word in ("true", "1")
    number = _number(value)
    if float in options and not math.isnan(number):
        return number
    if int in options and number.is_integer():
        return int(number)
    if type(value) in {typing.get_origin(option) or option for option in options - _CHECKED.keys()}:
        return value  # TrainingArguments checks what is in other lists and dictionaries
    expected = " or ".join(name for type_, name in {**_CHECKED, **_OTHERS}.items() if type_ in options)
    raise ValueError(f"`{key}` is {value!r}; expected {expected}.")


_CHECKED = {
    str: "a string",
    list[str]: "a list of strings",
    bool: "true/false",
    int: "a whole number",
    float: "a number",
    dict[str, float]: '{"name": number}',
    type(None): "null",
}
_OTHERS = {list[int]: "a list of whole numbers", dict: "an object", dict[str, Any]: "an object"}


def _number(value: Any) -> float:
    """The number that a value is or spells; NaN if there is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        return math.nan


def _options(hint: Any) -> set[Any]:
    """The members of a union, the types of literals, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_options, typing.get_args(hint)))
    return set(map(type, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else {hint}

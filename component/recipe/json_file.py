"""One flat JSON of arguments: read, overridden from the command line, its values checked against their types."""

import json
import math
import types
import typing
from collections.abc import Sequence
from typing import Any


def read_json(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of a JSON file, with those of "key=value" items in their place.

    Raises:
        ValueError: no such file, not a JSON object, a key that stands there twice, or an item without "=".
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            given = json.load(file, object_pairs_hook=_without_repetition)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: {error}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold one JSON object of keys and values, not a {type(given).__name__}.")
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: expected key=value.")
        try:
            given[key] = json.loads(value)
        except (RecursionError, ValueError):
            given[key] = value
    return given


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = next((key for key in keys if keys.count(key) > 1), None)
    if repeated is not None:
        raise ValueError(f"the key `{repeated}` stands there twice")
    return dict(pairs)


def as_type(key: str, value: Any, hint: Any) -> Any:
    """Check a JSON value against a field's type; numbers and bools written as strings are read as such.

    Raises:
        ValueError: the value is of another type.
    """
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = set(typing.get_args(hint)) if is_union else {hint}
    types_of_values = options - {type(None)}
    if value is None:
        if type(None) in options:
            return None
    elif types_of_values <= {str, list[str]}:
        texts = value if isinstance(value, list) and list[str] in options else [value]
        if all(isinstance(text, str) for text in texts):
            return value
    elif not types_of_values <= {bool, int, float}:
        return value  # enums, lists and dicts: TrainingArguments checks them itself
    elif bool in types_of_values:
        word = str(value).lower()
        if word in ("true", "false", "1", "0"):
            return word in ("true", "1")
    elif not isinstance(value, bool):
        try:
            number = float(value)
        except (OverflowError, TypeError, ValueError):
            number = math.nan
        if float in types_of_values and not math.isnan(number):
            return number
        if number.is_integer():
            return int(number)
    names = {
        str: "a string",
        list[str]: "a list of strings",
        bool: "true/false",
        int: "a whole number",
        float: "a number",
        type(None): "null",
    }
    wanted = " or ".join(name for type_, name in names.items() if type_ in options)
    raise ValueError(f"`{key}` is {value!r}; expected {wanted}.")

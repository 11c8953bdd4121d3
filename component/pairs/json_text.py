"""JSON that others wrote, whatever it contains. Errors are ValueErrors of one line that name the position."""

import json
from typing import Any


def parse_json(content: str | bytes, where: str | None = None) -> Any:
    """The value of a JSON text. Raises ValueError with the reason, and with the position `where` if that is given."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        reason = error.msg + (f" in line {error.lineno}" if error.lineno > 1 else "")
    except UnicodeDecodeError as error:
        reason = f"not {error.encoding}: {error.reason}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # a number of more than 4300 digits
        reason = str(error)
    raise ValueError(f"{where} is not JSON: {reason}." if where else reason)


def take(entry: Any, where: str, **keys: type | tuple[type, ...]) -> list[Any]:
    """The values of some keys of an object, each checked for its type.

    Raises:
        ValueError: the entry is not an object, or lacks a key, or a value has another type.
    """
    for key, wanted in keys.items():
        if not isinstance(entry, dict) or key not in entry:
            found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f"{where}: `{key}` is missing (found: {found}).")
        if not isinstance(entry[key], wanted):
            names = " or ".join(kind.__name__ for kind in (wanted if isinstance(wanted, tuple) else (wanted,)))
            raise ValueError(f"{where}: `{key}` is {entry[key]!r:.80}; expected {names}.")
    return [entry[key] for key in keys]


def require_unicode(text: str) -> str:
    """The text itself. Raises ValueError if it holds half a character, which JSON can express and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character, {text[error.start]!r}") from None
    return text


def name_at(value: Any, where: str, key: str) -> str:
    """An id or a file name. Raises ValueError if it is neither int nor str, or not Unicode."""
    if not isinstance(value, (int, str)):
        raise ValueError(f"{where}: `{key}` has {value!r}; expected int or str.")
    try:
        return require_unicode(str(value))
    except ValueError as error:
        raise ValueError(f"{where}: `{key}` {error}.") from None

"""JSON of others, whatever they put into it."""

import json
from typing import Any


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, with the reason in one line, for all that is wrong with it."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(error.msg + (f" in line {error.lineno}" if error.lineno > 1 else "")) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"no {error.encoding}: {error.reason}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def require_unicode(text: str) -> str:
    """The text itself. Raises ValueError where it holds half a character, which JSON can name and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character, {text[error.start]!r}") from None
    return text

"""Tables as JSON: one record for each line, or a list of records, as AI Challenger publishes its captions."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd

from component.pairs.columns import ChooseColumns
from component.pairs.json_text import parse_json, require_unicode
from component.pairs.text_file import open_text, text_lines

logger = logging.getLogger(__name__)


def read_json_table(path: str, choose: ChooseColumns, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Yield the records of a JSON file in order, at most `chunk_rows` at a time.

    A cell is a `str`: a number is written out, null and a missing key are "". A list of texts stays a list of `str`.
    A text that is not Unicode is "", and counted.

    Args:
        path: JSON lines, which are read one by one, or a JSON list, which is read as a whole.
        choose: which of the keys of the first rows to yield, see `component.pairs.table`.

    Raises:
        ValueError: the file is not such a JSON; the message names the line or the position in the list.
    """
    records, chosen, broken = _records(path), None, 0
    while batch := list(itertools.islice(records, chunk_rows)):
        if chosen is None:
            names = list(dict.fromkeys(key for record in batch for key in record))
            chosen = [(name, names[position]) for name, position in choose(names)]
        columns = []
        for _, key in chosen:
            cells = [_cell(record.get(key)) for record in batch]
            broken += sum(cell is None for cell in cells)
            columns.append(["" if cell is None else cell for cell in cells])
        chunk = pd.DataFrame(dict(enumerate(columns)), dtype=object)
        chunk.columns = [name for name, _ in chosen]
        yield chunk
    if chosen is None:
        raise ValueError(f'{path} is empty. It needs records such as {{"text": …, "filename": …}}.')
    if broken:
        logger.warning("%s: %d values are not Unicode and count as empty.", path, broken)


def _records(path: str) -> Iterator[dict[str, Any]]:
    with open_text(path) as file:
        lines = ((number, line.lstrip("\ufeff")) for number, line in enumerate(text_lines(file, path), 1))
        lines = ((number, line) for number, line in lines if line.strip())
        first = next(lines, (1, ""))
        if first[1].lstrip().startswith("["):
            records = parse_json("".join(line for _, line in itertools.chain([first], lines)), path)
            for number, record in enumerate(records, 1):
                yield _record(f"{path}, record {number}", record)
            return
        for number, line in itertools.chain([first] if first[1] else [], lines):
            where = f"{path}, line {number}"
            yield _record(where, parse_json(line, where))


def _record(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f'{where}: expected a record such as {{"text": …, "filename": …}}, found {record!r:.40}.')
    return record


def _cell(value: Any) -> str | list[str] | None:
    """None: not Unicode."""
    if isinstance(value, list):
        return [_cell(item) or "" for item in value]
    try:
        return "" if value is None else require_unicode(value if isinstance(value, str) else str(value))
    except ValueError:
        return None

"""How many rows each rule took: from those that came in to those that are left."""

from collections import Counter
from collections.abc import Iterable

from component.filter.judge import REASONS


class Funnel:
    """Counts what `judge_pairs` yields; as text, it is a table for a terminal."""

    def __init__(self):
        self._rows: Counter[str] = Counter()

    def add(self, reasons: Iterable[str]) -> None:
        self._rows.update(reason.partition(":")[0] for reason in reasons)

    def __str__(self) -> str:
        total = left = self._rows.total()
        lines = [f"{'':<20} {'rows':>10} {'left':>10}", f"{'rows in':<31} {left:>10}"]
        for reason in REASONS:
            if rows := self._rows[reason]:
                left -= rows
                lines.append(f"- {reason:<18} {rows:>10} {left:>10}")
        lines.append(f"{'rows out':<31} {left:>10} {left / max(total, 1):>7.1%}")
        return "\n".join(lines)

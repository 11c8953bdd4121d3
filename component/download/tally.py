"""Totals of a download, by reason and by host."""

from collections import Counter

from component.download.limits import FetchLimits
from component.download.outcome import Outcome
from component.download.report import Report
from component.ground.plain_text import one_line


class Tally:
    """Counts outcomes by reason and by host, in bounded memory; as text, it is two tables for a terminal."""

    MAX_HOSTS = 100_000
    OTHER_HOSTS = "(further hosts)"

    def __init__(self):
        self.by_status: Counter[str] = Counter()
        self.by_reason: Counter[tuple[str, str]] = Counter()
        self.by_host: dict[str, list[int]] = {}
        self.mended = 0

    def add(self, outcome: Outcome) -> None:
        self.by_status[outcome.status] += 1
        self.by_reason[outcome.status, outcome.reason.partition(":")[0]] += 1
        if outcome.status in ("ok", "failed"):
            self.mended += outcome.is_mended
            if host := outcome.host:
                if host not in self.by_host and len(self.by_host) >= self.MAX_HOSTS:
                    host = self.OTHER_HOSTS
                self.by_host.setdefault(host, [0, 0])[outcome.status == "failed"] += 1

    @property
    def failed(self) -> int:
        """Rows that failed, now or in an earlier run."""
        return self.by_status["failed"] + self.by_reason["skipped", "failed_before"]

    @property
    def failed_share(self) -> float:
        """Share of the rows without an image, including those that failed in earlier runs."""
        return self.failed / max(self.by_status.total(), 1)

    def worst_hosts(self, count: int) -> list[tuple[str, int, int]]:
        """(host, ok, failed), most failures first."""
        ordered = sorted(self.by_host.items(), key=lambda entry: (-entry[1][1], -entry[1][0], entry[0]))
        return [(host, ok, failed) for host, (ok, failed) in ordered[:count]]

    def __str__(self) -> str:
        total = max(self.by_status.total(), 1)
        lines = [f"{'status':<8} {'reason':<20} {'rows':>9} {'share':>7}"]
        for (status, reason), rows in sorted(self.by_reason.items(), key=lambda row: (row[0][0] != "ok", -row[1])):
            lines.append(f"{status:<8} {reason:<20} {rows:>9} {rows / total:>7.1%}")
        hosts = self.worst_hosts(10)
        if hosts:
            lines.append(f"\n{'host (most failures first)':<48} {'ok':>9} {'failed':>9}")
        lines += [f"{one_line(host):<48} {ok:>9} {failed:>9}" for host, ok, failed in hosts]
        return "\n".join(lines)


def summary(tally: Tally, report: Report, limits: FetchLimits) -> str:
    """The lines to print at the end of a download."""
    lines = [f"{tally}\n"]
    if tally.mended:
        lines.append(f"{tally.mended} URLs were mended: `&amp;`, no scheme, or invisible characters at the ends.")
    for files, names in report.same_bytes():
        shown = ", ".join(map(one_line, names))
        lines.append(f"{files} files have the same bytes, perhaps a placeholder of their host: {shown}, …")
    if limits.referer:
        lines.append(f"Referer sent: {limits.referer}")
    if limits.user_agent != FetchLimits.user_agent:
        lines.append(f"User-Agent sent: {limits.user_agent}")
    if limits.no_verify_tls:
        lines.append(f"Certificates not verified: {', '.join(limits.no_verify_tls)} and the hosts below.")
    lines.append(f"Report: {report.path}")
    if private := tally.by_reason["failed", "private_host"]:
        lines.append(
            f"{private} URLs lead to private addresses. If they are servers of your own, run again with "
            "--allow_private_hosts --retry_failed."
        )
    if tally.failed > private:
        lines.append("Run again with --retry_failed to give the failed rows another chance.")
    return "\n".join(lines)

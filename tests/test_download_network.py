"""The download when hosts, or this machine's own network, are away or ask for patience."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import write_csv
from downloading import download, downloading, files, report
from image_server import ImageServer


@contextlib.contextmanager
def blinking(servers: list[ImageServer], after_hits: int, seconds: float) -> Iterator[None]:
    """Let servers refuse connections for some seconds when they have answered `after_hits` requests together."""

    def blink():
        while sum(server.hits.total() for server in servers) < after_hits:
            time.sleep(0.005)
        for server in servers:
            server.__exit__()
        time.sleep(seconds)
        back.extend(ImageServer(port=server.server_port).__enter__() for server in servers)

    back = []
    for server in servers:
        server.__enter__()
    thread = threading.Thread(target=blink)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        for server in back:
            server.__exit__()


def write_rows(folder, servers: list[ImageServer], count: int, kind: str = "jpg") -> None:
    rows = [("", servers[i % len(servers)].url(f"{kind}/{i}"), f"{i}.jpg") for i in range(count)]
    write_csv(folder / "train.csv", rows)


def test_the_only_host_that_refuses_connections_for_a_moment_loses_no_row(tmp_path):
    server = ImageServer()
    write_rows(tmp_path, [server], 300)
    with blinking([server], after_hits=60, seconds=0.6):
        assert download(tmp_path, num_threads=16, retries=1, patience=10.0)[0] == {("ok", ""): 300}


def test_when_all_hosts_fall_silent_at_once_the_network_is_away_and_no_host_is_blamed(tmp_path, caplog):
    servers = [ImageServer() for _ in range(3)]
    write_rows(tmp_path, servers, 90, "slow")
    with blinking(servers, after_hits=12, seconds=2.5):  # longer than the patience with a host, 0.5 s
        assert download(tmp_path, patience=0.5)[0] == {("ok", ""): 90}
    away, back = caplog.messages
    assert away == "No host answers: this machine's network is down. Waiting for it, up to 5 s."
    assert re.fullmatch(r"A host answers again, after \d s\.", back)


def test_a_network_that_stays_away_stops_the_run_which_is_resumed_without_loss(tmp_path):
    servers = [ImageServer() for _ in range(2)]
    write_rows(tmp_path, servers, 60, "slow")
    with blinking(servers, after_hits=8, seconds=3.5):
        with pytest.raises(OSError, match="No host has answered for 2 s.*Run the same command again"):
            download(tmp_path, patience=0.2)
        done = files(tmp_path)
        assert 0 < len(done) < 60 and set(report(tmp_path)) == set(done)  # none has failed
    servers = [ImageServer(port=server.server_port).__enter__() for server in servers]
    try:
        assert download(tmp_path)[0] == {("ok", ""): 60 - len(done), ("skipped", "exists"): len(done)}
    finally:
        for server in servers:
            server.__exit__()


def test_a_host_that_is_away_while_others_answer_is_given_up_after_the_patience(tmp_path):
    with ImageServer() as away, ImageServer() as there:
        pass
    rows = [("", away.url(f"jpg/{i}"), f"away{i}.jpg") for i in range(100)]
    with ImageServer(port=there.server_port) as there:
        rows += [("", there.url(f"jpg/{i}"), f"{i}.jpg") for i in range(5)]
        write_csv(tmp_path / "train.csv", rows)
        started = time.monotonic()
        download(tmp_path, patience=1.0)
    assert 1.0 < time.monotonic() - started < 15
    reasons = [row["reason"] for name, row in report(tmp_path).items() if name.startswith("away")]
    assert len(reasons) == 100 and sum(reason.startswith("host_down: no answer for ") for reason in reasons) > 90


def test_a_rate_limited_host_is_asked_more_slowly_until_all_rows_are_done(tmp_path):
    with ImageServer() as server:
        write_rows(tmp_path, [server], 120, "limited/40")
        assert download(tmp_path, num_threads=16, patience=10.0)[0] == {("ok", ""): 120}
        assert server.hits.total() < 240  # each image cost less than one refusal


def test_a_host_that_refuses_everything_is_given_up_after_the_patience(tmp_path):
    with ImageServer() as server:
        write_rows(tmp_path, [server], 60, "status/503")
        by_reason, _ = download(tmp_path, patience=0.5)
        assert by_reason.keys() == {("failed", "http_503"), ("failed", "host_down")}
        assert server.hits.total() < 30  # few probes, then none for the rest


def test_one_url_that_is_always_refused_fails_and_the_others_of_its_host_succeed(tmp_path):
    with ImageServer() as server:
        write_rows(tmp_path, [server], 30)
        with open(tmp_path / "train.csv", "a") as file:
            file.write(f",{server.url('status/503')},refused.jpg\n")
        assert download(tmp_path, patience=0.5)[0] == {("ok", ""): 30, ("failed", "http_503"): 1}


def test_a_connection_closed_when_the_next_request_comes_costs_no_attempt(tmp_path):
    with ImageServer() as server:
        write_rows(tmp_path, [server], 60, "third")
        assert download(tmp_path, retries=0)[0] == {("ok", ""): 60}


def test_a_download_may_be_closed_while_a_host_is_paused(tmp_path):
    with ImageServer() as away:
        pass
    with ImageServer() as there:
        write_rows(tmp_path, [away, there], 2)
        with downloading(tmp_path, patience=60.0) as (outcomes, _):
            assert next(outcomes).filename == "1.jpg"
            started = time.monotonic()
    assert time.monotonic() - started < 5

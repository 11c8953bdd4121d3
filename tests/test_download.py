"""The download, in this process and through download_image.py, against a real server that misbehaves."""

import contextlib
import csv
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, python, run_python, write_csv
from downloading import (
    HALF_A_MESSAGE,
    LOCAL,
    download,
    downloading,
    files,
    report,
    work_but_first_die_in_a_message,
)
from image_server import ImageServer, image_bytes
from PIL import Image

from component.download.address import read_url
from component.download.host_queue import HostQueue
from component.download.img2dataset_table import img2dataset_instructions, write_img2dataset_table
from component.download.job import DownloadSettings, Job
from component.download.joined_report import join_reports
from component.download.limits import FetchLimits
from component.download.outcome import Outcome
from component.download.processes import Processes
from component.download.report import Report, default_report
from component.download.rows import Rows
from component.download.worker import work
from component.ground.files import new_file
from component.pairs.columns import filename_from_url
from component.pairs.paths import writable_file
from component.pairs.shards import read_shards
from component.pairs.table_files import pair_files


@pytest.fixture
def server():
    with ImageServer() as server:
        yield server


def command(folder, *options, local=True) -> list[str]:
    paths = ["--train_file", folder / "train.csv", "--image_path", folder / "images"]
    return python(
        os.path.join(ROOT, "download_image.py"), *paths, *options, *(["--allow_private_hosts"] if local else [])
    )


def run_script(folder, *options, local=True) -> subprocess.CompletedProcess:
    """The script through its command line. Tests of what it does with a table use `download`, which starts faster."""
    return subprocess.run(command(folder, *options, local=local), capture_output=True, text=True, timeout=60)


# --- what is kept and what is refused ----------------------------------------------------------------------------

FAST = {
    "jpg/x": "ok",
    "png/x": "ok",
    "mislabelled/x": "ok",
    "gzip/x": "ok",
    "hop/5/x": "ok",
    "hop/6/x": "redirects",
    "gif/x": "gif",
    "animated/WEBP/x": "animated",
    "animated/PNG/x": "animated",
    "html/x": "html",
    "svg/x": "svg",
    "noise/x": "not_image",
    "empty/x": "empty",
    "cut/x": "truncated",
    "hangup/x": "truncated",
    "bomb/x": "too_many_pixels",
    "endless/x": "too_large",
    "announced/x": "too_large",
    "gzipbomb/x": "too_large",
    "badgzip/x": "bad_encoding",
    "noai/x": "opt_out",
    "status/404/x": "http_404",
    "status/500/x": "http_500",
    "to/ftp://example.com/x": "bad_url",
}
SLOW = {"hang/x": "timeout", "drip/x": "timeout", "headerdrip/x": "timeout"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One download of every kind of answer: folder, process, server, seconds."""
    folder = tmp_path_factory.mktemp("mixed")
    with ImageServer() as server:
        rows = [("文字", server.url(kind), kind.replace("/", "_") + ".jpg") for kind in FAST | SLOW]
        write_csv(folder / "train.csv", rows)
        started = time.monotonic()
        done = run_script(folder, "--timeout", "2", "--retries", "1", "--max_bytes", "1000000")
        yield folder, done, server, time.monotonic() - started


@pytest.mark.parametrize("kind, reason", (FAST | SLOW).items())
def test_each_answer_gets_its_verdict(mixed, kind, reason):
    folder, _, _, _ = mixed
    filename = kind.replace("/", "_") + ".jpg"
    row = report(folder)[filename]
    assert (row["reason"].partition(":")[0] or row["status"]) == reason
    assert (folder / "images" / filename).exists() == (reason == "ok")


def test_only_images_and_no_temporary_files_are_left(mixed):
    folder, done, _, _ = mixed
    assert done.returncode == 0, done.stderr
    assert files(folder) == sorted(kind.replace("/", "_") + ".jpg" for kind, reason in FAST.items() if reason == "ok")


def test_requests_to_hanging_and_dripping_servers_end_at_the_deadline(mixed):
    folder, _, _, seconds = mixed
    for kind in SLOW:
        assert 1.9 < float(report(folder)[kind.replace("/", "_") + ".jpg"]["seconds"]) < 10
    assert seconds < 20  # each answer takes the server 20 seconds or more


def test_the_summary_counts_reasons_and_hosts(mixed):
    _, done, server, _ = mixed
    assert re.search(r"^ok +5 ", done.stdout, re.M)
    assert re.search(r"^failed +timeout +3 ", done.stdout, re.M)
    assert re.search(rf"^{server.address} +5 +22$", done.stdout, re.M)


def test_a_gzipped_body_is_decompressed(mixed):
    folder, _, _, _ = mixed
    assert (folder / "images" / "gzip_x.jpg").read_bytes() == image_bytes(7)


def test_broken_connections_and_5xx_are_retried_and_404_is_not(mixed):
    _, _, server, _ = mixed
    assert server.hits["/status/500/x"] == server.hits["/hangup/x"] == 2
    assert server.hits["/status/404/x"] == 1


def test_retries_win_over_a_flaky_server_and_follow_retry_after(tmp_path, server):
    kinds = ["flaky/x.jpg", "busy/seconds.jpg", "busy/date.jpg", "busy/forever.jpg"]
    with ImageServer() as other, ImageServer() as third, ImageServer() as fourth:  # a pause is for the whole host
        servers = [server, other, third, fourth]
        write_csv(
            tmp_path / "train.csv", [("", s.url(k), k.replace("/", "_")) for s, k in zip(servers, kinds, strict=True)]
        )
        download(tmp_path, retries=2, patience=3.0)
    assert files(tmp_path) == ["busy_date.jpg", "busy_seconds.jpg", "flaky_x.jpg"]
    assert server.hits["/flaky/x.jpg"] == 3
    assert report(tmp_path)["busy_forever.jpg"]["reason"] == "http_429: Too Many Requests"
    assert fourth.hits["/busy/forever.jpg"] == 1  # a day is too long to wait, and is respected


def test_resize_sets_the_shorter_side_and_turns_the_image_upright(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url("large/x"), "a.jpg"), ("", server.url("png/x"), "small.png")])
    download(tmp_path, resize=100)
    with Image.open(tmp_path / "images" / "a.jpg") as image:
        assert image.size == (100, 150) and not image.getexif()
    with Image.open(tmp_path / "images" / "small.png") as image:  # never enlarged
        assert image.size == (64, 48) and image.format == "JPEG"


def test_a_dead_host_is_given_up_while_the_others_go_on(tmp_path, server):
    with ImageServer() as dead:
        pass
    rows = [("", dead.url(f"jpg/{i}"), f"dead{i}.jpg") for i in range(200)]
    rows += [("", server.url(f"jpg/{i}"), f"{i}.jpg") for i in range(20)]
    write_csv(tmp_path / "train.csv", rows)
    download(tmp_path)
    reasons = Counter(row["reason"].partition(":")[0] for row in report(tmp_path).values())
    assert reasons[""] == 20 and reasons["connection"] + reasons["host_down"] == 200 and reasons["host_down"] > 150


def test_one_host_gets_no_more_than_its_share(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url(f"slow/{i}"), f"{i}.jpg") for i in range(20)])
    download(tmp_path, num_threads=8, per_host=3)
    assert server.peak == 3 and len(files(tmp_path)) == 20


def test_a_hanging_host_does_not_hold_up_the_others(tmp_path, server):
    with ImageServer() as hanging:
        rows = [("", hanging.url(f"hang/{i}"), f"hang{i}.jpg") for i in range(3)]
        rows += [("", server.url(f"jpg/{i}"), f"{i}.jpg") for i in range(50)]
        write_csv(tmp_path / "train.csv", rows)
        download(tmp_path, per_host=3, limits=replace(LOCAL, timeout=2.0))
    assert set(list(report(tmp_path))[:50]) == {f"{i}.jpg" for i in range(50)}  # one thread was enough


def test_the_queue_serves_hosts_in_turn_and_holds_each_to_its_share():
    queue = HostQueue(per_host=2, longest_pause=1.0)
    for i in range(3):
        queue.put("a", f"a{i}")
    queue.put("b", "b0")
    assert [queue.take() for _ in range(3)] == ["a0", "b0", "a1"]
    queue.done("b")
    queue.done("a")
    assert queue.take() == "a2"


def test_a_delayed_item_and_a_paused_host_come_back_by_themselves():
    queue = HostQueue(per_host=1, longest_pause=1.0)
    queue.put("b", "refused")
    assert queue.take() == "refused"
    queue.trouble("b", time.monotonic(), is_silence=False, pause=0.3)
    queue.done("b")
    queue.put("a", "late", delay=0.6)
    queue.put("b", "held")
    queue.put("c", "now")
    assert [queue.take() for _ in range(3)] == ["now", "held", "late"]
    queue.close()
    assert queue.take() is None


# --- resume ------------------------------------------------------------------------------------------------------


def test_whole_files_are_skipped_and_failures_wait_for_retry_failed(tmp_path, server):
    rows = [("", server.url("jpg/a"), "a.jpg"), ("", server.url("status/404/b"), "b.jpg")]
    write_csv(tmp_path / "train.csv", rows)
    download(tmp_path)
    assert download(tmp_path)[0] == {("skipped", "exists"): 1, ("skipped", "failed_before"): 1}
    assert server.hits == {"/jpg/a": 1, "/status/404/b": 1}
    download(tmp_path, again={"retry_failed": True})
    assert server.hits == {"/jpg/a": 1, "/status/404/b": 2}


def test_an_empty_file_is_not_whole(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/a"), "a.jpg")])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    download(tmp_path)
    assert Image.open(tmp_path / "images" / "a.jpg").size == (64, 48)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_download_leaves_whole_images_and_is_resumed_without_fetching_twice(tmp_path, server, stop):
    write_csv(tmp_path / "train.csv", [("", server.url(f"slow/{i}"), f"{i}.jpg") for i in range(240)])
    process = subprocess.Popen(
        command(tmp_path, "--num_threads", "8", "--per_host", "8"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while server.hits.total() < 50:
        time.sleep(0.01)
    os.killpg(process.pid, stop)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 128 + signal.SIGTERM)
    assert "Traceback" not in stderr
    kept = [path for path in (tmp_path / "images").iterdir() if not path.name.startswith((".", "_"))]
    assert 30 <= len(kept) < 240
    assert {path.name for path in kept} <= set(report(tmp_path))  # none without its row, however the run ended
    for path in kept:
        with Image.open(path) as image:
            image.load()

    assert download(tmp_path)[0][("skipped", "exists")] == len(kept)
    assert files(tmp_path) == sorted(f"{i}.jpg" for i in range(240))  # nothing temporary either
    twice = [path for path, count in server.hits.items() if count > 1]
    assert len(twice) <= 8 and not {f"/slow/{path.stem}" for path in kept} & set(twice)
    if stop == signal.SIGTERM:  # what was in progress was finished first
        assert not twice and (tmp_path / "download_report.csv").read_bytes().count(b"\n") == 241


def processes() -> list[multiprocessing.Process]:
    return [child for child in multiprocessing.active_children() if child.name == "download"]


@pytest.mark.parametrize("resize", [None, 32])
def test_a_killed_process_costs_no_image_and_no_process_is_left_at_the_end(tmp_path, server, resize):
    write_csv(tmp_path / "train.csv", [("", server.url(f"slow/{i}"), f"{i}.jpg") for i in range(8)])
    with downloading(tmp_path, resize=resize) as (outcomes, _):
        first = next(outcomes)
        killed = processes()
        for process in killed:
            process.kill()
        assert killed and [first.status, *(outcome.status for outcome in outcomes)] == ["ok"] * 8
    assert len(files(tmp_path)) == 8 and not processes()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one process per core")
def test_hosts_are_assigned_to_processes_and_keep_their_limits_when_one_is_killed(tmp_path, server):
    with ImageServer() as other:
        write_csv(
            tmp_path / "train.csv", [("", (server, other)[i % 2].url(f"slow/{i}"), f"{i}.jpg") for i in range(40)]
        )
        with downloading(tmp_path, num_threads=6, per_host=3) as (outcomes, _):
            first = next(outcomes)
            both = processes()
            both[0].kill()
            assert [first.status, *(outcome.status for outcome in outcomes)] == ["ok"] * 40
        assert len(both) == 2 and len(files(tmp_path)) == 40
        asked_again = [host for host in (server, other) if max(host.hits.values()) > 1]
        assert len(asked_again) <= 1 and server.peak <= 6 and other.peak <= 6
        assert min(server.peak, other.peak) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_image_that_kills_its_process_has_a_reason_and_the_others_are_kept(tmp_path, server):
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(buffer, "PNG", compress_level=1)  # 256 MB decoded, and 200 kB for them
    server.answers["large"] = [b"HTTP/1.1 200 OK\r\n\r\n", buffer.getvalue()]
    kinds = ["raw/large", *(f"jpg/{i}" for i in range(5))]
    write_csv(tmp_path / "train.csv", [("", server.url(kind), f"{i}.jpg") for i, kind in enumerate(kinds)])
    ended = threading.Event()

    def play_out_of_memory_killer():
        while not ended.wait(0.005):
            for process in processes():
                with contextlib.suppress(OSError, IndexError):  # it has ended
                    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                    if pages * os.sysconf("SC_PAGE_SIZE") > 150 * 2**20:
                        process.kill()

    killer = threading.Thread(target=play_out_of_memory_killer)
    killer.start()
    by_reason, _ = download(tmp_path)
    ended.set()
    killer.join()
    assert by_reason == {("ok", ""): 5, ("failed", "decoder_killed"): 1}


def test_a_process_that_never_starts_is_not_blamed_on_the_image(tmp_path, server, monkeypatch, capfd):
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/a"), "a.jpg")])
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(shutil.which("false")))
    with pytest.raises(OSError, match="a process of the download ends again and again"):
        download(tmp_path)
    assert not files(tmp_path) and not report(tmp_path)


def test_a_process_killed_while_it_sends_a_message_costs_no_image(tmp_path, server, monkeypatch):
    monkeypatch.setattr("component.download.processes.work", work_but_first_die_in_a_message)
    settings, address = DownloadSettings(4, limits=LOCAL), read_url(server.url("jpg/a"))
    with Report(str(tmp_path / "report.csv")) as report, Processes(settings, report) as running:
        running.put(Job(1, "a.jpg", address.url, address.url, str(tmp_path / "a.jpg"), address=address))
        assert running.ended.get(timeout=60).status == "ok"  # seconds, for a message that never comes


def test_a_process_ends_when_the_download_is_killed_while_it_sends_a_message(tmp_path):
    with Report(str(tmp_path / "report.csv")):
        pass
    context = multiprocessing.get_context("spawn")
    pipe, far_end = context.Pipe()
    arguments = far_end, DownloadSettings(1), str(tmp_path / "report.csv"), context.RawArray("q", 1)
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    far_end.close()
    os.write(pipe.fileno(), HALF_A_MESSAGE)
    pipe.close()
    process.join(60)  # seconds
    assert process.exitcode == 0


def test_a_report_cut_anywhere_is_continued_after_its_last_whole_row(tmp_path):
    path = tmp_path / "report.csv"
    with Report(str(path)) as written:
        for name in ("猫.jpg", 'a "b"\n,c.jpg', "=1\r.jpg"):
            written.add(Outcome(name, "http://图/", "failed", reason="长"))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with Report(str(path)) as resumed:
            kept = path.read_bytes()
            assert whole.startswith(kept) and len(kept) <= max(cut, whole.index(b"\n") + 1)
            resumed.add(Outcome("neu.jpg", "http://x/", "ok"))
            known = len(resumed.rows_that("failed"))
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows[-1]["filename"] == "neu.jpg" and len(rows) == known + 1


def test_on_a_full_disk_each_file_has_its_row_and_no_row_is_cut(tmp_path, server):
    resource = pytest.importorskip("resource")
    write_csv(tmp_path / "train.csv", [("", server.url(f"jpg/{i}?{'长' * 100}"), f"{i}.jpg") for i in range(60)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            downloading(tmp_path) as (outcomes, _),
            pytest.raises(OSError, match="File too large: .*download_report.csv"),
        ):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (20_000, before[1])
            )  # the kernel writes no file beyond this size
            list(outcomes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "download_report.csv").read_bytes().endswith(b"\n")
    done = set(report(tmp_path))
    assert 10 < len(done) < 60 and set(files(tmp_path)) == done
    by_reason, _ = download(tmp_path)
    assert by_reason == {("ok", ""): 60 - len(done), ("skipped", "exists"): len(done)}


def test_files_from_elsewhere_are_verified_once_and_broken_ones_fetched_again(tmp_path, server):
    images = tmp_path / "images"
    images.mkdir()
    names = ["whole.jpg", "half.jpg", "half-gone.jpg", "new.jpg", "train.csv"]
    kinds = ["status/404/a", "jpg/b", "status/404/c", "jpg/d", "jpg/e"]
    write_csv(images / "train.csv", [("", server.url(kind), name) for kind, name in zip(kinds, names, strict=True)])
    (tmp_path / "train.csv").symlink_to(images / "train.csv")
    (images / "whole.jpg").write_bytes(image_bytes(1))
    (images / "half.jpg").write_bytes(image_bytes(2)[:900])
    (images / "half-gone.jpg").write_bytes(image_bytes(3)[:900])
    verify = {"again": {"verify": True}}
    assert download(tmp_path, **verify)[0] == {
        ("verified", ""): 1,
        ("ok", ""): 2,
        ("failed", "http_404"): 1,
        ("skipped", "exists"): 1,  # the table itself
    }
    assert (images / "half.jpg").read_bytes() == image_bytes(zlib.crc32(b"b"))
    assert (images / "half-gone.jpg").read_bytes() == image_bytes(3)[
        :900
    ]  # better than nothing, until a whole one arrives
    (images / "whole.jpg").write_bytes(b"checked once")
    assert download(tmp_path, **verify)[0] == {("skipped", "exists"): 4, ("skipped", "failed_before"): 1}
    assert server.hits == {"/jpg/b": 1, "/status/404/c": 1, "/jpg/d": 1}


def test_leftovers_of_a_killed_download_are_removed_and_their_names_refused(tmp_path, server):
    (tmp_path / "images").mkdir()
    with pytest.raises(KeyError), new_file(str(tmp_path / "images" / "a.jpg"), "wb", sync=False) as file:
        temporary = Path(file.name if isinstance(file.name, str) else os.readlink(f"/proc/self/fd/{file.fileno()}"))
        raise KeyError
    temporary.write_bytes(b"left")
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/a"), "a.jpg"), ("", server.url("jpg/b"), temporary.name)])
    download(tmp_path)
    assert files(tmp_path) == ["a.jpg"]
    assert "temporary" in report(tmp_path)[temporary.name]["reason"]


def test_a_second_download_into_the_same_folder_or_report_is_refused(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url(f"slow/{i}"), f"{i}.jpg") for i in range(3)])
    with downloading(tmp_path) as (outcomes, _):
        next(outcomes)
        with pytest.raises(ValueError, match="download_report.csv is being written by another run"):
            download(tmp_path)
        with pytest.raises(ValueError, match="images is being written by another run"):
            download(tmp_path, report_name="other.csv")
    assert max(server.hits.values()) == 1


def test_parts_are_disjoint_and_complete_and_may_run_at_once(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url(f"jpg/{i}"), f"{i}.jpg") for i in range(40)])
    with contextlib.ExitStack() as running:
        parts = [
            running.enter_context(downloading(tmp_path, part=(index, 3), report_name=f"{index}.csv"))[0]
            for index in (1, 2, 3)
        ]
        names = [outcome.filename for outcomes in parts for outcome in outcomes]
    assert sorted(names) == sorted(f"{i}.jpg" for i in range(40))


def test_one_file_under_many_spellings_is_one_file_in_every_part(tmp_path, server):
    spellings = ["d/{}.jpg", "./d/{}.jpg", "d//{}.jpg", "d\\{}.jpg", "\ufeffd/./{}.jpg"]
    rows = [("", server.url(f"jpg/{i}"), name.format(i)) for i in range(8) for name in spellings]
    write_csv(tmp_path / "train.csv", [*rows, ("", server.url("jpg/other"), "d///3.jpg")])
    totals = Counter()
    for index in (1, 2, 3):
        totals.update(download(tmp_path, part=(index, 3))[0])
    assert totals == {("ok", ""): 8, ("skipped", "repeated"): 32, ("failed", "duplicate_filename"): 1}
    assert set(server.hits.values()) == {1} and len(server.hits) == 8
    assert files(tmp_path) == [f"d/{i}.jpg" for i in range(8)]
    assert download(tmp_path)[0][("skipped", "failed_before")] == 1


def test_fail_over_decides_the_exit_status_of_a_resumed_download_too(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/a"), "a.jpg"), ("", server.url("gif/b"), "b.jpg")])
    assert run_script(tmp_path, "--part", "1/1").returncode == 0
    assert run_script(tmp_path, "--shard", "1/1", "--fail_over", "0.2").returncode == 1  # the old name of --part
    assert run_script(tmp_path, "--fail_over", "0.5").returncode == 0


# --- security ----------------------------------------------------------------------------------------------------

BAD_NAMES = {
    "/etc/x.jpg": "absolute",
    "../x.jpg": "climbs out",
    "a/../../x.jpg": "climbs out",
    "a\\..\\x.jpg": "climbs out",
    "C:\\x.jpg": "absolute",
    "\\\\host\\x.jpg": "absolute",
    "": "empty",
    "folder/": "names a folder",
    ".": "names a folder",
    "NUL": "device name",
    "a/com1.jpg": "device name",
    "x" * 300 + ".jpg": "longer",
    "长" * 100 + ".jpg": "longer",
    "out/x.jpg": "symbolic link",
    "link.jpg": "symbolic link",
}


def test_file_names_cannot_leave_the_folder(tmp_path, server):
    outside = tmp_path / "outside"
    images = tmp_path / "images"
    outside.mkdir()
    images.mkdir()
    (outside / "target.jpg").write_bytes(b"mine")
    (images / "out").symlink_to(outside)
    (images / "link.jpg").symlink_to(outside / "target.jpg")
    write_csv(tmp_path / "train.csv", [("", server.url(f"jpg/{i}"), name) for i, name in enumerate(BAD_NAMES)])
    download(tmp_path)
    rows = report(tmp_path)
    for name, reason in BAD_NAMES.items():
        assert rows[name]["reason"].startswith("bad_filename: ") and reason in rows[name]["reason"], name
    assert not server.hits
    assert {path.name for path in tmp_path.iterdir()} == {"images", "outside", "train.csv", "download_report.csv"}
    assert [path.read_bytes() for path in outside.iterdir()] == [b"mine"]


def test_a_nul_byte_in_a_name_is_refused(tmp_path, server):
    with pytest.raises(ValueError, match="NUL"):
        writable_file(str(tmp_path), "a\0b.jpg")
    (tmp_path / "train.csv").write_bytes(b'text,url,filename\na,%s,"a\0b.jpg"\n' % server.url("jpg/x").encode())
    download(tmp_path)
    assert files(tmp_path) in ([], ["a"])  # before pandas 3, a cell ends at the NUL


def test_private_addresses_are_refused_before_a_connection_is_made(tmp_path, server):
    port = server.server_port
    hosts = ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
    hosts += ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "[fe80::1]", "100.64.0.1", "224.0.0.1"]
    write_csv(
        tmp_path / "train.csv", [("", f"http://{host}:{port}/jpg/x", f"{i}.jpg") for i, host in enumerate(hosts)]
    )
    _, said = download(tmp_path, limits=FetchLimits())
    for i, host in enumerate(hosts):
        assert report(tmp_path)[f"{i}.jpg"]["reason"].startswith("private_host"), host
    assert not server.hits
    assert f"{len(hosts)} URLs lead to private addresses." in said and "--allow_private_hosts --retry_failed" in said
    assert "another chance" not in said  # which would give the same


def test_an_unknown_host_and_a_refused_connection_have_different_reasons(tmp_path, server):
    with ImageServer() as gone:
        pass
    urls = {"a.jpg": "http://no-such-host.invalid/x", "b.jpg": gone.url("jpg/x"), "c.jpg": server.url("jpg/x")}
    write_csv(tmp_path / "train.csv", [("", url, name) for name, url in urls.items()])
    download(tmp_path)
    reasons = {name: row["reason"] for name, row in report(tmp_path).items()}
    assert reasons["a.jpg"].startswith("dns: no-such-host.invalid: ")
    assert reasons["b.jpg"] == "connection: Connection refused"


def test_only_http_and_https_are_fetched(tmp_path):
    urls = ["file:///etc/passwd", "ftp://example.com/x.jpg", "data:image/png;base64,AA", "", "http://", "http:/x/y"]
    urls += ["http://[bad/x.jpg", "http://host:port/x.jpg"]
    write_csv(tmp_path / "train.csv", [("", url, f"{i}.jpg") for i, url in enumerate(urls)])
    download(tmp_path)
    assert {row["reason"].partition(":")[0] for row in report(tmp_path).values()} == {"bad_url"}
    assert len(report(tmp_path)) == len(urls)


def test_everything_goes_through_a_proxy_and_written_out_addresses_are_still_refused(tmp_path, server):
    urls = ["http://no-such-host.invalid/jpg/x", "http://127.1/jpg/x", "http://localhost./jpg/x"]
    urls += [f"http://no-such-host.invalid/to/{server.url('jpg/x')}"]
    write_csv(tmp_path / "train.csv", [("", url, f"{i}.jpg") for i, url in enumerate(urls)])
    download(tmp_path, limits=FetchLimits(proxy=f"http://{server.address}"))
    assert files(tmp_path) == ["0.jpg"]
    for i in (1, 2, 3):
        assert report(tmp_path)[f"{i}.jpg"]["reason"].startswith("private_host")


def test_no_cookie_and_no_environment_proxy_is_used_and_the_user_agent_is_sent(tmp_path, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/x"), "a.jpg")])
    download(tmp_path, limits=replace(LOCAL, user_agent="测试者/1.0".encode().decode("latin-1")))
    assert files(tmp_path) == ["a.jpg"]
    assert "Cookie" not in server.headers["/jpg/x"] and "/1.0" in server.headers["/jpg/x"]["User-Agent"]


def test_options_that_differ_from_the_default_manners_are_named_in_the_summary(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/x"), "a.jpg")])
    particular = replace(LOCAL, referer="{origin}/", user_agent="me", no_verify_tls=("a.com", "b.com"))
    said = download(tmp_path, limits=particular)[1]
    assert "Referer sent: {origin}/\n" in said and "User-Agent sent: me\n" in said
    assert "Certificates not verified: a.com, b.com and the hosts below." in said
    assert server.headers["/jpg/x"]["Referer"] == server.url("")
    assert not any(word in download(tmp_path)[1] for word in ("Referer", "User-Agent", "Certificates"))


# --- the table ---------------------------------------------------------------------------------------------------


def test_unicode_names_commas_quotes_and_long_urls_survive(tmp_path, server):
    long_url = server.url("jpg/u=1234,5678&fm=253?" + "&".join(f"k{i}=%E4%BD%A0{i}" for i in range(60)))
    rows = [('一只,"猫"', long_url, "子目录/小猫 🐱.jpg"), ("狗", server.url("jpg/图片.jpg"), "狗.jpg")]
    write_csv(tmp_path / "train.csv", rows, encoding="utf-8-sig")
    download(tmp_path)
    assert files(tmp_path) == sorted(["子目录/小猫 🐱.jpg", "狗.jpg"])


def test_copied_urls_are_mended_and_counted(tmp_path, server):
    path = f"{server.address}/jpg/x"
    rows = [f"http://{path}?a=1&amp;b=2", f"//{path}", f"\ufeff\u200bhttp://{path}2", f" http://{path}3"]
    again = ("", f"http://{path}?a=1&b=2", "0.jpg")
    write_csv(tmp_path / "train.csv", [*(("", url, f"{i}.jpg") for i, url in enumerate(rows)), again])
    by_reason, said = download(tmp_path)
    assert by_reason == {("ok", ""): 4, ("skipped", "repeated"): 1}
    assert set(server.hits) == {"/jpg/x?a=1&b=2", "/jpg/x", "/jpg/x2", "/jpg/x3"}
    assert re.search(r"^3 URLs were mended", said, re.M)
    assert download(tmp_path)[0] == {("skipped", "exists"): 4, ("skipped", "repeated"): 1}


def test_one_content_under_many_names_is_reported(tmp_path, server):
    rows = [("", server.url(f"png/{i}"), f"同/{i}.png") for i in range(5)]
    write_csv(tmp_path / "train.csv", rows + [("", server.url(f"jpg/{i}"), f"{i}.jpg") for i in range(20)])
    names = re.search(r"^5 files have the same bytes.*: (.*), …$", download(tmp_path)[1], re.M)[1].split(", ")
    assert len(names) == 3 and all(re.fullmatch("同/[0-4].png", name) for name in names)
    assert "same bytes" not in download(tmp_path)[1]


def test_text_from_a_server_is_escaped_in_the_report(tmp_path, server):
    server.answers["odd"] = [b"HTTP/1.1 999 \x1b[2J" + b"x" * 9000 + b"\r\n\r\n"]
    write_csv(tmp_path / "train.csv", [("", server.url("raw/odd"), "=cmd|1.jpg")])
    download(tmp_path)
    (row,) = report(tmp_path).values()
    assert row["filename"] == "'=cmd|1.jpg" and len(row["reason"]) < 400
    assert row["reason"].startswith(r"http_999: \x1b[2Jxxx")
    assert download(tmp_path)[0] == {("skipped", "failed_before"): 1}


def test_an_image_too_narrow_to_resize_has_a_reason(tmp_path, server):
    buffer = io.BytesIO()
    Image.new("L", (70_000, 2)).save(buffer, "PNG")
    server.answers["narrow"] = [b"HTTP/1.1 200 OK\r\n\r\n", buffer.getvalue()]
    write_csv(tmp_path / "train.csv", [("", server.url("raw/narrow"), "a.jpg")])
    download(tmp_path, resize=100)
    assert report(tmp_path)["a.jpg"]["reason"].startswith("long_and_narrow: 70000 x 2")


def test_duplicated_file_names_keep_the_first_url_and_further_captions_cost_nothing(tmp_path, server):
    rows = [(text, server.url(f"jpg/{i}"), "x.jpg") for text, i in (("a", 1), ("b", 2), ("c", 1))]
    write_csv(tmp_path / "train.csv", rows)
    by_reason, _ = download(tmp_path)
    assert server.hits == {"/jpg/1": 1}
    with open(tmp_path / "download_report.csv") as file:
        failed = [row for row in csv.DictReader(file) if row["status"] == "failed"]
    assert [(row["url"], row["reason"]) for row in failed] == [
        (rows[1][1], "duplicate_filename: row 1 has the name of row 2 with another URL")
    ]
    assert by_reason[("skipped", "repeated")] == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"text,address,filename\na,b,c\n", "no column `url` (found: text, address, filename)"),
        ("text,url,filename\n猫,b,狗\n".encode("gb18030"), "is not UTF-8"),
        (b'text,url,filename\na,b,c\nd,"e,f\n', "not a well-formed CSV"),
    ],
)
def test_an_unusable_table_is_refused_and_leaves_no_report(tmp_path, content, message):
    if content is not None:
        (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        download(tmp_path)
    assert not (tmp_path / "download_report.csv").exists()


def test_a_mistyped_name_is_reported_before_anything_is_written(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/a"), "a.jpg")])
    images = ("--image_path", tmp_path / "images")
    for table, message in (
        (tmp_path / "dta" / "train.csv", "train.csv: no such file. Expected a table with the columns url, filename."),
        ("s3://bucket/train.csv", "s3://bucket/train.csv is not on this machine, and the report must be: name it by"),
    ):
        done = run_python("download_image.py", "--train_file", table, *images)
        assert done.returncode == 2 and message in done.stderr
    assert os.listdir(tmp_path) == ["train.csv"]


def test_parquet_without_file_names_is_downloaded_and_its_report_resumed(tmp_path, server):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"URL": [server.url(f"jpg/{i}") for i in range(3)], "TEXT": list("一二三")})
    table.to_parquet(tmp_path / "laion.parquet")
    assert download(tmp_path, table="laion.parquet")[0] == {("ok", ""): 3}
    names = [filename_from_url(url) for url in table["URL"]]
    assert files(tmp_path) == sorted(names) and set(report(tmp_path)) == set(names)
    table.rename(columns={"URL": "link"}).to_parquet(tmp_path / "laion.parquet")
    assert download(tmp_path, table="laion.parquet", columns={"url": "link"})[0] == {("skipped", "exists"): 3}


def test_a_folder_or_pattern_of_tables_is_one_table_and_its_report_is_not_in_it(tmp_path, server):
    folder = tmp_path / "tables"
    folder.mkdir()
    for i in range(3):  # the name twice.jpg is that of a row in each
        rows = [("", server.url(f"jpg/{i}"), f"{i}.jpg"), ("", server.url("jpg/twice"), "twice.jpg")]
        write_csv(folder / f"{i}.csv", rows)
    for table in (folder, folder / "*.csv"):
        report_path = default_report(str(table), (1, 1))
        assert os.path.dirname(report_path) == str(tmp_path)
        by_reason, _ = download(tmp_path, table=table, report_name=report_path)
    assert by_reason == {("skipped", "exists"): 4, ("skipped", "repeated"): 2}
    assert server.hits.total() == 4
    assert default_report("a/b.csv", (1, 2)) == os.path.join("a", "download_report.1-of-2.csv")


def test_joined_reports_of_parts_are_the_report_of_the_whole(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url(f"status/404/{i}"), f"{i},\n.jpg") for i in range(8)])
    paths = [default_report(str(tmp_path / "train.csv"), (index, 2)) for index in (1, 2)]
    for index, path in enumerate(paths, 1):
        download(tmp_path, part=(index, 2), report_name=path)
    join_reports(str(tmp_path / "train.csv"))
    assert download(tmp_path)[0] == {("skipped", "failed_before"): 8}


def test_a_table_without_rows_is_done_at_once(tmp_path):
    write_csv(tmp_path / "train.csv", [])
    assert run_script(tmp_path, "--fail_over", "0").returncode == 0


def test_a_file_of_another_program_is_never_taken_for_a_report(tmp_path, server):
    write_csv(tmp_path / "train.csv", [("", server.url("jpg/x"), "a.jpg")])
    (tmp_path / "notes.csv").write_text("my,notes\n1,2\n")
    with pytest.raises(ValueError, match="is not a download report: its columns are my, notes"):
        download(tmp_path, report_name="notes.csv")
    assert (tmp_path / "notes.csv").read_text() == "my,notes\n1,2\n"


@pytest.mark.parametrize(
    "option",
    [
        ("--part", "0/2"),
        ("--part", "1/2", "--join_reports"),
        ("--to_img2dataset", "links", "--join_reports"),
        ("--proxy", "socks5://127.0.0.1:1"),
        ("--num_threads", "0"),
    ],
)
def test_impossible_options_are_refused(tmp_path, option):
    write_csv(tmp_path / "train.csv", [])
    done = run_script(tmp_path, *option)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_table_for_img2dataset_keeps_texts_as_they_are(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [('一只,"猫"\n', "http://x/1", "1.jpg"), ("007", "http://x/2", "2.jpg"), ("NA", "http://x/3", "")]
    write_csv(tmp_path / "train.csv", rows, encoding="utf-8-sig")
    done = run_script(tmp_path, "--to_img2dataset", tmp_path / "links.parquet")
    assert done.returncode == 0 and "img2dataset \\\n  --url_list" in done.stdout
    table = parquet.read_table(tmp_path / "links.parquet")
    assert table.column_names == ["url", "caption", "filename"]
    assert list(zip(*(table[name].to_pylist() for name in ("caption", "url", "filename")), strict=True)) == rows
    assert not (tmp_path / "images").exists()


def test_a_table_without_file_names_is_handed_over_without_them_in_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("component.download.img2dataset_table.FILE_ROWS", 3)
    for number in range(2):
        urls = [("一只猫", f"http://x/{number}/{row}") for row in range(2)]
        write_csv(tmp_path / f"wukong_{number}.csv", urls, header=("caption", "url"))
    table = write_img2dataset_table(str(tmp_path / "wukong_*.csv"), str(tmp_path / "links"))
    assert table == (str(tmp_path / "links"), 4, False) and sorted(os.listdir(table.path)) == [
        "00000.parquet",
        "00001.parquet",
    ]
    assert list(pd.read_parquet(table.path)) == ["url", "caption"] and len(pd.read_parquet(table.path)) == 4
    assert "save_additional_columns" not in img2dataset_instructions(table, 1)


def test_the_table_for_img2dataset_never_replaces_what_is_there(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "wukong").mkdir()
    table = tmp_path / "wukong" / "0.parquet"
    pd.DataFrame({"caption": ["猫"], "url": ["http://x/1"]}).to_parquet(table)
    before = table.read_bytes()
    for out, message in (
        (table.parent, "is not empty; give a new folder"),
        (table, "is one of the files that are read"),
    ):
        with pytest.raises(ValueError, match=message):
            write_img2dataset_table(str(table.parent), str(out))
    assert table.read_bytes() == before


def test_a_file_that_is_not_a_table_of_urls_is_refused_with_what_it_is(tmp_path):
    captions = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "猫"}]}
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(captions))
    for use in (
        lambda files: write_img2dataset_table(files, str(tmp_path / "links")),
        lambda files: Rows(files, str(tmp_path / "images"), (1, 2)),
    ):
        with pytest.raises(ValueError, match="a.json holds captions as COCO's or Karpathy's JSON, not a table"):
            use(str(tmp_path / "*.json"))


def test_parts_of_many_files_without_file_names_read_only_their_own(tmp_path):
    for number in range(3):
        urls = [("猫", f"http://x/{number}/{row}.jpg") for row in range(4)]
        write_csv(tmp_path / f"{number}.csv", urls, header=("caption", "url"))
    with open(tmp_path / "1.csv", "a") as file:
        file.write("one,cell,too many\n")
    with Rows(str(tmp_path / "*.csv"), str(tmp_path / "images"), (1, 2)) as rows:
        assert {row.url[9] for row in rows.rows()} == {"0", "2"} and len(rows) == 8
    with pytest.raises(ValueError, match="1.csv is not a well-formed CSV, in line 6"):
        Rows(str(tmp_path / "*.csv"), str(tmp_path / "images"), (2, 2))
    with pytest.raises(ValueError, match="1.csv is not a well-formed CSV, in line 6"):  # fewer files than parts
        Rows(str(tmp_path / "*.csv"), str(tmp_path / "images"), (1, 4))


def test_the_reports_of_all_parts_are_joined(tmp_path):
    write_csv(tmp_path / "train.csv", [("一", f"http://x/{row}", f"{row}.jpg") for row in range(9)])
    options = ("--train_file", tmp_path / "train.csv", "--join_reports")

    def join():
        return run_python("download_image.py", *options)

    assert "there is no report of a part" in join().stderr
    for index in (1, 3):
        with Report(default_report(str(tmp_path / "train.csv"), (index, 3))) as part:
            part.add(Outcome(f"{index}.jpg", f"http://x/{index}", "failed", reason="http_404"))
    assert "2-of-3.csv: no such file; 2 of 3 parts have a report" in join().stderr
    with Report(default_report(str(tmp_path / "train.csv"), (2, 3))):
        pass
    with open(tmp_path / "download_report.3-of-3.csv", "a") as file:
        file.write("half a r")  # of a process that was killed
    done = join()
    assert done.returncode == 0 and done.stdout.startswith("The reports of 3 parts are in "), done.stderr
    assert list(report(tmp_path)) == ["1.jpg", "3.jpg"]
    with Report(str(tmp_path / "download_report.csv")) as joined:
        assert len(joined.rows_that("failed")) == 2
    assert "exists. Remove it" in join().stderr


IMG2DATASET = os.environ.get("IMG2DATASET") or shutil.which("img2dataset")


@pytest.mark.skipif(not IMG2DATASET, reason="IMG2DATASET is not the path of img2dataset, nor is it installed")
def test_the_printed_command_of_img2dataset_makes_shards_that_are_read(tmp_path, server):
    write_csv(tmp_path / "train.csv", [(f"文字 {i}", server.url(f"large/{i}"), f"{i}.jpg") for i in range(3)])
    said = img2dataset_instructions(write_img2dataset_table(str(tmp_path / "train.csv"), str(tmp_path / "links")), 1)
    command = said.split("\n\n")[1].replace("img2dataset", shlex.quote(IMG2DATASET), 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    shard = re.search(r'"train_file": "(.*)"', said)[1]
    (index,) = read_shards(pair_files(str(tmp_path / shard)))
    assert sorted(index.texts) == ["文字 0", "文字 1", "文字 2"]

"""Shards and tables where they lie: on web servers and in object stores, which fail, stall and change."""

import io
import os
import tarfile
from functools import partial

import pytest
from conftest import CAPTIONS, run_python
from image_server import image_bytes
from object_store import ObjectStore

from component.ground import file_systems, remote
from component.ground.file_state import FileState
from component.image.reading import BadImageError
from component.pairs.image_stores import expect_images
from component.pairs.shards import index_shard, index_shards
from component.pairs.sources import check_pair_files, read_pair_files
from component.pairs.table_files import pair_files

pytest.importorskip("s3fs")
ROADS = ("http", "s3")


@pytest.fixture(scope="module")
def server():
    with ObjectStore() as store:
        yield store


@pytest.fixture
def store(server, monkeypatch):
    """An empty store, which s3fs finds by the usual variables."""
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL_S3": server.url}.items():
        monkeypatch.setenv(name, value)
    server.objects, server.faults, server.has_etags = {}, {}, True
    server.forget()
    remote._source.cache_clear()
    return server


def url(store, road: str, name: str) -> str:
    return f"s3://b/{name}" if road == "s3" else f"{store.url}/b/{name}"


def shard(samples: int, size: int | None = None, first: int = 0) -> bytes:
    """A tar of pairs; of random bytes of a size instead of images if one is given."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(first, first + samples):
            image = os.urandom(size) if size else image_bytes(number)
            for ending, content in (
                ("jpg", image),
                ("json", b'{"caption": "no"}'),
                ("txt", CAPTIONS[number % 8].encode()),
            ):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(("samples", "size", "most_requests"), [(300, 20_000, 8), (5, 3_000_000, 8)])
def test_headers_cost_few_requests_and_images_are_read_once(store, tmp_path, road, samples, size, most_requests):
    content = store.objects["/b/0.tar"] = shard(samples, size)
    (tmp_path / "0.tar").write_bytes(content)
    local, index = index_shard(str(tmp_path / "0.tar")), index_shard(url(store, road, "0.tar"))
    assert (index.locators, index.texts, index.faults) == (local.locators, local.texts, [])
    assert store.requests["GET"] <= most_requests  # a request for each header would be 900, or 15
    assert store.sent <= (len(content) if size < 10**6 else 10**6)
    store.forget()
    for start in range(0, samples, 100):
        batch = index.locators[start : start + 100]
        expect_images((index.shard, locator) for locator in batch)
        assert [index.shard.read(locator) for locator in batch] == [local.shard.read(locator) for locator in batch]
    assert store.requests["GET"] <= 5
    assert store.sent <= len(content)


def test_worker_processes_open_their_own_after_a_fork(store):
    store.objects = {f"/b/{name}.tar": shard(2, first=10 * name) for name in range(3)}
    files = pair_files("s3://b/{0..2}.tar")
    assert pair_files("s3://b/?.tar") == files
    check_pair_files(files, None)
    first = [index.texts[0] for index in index_shards(files, num_workers=2)]
    assert first == [CAPTIONS[0], CAPTIONS[2], CAPTIONS[4]]
    assert len(index_shard(files[0]).texts) == 2  # and this process keeps its own


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("faults", [[500], [503, 503], [0.0, 0.0, 1.0]], ids=["error", "slow down", "silence"])
def test_a_store_that_fails_for_a_while_is_asked_again(store, monkeypatch, road, faults):
    if faults[0] == 0.0 and road == "s3":
        pytest.skip("its limit of 15 s is s3fs's own")
    monkeypatch.setattr(file_systems, "STALL_SECONDS", 0.4)
    monkeypatch.setattr("component.ground.retries.RETRY_SECONDS", (0.01, 0.01))
    store.objects["/b/0.tar"], store.faults["/b/0.tar"] = shard(20), list(faults)
    assert len(index_shard(url(store, road, "0.tar")).texts) == 20
    assert not store.faults["/b/0.tar"]


def test_final_errors_say_what_to_do(store, monkeypatch):
    monkeypatch.setattr("component.ground.retries.RETRY_SECONDS", (0.01, 0.01))
    store.objects["/b/0.tar"] = shard(1)
    for road in ROADS:
        store.faults["/b/0.tar"] = [403, 403]
        assert "check credentials and rights" in index_shard(url(store, road, "0.tar")).error
        store.forget()
        with pytest.raises(FileNotFoundError, match="none.tar: no such file"):
            check_pair_files(url(store, road, "none.tar"), None)
        assert store.requests.total() <= 2  # it is not asked again
    store.faults["/b/0.tar"] = [503] * 30
    assert "the store does not answer" in index_shard(url(store, "http", "0.tar")).error
    with pytest.raises(ModuleNotFoundError, match="pip install ossfs"):
        check_pair_files("oss://b/0.tar", None)
    with pytest.raises(ValueError, match="there is no file system nosuch://"):
        check_pair_files("nosuch://b/0.tar", None)


@pytest.mark.parametrize("road", ROADS)
def test_a_shard_that_is_replaced_is_noticed(store, road):
    store.objects["/b/0.tar"] = shard(3, 200_000)
    index = index_shard(url(store, road, "0.tar"))
    index.shard.read(index.locators[0])
    store.objects["/b/0.tar"] = shard(3, 200_000)
    with pytest.raises(BadImageError, match="the shard has changed"):
        index.shard.read(index.locators[1])


def test_without_an_etag_the_time_of_the_last_change_tells(store):
    store.objects["/b/0.tar"] = shard(1)
    with_etag = FileState.of(url(store, "http", "0.tar"))
    remote._source.cache_clear()
    store.has_etags = False
    state = FileState.of(url(store, "http", "0.tar"))
    assert (state.size, len({state, with_etag})) == (with_etag.size, 2)


def test_a_table_is_read_from_a_store(store, tmp_path):
    store.objects["/b/t.csv"] = "text,filename\n小狗,1.jpg\n".encode()
    ((_, rows),) = read_pair_files("s3://b/t.csv", str(tmp_path))
    assert rows.values.tolist() == [["小狗", "1.jpg"]]


def test_training_reads_each_shard_for_index_and_features_and_later_starts_read_none(store, train_args, tmp_path):
    store.objects = {f"/b/{name}.tar": shard(8, first=8 * name) for name in range(2)}
    file = train_args(
        train_file=url(store, "http", "{0..1}.tar"),
        image_path=None,
        image_feature_cache=str(tmp_path / "features"),
        pair_table=str(tmp_path / "tables"),
        dataloader_num_workers=2,
        max_steps=1,
        save_strategy="no",
    )
    train = partial(run_python, "train_clip.py", "--train_args_file", file, "--set", "overwrite_output_dir=true")
    done, first = train(), store.sent
    assert done.returncode == 0, done.stderr
    assert "the pairs are read once" in done.stderr and "image features of 16 images" in done.stderr
    store.forget()
    done = train()
    assert done.returncode == 0, done.stderr
    assert "read once" not in done.stderr and "image features of" not in done.stderr
    assert store.sent < first / 2  # the few images that every start looks at

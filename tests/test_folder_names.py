"""Names that a folder takes for the same file."""

import os
import subprocess

import pytest
from conftest import write_csv
from downloading import download, files
from image_server import ImageServer

from component.download.folder_names import NameRules


@pytest.fixture
def case_insensitive(tmp_path):
    """A folder that takes Dog.jpg and dog.jpg for one file: an ext4 of that kind, where one can be mounted."""
    folder = tmp_path / "images"
    folder.mkdir()
    if NameRules.of(str(folder)).ignore_case:  # macOS, Windows
        yield folder
        return
    image = tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(8 * 2**20)
    commands = [["mkfs.ext4", "-q", "-O", "casefold", image], ["mount", "-o", "loop", image, folder]]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no case-insensitive folder can be mounted here")
    try:
        os.rmdir(folder / "lost+found")
        subprocess.run(["chattr", "+F", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_testing_a_folder_leaves_no_file_in_it(tmp_path):
    rules = NameRules.of(str(tmp_path))
    assert not list(tmp_path.iterdir())
    names = ["Dog.jpg", "dog.jpg"]
    for name in names:
        (tmp_path / name).touch()
    assert rules.ignore_case == (len(list(tmp_path.iterdir())) == 1)


@pytest.mark.parametrize(
    "rules, alike, apart",
    [
        (NameRules(), [], ["Dog.jpg", "dog.jpg", "dog.jpg.", "dog.jpg ", "\u00e9", "e\u0301"]),
        (NameRules(ignore_case=True), ["Dog.jpg", "dog.JPG"], ["dog.jpg.", "dog.jpg"]),
        (NameRules(ignore_endings=True), ["a/b", "a/b.", "a/b ", "a. /b"], ["A/b", "a/.b", "a/..", "a/b"]),
        (NameRules(ignore_composition=True), ["\u00e9", "e\u0301"], ["\u00c9", "\u00e9"]),
    ],
)
def test_names_that_a_folder_takes_for_one_have_one_key(rules, alike, apart):
    assert len({rules.key(name) for name in alike}) <= 1
    assert len({rules.key(name) for name in apart}) == len(apart)


def test_similar_names_with_two_urls_are_refused_only_if_the_folder_takes_them_for_one(tmp_path):
    with ImageServer() as server:
        write_csv(
            tmp_path / "train.csv", [("", server.url(f"jpg/{i}"), name) for i, name in enumerate(["Dog", "dog"])]
        )
        by_reason, _ = download(tmp_path)
    assert by_reason[("ok", "")] == len(files(tmp_path))


def test_names_that_differ_in_capitals_are_refused_with_both_rows(tmp_path, case_insensitive):
    with ImageServer() as server:
        rows = [("", server.url("jpg/1"), "Dog.jpg"), ("", server.url("jpg/2"), "dog.jpg")]
        write_csv(tmp_path / "train.csv", [*rows, ("another caption", server.url("jpg/1"), "DOG.jpg")])
        by_reason, _ = download(tmp_path)
    assert by_reason == {("ok", ""): 1, ("skipped", "repeated"): 1, ("failed", "duplicate_filename"): 1}
    assert "row 1 has the name of row 2" in (tmp_path / "download_report.csv").read_text()

"""The documentation: both languages match, the examples run, and the files and options it names exist."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import run_docs

REPOSITORY = Path(ROOT)
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
ENGLISH = [page for page in PAGES if page.stem.endswith("_EN")]
CHINESE = [page for page in PAGES if page not in ENGLISH]


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def marked(page: Path) -> list[run_docs.Block]:
    return list(run_docs.blocks(page.read_text(encoding="utf-8")))


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks in these languages, without comments. A drawing has no language."""
    return [re.sub(r" *# .*", "", block.code) for block in marked(page) if block.language in languages]


def prose(page: Path) -> str:
    return run_docs.BLOCK.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^(#+) (.+)$", prose(page), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them: lower case, without punctuation, a hyphen for each space."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text in headings(page)}


def links(page: Path) -> list[tuple[Path, str]]:
    """File and anchor of each link inside the repository."""
    targets = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose(page))
    return [((page.parent / path).resolve() if path else page, anchor) for path, anchor in targets]


def test_every_page_exists_in_both_languages():
    assert [page.stem.removesuffix("_EN") for page in ENGLISH] == [page.stem for page in CHINESE]


@pytest.mark.parametrize("chinese, english", list(zip(CHINESE, ENGLISH, strict=True)), ids=name)
def test_both_languages_match(chinese, english):
    assert [level for level, _ in headings(chinese)] == [level for level, _ in headings(english)]
    # `py` marks Python that needs other packages.
    languages = ("bash", "python", "py", "text")
    assert blocks(chinese, *languages) == blocks(english, *languages)
    assert len(blocks(chinese, "")) == len(blocks(english, ""))
    marks, others = ([block.marks for block in marked(page)] for page in (chinese, english))
    assert marks == others
    for table_or_list in (r"^\|.*", r"^- .*"):
        found = [re.findall(table_or_list, prose(page), re.MULTILINE) for page in (chinese, english)]
        assert [line.count("|") for line in found[0]] == [line.count("|") for line in found[1]]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_comment_is_a_mark_for_run_docs(page):
    comments = re.findall("^ *<!--", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(comments) == sum(len(block.marks) for block in marked(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_link_targets_exist(page):
    assert all(file.exists() for file, _ in links(page)), links(page)
    assert all(anchor in anchors(file) for file, anchor in links(page) if anchor), links(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_stay_in_the_language(page):
    switch, *others = [file for file, _ in links(page) if file in PAGES]
    assert (switch in ENGLISH) != (page in ENGLISH)
    assert all((file in ENGLISH) == (page in ENGLISH) for file in others)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page):
    text = " ".join(re.findall(r"`[^`\n]+`", prose(page)) + blocks(page, "bash", "python"))
    folders = r"(?:component|tests|benchmarks|docs|images|train_args|data/demo)/[\w./*\[\]-]+"
    files = r"(?<![\w/])(?:\w+\.py|requirements[\w-]*\.txt)\b"
    assert not [
        path
        for path in re.findall(f"{folders}|{files}", text)
        if not list(REPOSITORY.glob(path.rstrip("/."))) + list(REPOSITORY.glob(f"component/*/{path}"))
    ]


@pytest.mark.parametrize("page", ["download_and_filter", "similarity_and_evaluation", "search", "finetuning"])
def test_options_exist(page):
    known = re.findall(r'"(--\w+)"', "".join(script.read_text(encoding="utf-8") for script in REPOSITORY.glob("*.py")))
    page = REPOSITORY / f"docs/{page}.md"
    text = " ".join([prose(page), *blocks(page, "bash")])
    named = set(re.findall(r"(?<=[ `])--\w+", text))
    assert named and named <= {*known, "--nproc_per_node"}, named - set(known)


@pytest.mark.parametrize("page", CHINESE, ids=name)
def test_chinese_has_full_width_punctuation(page):
    text = re.sub(r"`[^`\n]+`|\]\([^)]+\)", "`", prose(page))
    assert not re.findall(r".{0,9}[\u4e00-\u9fff）`][,;:?!].{0,9}|.{0,9}[,;:?!][\u4e00-\u9fff].{0,9}", text)


@pytest.mark.parametrize("page", [page for page in CHINESE if blocks(page, "python")], ids=name)
def test_python_examples_run(page, data, bert_clip_path, monkeypatch):
    from transformers import CLIPProcessor

    monkeypatch.setattr(CLIPProcessor, "tokenizer_class", "BertTokenizerFast", raising=False)
    (data.parent / "images").symlink_to(REPOSITORY / "images")
    monkeypatch.chdir(data.parent)
    for example in blocks(page, "python"):
        exec(example.replace("output/demo/checkpoint-final", bert_clip_path), {})


@pytest.mark.parametrize(
    "printed, expected, tolerance, equal",
    [
        ("a\nimage   1  99.31%\nb\n", "image  1   99.4%\n", 0.001, True),
        ("image 1 99.31%\n", "image 1 99.6%\n", 0.001, False),
        ("image 2 99.31%\n", "image 1 99.31%\n", 0.5, False),  # whole numbers and words are equal
        ("one\ntwo\nthree\n", "one\nthree\n", 0, False),
        ("---- -----\n", "--------\n", 0, False),
        ("----\n", "--------\n", 0, True),
    ],
)
def test_shown_output_is_compared_line_by_line(printed, expected, tolerance, equal):
    assert run_docs.shows(printed, expected, tolerance) == equal


def test_of_a_progress_bar_only_its_last_state_counts():
    assert run_docs.as_shown("a\n\r 1%\r 99%\r    \rb\r\n") == "a\nb\r\n"

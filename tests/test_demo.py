"""The demo's tables."""

from pathlib import Path

import pandas as pd

DEMO = Path(__file__).parents[1] / "data" / "demo"


def test_no_training_pair_occurs_twice():
    assert not pd.read_csv(DEMO / "train.csv").duplicated(["text", "filename"]).any()


def test_no_training_caption_contains_a_held_out_keyword():
    captions = "\n".join(pd.read_csv(DEMO / "train.csv")["text"])
    assert [word for word in pd.read_csv(DEMO / "test_keywords.csv")["text"] if word in captions] == []


def test_training_never_sees_the_test_style():
    styles = {
        table: {name.split("/")[0] for name in pd.read_csv(DEMO / f"{table}.csv")["filename"]}
        for table in ("train", "test", "test_keywords")
    }
    assert styles["test"] == styles["test_keywords"] == {"fluent"} and "fluent" not in styles["train"]

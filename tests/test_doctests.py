"""The examples in the docstrings of component/ run and print what they show."""

import doctest
import importlib

import numpy as np
import pytest
import torch
from conftest import ROOT

from component.checkpoint import load_checkpoint

MODULES = ["embedding", "loss", "metrics", "prompts", "shorten", "similarity"]


@pytest.fixture(scope="module")
def names(bert_clip_path) -> dict:
    """What the examples may use without importing it."""
    model, processor = load_checkpoint(bert_clip_path)
    return {"np": np, "torch": torch, "model": model, "processor": processor}


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_show(module, names, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = doctest.testmod(importlib.import_module(f"component.{module}"), extraglobs=names)
    assert results.attempted and not results.failed

"""--help of every script works before anything is installed, and without importing heavy packages."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = sorted(name for name in os.listdir(ROOT) if name.endswith(".py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_no_package(script):
    bare = [sys.executable, "-S"]  # without site-packages
    done = subprocess.run([*bare, os.path.join(ROOT, script), "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and done.returncode == 0, done

"""--help of every script works without installing or importing heavy packages."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = sorted(name for name in os.listdir(ROOT) if name.endswith(".py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_no_heavy_package(script):
    code = (
        "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('heavy:', {'torch', 'transformers', 'pandas', 'numpy', 'PIL', 'matplotlib', 'requests'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, os.path.join(ROOT, script)], capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and "heavy: set()" in done.stdout, done

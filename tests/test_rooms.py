"""Imports between the rooms of component/ point one way, as the table in CONTRIBUTING.md says."""

import ast
from pathlib import Path

import pytest

COMPONENT = Path(__file__).parents[1] / "component"
FOLDERS = {path.name for path in COMPONENT.iterdir() if (path / "__init__.py").exists()}
TOP = {path.stem for path in COMPONENT.glob("*.py")} - {"__init__"}


def rooms_known_to(room: str) -> set[str]:
    if room in {"ground", "loss", "metrics"}:
        return set()
    if room in {"hub", "image"}:
        return {"ground"}
    if room == "pairs":
        return {"ground", "image"}
    if room == "gallery":
        return {"ground", "image", "pairs"}
    common = TOP | {"ground", "hub", "image", "pairs", "gallery"}
    machinery = {"argument": {"recipe"}, "trainer": {"training"}, "report": {"evaluation", "search"}}
    return common | machinery.get(room, set())


@pytest.mark.parametrize("path", sorted(COMPONENT.rglob("*.py")), ids=lambda path: str(path.relative_to(COMPONENT)))
def test_imports_point_one_way(path):
    room = path.relative_to(COMPONENT).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            first, *inside = name.split(".")
            assert not (COMPONENT.parent / f"{first}.py").exists(), f"{name} is a script"
            if first == "component":
                assert inside and (inside[0] == room or inside[0] in rooms_known_to(room)), f"{room} imports {name}"


def test_every_init_file_is_empty():
    assert FOLDERS and not any(path.read_text() for path in COMPONENT.rglob("__init__.py"))

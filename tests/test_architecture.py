"""The way of the data is one direction: a package of `iar_study` imports only from those before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "iar_study"
ORDER = [
    *("codebook", "tokenizers", "generators", "losses", "data", "evaluation", "training"),
    *("study", "pipeline", "tracking", "running", "evidence", "reporting"),
]


def imported(path: Path, at_once: bool = False) -> set[str]:
    """The modules that a file imports, wherever in the file it does so; `at_once`: only on being imported itself."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_once else list(ast.walk(tree))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module} | {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }


def test_every_room_has_its_place_says_what_it_is_for_and_no_file_name_stands_twice():
    rooms = {path.parent for path in PACKAGE.glob("*/__init__.py")}
    assert {room.name for room in rooms} == set(ORDER)
    for room in rooms:
        assert len(ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "") > 40, room
    names = [path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_from_those_before_it(package):
    later = {f"iar_study.{name}" for name in ORDER[ORDER.index(package) + 1 :]} | {"iar_study.cli", "experiments"}
    for path in (PACKAGE / package).glob("*.py"):
        for module in imported(path):
            assert not any(module == name or module.startswith(f"{name}.") for name in later), (path.name, module)


def test_the_codebook_needs_neither_torch_nor_mlflow_and_mlflow_is_known_in_one_place():
    for path in PACKAGE.rglob("*.py"):
        roots = {module.partition(".")[0] for module in imported(path)}
        if path.parent.name == "codebook":
            assert "torch" not in {module.partition(".")[0] for module in imported(path, at_once=True)}, path
        assert "mlflow" not in roots or path.parent.name == "tracking", path


def test_what_every_command_needs_loads_nothing_heavy():
    heavy = "{'torch', 'mlflow', 'lightning', 'pandas', 'matplotlib', 'sklearn', 'scipy', 'numba', 'PIL'}"
    modules = ", ".join(f"iar_study.{name}" for name in ("errors", "config", "storage", "cli"))
    check = f"import sys, {modules}; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def arrows() -> list[tuple[str, str]]:
    """The imports between rooms, without those that follow from others."""
    direct: dict[str, set[str]] = {}
    for room in ORDER:
        modules = {module for path in (PACKAGE / room).glob("*.py") for module in imported(path)}
        direct[room] = {other for other in ORDER if other != room and any(f"iar_study.{other}" in m for m in modules)}
    reached: dict[str, set[str]] = {}
    for room in ORDER:
        reached[room] = direct[room].union(*(reached[other] for other in direct[room]))
    return [
        (other, room)
        for room in ORDER
        for other in ORDER
        if other in direct[room] and not any(other in reached[between] for between in direct[room])
    ]


def test_the_page_of_the_architecture_shows_the_rooms_as_they_are():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    lines = ["```mermaid", "flowchart TD", *(f"    {one} --> {other}" for one, other in arrows()), "```"]
    assert "\n".join(lines) in page, "\n".join(lines)
    for room in ORDER:
        told = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
        assert f"| `{room}/` | {' '.join(told.partition(chr(10) * 2)[0].split())} |" in page

"""What is written already from the same is left as it is, and what is not is seen."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from iar_study.cli import main
from iar_study.evidence.export import find_store
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting import pages
from iar_study.reporting.unchanged import ABOUT, Sources
from tests.workspaces import ROOT

STUDY = "code-distance"
PICTURE = Image.new("L", (2, 2))
"""In place of each figure: to draw them takes long."""


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the committed results of one study, and its report."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(find_store(STUDY).root / "runs", folder / "runs")
    for path in (folder / "runs" / "studies").glob("*.json"):
        if path.stem != STUDY:
            path.unlink()
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(pages, "save", lambda figure, there, name: PICTURE.save(there / f"{name}.png"))
        assert main(["report", STUDY]) == 0
    return Workspace(folder)


@pytest.fixture
def copy(reported: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(reported.root, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def told(workspace: Workspace) -> list[str] | None:
    sources = Sources(workspace, workspace.experiments / "claims.py")
    found = sources.pages_told([STUDY], workspace.reports)
    return found and [str(page.relative_to(workspace.reports)) for page in found]


def test_what_is_there_is_told_without_what_computes_and_draws(copy: Workspace) -> None:
    there = ["code-distance/index.html", "codebook/index.html", "index.html"]
    assert told(copy) == there
    heavy = {"torch", "mlflow", "matplotlib", "pandas", "sklearn"}
    code = f"import sys; from iar_study.cli import main; main(['report']); print({heavy} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=copy.root, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [*(str(copy.reports / page) for page in there), "set()"]


@pytest.mark.parametrize(
    "path",
    [
        "reports/code-distance/index.md",
        "reports/codebook/index.html",
        "reports/paper/index.html",
        "reports/index.html",
        "experiments/claims.py",
        "runs/studies/code-distance.json",
        "runs/trials/*/result.json",
        "runs/trials/*/journal.jsonl",
    ],
)
def test_a_changed_file_is_seen(copy: Workspace, path: str) -> None:
    file = sorted(copy.root.glob(path))[0]
    if file.suffix == ".json":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"more": 1}))
    else:
        file.write_text(file.read_text() + file.read_text().splitlines()[-1] + "\n")
    assert told(copy) is None


@pytest.mark.parametrize(
    "path", ["reports/code-distance", "reports/codebook", "reports/paper", "reports/index.md", "runs/trials/*"]
)
def test_what_is_missing_is_seen(copy: Workspace, path: str) -> None:
    found = sorted(copy.root.glob(path))[0]
    shutil.rmtree(found) if found.is_dir() else found.unlink()
    assert told(copy) is None


def test_a_report_that_is_gone_is_no_longer_indexed(copy: Workspace) -> None:
    shutil.copytree(copy.reports / STUDY, copy.reports / "another")
    assert told(copy) is None


def test_what_changed_is_written_again(copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    page = copy.reports / STUDY / "index.html"
    whole, about = page.read_bytes(), (copy.reports / STUDY / ABOUT).read_bytes()
    page.write_text("torn")
    monkeypatch.chdir(copy.root)
    assert main(["report", STUDY]) == 0
    assert page.read_bytes() == whole
    assert (copy.reports / STUDY / ABOUT).read_bytes() == about
    assert told(copy) is not None

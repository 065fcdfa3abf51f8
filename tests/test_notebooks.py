"""The committed notebooks carry no outputs, and each of them runs on the results of a small study."""

import json
from pathlib import Path

import papermill
import pytest

from iar_study.pipeline.workspace import Workspace
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.study.study import load_profile, load_study
from tests.workspaces import make_workspace

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SMALL = {
    "train.steps": 20,
    "train.checkpoint_every": 10,
    "tokenizer.steps": 30,
    "classifier.steps": 30,
    "train.kept": 4,
    "evaluation.images": 60,
    "evaluation.samples": 100,
}
FIGURES = {
    "01_codebook_similarity": 5,
    "02_ablations": 2,
    "03_training": 5,
    "04_samples": 3,
    "05_claims": 1,
}
"""How many figures each of them shows at least, of one study."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("notebooks"))
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    with Display(quiet=True) as display:
        outcome = run_study(
            *(study, profile, workspace, display),
            seeds=[0, 1],
            arms=["baseline", "iar"],
            settings=SMALL,
            executor="here",
        )
    assert not outcome.failed
    return workspace


def test_there_is_a_notebook_for_each_story():
    assert [path.stem for path in NOTEBOOKS] == list(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    (parameters,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert "study = " in "".join(parameters["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace.root)
    run = papermill.execute_notebook
    done = run(str(path), str(tmp_path / "out.ipynb"), {"study": "components"}, progress_bar=False)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= FIGURES[path.stem]
    shown = "".join(output.get("text", "") for output in outputs)
    assert f"your own results, in {workspace.root}" in shown
    assert "Warning" not in shown

"""A dry run tells what a run then does, and touches nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from iar_study.data import fashion_mnist
from iar_study.errors import InputError
from iar_study.pipeline import measuring, stages
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting.dry_run_text import dry_run_text
from iar_study.running.display import Display
from iar_study.running.dry_run import DryRun, look
from iar_study.running.runner import run_study
from iar_study.study.study import Arm, Study, load_profile, load_study
from tests.workspaces import encode_digits, make_workspace

SMALL = {
    "tokenizer.steps": 20,
    "classifier.steps": 20,
    "train.steps": 10,
    "train.log_every": 5,
    "train.kept": 2,
    "evaluation.images": 50,
    "evaluation.samples": 40,
    "evaluation.sampled_times": 1,
}
ASKED: dict[str, Any] = {"seeds": [0, 1], "arms": ["baseline", "iar"], "settings": SMALL}


def dry(workspace: Workspace, study: str | Study = "components", **changes: Any) -> DryRun:
    """Look, and see that nothing in or around the workspace was touched by it."""
    before = tree(workspace.root)
    study = load_study(workspace.experiments, study) if isinstance(study, str) else study
    found = look(study, load_profile(workspace.experiments, "smoke"), workspace, **{**ASKED, **changes})
    assert tree(workspace.root) == before
    return found


def tree(root: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in root.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def states(found: DryRun) -> dict[tuple[str, int], str]:
    return {(trial.name, trial.seed): trial.state for trial in found.trials}


def made(found: DryRun) -> dict[str, list[bool]]:
    kinds = dict.fromkeys(stage.kind for stage in found.stages)
    return {kind: [stage.made for stage in found.stages if stage.kind == kind] for kind in kinds}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert run_study(study, profile, workspace, Display(quiet=True), **ASKED).trained == 4
    return workspace


@pytest.fixture
def half(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace, to take things out of."""
    shutil.copytree(finished.root, tmp_path / "half")
    return Workspace(tmp_path / "half")


def folder_of(workspace: Workspace, arm: str, seed: int) -> Path:
    trials = json.loads((workspace.studies / "components.json").read_text())["trials"]
    return next(workspace.trials / each["hash"] for each in trials if (each["arm"], each["seed"]) == (arm, seed))


def training_of(workspace: Workspace, arm: str, seed: int) -> Path:
    return workspace.trainings / json.loads((folder_of(workspace, arm, seed) / "trial.json").read_text())["training"]


def test_of_a_fresh_workspace_all_is_to_be_made(workspace: Workspace) -> None:
    found = dry(workspace)
    assert set(states(found).values()) == {"unknown"}
    assert found.first == "the tokenizer is to be made"
    assert not any(stage.made for stage in found.stages)
    named = {stage.kind for stage in found.stages if stage.file}
    assert named == {"tokenizer", "evaluators"}  # what the others are called depends on what these will be
    assert {stage.kind: stage.trials for stage in found.stages if stage.about != "none"} == {
        "tokenizer": 4,
        "codes": 4,
        "evaluators": 4,
        "clustering": 4,  # by which the arms are judged; the arm `iar` trains with the same one
        "reference": 4,
        "exactness": 4,
    }
    text = dry_run_text([found])
    for words in ("to be made", "known later: the tokenizer is to be made first", "4 trials: 4 known later"):
        assert words in text


def test_of_a_finished_study_all_is_there_under_the_names_that_the_run_gave(finished: Workspace) -> None:
    found = dry(finished)
    manifest = json.loads((finished.studies / "components.json").read_text())
    assert {(t.name, t.seed): t.hash for t in found.trials} == {
        (t["arm"], t["seed"]): t["hash"] for t in manifest["trials"]
    }
    assert set(states(found).values()) == {"finished"}
    assert all(stage.made for stage in found.stages)
    assert sorted(str(stage.file) for stage in found.stages) == manifest["products"]
    assert found.first == ""


def test_of_an_interrupted_study_it_tells_what_goes_on_and_what_is_new(half: Workspace) -> None:
    interrupted, trained = folder_of(half, "iar", 0), training_of(half, "iar", 0)
    (interrupted / "result.json").unlink()
    (trained / "result.json").unlink()
    (trained / "checkpoints").mkdir()
    for step in (2, 6):
        (trained / "checkpoints" / f"{step:09d}.json").write_text("{}")
    shutil.rmtree(training_of(half, "iar", 1))
    shutil.rmtree(folder_of(half, "iar", 1))
    shutil.rmtree(folder_of(half, "baseline", 1))
    (next(half.cache.glob("reference-*"))).unlink()
    found = dry(half)
    assert states(found) == {
        ("baseline", 0): "finished",
        ("iar", 0): "goes on",
        ("baseline", 1): "trained",
        ("iar", 1): "new",
    }
    assert [trial.step for trial in found.trials if trial.state == "goes on"] == [6]
    assert [kind for kind, there in made(found).items() if not all(there)] == ["reference"]
    text = dry_run_text([found])
    assert "goes on from step 6" in text
    assert "4 trials: 1 finished, 1 goes on, 1 to be measured, 1 new" in text


def test_what_another_process_is_at_work_on_is_told(half: Workspace) -> None:
    baseline, iar = folder_of(half, "baseline", 0), folder_of(half, "iar", 0)
    for folder in (baseline, iar):
        (folder / "result.json").unlink()
    with FileLock(iar / "lock"), FileLock(folder_of(half, "iar", 1) / "lock"):
        found = dry(half)
        assert states(found) == {
            ("baseline", 0): "trained",
            ("iar", 0): "running",
            ("baseline", 1): "finished",
            ("iar", 1): "finished",  # the lock is let go last
        }
    text = dry_run_text([found])
    assert "iar       running now     finished" in text
    assert "4 trials: 2 finished, 1 running now, 1 to be measured" in text
    assert states(dry(half))["iar", 0] == "trained"


def test_without_its_clustering_only_that_arm_is_not_known(half: Workspace) -> None:
    found = dry(half, arms=["baseline", "blocks"])
    assert states(found)["baseline", 0] == "finished"
    assert states(found)["blocks", 0] == "unknown"
    assert [(stage.about, stage.file is not None) for stage in found.stages if not stage.made] == [("blocks, 8", True)]
    assert found.first == "the clustering is to be made"


def test_equal_trials_of_studies_are_told(finished: Workspace) -> None:
    other = dry(finished, "model-scale", arms=["iar", "iar-half"])
    also = {trial.name: (trial.state, trial.also) for trial in other.trials}
    assert also["iar"] == ("finished", "components: iar")
    assert also["iar-half"] == ("new", "")
    known: dict[Any, str] = {}
    runs = [dry(finished, known=known), dry(finished, "model-scale", arms=["iar-half"], known=known)]
    same = {t.name: t.same_as for t in runs[1].trials}
    assert same == {"baseline-half": "", "baseline": "components: baseline", "iar-half": ""}
    text = dry_run_text(runs)
    assert "= components: baseline" in text
    assert "all 2 studies: 8 trials: 4 finished, 4 new; 2 more are the same as others" in text


def test_two_arms_that_are_one_trial_are_told_known_or_not(workspace: Workspace, finished: Workspace) -> None:
    twins = tuple(Arm(name, "", {"train.lr": rate}) for name, rate in (("a", 1e-3), ("b", 1e-3), ("c", 2e-3)))
    study = Study("twins", "?", "!", "a", twins)
    for where in (workspace, finished):
        found = dry(where, study, arms=None, seeds=[0])
        assert [trial.same_as for trial in found.trials] == ["", "a", ""]
        assert {stage.trials for stage in found.stages} == {2}


def test_the_gpt_that_arms_sample_from_is_told_once(finished: Workspace) -> None:
    arms = ["baseline, s=1", "baseline, s=2", "iar, s=1"]
    found = dry(finished, "guidance", arms=arms, seeds=[0])
    assert [trial.name for trial in found.trials] == [f"GPT of {arms[0]}", *arms[:2], f"GPT of {arms[2]}", arms[2]]
    assert [trial.state for trial in found.trials] == ["finished", "trained", "trained", "finished", "trained"]


def test_of_a_study_of_near_codes_the_names_are_those_of_the_run(half: Workspace) -> None:
    study = load_study(half.experiments, "code-distance")
    asked = {"seeds": [0], "arms": ["random"], "settings": {**SMALL, "evaluation.images": 20}}
    assert set(states(dry(half, study, **asked)).values()) == {"unknown"}
    run_study(study, load_profile(half.experiments, "smoke"), half, Display(quiet=True), **asked)
    assert set(states(dry(half, study, **asked)).values()) == {"finished"}


def test_codes_are_looked_at_where_they_are(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    encoded = encode_digits(tmp_path_factory.mktemp("encoded"))
    found = dry(workspace, settings={**SMALL, **encoded})
    assert list(made(found)) == ["use", "clustering", "exactness"]
    assert all(stage.file for stage in found.stages if stage.kind != "exactness")
    assert found.first == "the clustering is to be made"


def test_nothing_is_fetched(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAR_DATA", str(workspace.root / "data"))
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", workspace.root / "nowhere")
    monkeypatch.setattr(fashion_mnist, "_fetch", lambda *_: pytest.fail("fetched"))
    found = dry(workspace, settings={**SMALL, "data.name": "fashion-mnist", "tokenizer.patch": 4})
    assert found.first == "Fashion-MNIST is to be fetched"
    assert set(states(found).values()) == {"unknown"}
    assert not any(stage.file for stage in found.stages)


def test_no_picture_is_decoded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAR_DATA", str(workspace.root / "data"))
    pictures = workspace.root / "pictures"
    for index in range(40):
        path = pictures / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 6 * index, np.uint8)).save(path)
    settings = {**SMALL, "data.name": f"folder:{pictures}", "data.image_size": 8}
    found = dry(workspace, settings=settings)
    assert found.first == f"the images of {pictures} are to be decoded"
    stages.images_of(
        replace(load_profile(workspace.experiments, "smoke").config.data, name=f"folder:{pictures}", image_size=8)
    )
    assert dry(workspace, settings=settings).first == "the tokenizer is to be made"


def test_no_large_network_is_loaded(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "load_network", lambda *_: pytest.fail("loaded"))
    found = dry(finished, settings={**SMALL, "evaluation.extractor": "inception"})
    assert set(states(found).values()) == {"trained"}
    assert [(stage.kind, stage.file) for stage in found.stages if not stage.made] == [("reference", None)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {**SMALL, "clustering.n_clusters": 7}}, "7 does not divide the 64 codes"),
        ({"arms": ["irr"]}, "has no arm 'irr'"),
        ({"settings": {"data.name": "folder:nowhere"}}, "nowhere"),
    ],
)
def test_what_a_run_refuses_a_dry_run_refuses(workspace: Workspace, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dry(workspace, **changes)

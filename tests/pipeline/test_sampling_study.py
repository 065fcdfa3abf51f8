"""A study of sampling: the GPT of an arm and seed is trained once, and the arms sample from it in their own ways."""

import numpy as np
import pytest

from iar_study.evaluation.metrics import find_metric
from iar_study.evidence.results import load_results
from iar_study.reporting.report import write_report
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.storage import read_json
from iar_study.study.study import Arm, Study, load_profile, load_study
from tests.workspaces import make_workspace

SMALL = {
    "tokenizer.steps": 30,
    "classifier.steps": 30,
    "train.steps": 20,
    "train.kept": 1,
    "evaluation.images": 60,
    "evaluation.samples": 80,
    "evaluation.sampled_times": 1,
}
SCALES = ["baseline, s=1", "baseline, s=2", "baseline, s=4"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("guidance"))
    with pytest.MonkeyPatch.context() as patch, Display(quiet=True) as display:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        profile = load_profile(workspace.experiments, "smoke")
        for name, arms in (("guidance", SCALES), ("components", ["baseline"])):
            study = load_study(workspace.experiments, name)
            outcome = run_study(study, profile, workspace, display, seeds=[0, 1], arms=arms, settings=SMALL)
            assert not outcome.failed
    return workspace, outcome


def test_the_gpt_is_trained_once_and_shared_with_other_studies(done):
    workspace, of_components = done
    assert (of_components.trained, of_components.found) == (2, 0)  # measured in another way, of the same trainings
    assert len(list(workspace.trainings.iterdir())) == 2
    assert len(list(workspace.trials.iterdir())) == 2 + 6


def test_the_scale_of_the_training_gives_what_the_training_measured(done):
    workspace, _ = done
    wide = load_results(workspace, "guidance").final.pivot(index=["arm", "seed"], columns="metric", values="value")
    trained = load_results(workspace, "components").final.pivot(index="seed", columns="metric", values="value")
    for metric in wide:
        np.testing.assert_array_equal(wide.loc["baseline, s=2"][metric], trained[metric])
        assert "@80" in metric
    fd = find_metric("fd", wide)
    assert (wide.loc["baseline, s=1"][fd] != wide.loc["baseline, s=4"][fd]).any()


def test_other_noise_samples_anew_from_the_same_weights(done, tmp_path):
    workspace, _ = done
    profile = load_profile(workspace.experiments, "smoke")
    arms = (Arm("a", ""), Arm("b", "", {"evaluation.noise": 1}))
    study = Study("again", "?", ".", "a", arms, kind="sampling")
    with pytest.MonkeyPatch.context() as patch, Display(quiet=True) as display:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        outcome = run_study(study, profile, workspace, display, seeds=[0], settings=SMALL)
    assert (outcome.trained, outcome.found) == (1, 1)  # the first is the one of the study of guidance
    assert len(list(workspace.trainings.iterdir())) == 2
    results = load_results(workspace, "again")
    one, other = (results.final[results.final["arm"] == arm].set_index("metric")["value"] for arm in "ab")
    assert (one != other).any()
    # The first draw is that of before there were others.
    fd, trained = find_metric("fd", one.index), load_results(workspace, "components").final
    assert one[fd] == trained.set_index(["metric", "seed"])["value"][fd, 0]


def test_a_diverged_training_has_nothing_to_sample_from(done, tmp_path):
    workspace, _ = done
    study, profile = load_study(workspace.experiments, "guidance"), load_profile(workspace.experiments, "smoke")
    with pytest.MonkeyPatch.context() as patch, Display(quiet=True) as display:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        settings = SMALL | {"train.lr": 1e30, "train.warmup_steps": 0}
        run_study(study, profile, workspace, display, seeds=[0], arms=SCALES[:2], settings=settings)
    manifest = read_json(workspace.studies / "guidance.json")
    results = [read_json(workspace.trials / trial["hash"] / "result.json") for trial in manifest["trials"]]
    assert [result["status"] for result in results] == ["diverged"] * 2


def test_the_report_compares_the_ways(done, tmp_path):
    workspace, _ = done
    study, profile = load_study(workspace.experiments, "guidance"), load_profile(workspace.experiments, "smoke")
    with pytest.MonkeyPatch.context() as patch, Display(quiet=True) as display:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run_study(study, profile, workspace, display, seeds=[0, 1], arms=SCALES, settings=SMALL)
    text = write_report(load_results(workspace, "guidance"), tmp_path).with_name("index.md").read_text()
    assert "| baseline, s=4 |" in text

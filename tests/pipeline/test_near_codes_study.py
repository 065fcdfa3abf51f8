"""A study of near codes: nothing is trained, and every seed has another tokenizer."""

import html
from pathlib import Path

import numpy as np
import pytest

from iar_study.errors import InputError
from iar_study.evidence.claims import judge, load_claims
from iar_study.evidence.results import load_results
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting.report import shown, write_report
from iar_study.running.display import Display
from iar_study.running.needs import find_needs
from iar_study.running.runner import run_study
from iar_study.study.study import load_profile, load_study
from tests.workspaces import encode_digits, make_workspace

SMALL = {"tokenizer.steps": 40, "classifier.steps": 40, "evaluation.images": 60, "evaluation.samples": 60}
ARMS = ["random", "balanced", "plain"]


def run(workspace: Workspace, **changes):
    study, profile = (
        load_study(workspace.experiments, "code-distance"),
        load_profile(workspace.experiments, "smoke"),
    )
    with Display(quiet=True) as display:
        return run_study(study, profile, workspace, display, seeds=[0, 1], arms=ARMS, settings=SMALL | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("near"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        outcome = run(workspace)
    assert (outcome.trained, outcome.failed) == (6, {})
    return workspace


def test_curves_are_over_ranks_and_alike_for_every_arm_of_a_seed(done):
    results = load_results(done, "code-distance")
    assert results.kind == "near-codes"
    assert set(results.curves["step"]) == {1, 2, 4, 8, 16, 32, 63}
    psnr = results.curves[results.curves["metric"] == "near/psnr"].pivot(index=["seed", "step"], columns="arm")["value"]
    np.testing.assert_array_equal(psnr["balanced"], psnr["random"])
    assert (psnr.loc[0] != psnr.loc[1]).all(axis=None), "every seed has a tokenizer of its own"
    assert (psnr["random"].xs(1, level="step") > psnr["random"].xs(63, level="step")).all()


def test_the_final_figures_and_the_pictures_are_there(done):
    results = load_results(done, "code-distance")
    wide = results.final.pivot(index=["arm", "seed"], columns="metric", values="value")
    assert wide.shape == (6, 16)
    assert wide.notna().all(axis=None)
    # Any other code of random clusters is nearly any other code; balanced clusters hold near ones.
    distance = wide["same_cluster/feature_distance"].unstack("arm")
    assert (distance["balanced"] < distance["random"]).all()
    assert next(iter(results.replaced)) == "true tokens"
    assert len({pictures.shape for pictures in results.replaced.values()}) == 1


def test_the_report_tells_verdicts(done, tmp_path):
    results = load_results(done, "code-distance")
    verdicts = judge(load_claims(done.experiments), results)
    assert verdicts
    page = write_report(results, tmp_path, verdicts)
    text = page.read_text()
    words = html.unescape(text)
    assert all(verdict.evidence.split(";")[0] in words for verdict in shown(verdicts))
    assert {path.name for path in page.parent.glob("*.png")} >= {"near-psnr.png", "replaced.png"}


def test_a_trial_that_lost_its_result_ends_the_same(done):
    before = load_results(done, "code-distance").final
    for folder in done.trials.iterdir():
        (folder / "result.json").unlink()
    run(done)
    after = load_results(done, "code-distance").final
    np.testing.assert_array_equal(after["value"], before["value"])


def test_what_makes_no_sense_is_refused(workspace: Workspace, tmp_path: Path):
    with pytest.raises(InputError, match="trains no GPT"):
        find_needs(
            load_study(workspace.experiments, "code-distance"),
            load_profile(workspace.experiments, "smoke"),
            workspace,
            gpu="H100",
            gpus=1,
            utilisation=0.4,
        )
    with pytest.raises(InputError, match="holds no images"):
        run(workspace, **encode_digits(tmp_path))

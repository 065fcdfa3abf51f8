"""A study on images that are encoded already: it trains, samples and decodes, and has no picture to compare with."""

import json
import re

import numpy as np
import pytest
from mlflow import MlflowClient

from iar_study.evidence.results import load_results
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting.report import conclusion, write_report
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.storage import read_json
from iar_study.study.study import load_profile, load_study
from iar_study.tracking.store import store_uri
from tests.workspaces import encode_digits, make_workspace

SMALL = {
    "train.steps": 20,
    "train.log_every": 10,
    "train.kept": 2,
    "evaluation.images": 100,
    "evaluation.samples": 80,
    "evaluation.sampled_times": 2,
}
ARMS = ["baseline", "iar"]


def run(workspace: Workspace, settings: dict[str, object]):
    study = load_study(workspace.experiments, "components")
    profile = load_profile(workspace.experiments, "smoke")
    with Display() as display:
        return run_study(study, profile, workspace, display, seeds=[0, 1], arms=ARMS, settings=SMALL | settings)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    settings = encode_digits(workspace.root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return workspace, settings, run(workspace, settings)


def test_every_trial_is_run_and_a_second_run_trains_nothing(done):
    workspace, settings, outcome = done
    assert (outcome.trained, outcome.found, outcome.failed) == (4, 0, {})
    again = run(workspace, settings)
    assert (again.trained, again.found) == (0, 4)


def test_likelihoods_are_measured_and_samples_are_only_drawn(done):
    workspace, *_ = done
    results = load_results(workspace, "components")
    assert results.missing.empty
    assert {name.partition("/")[0] for name in results.final.metric} == {"val"}
    assert "samples" not in {name.partition("/")[0] for name in results.curves.metric}
    assert np.isfinite(results.final.value).all()
    assert {arm: grid.shape for arm, grid in results.samples.items()} == {arm: (10, 8, 8, 8, 1) for arm in ARMS}
    assert results.reconstructions == {}
    assert results.class_names == tuple("0123456789")
    assert results.scale["data set"] == f"codes:{workspace.root / 'data' / 'codes'}"
    assert results.scale["images"] == "1,437 for training (2 augmentations each), 360 held out, 10 classes"
    assert results.scale["FD"] == "not measured: encoded data without images"
    assert "perplexity" in results.scale["codes of training images"]


def test_the_report_says_what_was_not_measured(done, tmp_path):
    workspace, *_ = done
    results = load_results(workspace, "components")
    assert "FD was not measured; token NLL is" in conclusion(results)
    page = write_report(results, tmp_path).read_text()
    assert "not measured: encoded data without images" in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_a_run_names_the_codes_that_it_was_trained_on(done):
    workspace, *_ = done
    client = MlflowClient(store_uri(workspace))
    runs = client.search_runs([client.get_experiment_by_name("components").experiment_id], "tags.kind = 'trial'")
    assert len(runs) == 4
    for found in runs:
        about = read_json(workspace.trials / found.data.tags["trial"] / "trial.json")
        assert found.data.tags["data_digest"] == about["data"]["digest"] == about["inputs"]["codes"]
        assert found.data.params["tokenizer.checkpoint"].endswith("tokenizer.safetensors")


def test_a_diverged_trial_loses_no_more_than_was_measured(done):
    workspace, *_ = done
    manifest = read_json(workspace.studies / "components.json")
    lost = next(trial for trial in manifest["trials"] if (trial["arm"], trial["seed"]) == ("iar", 1))
    path = workspace.trials / lost["hash"] / "result.json"
    result = path.read_text()
    path.write_text(json.dumps({"status": "diverged", "step": 17, "metrics": {}}))
    try:
        results = load_results(workspace, "components")
    finally:
        path.write_text(result)
    assert results.missing.to_dict("records") == [{"arm": "iar", "seed": 1, "status": "diverged", "step": 17}]
    values = results.final[(results.final.arm == "iar") & (results.final.seed == 1)]
    assert {name.partition("/")[0] for name in values.metric} == {"val"}
    assert values.value.isna().all()
    curve = results.curves[(results.curves.arm == "iar") & (results.curves.seed == 1)]
    assert set(curve.step) == {10, 20}


def test_a_trial_that_is_not_finished_says_how_far_it_got_and_shows_no_samples(done):
    workspace, *_ = done
    manifest = read_json(workspace.studies / "components.json")
    (trial,) = [trial for trial in manifest["trials"] if (trial["arm"], trial["seed"]) == ("iar", 0)]
    path = workspace.trials / trial["hash"] / "result.json"
    result = path.read_text()
    path.unlink()
    try:
        results = load_results(workspace, "components")
    finally:
        path.write_text(result)
    assert results.missing.to_dict("records") == [{"arm": "iar", "seed": 0, "status": "not finished", "step": 20}]
    assert list(results.samples) == ["baseline"]

"""Every study of the registry, run at `smoke` from its images to its report, in one workspace that they share."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iar_study.evaluation.metrics import LIKENESS, METRICS, REPLACED
from iar_study.evidence.claims import judge, load_claims
from iar_study.evidence.results import load_results
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting.report import write_report
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.study.study import Study, load_profile, load_studies
from tests.workspaces import BY_A_SET, ROOT, evaluators_in, make_workspace

SHORT: dict[str, Any] = {
    "tokenizer.steps": 30,
    "classifier.steps": 30,
    "model.layers": 1,
    "train.steps": 8,
    "train.warmup_steps": 2,
    "train.log_every": 2,
    "train.kept": 2,
    "evaluation.images": 60,
    "evaluation.samples": 40,
    "evaluation.sampled_times": 1,
}
"""What is cut down of the profile, beside one seed in place of two: this sees that everything runs, and no more."""

STUDIES = load_studies(ROOT / "experiments")
QUICK = ("components", "code-distance", "guidance", "codebook-size", "confirm")
"""One of each kind, one whose arms differ in size, and one with a plan; the others are like these."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("smoke"))


def promised(study: Study) -> set[str]:
    """The final figures of each trial of such a study."""
    if study.kind == "near-codes":
        return {f"{kind}/{name}" for kind in REPLACED for name in LIKENESS}
    return {name for name in METRICS if name.startswith("val/")} if study.kind == "training" else set()


@pytest.mark.parametrize(
    "study",
    [pytest.param(study, marks=[] if name in QUICK else pytest.mark.slow) for name, study in STUDIES.items()],
    ids=STUDIES,
)
def test_every_study_runs_to_its_report(
    study: Study, shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    smoke = load_profile(shared.experiments, "smoke")
    outcome = run_study(study, smoke, shared, Display(quiet=True), seeds=[0], settings=SHORT, executor="here")
    assert outcome.failed == {}
    results = load_results(shared, study.name)
    assert results.missing.empty
    assert list(results.arms) == [arm.name for arm in study.arms]
    figures = results.final.pivot(index="arm", columns="metric", values="value")
    assert set(figures.index) == set(results.arms)
    assert {key for key in figures if "@" not in key} == promised(study)
    several = study.name == "noise"  # sets of evaluators, whose members have no partner
    sampled = {family: kinds[-1:] for family, kinds in BY_A_SET.items()} if several else BY_A_SET
    if study.kind == "near-codes":
        sampled = {}
    assert evaluators_in(figures, SHORT["evaluation.samples"]) == sampled
    assert np.isfinite(figures).all(axis=None)
    assert np.isfinite(results.curves["value"]).all()
    if study.kind != "near-codes":  # of all arms, whatever their sizes
        told, configs = str(results.scale["model"]), [trial["config"] for trial in results.trials]
        assert {f"width {config['model.width']}" for config in configs} == set(re.findall(r"width \d+", told))
        assert all(f"{config['train.steps']:,}" in str(results.scale["training"]) for config in configs)
    page = write_report(results, tmp_path, judge(load_claims(shared.experiments), results))
    text = unescape(page.read_text())
    assert study.question in text
    assert all(arm.description in text for arm in study.arms)

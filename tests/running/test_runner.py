"""The main job in small: run a study, find it in MLflow, read its results, and run it again for nothing."""

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from iar_study.cli import build_parser, main
from iar_study.errors import InputError
from iar_study.evaluation.metrics import METRICS, find_metric, members_of
from iar_study.evidence.results import load_results
from iar_study.pipeline.cache import list_cache
from iar_study.pipeline.workspace import Workspace, read_manifest
from iar_study.reporting import site
from iar_study.reporting.cache_text import made_from
from iar_study.reporting.report import write_report
from iar_study.reporting.results_text import results_text
from iar_study.running.display import Display
from iar_study.running.runner import Outcome, run_study
from iar_study.running.status import status_of
from iar_study.storage import load_arrays, read_json, write_json
from iar_study.study.study import load_profile, load_study
from iar_study.tracking.store import holds_finished, store_uri
from iar_study.training.journal import read_journal
from tests import forked
from tests.workspaces import BY_A_SET, evaluators_in, make_workspace

SMALL = {
    "tokenizer.steps": 30,
    "classifier.steps": 30,
    "train.steps": 20,
    "train.log_every": 10,
    "train.kept": 2,
    "evaluation.images": 100,
    "evaluation.samples": 100,
}
ARMS = ["baseline", "rearranged", "iar"]


def run(workspace: Workspace, **changes):
    study = load_study(workspace.experiments, "components")
    profile = load_profile(workspace.experiments, "smoke")
    with Display() as display:
        return run_study(
            study, profile, workspace, display, **{"seeds": [0, 1], "arms": ARMS, "settings": SMALL, **changes}
        )


ENDED = []
"""The seeds of the trials that had ended, each time that a seed was told to be done."""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))

    def seed_done():
        ENDED.append([trial.seed for trial in status_of(workspace, "components") if trial.ended])

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return workspace, run(workspace, seed_done=seed_done)


def test_every_trial_is_run(done):
    _, outcome = done
    assert (outcome.trained, outcome.found, outcome.failed) == (6, 0, {})


def test_a_seed_is_done_before_the_next_and_told(done):
    (ended,) = ENDED
    assert ended.count(0) == len(ARMS)
    assert ended.count(1) < len(ARMS)


WITHOUT = """
import json, sys
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.study.study import load_profile, load_study
from iar_study.pipeline.workspace import Workspace

workspace, asked = Workspace.find(), json.loads(sys.argv[1])
study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
print(run_study(study, profile, workspace, Display(), **asked))
print({"torch", "mlflow", "lightning_fabric"} & sys.modules.keys())
"""


def test_a_finished_study_is_answered_without_torch_and_mlflow(done):
    workspace, _ = done
    asked = json.dumps({"seeds": [0, 1], "arms": ARMS, "settings": SMALL})
    command = [sys.executable, "-c", WITHOUT, asked]
    answer = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)
    assert answer.stdout == f"{Outcome(0, 6, {})}\nset()\n", answer.stderr
    assert answer.stderr == "components at smoke: 3 arms x 2 seeds\n"


@pytest.mark.parametrize("whose", ["trial", "study"])
@pytest.mark.parametrize("change", ["lifecycle_stage = 'deleted'", "status = 'RUNNING'"])
def test_a_finished_study_whose_runs_are_not_in_mlflow_as_such_is_recorded_again(done, tmp_path, change, whose):
    workspace, _ = done
    runs = [trial["run_id"] for trial in read_manifest(workspace, "components")["trials"]]
    store = tmp_path / "copy of.db"
    with closing(sqlite3.connect(workspace.store)) as ours, closing(sqlite3.connect(store)) as copy:
        ours.backup(copy)
    assert holds_finished(f"sqlite:///{store}", runs)
    assert not holds_finished(f"sqlite:///{store}", [*runs, ""])
    assert not holds_finished(f"sqlite:///{tmp_path / 'none.db'}", runs)
    assert not holds_finished("http://127.0.0.1:1", runs)
    with closing(sqlite3.connect(store)) as connection, connection:
        parent = "SELECT value FROM tags WHERE key = 'mlflow.parentRunId' AND run_uuid = ?"
        run = runs[:1] if whose == "trial" else connection.execute(parent, runs[:1]).fetchone()
        assert connection.execute(f"UPDATE runs SET {change} WHERE run_uuid = ?", run).rowcount == 1
    assert not holds_finished(f"sqlite:///{store}", runs)


@pytest.mark.parametrize("kind", ["reference", "exactness"])
def test_a_product_that_a_finished_study_lost_is_made_again(done, kind):
    workspace, _ = done
    (product,) = workspace.cache.glob(f"{kind}-*")
    before, manifest = load_arrays(product)[0], read_manifest(workspace, "components")
    product.unlink()
    assert run(workspace).found == 6
    np.testing.assert_equal(load_arrays(product)[0], before)
    assert read_manifest(workspace, "components") == manifest


def test_a_second_run_trains_nothing(done):
    workspace, _ = done
    files = sorted(workspace.trials.rglob("*"))
    before = [path.stat().st_mtime_ns for path in files]
    outcome = run(workspace)
    assert (outcome.trained, outcome.found) == (0, 6)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_results_are_tidy_and_whole(done):
    workspace, _ = done
    results = load_results(workspace, "components")
    assert list(results.arms) == ARMS
    assert results.missing.empty
    predictions = {name for name in METRICS if name.startswith("val/")}
    samples = {key for key in results.final.metric if "@" in key}
    assert set(results.final.metric) == predictions | samples
    assert evaluators_in(samples, 100) == BY_A_SET
    wide = results.final.pivot(index=["arm", "seed"], columns="metric", values="value")
    fd = find_metric("fd", samples)
    members = wide[members_of(fd, samples)]
    assert members.shape == (6, 6)
    np.testing.assert_allclose(wide[fd], np.exp(np.log(members).mean(axis=1)), rtol=1e-12)
    assert (members.std(axis=1) > 0).all()
    assert (results.final.groupby(["arm", "seed"]).size() == results.final.metric.nunique()).all()
    assert set(results.curves.step) == {10, 20}  # samples are drawn four times
    assert set(results.curves.metric) <= set(METRICS) | samples
    assert results.exact == {"equivariance": pytest.approx(0, abs=1e-12), "decoding": 0}
    assert results.positions["iar"]["token_nll"].shape == (2, 4, 4)
    mean_nll = results.final[(results.final.metric == "val/token_nll") & (results.final.arm == "iar")].value.mean()
    assert results.positions["iar"]["token_nll"].mean() == pytest.approx(mean_nll)
    assert {name: grid.shape for name, grid in results.samples.items()} == {arm: (10, 8, 8, 8, 1) for arm in ARMS}
    assert results.scale["data set"] == "digits"


def test_the_results_tell_the_command_that_makes_them(done):
    workspace, _ = done
    words = shlex.split(load_results(workspace, "components").command)
    assert words[:7] == ["iar-study", "run", "components", "--profile", "smoke", "--seeds", "0"]
    asked = build_parser().parse_args(words[1:])
    assert (asked.seeds, asked.arms) == ([0, 1], ARMS)
    assert dict(item.split("=") for item in asked.settings) == {key: str(value) for key, value in SMALL.items()}


def test_decoding_after_rearrangement_is_bit_identical(done):
    workspace, _ = done
    pictures = load_results(workspace, "components").reconstructions
    np.testing.assert_array_equal(pictures["decoded"], pictures["decoded after rearrangement"])
    assert (pictures["decoded"] != pictures["originals"]).any()


def test_rearrangement_alone_gives_the_baselines_losses_to_rounding(done):
    workspace, _ = done
    results = load_results(workspace, "components")
    losses = results.curves[results.curves.metric == "train/token_nll"].pivot_table(
        index=["seed", "step"], columns="arm", values="value"
    )
    np.testing.assert_allclose(losses["rearranged"], losses["baseline"], rtol=1e-4)
    assert (np.abs(losses["iar"] - losses["baseline"]) > 1e-4).any()


def test_mlflow_holds_a_parent_and_a_nested_run_per_trial_with_every_point_once(done):
    workspace, _ = done
    client = MlflowClient(store_uri(workspace))
    experiment = client.get_experiment_by_name("components")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags["kind"] == "study"]
    trials = [run for run in runs if run.data.tags["kind"] == "trial"]
    assert (len(parents), len(trials)) == (1, 6)
    results = load_results(workspace, "components")
    for trial in trials:
        assert trial.info.status == "FINISHED"
        assert trial.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert trial.data.tags["code_commit"]
        assert trial.data.params["train.steps"] == "20"
        (data,) = trial.inputs.dataset_inputs
        assert results.scale["data digest"] == data.dataset.digest
        history = client.get_metric_history(trial.info.run_id, "val/token_nll")
        assert [point.step for point in history] == [10, 20]
        ours = results.final[results.final.run_id == trial.info.run_id].set_index("metric").value
        fd = find_metric("fd", ours.index)
        assert trial.data.metrics[fd.replace("@", ":")] == ours[fd]
        assert {file.path for file in client.list_artifacts(trial.info.run_id)} == {
            "samples.png",
            "codebook.safetensors",
            "predictions.safetensors",
            "trial.json",
        }


def test_a_trial_that_lost_its_result_goes_on_and_ends_the_same(done, tmp_path):
    workspace, _ = done
    before = load_results(workspace, "components")
    (trial,) = before.final[(before.final.arm == "iar") & (before.final.seed == 0)].trial.unique()
    folder = workspace.trials / trial
    trained = workspace.trainings / read_json(folder / "trial.json")["training"]
    last = trained / "weights-000000020.safetensors"
    weights = load_arrays(last)[0]
    for path in (*(each / name for each in (folder, trained) for name in ("result.json", "journal.jsonl")), last):
        path.unlink()
    assert run(workspace).trained == 1
    again = load_results(workspace, "components")
    assert before.final.equals(again.final)
    one, other = (found.curves[~found.curves.metric.str.startswith("speed/")] for found in (before, again))
    assert one.equals(other)
    for name, array in load_arrays(last)[0].items():
        np.testing.assert_array_equal(array, weights[name])


def test_a_cluster_count_that_does_not_divide_is_refused_before_any_training(workspace):
    with pytest.raises(InputError, match="7 does not divide the 64 codes"):
        run(workspace, settings={**SMALL, "clustering.n_clusters": 7})
    assert not workspace.trials.exists()


def test_a_gpu_that_is_not_there_is_named_before_any_training(workspace, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"compute\.device = cuda, but torch finds no GPU"):
        run(workspace, settings={**SMALL, "compute.device": "cuda"})
    assert not workspace.trials.exists()


def test_a_study_that_was_not_run_is_named(workspace):
    with pytest.raises(InputError, match=r"no results of study 'components'.*iar-study run components"):
        load_results(workspace, "components")


def test_a_diverged_trial_is_a_result(workspace):
    outcome = run(
        workspace, seeds=[0], arms=["baseline"], settings={**SMALL, "train.lr": 1e38, "train.warmup_steps": 0}
    )
    assert outcome.failed == {}
    assert outcome.diverged == ("baseline, seed 0 at step 2",)
    results = load_results(workspace, "components")
    assert results.missing.status.tolist() == ["diverged"]
    assert len(results.final) > 0
    assert results.final.value.isna().all()


@pytest.fixture
def copy(done, tmp_path):
    """A copy of what is done, to change."""
    shutil.copytree(done[0].root / "runs", tmp_path / "runs")
    return Workspace(tmp_path)


def test_records_of_other_versions_are_read_through_the_config_with_its_defaults(copy):
    for path in copy.trials.glob("*/trial.json"):
        about = read_json(path)
        about["config"] = {
            key: value for key, value in about["config"].items() if not key.startswith(("loss.", "evaluation."))
        } | {"loss.unknown": 1}
        write_json(path, about)
    path = copy.studies / "components.json"
    manifest = read_json(path)
    arms = [{**arm, "series": "line"} for arm in manifest["arms"]]
    write_json(path, {**manifest, "factor": "loss.smoothing", "arms": arms})
    results = load_results(copy, "components")
    assert results.places == dict.fromkeys(ARMS, ("line", 0.0))
    assert {trial["config"]["evaluation.temperature"] for trial in results.trials} == {1.0}
    assert "guidance 2" in results.scale["evaluation"]
    assert [trial.steps for trial in status_of(copy, "components")] == [20] * 6
    shown = [made_from(product) for product in list_cache(copy) if product.kind == "trial"]
    assert set(shown) == {f"digits, 20 steps, seed {seed}" for seed in (0, 1)}


def test_the_report_tells_no_more_held_out_images_than_there_are(copy):
    for path in copy.trials.glob("*/trial.json"):
        about = read_json(path)
        write_json(path, {**about, "config": {**about["config"], "evaluation.images": 5000}})
    assert str(load_results(copy, "components").scale["evaluation"]).startswith("360 held-out images;")


def test_values_that_are_not_finite_and_metrics_of_other_versions_are_shown(copy, tmp_path):
    for path in copy.trials.glob("*/result.json"):
        result = read_json(path)
        strange = {"val/token_nll": np.inf, "val/own_cluster_nll": np.nan, "val/of_later": 0.5}
        write_json(path, {**result, "metrics": {**result["metrics"], **strange}})
    results = load_results(copy, "components")
    assert np.isinf(results.final[results.final.metric == "val/token_nll"].value).all()
    lines = {line.split()[0]: line.split()[1:] for line in results_text(results).splitlines() if line}
    assert lines["val/of_later"] == ["0.5000"] * 3
    assert lines["val/token_nll"][:3] == ["\N{EN DASH}"] * 3
    plain = replace(results, curves=results.curves[:0], samples={}, reconstructions={}, positions={})
    page = write_report(plain, tmp_path / "reports").with_name("index.md").read_text()
    assert "2 not finite" in page
    assert "nan" not in page.lower().split()
    written = pd.read_csv(tmp_path / "reports" / "components" / "results.csv")
    assert np.isinf(written[written.metric == "val/token_nll"].value).all()


def test_the_report_of_these_results_is_written(done, tmp_path):
    workspace, _ = done
    page = write_report(load_results(workspace, "components"), tmp_path)
    assert "rearranged" in page.read_text()
    assert page.with_name("index.md").exists()


def command(told: Path, *given: str) -> None:
    """What `iar-study` does, in a group of processes of its own."""
    os.setsid()
    with open(told, "wb") as file:
        os.dup2(file.fileno(), 2)
    sys.exit(main(list(given)))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_run_saves_its_trials_says_one_line_and_goes_on(number, code, done, workspace, monkeypatch):
    """The signal reaches the runner alone, as from a batch system; it passes it on to its workers."""
    workspace.cache.parent.mkdir()
    workspace.cache.symlink_to(done[0].cache)
    settings = {**SMALL, "train.steps": 400, "train.checkpoint_every": 1000, "train.kept": 1}
    given = ["run", "components", "--profile", "smoke", "--seeds", "0", "--arms", "baseline", "iar", "--set"]
    given += [f"{key}={value}" for key, value in settings.items()]
    told = workspace.root / "told"
    process = forked.start(command, told, *given)
    while len(list(workspace.trials.glob("*/journal.jsonl"))) < 2:
        assert process.is_alive(), told.read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    shown = told.read_text()
    assert process.exitcode == code
    assert shown.splitlines()[-1] == "iar-study: stopped; the same command goes on from the last checkpoints"
    assert "Traceback" not in shown
    saved = [
        max(int(path.stem) for path in folder.glob("*.json")) for folder in workspace.trainings.glob("*/checkpoints")
    ]
    journals = [read_journal(path)[-1]["step"] for path in workspace.trials.glob("*/journal.jsonl")]
    assert len(saved) == 2
    assert min(saved) >= min(journals) > 0
    monkeypatch.setattr(site, "write_site", lambda *args, **named: iter(["its page"]))
    assert main(given) == 0
    assert load_results(workspace, "components").missing.empty

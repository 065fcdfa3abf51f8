"""Trials fail, are killed, and are wanted by two at once; what is left in the end is as if nothing had been."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from iar_study.cli import main
from iar_study.config import ComputeConfig
from iar_study.errors import InputError
from iar_study.pipeline.workspace import Workspace, is_finished
from iar_study.running import executors, runner
from iar_study.running.display import Display
from iar_study.running.executors import Processes, make_executor, visible_gpus
from iar_study.running.runner import run_study
from iar_study.storage import load_arrays, read_json
from iar_study.study.study import load_profile, load_study
from iar_study.tracking.store import store_uri
from iar_study.tracking.tracker import fill_in
from iar_study.training.journal import read_journal
from tests import forked
from tests.workspaces import make_workspace

SMALL = {
    "tokenizer.steps": 30,
    "classifier.steps": 30,
    "train.steps": 60,
    "train.log_every": 5,
    "train.checkpoint_every": 5,
    "train.kept": 3,
    "evaluation.images": 100,
    "evaluation.samples": 100,
}
ENDLESS = {**SMALL, "train.steps": 100_000, "train.checkpoint_every": 100_000, "train.kept": 1}
ARMS = ["baseline", "iar"]


def run(workspace: Workspace, **changes):
    study = load_study(workspace.experiments, "components")
    profile = load_profile(workspace.experiments, "smoke")
    given = {"seeds": [0], "arms": ARMS, "settings": SMALL, **changes}
    return run_study(study, profile, workspace, Display(quiet=True), **given)


def run_and_tell(root: Path, told: Path, changes: dict) -> None:
    """What a runner in a process of its own does, the first of a group of processes."""
    os.setsid()
    os.chdir(root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcome = run(Workspace(root), **changes)
    told.write_text(json.dumps(asdict(outcome)))
    sys.exit(1 if outcome.failed else 0)


def start_runner(workspace: Workspace, told: Path, **changes) -> multiprocessing.Process:
    return forked.start(run_and_tell, workspace.root, told, changes)


def workers(workspace: Workspace) -> dict[int, str]:
    """The processes at work on a trial of this workspace, with its hash: the log of the trial is what they print to."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            output = Path(os.readlink(folder / "fd" / "1"))
            if folder.name.isdigit() and output.parent.parent == workspace.trials:
                found[int(folder.name)] = output.parent.name
    return found


def products(workspace: Workspace) -> dict[str, object]:
    """All that a study found out, without the times."""
    found: dict[str, object] = {}
    for folder in sorted(workspace.trials.iterdir()):
        for point in read_journal(folder / "journal.jsonl"):
            metrics = {name: value for name, value in point["metrics"].items() if not name.startswith("speed/")}
            assert (folder.name, point["step"]) not in found, "a point is there twice"
            found[folder.name, point["step"]] = metrics
        found[folder.name, "result"] = read_json(folder / "result.json")
        for file in sorted(folder.glob("*.safetensors")):
            found[folder.name, file.name] = load_arrays(file)[0]
    return found


def assert_same(workspace: Workspace, undisturbed: Workspace) -> None:
    ours, theirs = products(workspace), products(undisturbed)
    assert ours.keys() == theirs.keys()
    for key, product in theirs.items():
        np.testing.assert_equal(ours[key], product, err_msg=str(key))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert run(workspace).trained == len(ARMS)
    return workspace


@pytest.fixture
def prepared(workspace, undisturbed) -> Workspace:
    """A workspace where all that trials share is made."""
    workspace.cache.parent.mkdir()
    os.symlink(undisturbed.cache, workspace.cache)
    return workspace


def change_trial(monkeypatch, arm: str, **shared) -> None:
    """Let a trial of this arm find something else than what was prepared."""
    trial_of = runner.trial_of

    def changed(*args):
        trial = trial_of(*args)
        return replace(trial, shared=replace(trial.shared, **shared)) if trial.arm == arm else trial

    monkeypatch.setattr(runner, "trial_of", changed)


@pytest.mark.parametrize("executor", ["processes", "here"])
def test_a_trial_that_fails_is_tried_twice_and_stops_no_other(executor, prepared, monkeypatch):
    change_trial(monkeypatch, "baseline", data={"not": {"JSON"}})
    outcome = run(prepared, executor=executor)
    assert (outcome.trained, list(outcome.failed)) == (1, ["baseline, seed 0"])
    reason, log, *end = outcome.failed["baseline, seed 0"].splitlines()
    assert reason == "TypeError: Object of type set is not JSON serializable"
    path = Path(log.strip().removesuffix(":"))
    assert len(end) == runner.SHOWN
    assert end[-1].strip() == reason
    assert path.read_text().count("Traceback") == 2


def test_a_failed_trial_is_told_with_the_end_of_its_log_and_exit_code_1(prepared, monkeypatch, capsys):
    change_trial(monkeypatch, "baseline", data={"not": {"JSON"}})
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    command = ["run", "components", "--profile", "smoke", "--seeds", "0", "--arms", "baseline", "--set", *settings]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert shown.out == "components: 0 trials run, 0 found finished, 1 failed\n"
    assert "iar-study: trial baseline, seed 0 failed: TypeError: Object of type set" in shown.err
    assert "Traceback" not in shown.err.split("log.txt:")[0]


@pytest.mark.parametrize("executor", ["processes", "here"])
def test_bad_input_that_a_trial_finds_ends_the_study(executor, prepared, monkeypatch):
    change_trial(monkeypatch, "iar", codes=Path("gone.safetensors"))
    with pytest.raises(InputError, match=r"no file at gone\.safetensors"):
        run(prepared, executor=executor)
    assert not workers(prepared)


def test_a_killed_worker_costs_its_trial_one_attempt(prepared, undisturbed, monkeypatch):
    start, killed = Processes.start, []

    def start_and_kill_the_first(self, trial):
        start(self, trial)
        if not killed:
            killed.append(trial.hash)
            threading.Thread(target=kill_when_writing, args=(prepared, trial.hash)).start()

    def kill_when_writing(workspace, trial):
        while not (workspace.trials / trial / "journal.jsonl").exists():
            time.sleep(0.01)
        (pid,) = [pid for pid, name in workers(workspace).items() if name == trial]
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(Processes, "start", start_and_kill_the_first)
    outcome = run(prepared)
    assert (outcome.trained, outcome.failed) == (2, {})
    assert_same(prepared, undisturbed)


def test_here_gives_the_same_bits(prepared, undisturbed):
    outcome = run(prepared, executor="here")
    assert (outcome.trained, outcome.failed) == (2, {})
    assert_same(prepared, undisturbed)


def test_what_a_worker_prints_goes_to_the_log_of_its_trial(prepared, undisturbed, capfd):
    (trial, *_) = sorted(path.name for path in undisturbed.trials.iterdir())
    torn = prepared.trials / trial / "journal.jsonl"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"step": 5, "ti')
    assert run(prepared).failed == {}
    assert "dropped a torn last line" in torn.with_name("log.txt").read_text()
    assert capfd.readouterr() == ("", "")
    assert_same(prepared, undisturbed)


@pytest.mark.parametrize("kills", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_sigkills_of_workers_and_of_the_runner_cost_no_bit(kills, prepared, undisturbed, tmp_path):
    chance = random.Random(kills)
    killed = {"runner": 0, "worker": 0}
    while sum(killed.values()) < kills:
        process = start_runner(prepared, tmp_path / "told")
        while process.is_alive():
            at_work = workers(prepared)
            victim = "runner" if sum(killed.values()) % 3 == 2 else "worker"
            if not at_work or sum(killed.values()) == kills:
                time.sleep(0.01)
                continue
            time.sleep(chance.uniform(0, 1))
            with suppress(ProcessLookupError):
                os.kill(process.pid if victim == "runner" else chance.choice(list(at_work)), signal.SIGKILL)
                killed[victim] += 1
            if victim == "runner":
                process.join()
        while workers(prepared):  # they follow the runner
            time.sleep(0.01)
        if process.exitcode == 0 and sum(killed.values()) < kills:  # too early: once more from the start
            assert_same(prepared, undisturbed)
            for path in sorted(prepared.trials.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    print(killed)
    last = start_runner(prepared, tmp_path / "told")
    last.join()
    assert last.exitcode == 0
    assert_same(prepared, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("study", ["components", "code-distance", "guidance"])
def test_a_study_that_is_killed_two_seconds_after_each_start_ends_with_the_same_bits(study, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-m", "iar_study.cli", "run", study, "--profile", "smoke", "--seeds", "0", "1"]
    started = time.monotonic()
    # All that a run imports, in the runner and, beside it, in the server that its workers are forked from.
    everything = "import iar_study.pipeline.attempt, iar_study.tracking.tracker, iar_study.reporting.site"
    subprocess.run([sys.executable, "-c", everything], check=True)
    patience = time.monotonic() - started + 2
    whole, cut = (make_workspace(tmp_path / name) for name in ("whole", "cut"))
    subprocess.run(command, cwd=whole.root, check=True)
    kills = 0
    while True:
        process = subprocess.Popen(command, cwd=cut.root, start_new_session=True)
        try:
            assert process.wait(patience) == 0
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            assert kills < 200
    print(f"{study}: killed {kills} times, {patience:.1f} s after each start")
    assert_same(cut, whole)
    assert not [path for path in (cut.root / "runs").rglob("*") if "progress" in path.name]
    # Runs' ids in MLflow and times are each store's own: the pages of the last start are those of all that is there.
    assert main(["report", study, "--check", "--from", str(cut.root), "-o", str(cut.reports)]) == 0


def test_a_sigterm_to_all_processes_saves_every_trial(prepared, tmp_path):
    """As batch systems send it: the fork server gets it too."""
    process = start_runner(prepared, tmp_path / "told", settings=ENDLESS)
    while len(list(prepared.trials.glob("*/journal.jsonl"))) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    assert not workers(prepared)
    saved = [read_json(path)["step"] for path in prepared.trainings.glob("*/checkpoints/*.json")]
    assert len(saved) == 2


def test_what_a_sigkill_left_running_in_mlflow_is_stopped_by_sync(prepared, tmp_path):
    def statuses() -> list[str]:
        client = MlflowClient(store_uri(prepared)) if prepared.store.exists() else None
        experiment = client and client.get_experiment_by_name("components")
        return [run.info.status for run in client.search_runs([experiment.experiment_id])] if experiment else []

    process = start_runner(prepared, tmp_path / "told", settings=ENDLESS)
    while statuses() != ["RUNNING"] * 3:  # the study and its two trials
        assert process.is_alive()
        time.sleep(0.1)
    fill_in(prepared)
    assert statuses() == ["RUNNING"] * 3
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    while workers(prepared):
        time.sleep(0.01)
    assert statuses() == ["RUNNING"] * 3
    fill_in(prepared)
    assert statuses() == ["KILLED"] * 3


def test_of_two_runners_at_once_one_trains_each_trial(workspace, tmp_path):
    told = [tmp_path / "one", tmp_path / "two"]
    processes = [start_runner(workspace, path, seeds=[0, 1]) for path in told]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = (read_json(path) for path in told)
    assert one["failed"] == two["failed"] == {}
    assert one["trained"] + two["trained"] == 4
    assert one["trained"] + one["found"] == two["trained"] + two["found"] == 4
    assert all(map(is_finished, workspace.trials.iterdir()))
    assert_mlflow_holds_all_of_it_once(workspace)


def assert_mlflow_holds_all_of_it_once(workspace: Workspace) -> None:
    """A parent run, a nested run per trial, and in it each point of the journal, though both runners logged it."""
    client = MlflowClient(store_uri(workspace))
    (experiment,) = (found for found in client.search_experiments() if found.name == "components")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags["kind"] == "study")
    nested = {run.info.run_id: run for run in runs if run.data.tags["kind"] == "trial"}
    asked = read_json(workspace.studies / "components.json")["trials"]
    assert parent.info.status == "FINISHED"
    assert len(nested) == len(runs) - 1 == len(asked)
    for trial in asked:
        run = nested[trial["run_id"]]
        assert (run.data.tags["mlflow.parentRunId"], run.info.status) == (parent.info.run_id, "FINISHED")
        assert (run.data.tags["trial"], run.data.params["arm"]) == (trial["hash"], trial["arm"])
        assert len(run.inputs.dataset_inputs) == 1
        expected: dict[str, list[tuple[int, int, float]]] = {}
        for point in read_journal(workspace.trials / trial["hash"] / "journal.jsonl"):
            for name, value in point["metrics"].items():
                expected.setdefault(name.replace("@", ":"), []).append((point["step"], point["time_ms"], value))
        assert run.data.metrics.keys() == expected.keys()
        for name, points in expected.items():
            history = client.get_metric_history(run.info.run_id, name)
            found = sorted((point.step, point.timestamp, point.value) for point in history)
            np.testing.assert_equal(found, points, err_msg=f"{trial['arm']}, seed {trial['seed']}: {name}")


def test_a_trial_that_another_runner_has_is_left_until_later(prepared, undisturbed, monkeypatch):
    monkeypatch.setattr(runner, "LATER", 0.1)
    first, second = sorted(path.name for path in undisturbed.trials.iterdir())
    (prepared.trials / first).mkdir(parents=True)
    lock = FileLock(prepared.trials / first / "lock", thread_local=False)
    lock.acquire()

    def release():
        while not is_finished(prepared.trials / second):
            time.sleep(0.01)
        begun.append((prepared.trials / first / "journal.jsonl").exists())
        lock.release()

    begun: list[bool] = []
    other = threading.Thread(target=release)
    other.start()
    outcome = run(prepared)
    other.join()
    assert (outcome.trained, outcome.failed, begun) == (2, {}, [False])


def test_an_unknown_executor_is_refused_before_anything_is_prepared(workspace):
    with pytest.raises(InputError, match="unknown executor 'procesess'; did you mean 'processes'"):
        run(workspace, executor="procesess")
    with pytest.raises(InputError, match="an address is for executor ray, not for processes"):
        run(workspace, address="head:6379")
    assert not workspace.trials.exists()
    assert not list(workspace.cache.glob("*.safetensors"))


def test_ray_that_is_not_installed_is_named(workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'iar-study\[ray\]'"):
        run(workspace, executor="ray")


def test_each_visible_gpu_has_room_for_one_trial(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-3f")
    assert visible_gpus() == ["1", "GPU-3f"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setattr(executors, "cpu_count", lambda: 5)
    assert make_executor("processes", tmp_path, ComputeConfig(threads=2)).has_room()


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one core each, on this one."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    impatient = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 2}
    cluster = Cluster(
        initialize_head=True, head_node_args={**small, "include_dashboard": False, "_system_config": impatient}
    )
    cluster.add_node(**small)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_on_ray_trials_that_are_stopped_save_themselves(cluster, prepared, monkeypatch):
    def interrupted(self, timeout):
        while len(list(prepared.trials.glob("*/journal.jsonl"))) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(executors.OnRay, "ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(prepared, executor="ray", address=cluster.address, settings=ENDLESS)
    saved = [read_json(path)["step"] for path in prepared.trainings.glob("*/checkpoints/*.json")]
    assert len(saved) == 2
    assert not list(prepared.trials.glob("*/result.json"))


def test_on_ray_a_trial_whose_machine_dies_goes_on_elsewhere(cluster, prepared, undisturbed, monkeypatch):
    """How each attempt ended is asked too, so that the machine is known to have died under a trial."""
    ended, end_of = [], executors.OnRay._end
    monkeypatch.setattr(executors.OnRay, "_end", lambda *given: ended.append(end_of(*given)) or ended[-1])
    (node,) = cluster.worker_nodes

    def kill_the_node():
        while len(list(prepared.trainings.glob("*/checkpoints/*.json"))) < 2:
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill_the_node, daemon=True)
    killer.start()
    outcome = run(prepared, executor="ray", address=cluster.address)
    assert (outcome.trained, outcome.failed) == (2, {})
    killer.join()
    assert "later" in [end.kind for end in ended]
    assert_same(prepared, undisturbed)


def test_a_ray_cluster_that_does_not_answer_is_named(workspace):
    pytest.importorskip("ray").shutdown()
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray start --head"):
        run(workspace, executor="ray", address="127.0.0.1:1")
    assert not workspace.trials.exists()

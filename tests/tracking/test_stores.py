"""Real stores under load: many processes at once, a server that goes away and comes back, PostgreSQL."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient

from iar_study.config import TrialConfig, flatten
from iar_study.pipeline.workspace import Workspace
from iar_study.storage import write_json
from iar_study.study.study import Arm, Profile, Study
from iar_study.tracking.store import store_uri
from iar_study.tracking.tracker import Key, Recorder, Tracker
from tests import forked

N_PROCESSES = 8
KEYS = [Key(f"arm{n}", 0, f"{n:016x}") for n in range(N_PROCESSES)]
STUDY = Study("crowd", "Who?", "All.", "arm0", tuple(Arm(key.arm, "") for key in KEYS))
PROFILE = Profile("tiny", "", TrialConfig(), (0,))
METRICS = ("train/loss", "train/token_nll", "val/token_nll", "speed/tokens_per_s")


def write_trial(workspace: Workspace, key: Key, steps: range, finished: bool = False) -> None:
    """Write what a trial leaves after these steps, each with a value of every metric."""
    folder = workspace.trials / key.hash
    about = {
        "data": {"name": "made up", "digest": "d" * 64},
        "code": {"commit": "c" * 40, "dirty": False},
        "environment": {"python": "3"},
        "config": flatten(TrialConfig()),
    }
    write_json(folder / "trial.json", about)
    with open(folder / "journal.jsonl", "a") as file:
        for step in steps:
            metrics = {name: step + position / 10 for position, name in enumerate(METRICS)}
            file.write(json.dumps({"step": step, "time_ms": 10**12 + 7 * step, "metrics": metrics}) + "\n")
    if finished:
        write_json(folder / "result.json", {"status": "finished", "step": steps[-1], "metrics": {}})


def record(root: Path, key: Key, start) -> None:
    """What each process does; they begin together, and all may find no store yet."""
    recorder = Recorder(Workspace(root), STUDY, PROFILE, TrialConfig())
    start.wait(120)
    recorder.saw(key)
    recorder.ended(key)
    problem = recorder.close(300)
    if problem is not None:
        sys.exit(problem)


def crowd(workspace: Workspace, points: int, n_processes: int = N_PROCESSES) -> float:
    """Let processes log so many points each into the store, all at once; return the seconds that it took."""
    for key in KEYS[:n_processes]:
        write_trial(workspace, key, range(1, points // len(METRICS) + 1), finished=True)
    start = multiprocessing.get_context("forkserver").Barrier(n_processes + 1)
    processes = [forked.start(record, workspace.root, key, start) for key in KEYS[:n_processes]]
    start.wait(120)
    begun = time.monotonic()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * n_processes
    return time.monotonic() - begun


def assert_every_point_is_there_once(uri: str, points: int, n_processes: int = N_PROCESSES) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(STUDY.name)
    runs = client.search_runs([experiment.experiment_id])
    assert Counter(run.data.tags["kind"] for run in runs) == {"study": 1, "trial": n_processes}
    for run in runs:
        if run.data.tags["kind"] == "trial":
            assert run.info.status == "FINISHED"
            for position, name in enumerate(METRICS):
                history = client.get_metric_history(run.info.run_id, name)
                found = [(point.step, point.value, point.timestamp) for point in history]
                steps = range(1, points // len(METRICS) + 1)
                assert found == [(step, step + position / 10, 10**12 + 7 * step) for step in steps]


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path)


@pytest.mark.parametrize(
    ("n_processes", "points"), [(2, 400), pytest.param(N_PROCESSES, 10_000, marks=pytest.mark.slow)]
)
def test_processes_at_once_on_a_fresh_sqlite_store_lose_and_double_nothing(workspace, n_processes, points):
    seconds = crowd(workspace, points, n_processes)
    assert_every_point_is_there_once(f"sqlite:///{workspace.store}", points, n_processes)
    print(f"{n_processes} x {points} points into SQLite in {seconds:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize(("fresh", "longer_s"), [(True, 0.5), (False, 0.06)], ids=["new store", "store with tables"])
def test_recorders_killed_at_any_moment_lose_and_double_nothing(workspace, fresh, longer_s):
    """Each life of a process ends by SIGKILL a little later than the one before, until one is left to finish."""
    key, points = KEYS[0], 10_000
    if not fresh:
        Tracker(workspace, STUDY, PROFILE.name, flatten(TrialConfig()))
    write_trial(workspace, key, range(1, points // len(METRICS) + 1), finished=True)
    kills = 0
    while True:
        start = multiprocessing.get_context("forkserver").Barrier(2)
        process = forked.start(record, workspace.root, key, start)
        start.wait(120)
        process.join(longer_s * kills)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    print(f"killed {kills} times")
    assert kills >= 5
    assert_every_point_is_there_once(f"sqlite:///{workspace.store}", points, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`mlflow server` on SQLite, which can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", self.folder]
        command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(self.port), "--workers", "1"]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, number)  # with the worker that answers
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path, monkeypatch):
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.stop()


def test_a_server_killed_and_started_again_in_the_middle_loses_and_doubles_nothing(workspace, server):
    (one, other), points = KEYS[:2], 4000
    steps = points // len(METRICS)
    # The study begins before its server.
    recorder = Recorder(workspace, STUDY, PROFILE, TrialConfig())
    write_trial(workspace, one, range(1, 11))
    recorder.saw(one)
    server.start()
    while not recorder.run_id(one):
        time.sleep(0.05)
    write_trial(workspace, one, range(11, steps + 1), finished=True)
    recorder.ended(one)
    time.sleep(0.3)  # it may be in the middle of a batch
    server.stop()
    slowest = 0.0
    for step in range(1, steps + 1):
        write_trial(workspace, other, range(step, step + 1), finished=step == steps)
        begun = time.monotonic()
        recorder.saw(other)
        slowest = max(slowest, time.monotonic() - begun)
    recorder.ended(other)
    assert slowest < 0.2
    server.start()
    assert recorder.close(60) is None
    assert_every_point_is_there_once(server.uri, points, 2)


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs: those of the wheel `pgserver`, else the system's."""
    wheel = find_spec("pgserver")
    if wheel is not None and wheel.submodule_search_locations:
        return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
    found = [shutil.which("pg_ctl"), *Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")]
    return next((Path(path).resolve().parent for path in found if path), None)


@contextmanager
def postgres():
    """Run a PostgreSQL server in a folder of its own and give its address.

    PostgreSQL refuses to run as root, so root lends it to `nobody`: `pgserver` itself would make a user and open
    folders of this machine to all.
    """
    programs = postgres_programs()
    if programs is None or find_spec("psycopg2") is None:
        pytest.skip("no PostgreSQL here: pip install pgserver psycopg2-binary")
    # Not below pytest's folder, which is closed to other users; and the name of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="iar-pg-"))
    who = {"user": "nobody", "group": os.stat(folder).st_gid} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(folder, "nobody")
        wheel = programs.parents[1]
        if wheel.name == "pgserver":  # the folder that it is installed in may be closed to others
            libraries = wheel.with_name("pgserver.libs")
            for part in (wheel, libraries) if libraries.exists() else (wheel,):
                shutil.copytree(part, folder / part.name)
            programs = folder / programs.relative_to(wheel.parent)
    try:
        data = folder / "data"
        make = [programs / "initdb", "-D", data, "-U", "iar", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        made = subprocess.run(make, cwd=folder, capture_output=True, text=True, check=False, **who)
        assert made.returncode == 0, made.stderr
        serve = [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="]
        with open(folder / "log", "w") as log:
            server = subprocess.Popen(serve, cwd=folder, stdout=log, stderr=log, **who)
        while not (folder / ".s.PGSQL.5432").exists():
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        ready = [programs / "pg_isready", "-h", folder, "-U", "iar", "-t", "30"]
        while subprocess.run(ready, cwd=folder, stdout=subprocess.DEVNULL, check=False, **who).returncode != 0:
            time.sleep(0.05)
        try:
            yield f"postgresql://iar@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # its fast way to stop
            server.wait()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("n_processes", "points"), [(2, 400), pytest.param(N_PROCESSES, 10_000, marks=pytest.mark.slow)]
)
def test_processes_at_once_on_a_fresh_postgresql_store_lose_and_double_nothing(
    workspace, monkeypatch, n_processes, points
):
    with postgres() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        seconds = crowd(workspace, points, n_processes)
        assert_every_point_is_there_once(store_uri(workspace), points, n_processes)
    print(f"{n_processes} x {points} points into PostgreSQL in {seconds:.1f} s")

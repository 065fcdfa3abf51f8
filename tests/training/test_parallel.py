"""Two processes (gloo) train like one, whether they hold the model each or share it out, and go on from each other."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iar_study.config import with_settings
from iar_study.errors import InputError
from iar_study.training.journal import read_journal
from iar_study.training.parallel import check_parallel
from tests import forked
from tests.training.small import MEASURED, curves, main, make_config, weights

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PARTS = "train.micro_batch=8"


def on_one(folder: Path, *settings: str) -> int:
    return forked.exit_code([forked.start(main, folder, PARTS, *settings)])


def on_two(folder: Path, *settings: str) -> int:
    return forked.exit_code(forked.start_two(main, folder, PARTS, *settings))


def by_torchrun(folder: Path, *settings: str) -> int:
    command = [sys.executable, *TORCHRUN, "-m", "tests.training.small", str(folder), PARTS, *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)  # shown where a test fails
    return done.returncode


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    main(folder, PARTS)
    return folder


def assert_alike(folder: Path, other: Path) -> None:
    ours, theirs = curves(folder), curves(other)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    for (step, a), (_, b) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-6), step
    for name, array in weights(folder).items():
        np.testing.assert_allclose(array, weights(other)[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("train", "settings"),
    [
        (on_two, ["parallel.strategy=ddp"]),
        (by_torchrun, ["parallel.strategy=fsdp", "parallel.activation_checkpointing=true"]),
    ],
)
def test_two_processes_do_what_one_does(train, settings, alone, tmp_path):
    assert train(tmp_path, *settings) == 0
    assert_alike(tmp_path, alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does_with_a_variant_of_the_loss(strategy, tmp_path):
    loss = {"schedule": "linear", "smoothing": "0.1", "smoothing_over": "similar", "coarse_weight": "0.5"}
    settings = [*(f"loss.{key}={value}" for key, value in loss.items()), "loss.coarse_clusters=2", "train.steps=20"]
    main(tmp_path / "one", PARTS, *settings)
    assert on_two(tmp_path / "two", f"parallel.strategy={strategy}", *settings) == 0
    assert_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_of_one_process_loads_in_two_and_the_other_way_round(strategy, alone, tmp_path):
    assert on_one(tmp_path / "a", "stop_at=20") == 9
    assert on_two(tmp_path / "a", f"parallel.strategy={strategy}") == 0
    assert_alike(tmp_path / "a", alone)
    assert on_two(tmp_path / "b", f"parallel.strategy={strategy}", "stop_at=20") != 0
    measured = [point["step"] for point in read_journal(tmp_path / "b" / MEASURED)]
    assert measured == [10]  # it was ended in the evaluation at step 20
    main(tmp_path / "b", PARTS)
    assert_alike(tmp_path / "b", alone)


def test_sigterm_to_torchrun_stops_all_processes_at_one_step_and_saves_it(tmp_path):
    long = ["train.steps=2000", "train.checkpoint_every=100000", "train.kept=1", "evaluation.sampled_times=1"]
    command = [*TORCHRUN, "-m", "tests.training.small", str(tmp_path), PARTS, *long]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(curves(tmp_path)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait()
    (saved,) = (int(path.stem) for path in tmp_path.glob("checkpoints/*.json"))
    assert saved == curves(tmp_path)[-1][0] < 2000  # they agree at the points of the journal


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({"train.micro_batch": 3}, 1, r"micro_batch = 3 does not divide train\.batch_size = 16"),
        ({}, 2, "2 processes cannot share the 1 parts"),
        ({"train.micro_batch": 4}, 3, "3 processes cannot share the 4 parts"),
        ({"compute.precision": "float16", "parallel.strategy": "fsdp"}, 1, "choose bfloat16"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(settings, processes, message):
    with pytest.raises(InputError, match=message):
        check_parallel(with_settings(make_config(), settings), processes)


def test_evenly_shared_parts_are_fine():
    for processes in (1, 2, 4):
        check_parallel(with_settings(make_config(), {"train.micro_batch": 4}), processes)

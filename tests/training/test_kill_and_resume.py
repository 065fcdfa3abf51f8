"""A training that is killed again and again ends with the bits of the undisturbed one, and loses no point."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import forked
from tests.training.small import curves, main, weights

SETTINGS = ["train.steps=400", "train.checkpoint_every=20", "train.log_every=10", "train.kept=8"]


def start(folder: Path, *settings: str, at_sigint: Any = signal.default_int_handler) -> multiprocessing.Process:
    """A process that is forked with all imported, so that it trains at once.

    at_sigint : its handler; whoever runs the tests may ignore SIGINT, which a child inherits.
    """
    return forked.start(train, folder, at_sigint, *SETTINGS, *settings)


def train(folder: Path, at_sigint: Any, *settings: str) -> None:
    signal.signal(signal.SIGINT, at_sigint)
    main(folder, *settings)


def until_writing(folder: Path) -> bool:
    return any(folder.glob("checkpoints/.*.tmp"))


def until_sampling(folder: Path) -> bool:
    return (folder / "sampling").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    return folder


def assert_same(folder: Path, undisturbed: Path) -> None:
    assert curves(folder) == curves(undisturbed)
    for name, array in weights(undisturbed).items():
        np.testing.assert_array_equal(weights(folder)[name], array, err_msg=name)
    assert len(list((folder / "checkpoints").iterdir())) == 4  # no file of a killed process is left beside the two


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkills_at_random_moments_cost_no_bit(kills, tmp_path, undisturbed):
    """A third of them while a checkpoint is written, a third during evaluation, a third at any time."""
    chance = random.Random(kills)
    moments = [until_writing, until_sampling, None]
    killed = dict.fromkeys(moments, 0)
    while sum(killed.values()) < kills:
        process = start(tmp_path)
        moment = moments[sum(killed.values()) % 3]
        (tmp_path / "sampling").unlink(missing_ok=True)
        if moment is None:
            time.sleep(chance.uniform(0.05, 0.8))
        else:
            for _ in range(chance.randint(1, 2)):  # not always the first one: the training must get on
                while process.is_alive() and moment(tmp_path):
                    pass
                while process.is_alive() and not moment(tmp_path):
                    pass
        process.kill()
        process.join()
        if process.exitcode == 0:  # it had ended: once more from the start
            for path in sorted(tmp_path.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        else:
            assert process.exitcode == -signal.SIGKILL
            killed[moment] += 1
    print({getattr(moment, "__name__", "at any time"): count for moment, count in killed.items()})
    last = start(tmp_path)
    last.join()
    assert last.exitcode == 0
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_saves_first_and_tells_by_its_exit_code(number, code, tmp_path, undisturbed):
    process = start(tmp_path, "train.checkpoint_every=1000")  # none but the one at the stop
    while len(curves(tmp_path)) < 3:
        assert process.is_alive()
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (code if number == signal.SIGTERM else 1)  # Python's own code for KeyboardInterrupt
    saved = max(int(path.stem) for path in tmp_path.glob("checkpoints/*.json"))
    assert saved >= curves(tmp_path)[-1][0]


def test_where_sigint_is_ignored_it_stays_so_and_sigterm_stops(tmp_path):
    """As under nohup, or in the background of a script: whoever started it so does not want it to hear Ctrl-C."""
    process = start(tmp_path, "train.checkpoint_every=1000", at_sigint=signal.SIG_IGN)
    for number, points in ((signal.SIGINT, 3), (signal.SIGTERM, 6)):
        while len(curves(tmp_path)) < points:
            assert process.is_alive()
        os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    saved = max(int(path.stem) for path in tmp_path.glob("checkpoints/*.json"))
    assert saved >= curves(tmp_path)[-1][0]

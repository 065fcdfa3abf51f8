"""Checkpoints: what is damaged is never used, what is whole is kept, whatever happens while one is written."""

import json
import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.errors import InputError
from iar_study.training.checkpoint import KEPT, Checkpoints, CheckpointTensors

SETTINGS = {"train.lr": 0.1, "seed": 0}


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((3, 4), float(step)), "optimizer.step.a": torch.tensor(float(step))}


def filled(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, SETTINGS)
    for step in steps:
        checkpoints.save(step, tensors(step), {"step": step, "sums": [0.1, step / 3]})
    return checkpoints


def step_of(checkpoints: Checkpoints) -> int | None:
    """The step of the newest checkpoint, once its content was seen to belong to it."""
    if (found := checkpoints.newest()) is None:
        return None
    path, state = found
    assert state["sums"] == [0.1, state["step"] / 3]
    read = CheckpointTensors(path)
    assert set(read.names) == set(tensors(0))
    for name, tensor in tensors(state["step"]).items():
        assert torch.equal(read[name], tensor)
    return state["step"]


def test_the_newest_is_found_and_the_old_ones_are_removed(tmp_path):
    checkpoints = filled(tmp_path)
    assert checkpoints.newest() is None
    for step in (9, 10, 100, 1000):
        checkpoints.save(step, tensors(step), {"step": step, "sums": [0.1, step / 3]})
        assert step_of(checkpoints) == step
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{step:09d}.{suffix}" for step in (100, 1000) for suffix in ("json", "safetensors")
    }
    assert KEPT == 2


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used(data):
    with tempfile.TemporaryDirectory() as name:
        checkpoints = filled(Path(name), 7, 14)
        path = Path(name) / data.draw(st.sampled_from(["000000014.safetensors", "000000014.json"]))
        content = bytearray(path.read_bytes())
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        # A flip in the white space between the parts of the JSON can change nothing: then the newest is still right.
        harmless = path.suffix == ".json" and _same_json(path, filled(Path(name) / "again", 7, 14))
        assert step_of(checkpoints) == (14 if harmless else 7)


def _same_json(path: Path, again: Checkpoints) -> bool:
    try:
        return json.loads(path.read_text()) == json.loads((again.folder / path.name).read_text())
    except ValueError:
        return False


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("length", [0, 1, 50])
def test_a_truncated_one_is_named_and_the_one_before_is_used(tmp_path, capsys, suffix, length):
    checkpoints = filled(tmp_path, 7, 14)
    path = tmp_path / f"000000014.{suffix}"
    path.write_bytes(path.read_bytes()[:length])
    assert step_of(checkpoints) == 7
    assert f"{path} is" in capsys.readouterr().err
    checkpoints.save(21, tensors(21), {"step": 21, "sums": [0.1, 7.0]})
    assert step_of(checkpoints) == 21


def test_without_its_tensors_a_checkpoint_does_not_count(tmp_path):
    checkpoints = filled(tmp_path, 7, 14)
    (tmp_path / "000000014.safetensors").unlink()
    assert step_of(checkpoints) == 7


def test_when_none_is_whole_the_training_starts_over_with_a_word(tmp_path, capsys):
    checkpoints = filled(tmp_path, 7, 14)
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    assert checkpoints.newest() is None
    assert f"no checkpoint in {tmp_path} is whole; starting over" in capsys.readouterr().err


def test_one_of_other_settings_is_refused_with_the_keys_that_differ(tmp_path):
    filled(tmp_path, 7)
    with pytest.raises(InputError, match=r"other settings: model\.width = None, now 3; train\.lr = 0\.1, now 0\.2; go"):
        Checkpoints(tmp_path, {"train.lr": 0.2, "seed": 0, "model.width": 3}).newest()
    assert step_of(Checkpoints(tmp_path, SETTINGS)) == 7


def test_what_a_kill_left_is_removed(tmp_path):
    checkpoints = filled(tmp_path, 7)
    for name in (".000000014.safetensors.123.tmp", "000000014.safetensors", ".000000014.json.123.tmp"):
        (tmp_path / name).write_bytes(b"half")
    assert step_of(checkpoints) == 7
    filled(tmp_path, 21)
    assert len(list(tmp_path.iterdir())) == 4


@contextmanager
def file_size_limit(size: int):
    """What a full disk looks like to a process: a write fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 4000])
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_saved(tmp_path, size):
    checkpoints = filled(tmp_path, 7, 14)
    big = {"model.a": torch.zeros(10_000)}
    with file_size_limit(size), pytest.raises(InputError, match=r"cannot write .*000000021\.safetensors.*free some"):
        checkpoints.save(21, big, {})
    assert step_of(checkpoints) == 14
    assert len(list(tmp_path.iterdir())) == 4


@contextmanager
def as_nobody():
    """Root may write anywhere: be somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_one_line_and_costs_nothing_that_was_saved():
    with tempfile.TemporaryDirectory() as name:
        checkpoints = filled(Path(name), 7)
        os.chmod(name, 0o555)
        with as_nobody(), pytest.raises(InputError, match=r"cannot write .*Permission denied; .* writable"):
            checkpoints.save(14, tensors(14), {})
        os.chmod(name, 0o755)
        assert step_of(checkpoints) == 7

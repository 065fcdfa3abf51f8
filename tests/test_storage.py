"""Files are whole or absent, damage is named, and digests see every bit."""

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from iar_study.errors import InputError
from iar_study.storage import (
    digest,
    is_locked,
    load_arrays,
    load_metadata,
    locked,
    read_json,
    replacing,
    save_arrays,
    write_json,
    write_text,
)


def test_arrays_and_metadata_come_back(tmp_path):
    saved = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.ones(2, np.float32)[::-1]}
    save_arrays(tmp_path / "x.safetensors", saved, {"k": {"n": [1, 0.1]}})
    arrays_, metadata = load_arrays(tmp_path / "x.safetensors")
    assert metadata == load_metadata(tmp_path / "x.safetensors") == {"k": {"n": [1, 0.1]}}
    for name, array in saved.items():
        np.testing.assert_array_equal(arrays_[name], array)
        assert arrays_[name].dtype == array.dtype


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def write_and_fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*x\.txt: No space left"), replacing(tmp_path / "x.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"a": np.arange(100)})
    path.write_bytes(path.read_bytes()[:keep])
    for load in (load_arrays, load_metadata):
        with pytest.raises(InputError, match=r"x\.safetensors is damaged"):
            load(path)


def test_json_goes_there_and_back_and_damage_is_named(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 0.1, None]})
    assert read_json(tmp_path / "x.json") == {"a": [1, 0.1, None]}
    (tmp_path / "x.json").write_text('{"a": [1')
    with pytest.raises(InputError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


@given(arrays(np.uint8, array_shapes(max_dims=2, max_side=5)), st.data())
def test_a_digest_sees_every_entry_and_the_shape(array, data):
    changed = array.copy()
    changed.flat[data.draw(st.integers(0, array.size - 1))] ^= 1
    assert digest(array) == digest(array.copy()) == digest(np.asfortranarray(array))
    assert len({digest(array), digest(changed), digest(array[None]), digest(array.astype(np.int16))}) == 4


def test_whether_a_file_is_locked_is_asked_without_a_trace(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    with locked(path, tmp_path):
        before = path.stat()
        assert is_locked(path)
        with pytest.raises(InputError, match="is being written by another process"), locked(path, tmp_path):
            pass
    assert not is_locked(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns

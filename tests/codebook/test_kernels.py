"""Kernels: compiled once, under a lock, for the stated types alone."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from iar_study.codebook import kernels
from iar_study.codebook.kernels import TABLE32, TABLE64, float64, kernel


def total(table):
    result = 0.0
    for row in table:
        for value in row:
            result += value
    return result


def test_a_kernel_is_compiled_under_the_lock_when_it_is_first_called(monkeypatch):
    held = []

    class Lock:
        def __init__(self, path):
            self.path = path

        def __enter__(self):
            held.append(self.path)

        def __exit__(self, *error):
            held.append("released")

    monkeypatch.setattr(kernels, "FileLock", Lock)
    compiled = kernel(float64(TABLE32), float64(TABLE64))(total)
    assert held == []
    for dtype in (np.float32, np.float64):
        table = np.ones((3, 2), dtype)
        assert compiled(table) == 6.0
        table.setflags(write=False)
        assert compiled(table) == 6.0
    assert held == [kernels.lock_path(), "released"]


def test_threads_that_call_a_kernel_first_at_once_all_get_its_result():
    compiled = kernel(float64(TABLE32), float64(TABLE64))(total)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(compiled, [np.ones((3, 2), np.float32)] * 8)) == [6.0] * 8


@pytest.mark.parametrize("table", [np.ones((3, 2), np.int64), np.asfortranarray(np.ones((3, 2))), np.ones(3)])
def test_arrays_of_other_types_are_refused(table):
    with pytest.raises(TypeError):
        kernel(float64(TABLE64))(total)(table)


def test_processes_that_start_with_an_empty_cache_at_once_all_compute_right(tmp_path):
    script = (
        "import sys, numpy as np; from iar_study.codebook.balanced_kmeans import _sums;"
        "X = np.arange(12.0).reshape(6, 2).astype(sys.argv[1]);"
        "got = _sums(X, np.array([0, 1, 0, 1, 0, 1], np.int32), np.zeros((2, 2)));"
        "assert got.tolist() == [[12, 15], [18, 21]], got"
    )
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": ""}
    started = [
        subprocess.Popen([sys.executable, "-c", script, dtype], env=environment) for dtype in ("f4", "f8", "f4", "f8")
    ]
    assert [process.wait() for process in started] == [0, 0, 0, 0]

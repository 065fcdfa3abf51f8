"""The journal: append-only, each step once, and a torn last line costs that line alone."""

import math

import pytest

from iar_study.errors import InputError
from iar_study.training.journal import Journal, read_journal


def test_points_are_read_back_in_order(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(1, {"a": 0.1})
    journal.write(2, {"a": float("nan")})
    points = read_journal(tmp_path / "journal.jsonl")
    assert [point["step"] for point in points] == [1, 2]
    assert points[0]["metrics"] == {"a": 0.1}


def test_a_step_is_written_once(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).write(5, {"a": 1.0})
    again = Journal(path)
    again.write(5, {"a": 2.0})
    again.write(6, {"a": 3.0})
    assert [(p["step"], p["metrics"]["a"]) for p in read_journal(path)] == [(5, 1.0), (6, 3.0)]


def test_a_torn_last_line_is_dropped_with_a_word(tmp_path, capsys):
    path = tmp_path / "journal.jsonl"
    Journal(path).write(1, {"a": 1.0})
    with open(path, "a") as file:
        file.write('{"step": 2, "time_')
    assert [p["step"] for p in read_journal(path)] == [1]
    Journal(path).write(2, {"a": 2.0})
    assert "torn" in capsys.readouterr().err
    assert [p["step"] for p in read_journal(path)] == [1, 2]


def test_no_journal_is_an_empty_one(tmp_path):
    assert read_journal(tmp_path / "none.jsonl") == []


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"step": 1, "time_ms": 1, "metrics": {}}\n\0\0\n')
    with pytest.raises(InputError, match=r"journal\.jsonl is damaged .* run its study again"):
        read_journal(path)


def test_values_that_are_not_finite_are_read_back(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).write(1, {"nan": math.nan, "high": math.inf, "low": -math.inf})
    (point,) = read_journal(path)
    assert math.isnan(point["metrics"].pop("nan"))
    assert point["metrics"] == {"high": math.inf, "low": -math.inf}
    assert Journal(path).last_step == 1

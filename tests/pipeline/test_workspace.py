"""What a trial's folder tells: how it ended, and its record, also one of another version."""

from iar_study.config import TrialConfig, flatten
from iar_study.pipeline.workspace import ending, read_record
from iar_study.storage import write_json


def test_how_a_trial_has_ended(tmp_path):
    assert ending(tmp_path) == ""
    for status in ("finished", "diverged"):
        write_json(tmp_path / "result.json", {"status": status, "step": 3, "metrics": {}})
        assert ending(tmp_path) == status


def test_a_record_has_the_defaults_of_settings_that_are_younger_and_keeps_what_is_unknown(tmp_path):
    recorded = {key: value for key, value in flatten(TrialConfig()).items() if key != "loss.smoothing"}
    write_json(tmp_path / "trial.json", {"seed": 1, "config": {**recorded, "train.lr": 0.5, "loss.unknown": 7}})
    record = read_record(tmp_path)
    assert record["seed"] == 1
    assert record["config"] == {**flatten(TrialConfig()), "train.lr": 0.5, "loss.unknown": 7}
    assert list(record["config"]) == sorted(record["config"])  # as it is stored

"""Settings by dotted key: parsed to the field's type, and refused with the nearest known key."""

from dataclasses import asdict

import pytest

from iar_study.config import TrialConfig, flatten, from_dict, with_settings
from iar_study.errors import InputError


def test_flat_keys_lead_back_to_the_same_config():
    config = with_settings(TrialConfig(), {"train.lr": 0.5, "seed": 3, "data.image_size": 32})
    assert with_settings(TrialConfig(), flatten(config)) == config
    assert from_dict(asdict(config)) == config


def test_text_is_parsed():
    config = with_settings(TrialConfig(), {"train.steps": "12", "compute.compile": "true", "loss.cluster_weight": "2"})
    assert (config.train.steps, config.compute.compile, config.loss.cluster_weight) == (12, True, 2.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.lrr", "1", "did you mean 'train.lr'"),
        ("seeed", "1", "did you mean 'seed'"),
        ("train", "1", "unknown setting 'train'"),
        ("train.lr", "fast", r"train\.lr = 'fast'"),
        ("train.steps", "0", "greater than 0"),
        ("train.lr", "nan", "finite"),
        ("clustering.strategy", "ballanced", "'balanced'"),
        ("model.dropout", "1.0", "less than 1"),
        ("seed", "-1", "greater than or equal to 0"),
    ],
)
def test_what_does_not_fit_is_refused(key, value, message):
    with pytest.raises(InputError, match=message):
        with_settings(TrialConfig(), {key: value})

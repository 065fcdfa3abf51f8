"""Settings by dotted key: parsed to the field's type, and refused with the nearest known key."""

from dataclasses import asdict

import pytest

from iar_study.config import (
    LossConfig,
    TrialConfig,
    flatten,
    from_dict,
    measuring_identity,
    training_identity,
    with_settings,
)
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
        ("model.dropout", "1.0", "less than 1"),
        ("seed", "-1", "greater than or equal to 0"),
        ("loss.schedule", "cosinus", "'cosine'"),
        ("loss.smoothing", "1", "less than 1"),
        ("loss.token_weight", "-1", "greater than or equal to 0"),
        ("loss.smoothing_over", "none", "'similar'"),
    ],
)
def test_what_does_not_fit_is_refused(key, value, message):
    with pytest.raises(InputError, match=message):
        with_settings(TrialConfig(), {key: value})


def a_loss(logits, targets, boundaries, codebook, weight): ...


def a_metric(reference, features): ...


def another(reference, features): ...


def eyes(images, device): ...


VARIED = {
    "loss.cluster_weight": 1.0,
    "loss.token_weight": 0.0,
    "loss.schedule": "linear",
    "loss.first_weight": 1.0,
    "loss.smoothing": 0.1,
    "loss.smoothing_over": "cluster",
    "loss.coarse_weight": 1.0,
    "loss.coarse_clusters": 2,
    "train.noise": 1,
    "evaluation.noise": 1,
    "loss.name": f"{__file__}:a_loss",
    "evaluation.metrics": f"{__file__}:a_metric {__file__}:another",
    "evaluation.extractor": f"{__file__}:eyes",
}


def identity(config: TrialConfig) -> dict[str, object]:
    return training_identity(config) | measuring_identity(config)


def test_what_is_measured_is_in_no_trainings_name_and_what_trains_in_no_measurements():
    trained, measured = training_identity(TrialConfig()), measuring_identity(TrialConfig())
    assert not [key for key in trained if key.startswith(("evaluation.", "train.kept", "train.log", "train.check"))]
    assert all(key.startswith("evaluation.") or key == "train.kept" for key in measured)
    assert "evaluation.reference" not in measured  # it goes by its content
    known = {key for key in flatten(TrialConfig()) if key.startswith(("model.", "loss.", "train.", "compute."))}
    assert known - set(identity(TrialConfig())) - set(VARIED) == {
        "train.log_every",
        "train.checkpoint_every",
        "model.name",
    }


def test_a_changed_variant_of_the_loss_and_another_draw_of_noise_are_other_trials():
    assert {f"loss.{key}" for key in asdict(LossConfig())} < VARIED.keys()
    found = [identity(TrialConfig()), *(identity(with_settings(TrialConfig(), {key: VARIED[key]})) for key in VARIED)]
    for i, one in enumerate(found):
        assert one not in found[:i]


def test_trials_from_before_there_were_variants_keep_their_identity():
    """Of the loss only the weight is named, at any value; and what is set to its default is none."""
    for config in (TrialConfig(), with_settings(TrialConfig(), {"loss.cluster_weight": 1.0, "loss.smoothing": 0.0})):
        assert not [key for key in identity(config) if key.endswith("noise")]
        named = {key: value for key, value in identity(config).items() if key.startswith("loss.")}
        assert named == {"loss.cluster_weight": config.loss.cluster_weight}

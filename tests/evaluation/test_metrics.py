"""The metrics' names: how they are shown, and what is made of one that is not known."""

import pytest

from iar_study.errors import InputError
from iar_study.evaluation.metrics import FIDELITY, METRICS, TOO_FEW, Metric, find_metric, metric_named


@pytest.mark.parametrize("metric", [*METRICS.values(), *FIDELITY.values()], ids=[*METRICS, *FIDELITY])
def test_a_definition_is_made_of_sentences(metric):
    assert "None" not in metric.definition
    assert ".." not in metric.definition
    assert metric.definition.endswith(".") or not metric.meaning
    assert ("is better." in metric.definition) == (metric.better is not None)


def test_a_metric_of_another_version_is_shown_by_its_key():
    assert metric_named("val/later", ["val/later"]) == Metric("val/later", None, 4, "")
    assert metric_named("val/token_nll", ["val/later"]) == METRICS["val/token_nll"]
    with pytest.raises(InputError, match="unknown metric 'val/token_nl'; did you mean 'val/token_nll'"):
        metric_named("val/token_nl", ["val/later"])


def test_a_family_means_what_the_set_found_and_not_its_members():
    by_a_set = [
        "fd/set-0a0a0a0a@5k",
        "fd/classifier-1b1b1b1b@5k",
        "fd/components-2c2c2c2c@5k",
        "fd_codes/set-0a0a0a0a@5k",
    ]
    assert find_metric("fd", by_a_set) == "fd/set-0a0a0a0a@5k"
    assert find_metric("fd", ["fd/classifier@5k"]) == "fd/classifier@5k"  # as stores had it before there were sets
    assert find_metric("fd", by_a_set[1:2]) == by_a_set[1]
    with pytest.raises(InputError, match="'fd' was measured as fd/set-0a0a0a0a@5k, fd/set-3d3d3d3d@5k; name one"):
        find_metric("fd", [*by_a_set, "fd/set-3d3d3d3d@5k"])
    for key in by_a_set[:3]:
        assert metric_named(key.replace("5k", "255")).label.endswith(TOO_FEW)
        assert metric_named(key.replace("5k", "256")).fewest == 256
    whole = metric_named(by_a_set[0])
    assert whole.label == "FD (set-0a0a0a0a, 5k)"
    assert "geometric mean over the members of set-0a0a0a0a" in whole.meaning

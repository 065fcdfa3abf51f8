"""The metrics' names: how they are shown, and what is made of one that is not known."""

import pytest

from iar_study.errors import InputError
from iar_study.evaluation.metrics import FIDELITY, METRICS, Metric, metric_named


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

"""Trials that several sets of evaluators measured: what means the same goes by one name, and can be compared."""

import pandas as pd

from iar_study.evaluation.metrics import find_metric, metric_named
from iar_study.evidence.results import _by_one_name
from iar_study.evidence.statistics import compare_with_baseline

FAMILIES = ("fd/set", "fd_codes/set", "fd/classifier", "fd/components", "kd/classifier", "class_agreement/set")


def rows(arm, name, seed=0):
    """What a trial measures by the set of this digest."""
    metrics = [*(f"{family}-{name}@5k" for family in FAMILIES), "val/token_nll"]
    values = (3.0, 1.0, 2.0, 4.5, 0.1, 0.9, 2.5)
    return [
        {"arm": arm, "seed": seed, "metric": metric, "value": value + 0.1 * seed}
        for metric, value in zip(metrics, values, strict=True)
    ]


def test_of_one_set_everything_keeps_its_name():
    given = rows("a", "0a0a0a0a") + rows("b", "0a0a0a0a")
    assert _by_one_name(given) == given


def test_of_several_sets_the_sets_are_compared_and_members_have_no_partner():
    given = [
        row for seed in (0, 1) for arm, name in (("a", "0a0a0a0a"), ("b", "1b1b1b1b")) for row in rows(arm, name, seed)
    ]
    final = pd.DataFrame(_by_one_name(given))
    assert set(final["metric"]) == {
        *("fd/set@5k", "fd_codes/set@5k", "kd/classifier@5k", "class_agreement/set@5k", "val/token_nll")
    }
    assert find_metric("fd", final["metric"]) == "fd/set@5k"
    assert "members of each pair's own set" in metric_named("fd/set@5k").meaning
    assert compare_with_baseline(final, "fd/set@5k", "a", ["a", "b"]).loc["b", "finding"] == "equal"

"""What the seeds allow one to say: intervals of means, and every arm compared with the baseline seed by seed.

All arms of a study share seeds, data order and initial weights. The difference from the baseline within one seed
is therefore free of what that seed does to both, and the comparison is Student's paired t.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from iar_study.errors import InputError, nearest
from iar_study.evaluation.metrics import METRICS, Metric

COMPARISON_COLUMNS = (
    "n",
    "not_finite",
    "mean",
    "low",
    "high",
    "pairs",
    "difference",
    "difference_low",
    "difference_high",
    "finding",
)


@dataclass(frozen=True)
class Interval:
    """The mean of `n` values with its confidence interval; the bounds are NaN when n < 2."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean and its Student t interval; values that are not finite are left out and not counted in `n`.

    >>> mean_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484..., n=3)
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; give a number between 0 and 1, such as 0.95")
    sample = np.asarray(values, dtype=float).ravel()
    sample = sample[np.isfinite(sample)]
    n = sample.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(sample.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan, 1)
    half = _quantile(n - 1, confidence) * float(sample.std(ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


@lru_cache
def _quantile(freedom: int, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def metric_named(name: str) -> Metric:
    """Return the metric of this key, or raise an `InputError` that names the nearest one."""
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}; {nearest(name, list(METRICS))}")
    return METRICS[name]


def values_by_seed(frame: pd.DataFrame, metric: str, arms: Iterable[str]) -> pd.DataFrame:
    """Return one row per seed and one column per arm, NaN where a trial is absent or its value is not finite."""
    rows = frame[frame["metric"] == metric]
    twice = rows[rows.duplicated(["arm", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise InputError(f"arm {first['arm']!r}, seed {first['seed']} has more than one value of {metric}; keep one")
    wide = rows.pivot(index="seed", columns="arm", values="value").reindex(columns=list(arms)).astype(float)
    return wide.where(np.isfinite(wide)).sort_index()


def paired_differences(final: pd.DataFrame, metric: str, baseline: str, arms: Iterable[str]) -> pd.DataFrame:
    """Return arm minus baseline, one row per seed and one column per arm; NaN where either is absent."""
    values = values_by_seed(final, metric, dict.fromkeys([baseline, *arms]))
    return values.sub(values[baseline], axis=0)


def compare_with_baseline(final: pd.DataFrame, metric: str, baseline: str, arms: Sequence[str]) -> pd.DataFrame:
    """Compare every arm with the baseline in one metric, paired by seed.

    Parameters
    ----------
    final : tidy frame with columns arm, seed, metric, value.
    metric : a key of `METRICS`.
    baseline : the arm that the others are compared with.
    arms : the arms to report, in order; one without values still gets its row.

    Returns
    -------
    DataFrame indexed by arm: `n` finite values and their `mean`, `low`, `high` (95% interval), `not_finite` values,
    `pairs` of seeds that arm and baseline share, the mean paired `difference` (arm minus baseline) with
    `difference_low` and `difference_high`, and the `finding`:

    - "baseline" for the baseline itself;
    - "better" or "worse" where the 95% interval of the difference excludes 0;
    - "inconclusive" otherwise. Also with fewer than two pairs; where a value of either arm is not finite, for the
      seeds that survived are then a selection; and where all differences are the same, for that is how rounding
      shows in a coarse metric, and no interval can be drawn from it;
    - "no direction" for a metric of which neither more nor less is better.

    Every comparison stands at 95% by itself: nothing is corrected for how many are made.
    """
    better = metric_named(metric).better
    if baseline not in arms:
        raise InputError(f"baseline {baseline!r} is not among the arms; {nearest(baseline, list(arms))}")
    values = values_by_seed(final, metric, arms)
    differences = values.sub(values[baseline], axis=0)
    reported = final.loc[final["metric"] == metric, "arm"].value_counts()
    records = []
    for arm in arms:
        own, paired = mean_interval(values[arm]), mean_interval(differences[arm])
        broken = int(reported.get(arm, 0)) - own.n
        if arm == baseline:
            paired, finding = Interval(np.nan, np.nan, np.nan, own.n), "baseline"
        elif better is None:
            finding = "no direction"
        elif broken or reported.get(baseline, 0) > values[baseline].count() or _no_spread(paired, own):
            finding = "inconclusive"
        elif paired.low > 0 or paired.high < 0:
            finding = "better" if (paired.mean < 0) == (better == "lower") else "worse"
        else:
            finding = "inconclusive"
        records.append(
            (own.n, broken, own.mean, own.low, own.high, paired.n, paired.mean, paired.low, paired.high, finding)
        )
    index = pd.Index(list(arms), name="arm")
    return pd.DataFrame.from_records(records, columns=list(COMPARISON_COLUMNS), index=index)


def _no_spread(paired: Interval, own: Interval) -> bool:
    """Whether the differences are one number, but for the rounding of the values they were taken from."""
    return paired.high - paired.low <= 1e-12 * max(abs(own.mean), abs(own.mean - paired.mean))

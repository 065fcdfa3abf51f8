"""What the seeds allow one to say: intervals of means, and every arm compared with the baseline seed by seed.

All arms of a study share seeds, data order and initial weights. The difference from the baseline within one seed
is therefore free of what that seed does to both, and the comparison is Student's paired t, corrected by Holm for the
number of arms and seconded by a bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from math import ceil, comb, factorial, prod

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

from iar_study.errors import InputError, nearest
from iar_study.evaluation.metrics import metric_named

ALPHA = 0.05
DRAWS = 10_000
"""Resamples that a bootstrap draws where it cannot weigh all of them."""

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
    "p",
    "p_holm",
    "bootstrap_low",
    "bootstrap_high",
    "detectable",
    "finding",
)
TARGET_COLUMNS = ("n", "reached", "mean", "low", "high", "share")


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


def paired_p(differences: ArrayLike) -> np.ndarray:
    """Return the two-sided p of Student's paired t test.

    differences : finite (..., n), n pairs each. Returns (...); NaN with fewer than two pairs or without any spread.
    """
    sample = np.asarray(differences, dtype=float)
    n = sample.shape[-1]
    if n < 2:
        return np.full(sample.shape[:-1], np.nan)
    error = sample.std(axis=-1, ddof=1) / n**0.5
    t = sample.mean(axis=-1) / np.where(error > 0, error, np.nan)
    return 2 * stats.t.sf(np.abs(t), n - 1)


def holm(p: ArrayLike) -> np.ndarray:
    """Return Holm's adjusted p (1979) of a family (..., k); NaN where no test was made, which the family is without.

    The k-th smallest of m is multiplied by m - k + 1 and never falls below the one before it. The chance that any true
    null of the family is below 0.05 is at most 5%, however the tests depend on each other.

    >>> holm([0.01, 0.04, float("nan"), 0.03]).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    values = np.asarray(p, dtype=float)
    order = values.argsort(axis=-1)  # NaN come last
    made = np.isfinite(values).sum(axis=-1, keepdims=True)
    scaled = np.take_along_axis(values, order, -1) * (made - np.arange(values.shape[-1]))
    adjusted = np.empty_like(values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(scaled, axis=-1), 1), -1)
    return adjusted


def bootstrap_interval(differences: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile bootstrap interval of the mean (Efron 1979): the same bits for the same differences.

    differences : finite (..., n). Returns low and high, (...); NaN with fewer than two.

    Up to n = 8 all n^n resamples are weighed; beyond, `DRAWS` of them are drawn, always the same. With three values
    the interval runs from the smallest to the largest: of the 27 resamples, one alone is more than 2.5%.
    """
    sample = np.asarray(differences, dtype=float)
    if sample.shape[-1] < 2:
        return np.full(sample.shape[:-1], np.nan), np.full(sample.shape[:-1], np.nan)
    times, ways = _resamples(sample.shape[-1])
    means = np.einsum("...n,rn->...r", sample, times / sample.shape[-1])
    order = means.argsort(axis=-1)
    ranked, weight = np.take_along_axis(means, order, -1), ways[order]
    below = weight.cumsum(axis=-1)
    tail = ceil(round((1 - confidence) / 2 * ways.sum(), 6))
    # The quantiles from below and from above mirror each other: minus the differences has minus the interval.
    low = (below < tail).sum(axis=-1)
    high = (ways.sum() - below + weight >= tail).sum(axis=-1) - 1
    return (
        np.take_along_axis(ranked, low[..., None], -1)[..., 0],
        np.take_along_axis(ranked, high[..., None], -1)[..., 0],
    )


@lru_cache
def _resamples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each resample takes each value, int (R, n), and in how many ways it comes about, int (R,)."""
    if comb(2 * n - 1, n) > DRAWS:
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        return drawn, np.ones(DRAWS, dtype=np.int64)
    times = [np.bincount(taken, minlength=n) for taken in combinations_with_replacement(range(n), n)]
    ways = [factorial(n) // prod(factorial(k) for k in row.tolist()) for row in times]
    return np.array(times), np.array(ways)


def called(p: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Say, elementwise, whether a difference may be called one: p below 5% and 0 outside the bootstrap interval."""
    return (p < ALPHA) & ((low > 0) | (high < 0))


def p_text(p: float) -> str:
    """Format a p-value to two digits, or to as many as keep it on its side of 5%.

    >>> p_text(0.0312), p_text(0.04962), p_text(0.0003)
    ('0.031', '0.0496', '<0.001')
    """
    if not np.isfinite(p):
        return "\N{EN DASH}"
    digits = 2
    while p < ALPHA <= float(f"{p:.{digits}g}"):
        digits += 1
    return "<0.001" if p < 0.001 else f"{p:.{digits}g}"


def power(difference: float, sd: float, pairs: int, alpha: float = ALPHA) -> float:
    """Return the chance that the two-sided paired t test at level `alpha` finds a true mean `difference`.

    sd : standard deviation of the differences between the pairs, in the unit of `difference`. By the noncentral t
    distribution, that is, for normal differences; 0 with fewer than two pairs. Raises `InputError` unless sd > 0.

    >>> round(power(1.0, 1.0, pairs=5), 3)
    0.401
    """
    if not sd > 0:
        raise InputError(f"the standard deviation of the differences is {sd}; it must be above 0")
    if pairs < 2:
        return 0.0
    critical = stats.t.isf(alpha / 2, pairs - 1)
    noncentrality = difference / sd * pairs**0.5
    above = stats.nct.sf(critical, pairs - 1, noncentrality)
    return float(above + stats.nct.sf(critical, pairs - 1, -noncentrality))


@lru_cache
def _detectable(pairs: int) -> float:
    """Return the true difference, in standard deviations of the paired difference, that is found in 80% of studies."""
    # Two pairs need most: 11.5 standard deviations.
    return float(brentq(lambda difference: power(difference, 1, pairs) - 0.8, 0, 20))


def values_by_seed(frame: pd.DataFrame, metric: str, arms: Iterable[str]) -> pd.DataFrame:
    """Return one row per seed and one column per arm, NaN where a trial is absent or its value is not finite."""
    rows = frame[frame["metric"] == metric]
    twice = rows[rows.duplicated(["arm", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise InputError(f"arm {first['arm']!r}, seed {first['seed']} has more than one value of {metric}; keep one")
    wide = rows.pivot(index="seed", columns="arm", values="value").reindex(columns=list(arms)).astype(float)
    return wide.where(np.isfinite(wide)).sort_index()


def _beside(baseline: str | Mapping[str, str], arms: Iterable[str]) -> dict[str, str]:
    """Return arm -> the arm that it is compared with."""
    return {arm: baseline if isinstance(baseline, str) else baseline[arm] for arm in arms}


def paired_differences(
    final: pd.DataFrame, metric: str, baseline: str | Mapping[str, str], arms: Iterable[str]
) -> pd.DataFrame:
    """Return arm minus its baseline, one row per seed and one column per arm; NaN where either is absent."""
    beside = _beside(baseline, arms)
    values = values_by_seed(final, metric, dict.fromkeys([*beside, *beside.values()]))
    return pd.DataFrame({arm: values[arm] - values[than] for arm, than in beside.items()}, index=values.index)


def compare_with_baseline(
    final: pd.DataFrame, metric: str, baseline: str | Mapping[str, str], arms: Sequence[str]
) -> pd.DataFrame:
    """Compare every arm with its baseline in one metric, paired by seed.

    Parameters
    ----------
    final : tidy frame with columns arm, seed, metric, value.
    metric : a key that `metric_named` knows, or that was measured.
    baseline : the arm that the others are compared with; or for every arm the one that it is compared with, its own
        name where it is a baseline.
    arms : all arms of the study, in order; one without values still gets its row.

    Returns
    -------
    DataFrame indexed by arm: `n` finite values and their `mean`, `low`, `high` (95% interval), `not_finite` values,
    `pairs` of seeds that arm and baseline share, the mean paired `difference` (arm minus baseline) with
    `difference_low` and `difference_high` (95% t interval), `p` (paired t, two-sided), `p_holm` (corrected for all
    the arms that are tested in this metric, see `holm`), `bootstrap_low` and `bootstrap_high` (95%, see
    `bootstrap_interval`), `detectable` (the smallest true difference that so many pairs with such a spread find in 80%
    of studies at the 5% level, without Holm's correction and for normal differences), and the `finding`:

    - "baseline" for a baseline itself;
    - "no direction" for a metric of which neither more nor less is better;
    - "equal" where arm and baseline have the same seeds, and the same number in each (but for a rounding of 1e-12).
      That is a statement about these numbers, not a test, so that one seed suffices for it;
    - "better" or "worse" where `p_holm` is below 0.05 and the bootstrap interval excludes 0;
    - "inconclusive" otherwise. Always so where a value of either arm is not finite, for the seeds that survived are
      then a selection; and where all differences are the same number but not 0, for that is how rounding shows in a
      coarse metric, and no interval can be drawn from it.

    Where no arm differs from its baseline, the chance that any of them is called better or worse is at most 5% in one
    metric. Nothing is corrected for the number of metrics.
    """
    better = metric_named(metric, final["metric"]).better
    beside = _beside(baseline, arms)
    if absent := next((than for than in beside.values() if than not in arms), None):
        raise InputError(f"baseline {absent!r} is not among the arms; {nearest(absent, list(arms))}")
    values = values_by_seed(final, metric, arms)
    reported = final.loc[final["metric"] == metric, "arm"].value_counts()
    records: list[dict[str, float]] = []
    for arm in arms:
        own = mean_interval(values[arm])
        record: dict[str, float] = {"n": own.n, "not_finite": int(reported.get(arm, 0)) - own.n}
        record |= {"mean": own.mean, "low": own.low, "high": own.high}
        tested = {"pairs": own.n} if arm == beside[arm] else paired_test(values[arm] - values[beside[arm]], own.mean)
        records.append(record | tested)
    index = pd.Index(list(arms), name="arm")
    table = pd.DataFrame.from_records(records, index=index).reindex(columns=list(COMPARISON_COLUMNS))
    table["p_holm"] = holm(table["p"])
    broken = {arm for arm, record in zip(arms, records, strict=True) if record["not_finite"]}
    difference, *bounds = table[["difference", "p_holm", "bootstrap_low", "bootstrap_high"]].to_numpy(float).T
    differs = called(*bounds)
    findings = []
    for i, arm in enumerate(arms):
        if arm == beside[arm]:
            finding = "baseline"
        elif better is None:
            finding = "no direction"
        elif broken & {arm, beside[arm]}:
            finding = "inconclusive"
        elif _same(values[arm], values[beside[arm]]):
            finding = "equal"
        elif differs[i]:
            finding = "better" if (difference[i] < 0) == (better == "lower") else "worse"
        else:
            finding = "inconclusive"
        findings.append(finding)
    return table.assign(finding=findings)


def paired_test(differences: ArrayLike, level: float) -> dict[str, float]:
    """Return what paired differences say by themselves, under the names that `compare_with_baseline` gives it.

    differences : (n,); values that are not finite are left out. level : the size of what was subtracted: a spread
    within its rounding is none, and `p` and `detectable` are then NaN, as they are with fewer than two pairs.
    """
    sample = np.asarray(differences, dtype=float)
    sample = sample[np.isfinite(sample)]
    paired, bootstrap = mean_interval(sample), bootstrap_interval(sample)
    spread = paired.high - paired.low > 1e-12 * max(abs(level), abs(level - paired.mean))
    return {
        "pairs": paired.n,
        "difference": paired.mean,
        "difference_low": paired.low,
        "difference_high": paired.high,
        "p": float(paired_p(sample)) if spread else np.nan,
        "bootstrap_low": float(bootstrap[0]),
        "bootstrap_high": float(bootstrap[1]),
        "detectable": _detectable(paired.n) * float(sample.std(ddof=1)) if spread else np.nan,
    }


def _same(arm: pd.Series, baseline: pd.Series) -> bool:
    """Whether both have values, of the same seeds, and they are the same numbers but for rounding."""
    return bool(arm.notna().any()) and np.allclose(arm, baseline, rtol=1e-12, atol=0, equal_nan=True)


def time_to_target(
    curves: pd.DataFrame,
    metric: str,
    baseline: str | Mapping[str, str],
    arms: Sequence[str],
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the training step at which each arm first is as good as its baseline of the same seed is at its end.

    Between two evaluated steps the curve is taken to be a straight line; a value that is not finite is left out. The
    first crossing of a noisy curve comes early, for of many noisy values one soon is good by luck: the baseline's own
    row says how early its own curve first reaches its own end, and is what the other rows are to be compared with.
    Where the learning rate decays, a point on the way was measured at a higher rate than the end of a training that
    was planned to be so short: it tells how fast a curve falls, not how good a finished shorter training is.

    Parameters
    ----------
    curves : tidy frame with columns arm, seed, step, metric, value.
    metric : a key that `metric_named` knows and that has a direction.
    baseline : the arm whose last value, seed by seed, is the target; or for every arm its own.
    arms : the arms to report, in order.

    Returns
    -------
    DataFrame indexed by arm: `n` seeds that arm and baseline share, in how many of them the target was `reached`, the
    `mean` step with `low` and `high` (t interval), and its mean `share` of the baseline's training. All four are NaN
    where any seed never reached it (or the baseline's last value is not finite): a mean over the others would flatter.

    Raises
    ------
    InputError : an unknown metric, or one without a direction.
    """
    better = metric_named(metric, curves["metric"]).better
    if better is None:
        raise InputError(f"of {metric} neither more nor less is better, so it has no target")
    sign = 1 if better == "higher" else -1
    rows = curves[curves["metric"] == metric].sort_values("step")
    by_trial = {key: trial[["step", "value"]].to_numpy(float) for key, trial in rows.groupby(["arm", "seed"])}
    records = []
    for arm, than in _beside(baseline, arms).items():
        ends = {seed: curve[-1] for (of, seed), curve in by_trial.items() if of == than}
        seeds = [seed for seed in ends if (arm, seed) in by_trial]
        steps = np.array([_first_crossing(by_trial[arm, seed], ends[seed][1], sign) for seed in seeds])
        reached = int(np.isfinite(steps).sum())
        record: tuple[float, ...] = (np.nan,) * 4
        if seeds and reached == len(seeds):
            found = mean_interval(steps, confidence)
            share = float(np.mean(steps / np.array([ends[seed][0] for seed in seeds])))
            record = (found.mean, found.low, found.high, share)
        records.append((len(seeds), reached, *record))
    return pd.DataFrame.from_records(records, columns=list(TARGET_COLUMNS), index=pd.Index(list(arms), name="arm"))


def _first_crossing(curve: np.ndarray, target: float, sign: int) -> float:
    """Return the step at which the curve, (points, [step, value]), first is as good as `target`; NaN if never."""
    steps, values = curve[np.isfinite(curve[:, 1])].T
    (good,) = np.nonzero(sign * values >= sign * target)
    if not good.size:
        return np.nan
    end = good[0]
    if end == 0:
        return float(steps[0])
    before = slice(end - 1, end + 1)
    # `interp` wants ascending values.
    return float(np.interp(sign * target, sign * values[before], steps[before]))

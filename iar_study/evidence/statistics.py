"""What the seeds allow one to say: intervals of means, and every arm compared with the baseline seed by seed.

All arms of a study share seeds, data order and initial weights. The difference from the baseline within one seed
is therefore free of what that seed does to both, and the comparison is Student's paired t. A quantity such as FD is
compared by the log of the ratio of arm and baseline, told in percent. Each comparison is tested alone.

Few seeds give a spread that is small by luck now and then. So each comparison is told by the wider of two intervals:
that of its own spread, and that of a spread which it shares with the other arms of the study (the moderated t of Smyth
2004). By itself the moderated t is too bold where arms have unequal spreads: in simulations of four to six arms, one
with a spread of its own, it found a difference of nought in up to 18% of studies, a pooled residual in up to 21%.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats
from scipy.optimize import brentq

from iar_study.errors import InputError, nearest
from iar_study.evaluation.metrics import metric_named

ALPHA = 0.05
MARGIN = 0.03
"""The smallest change of a ratio that matters here. The paper tells 0.7 to 10.5% of FID, 4.4% in the mean."""

Finding = Literal["baseline", "no direction", "equal", "equivalent", "better", "worse", "undecided"]

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
    "least",
    "most",
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


def mean_interval(values: ArrayLike) -> Interval:
    """Return the mean and its 95% t interval; values that are not finite are left out and not counted in `n`.

    >>> mean_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484..., n=3)
    """
    sample = np.asarray(values, dtype=float).ravel()
    sample = sample[np.isfinite(sample)]
    n = sample.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(sample.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan, 1)
    half = _quantile(n - 1, 0.95) * float(sample.std(ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


@lru_cache
def _quantile(freedom: float, confidence: float) -> float:
    return float(special.stdtrit(freedom, (1 + confidence) / 2))


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


@dataclass(frozen=True)
class SharedSpread:
    """What the arms of a study tell of the variance of one: a scaled inverse chi-squared (Smyth 2004, section 5).

    variance : of a difference. freedom : as if it had been estimated with so many degrees of freedom; may be infinite.
    most : degrees of freedom of all arms together, which no estimate can have more of.
    """

    variance: float
    freedom: float
    most: int

    @classmethod
    def of(cls, samples: Iterable[np.ndarray]) -> SharedSpread | None:
        """Estimate it from differences (n,) of several arms; None where fewer than two arms have any spread."""
        known = [(sample.var(ddof=1), sample.size - 1) for sample in samples if sample.size > 1]
        known = [(variance, freedom) for variance, freedom in known if variance > 0]
        if len(known) < 2:
            return None
        variances, freedoms = np.array(known).T
        logs = np.log(variances) - special.digamma(freedoms / 2) + np.log(freedoms / 2)
        beyond_chance = float(logs.var(ddof=1) - special.zeta(2, freedoms / 2).mean())
        most = int(freedoms.sum())
        if beyond_chance <= 0:  # no more unlike than equal spreads are by chance
            return cls(float(np.exp(logs.mean())), np.inf, most)
        # zeta(2, x) is the trigamma function. Solved for log x, as the degrees of freedom may be of any size above 0.
        half = float(brentq(lambda x: special.zeta(2, math.exp(x)) - beyond_chance, -30, 30))
        half = float(np.exp(half))
        return cls(float(np.exp(logs.mean() + special.digamma(half) - np.log(half))), 2 * half, most)

    def moderated(self, variance: float, freedom: int) -> tuple[float, float]:
        """Return the variance that an arm's own and the shared one make together, and its degrees of freedom."""
        if np.isinf(self.freedom):
            return self.variance, float(self.most)
        together = self.freedom + freedom
        return (self.freedom * self.variance + freedom * variance) / together, min(together, float(self.most))


@dataclass(frozen=True)
class Effect:
    """The mean of paired differences, and what their spread allows one to say of it.

    errors : (standard error, degrees of freedom) of the spreads that count; every interval is the widest of theirs.
        Empty without any spread.
    between : standard deviation between conditions beyond what seeds explain; NaN where there is one condition.
    """

    mean: float
    pairs: int
    errors: tuple[tuple[float, float], ...]
    between: float = np.nan

    @classmethod
    def of(
        cls,
        differences: ArrayLike,
        shared: SharedSpread | None = None,
        level: float = 0.0,
        draws: Sequence[int] | None = None,
    ) -> Effect:
        """Take differences (n,); those that are not finite are left out.

        level : the size of what was subtracted: a spread within its rounding is none.
        draws : (n,) which draw of tokenizer and classifier each has, one of a population of draws. Each then counts
            alike, and the spread of the draws' means counts as well, with as many degrees of freedom as draws less one.
        """
        sample = np.asarray(differences, dtype=float)
        finite = np.isfinite(sample)
        sample = sample[finite]
        of_draws = np.empty(0)
        if draws is not None:
            drawn = np.asarray(draws)[finite]
            of_draws = np.array([sample[drawn == draw].mean() for draw in np.unique(drawn)])
        n = sample.size
        mean = float((of_draws if of_draws.size else sample).mean()) if n else np.nan
        if n < 2 or np.ptp(sample) <= 1e-12 * max(abs(level), abs(level - mean)):
            return cls(mean, n, ())
        own = float(sample.var(ddof=1))
        if not own > 0:  # so small that its square is 0
            return cls(mean, n, ())
        spreads = [(own, float(n - 1))]
        if shared:
            spreads.append(shared.moderated(own, n - 1))
        errors = [((variance / n) ** 0.5, freedom) for variance, freedom in spreads]
        if of_draws.size > 1:
            errors.append(((float(of_draws.var(ddof=1)) / of_draws.size) ** 0.5, float(of_draws.size - 1)))
        return cls(mean, n, tuple((error, freedom) for error, freedom in errors if error > 0))

    @classmethod
    def pooled(cls, differences: pd.DataFrame) -> Effect:
        """Take differences under several conditions, one row per seed and one column per condition; NaN are left out.

        The mean over conditions, each counting alike, as one of a population of conditions (random effects). Its
        variance is that between the conditions' means over their number (Hartung and Knapp's, of equal weights), and,
        as seeds are shared by all conditions, that between the seeds' means over their number; degrees of freedom by
        Satterthwaite. Seeds that differ in nothing else are counted twice by it, so that it errs to the wide side.
        """
        known = differences.dropna(axis="columns", how="all").dropna(how="all")
        pairs, means = int(known.notna().sum().sum()), known.mean()
        mean = float(means.mean()) if pairs else np.nan
        if min(known.shape) < 2:
            return cls(mean, pairs, ())
        of_seeds = (known - means).mean(axis="columns") + mean
        parts = [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in (means, of_seeds)]
        variance = sum(part for part, _ in parts)
        if variance <= 0:
            return cls(mean, pairs, ())
        freedom = variance**2 / sum(part**2 / free for part, free in parts)
        # By moments: of the variance of the means, what their own noise does not explain.
        chance = float((known.var(ddof=1) / known.count()).mean())
        between = max(float(means.var(ddof=1)) - chance, 0.0) ** 0.5
        return cls(mean, pairs, ((variance**0.5, freedom),), between)

    @property
    def error(self) -> float:
        """The largest standard error; NaN without any."""
        return max((error for error, _ in self.errors), default=np.nan)

    @property
    def p(self) -> float:
        """Two-sided p of the hypothesis that the mean is 0; NaN without any spread."""
        return self.p_above(0.0, two_sided=True)

    def p_above(self, value: float, two_sided: bool = False) -> float:
        """Return the p of the hypothesis that the mean is at most `value`, or, two-sided, that it is just that."""
        found = []
        for error, freedom in self.errors:
            t = (self.mean - value) / error
            found.append(2 * special.stdtr(freedom, -abs(t)) if two_sided else special.stdtr(freedom, -t))
        return float(max(found, default=np.nan))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the bounds; NaN with fewer than two pairs, the mean itself where all pairs are the same."""
        if self.pairs < 2:
            return np.nan, np.nan
        half = max((_quantile(freedom, confidence) * error for error, freedom in self.errors), default=0.0)
        return self.mean - half, self.mean + half

    def finding(
        self,
        better: Literal["lower", "higher"],
        margin: float | None,
        alpha: float = ALPHA,
        alpha_equivalent: float = ALPHA,
    ) -> Finding:
        """Say what is found: "undecided" where there is no spread, as with one pair.

        - "equivalent" where the 90% interval lies within the margin: two one-sided tests at 5% (Schuirmann 1987);
        - else "better" or "worse" where the 95% interval excludes 0;
        - "undecided" otherwise.

        margin : of |mean|, log(1 + 3%) for a ratio; None where no difference is known that would not matter.
        alpha, alpha_equivalent : the levels of these tests; those of a plan's look are smaller.
        """
        if not self.errors:
            return "undecided"
        # Asked first: a change may surely not be 0, and yet be too small to matter.
        if margin is not None and max(map(abs, self.interval(1 - 2 * alpha_equivalent))) < margin:
            return "equivalent"
        if self.p >= alpha:
            return "undecided"
        return "better" if (self.mean < 0) == (better == "lower") else "worse"


def leave_one_out(differences: ArrayLike) -> tuple[float, float]:
    """Return the smallest and the largest mean of all pairs but one; NaN with fewer than two.

    >>> leave_one_out([1.0, 2.0, 6.0])
    (1.5, 4.0)
    """
    sample = np.asarray(differences, dtype=float)
    sample = sample[np.isfinite(sample)]
    if sample.size < 2:
        return np.nan, np.nan
    means = (sample.sum() - sample) / (sample.size - 1)
    return float(means.min()), float(means.max())


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


def power(difference: float, sd: float, pairs: int) -> float:
    """Return the chance that the two-sided paired t test at 5% finds a true mean `difference`.

    sd : standard deviation of the differences between the pairs, in the unit of `difference`. By the noncentral t
    distribution, that is, for normal differences; 0 with fewer than two pairs. Raises `InputError` unless sd > 0.

    >>> round(power(1.0, 1.0, pairs=5), 3)
    0.401
    """
    if not sd > 0:
        raise InputError(f"the standard deviation of the differences is {sd}; it must be above 0")
    if pairs < 2:
        return 0.0
    critical = stats.t.isf(ALPHA / 2, pairs - 1)
    noncentrality = difference / sd * pairs**0.5
    above = stats.nct.sf(critical, pairs - 1, noncentrality)
    return float(above + stats.nct.sf(critical, pairs - 1, -noncentrality))


@lru_cache
def _detectable(pairs: int) -> float:
    """Return the true difference, in standard deviations of the paired difference, that is found in 80% of studies."""
    # Two pairs need most: 11.5 standard deviations.
    return float(brentq(lambda difference: power(difference, 1, pairs) - 0.8, 0, 20))


def values_by_seed(frame: pd.DataFrame, metric: str, arms: Iterable[str]) -> pd.DataFrame:
    """Return one row per seed and one column per arm, NaN where a trial is absent or its value is not finite.

    Of a metric that is compared by ratios, a value of 0 counts as not finite.
    """
    rows = frame[frame["metric"] == metric]
    twice = rows[rows.duplicated(["arm", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise InputError(f"arm {first['arm']!r}, seed {first['seed']} has more than one value of {metric}; keep one")
    wide: pd.DataFrame = rows.pivot(index="seed", columns="arm", values="value")
    wide = wide.reindex(columns=list(arms)).astype(float)
    counts = np.isfinite(wide) & (wide > 0) if metric_named(metric, frame["metric"]).relative else np.isfinite(wide)
    return wide.where(counts).sort_index()


def _beside(baseline: str | Mapping[str, str], arms: Iterable[str]) -> dict[str, str]:
    """Return arm -> the arm that it is compared with."""
    return {arm: baseline if isinstance(baseline, str) else baseline[arm] for arm in arms}


def paired_differences(
    final: pd.DataFrame, metric: str, baseline: str | Mapping[str, str], arms: Iterable[str]
) -> pd.DataFrame:
    """Return arm minus its baseline, one row per seed and one column per arm; NaN where either is absent.

    Of a metric that is compared by ratios, the log of arm over baseline.
    """
    beside = _beside(baseline, arms)
    values = values_by_seed(final, metric, dict.fromkeys([*beside, *beside.values()]))
    if metric_named(metric, final["metric"]).relative:
        values = values.apply(np.log)
    return pd.DataFrame({arm: values[arm] - values[than] for arm, than in beside.items()}, index=values.index)


def compare_with_baseline(
    final: pd.DataFrame,
    metric: str,
    baseline: str | Mapping[str, str],
    arms: Sequence[str],
    margin: float = MARGIN,
    draws: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """Compare every arm with its baseline in one metric, paired by seed.

    Parameters
    ----------
    final : tidy frame with columns arm, seed, metric, value.
    metric : a key that `metric_named` knows, or that was measured.
    baseline : the arm that the others are compared with; or for every arm the one that it is compared with, its own
        name where it is a baseline.
    arms : all arms of the study, in order; one without values still gets its row.
    margin : the smallest change of a ratio that matters; only metrics that are compared by ratios have one.
    draws : seed -> its draw of tokenizer and classifier, where a plan draws them (see `Effect.of`).

    Returns
    -------
    DataFrame indexed by arm: `n` finite values and their `mean`, `low`, `high` (95% interval), `not_finite` values,
    `pairs` of seeds that arm and baseline share, the mean paired `difference` (arm minus baseline; of a relative
    metric the log of arm over baseline) with `difference_low` and `difference_high` (95%), `p` (two-sided),
    `least` and `most` (see `leave_one_out`), `detectable` (the smallest true difference that so many pairs with such a
    spread find in 80% of studies), and the `finding`:

    - "baseline" for a baseline itself;
    - "no direction" for a metric of which neither more nor less is better;
    - "equal" where arm and baseline have the same seeds, and the same number in each (but for a rounding of 1e-12).
      That is a statement about these numbers, not a test, so that one seed suffices for it;
    - "equivalent", "better", "worse" or "undecided" as `Effect.finding` says. Always "undecided" where a value of
      either arm is not finite, for the seeds that survived are then a selection; and where all differences are the
      same number but not 0, for that is how rounding shows in a coarse metric, and no interval can be drawn from it.

    Each comparison is tested alone: an arm that does not differ is called better or worse in at most 5% of studies.
    What is measured of the other arms can widen an interval, and never narrows it.
    """
    about = metric_named(metric, final["metric"])
    beside = _beside(baseline, arms)
    if absent := next((than for than in beside.values() if than not in arms), None):
        raise InputError(f"baseline {absent!r} is not among the arms; {nearest(absent, list(arms))}")
    values = values_by_seed(final, metric, arms)
    differences = paired_differences(final, metric, baseline, arms)
    compared = [arm for arm in arms if arm != beside[arm]]
    shared = SharedSpread.of(_spread_out(differences[arm], values[beside[arm]]) for arm in compared)
    reported = final.loc[final["metric"] == metric, "arm"].value_counts()
    lost = {arm: int(reported.get(arm, 0)) - int(values[arm].notna().sum()) for arm in arms}
    records: list[dict[str, object]] = []
    for arm in arms:
        own = mean_interval(values[arm])
        record: dict[str, object] = {"n": own.n, "not_finite": lost[arm]}
        record |= {"mean": own.mean, "low": own.low, "high": own.high, "pairs": own.n, "finding": "baseline"}
        if arm != beside[arm]:
            level = 1.0 if about.relative else own.mean
            drawn = [draws[seed] for seed in differences.index] if draws else None
            paired = Effect.of(differences[arm], shared, level, drawn)
            record |= _told(paired, differences[arm])
            if about.better is None:
                record["finding"] = "no direction"
            elif lost[arm] or lost[beside[arm]]:
                record["finding"] = "undecided"
            elif _same(values[arm], values[beside[arm]]):
                record["finding"] = "equal"
            else:
                record["finding"] = paired.finding(about.better, float(np.log1p(margin)) if about.relative else None)
        records.append(record)
    index = pd.Index(list(arms), name="arm")
    return pd.DataFrame.from_records(records, index=index).reindex(columns=list(COMPARISON_COLUMNS))


def _told(paired: Effect, differences: pd.Series) -> dict[str, object]:
    """Return what `compare_with_baseline` says of paired differences, but for the finding."""
    low, high = paired.interval()
    least, most = leave_one_out(differences)
    found = {"pairs": paired.pairs, "difference": paired.mean, "difference_low": low, "difference_high": high}
    found |= {"p": paired.p, "least": least, "most": most}
    detectable = _detectable(paired.pairs) * paired.error * paired.pairs**0.5 if paired.errors else np.nan
    return {**found, "detectable": detectable}


def _spread_out(differences: pd.Series, level: pd.Series) -> np.ndarray:
    """Return the finite differences, none where their spread is within the rounding of what was subtracted."""
    sample = differences.dropna().to_numpy(float)
    return sample if sample.size and np.ptp(sample) > 1e-12 * np.abs(level).max() else np.empty(0)


def _same(arm: pd.Series, baseline: pd.Series) -> bool:
    """Whether both have values, of the same seeds, and they are the same numbers but for rounding."""
    return bool(arm.notna().any()) and np.allclose(arm, baseline, rtol=1e-12, atol=0, equal_nan=True)


def time_to_target(
    curves: pd.DataFrame,
    metric: str,
    baseline: str | Mapping[str, str],
    arms: Sequence[str],
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
            found = mean_interval(steps)
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

"""Looks at data while they grow: how small a p must be at each look so that all looks together err in 5% of studies.

A look at n pairs takes the first n that were planned, and no other. So what is told depends neither on how many more
were run nor on when somebody looked. The first look that decides is the answer.

The error is spent along the information as Lan and DeMets (1983) do with a boundary of O'Brien and Fleming's type: next
to nothing early, nearly all at the last look. The levels are found on normal data; a t test is held to the same levels
(Jennison and Turnbull 2000, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special, stats
from scipy.optimize import brentq

from iar_study.evidence.statistics import ALPHA, Effect, Finding
from iar_study.study.study import Plan

NODES = 400
"""Of the quadrature over the statistic of the looks before."""


@lru_cache
def levels(looks: Sequence[int], alpha: float, two_sided: bool) -> tuple[float, ...]:
    """Return the p below which each look decides, so that with no effect one of them does with probability `alpha`.

    looks : the data (pairs) that each is taken at, ascending; a tuple.

    >>> [f"{p:.1g}" for p in levels((15, 30, 45, 60), 0.05, two_sided=True)]
    ['1e-05', '0.003', '0.02', '0.04']
    """
    shares = np.array(looks) / looks[-1]
    sides = 2 if two_sided else 1
    spent = 2 * sides * special.ndtr(-special.ndtri(1 - alpha / sides / 2) / np.sqrt(shares))
    found: list[float] = []
    nodes, weights = np.zeros(1), np.ones(1)  # of the sum so far, which begins at 0
    for step, more in zip(np.diff(shares, prepend=0), np.diff(spent, prepend=0), strict=True):
        share = float(shares[len(found)])
        bound = _bound(nodes, weights, float(step), share, float(more), two_sided)
        found.append(float(sides * stats.norm.sf(bound)))
        end = bound * share**0.5
        at, area = np.polynomial.legendre.leggauss(NODES)
        # One-sided, no bound ends a study from below: nine standard deviations stand for infinity.
        least = -end if two_sided else -9 * share**0.5
        at, area = least + (end - least) * (at + 1) / 2, area * (end - least) / 2
        # The density of the sum where no look has decided yet: the recursion of Armitage, McPherson and Rowe (1969).
        weights = area * (weights @ stats.norm.pdf((at - nodes[:, None]) / step**0.5)) / step**0.5
        nodes = at
    return tuple(found)


def _bound(nodes: np.ndarray, weights: np.ndarray, step: float, share: float, more: float, two_sided: bool) -> float:
    """Return the z beyond which this look decides with probability `more`, none before it having decided."""

    def beyond(z: float) -> float:
        over = special.ndtr(-(z * share**0.5 - nodes) / step**0.5)
        under = special.ndtr((-z * share**0.5 - nodes) / step**0.5) if two_sided else 0.0
        return float(weights @ (over + under)) - more

    # A first look at few of many pairs spends next to nothing: its bound is far out.
    return float(brentq(beyond, 0, 12 if beyond(12) < 0 else 37))


@dataclass(frozen=True)
class Look:
    """What a plan's look found.

    level : the two-sided p below which it says better or worse. level_equivalent : the one-sided p, of either side,
        below which it says equivalent. differences : of its pairs, log ratios by seed.
    """

    pairs: int
    effect: Effect
    level: float
    level_equivalent: float
    finding: Finding
    differences: pd.Series = field(compare=False)


def look(differences: pd.Series, plan: Plan, better: Literal["lower", "higher"]) -> list[Look]:
    """Return the looks that so many pairs allow, up to the first one that decides.

    differences : log ratios by seed. A seed without one, as its trial diverged, has NaN; one not run yet is absent.
    """
    either = levels(plan.looks, ALPHA, two_sided=True)
    equivalent = levels(plan.looks, ALPHA, two_sided=False)
    taken: list[Look] = []
    for pairs, level, level_equivalent in zip(plan.looks, either, equivalent, strict=True):
        seeds = list(plan.seeds(pairs))
        if not set(seeds) <= set(differences.index):
            break
        of_look = differences[seeds]
        effect = Effect.of(of_look, level=1.0, draws=[plan.draw(seed) for seed in seeds])
        finding: Finding = "undecided"
        if of_look.notna().all():
            finding = effect.finding(better, math.log1p(plan.margin), level, level_equivalent)
        taken.append(Look(pairs, effect, level, level_equivalent, finding, of_look))
        if finding != "undecided":
            break
    return taken

"""Looks at growing data: levels as published, errors held over all looks, and answers that come as they should."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iar_study.errors import InputError
from iar_study.evidence.sequential import levels, look
from iar_study.evidence.statistics import Effect
from iar_study.study.study import Plan

PLAN = Plan("full", "iar", "fd", (15, 30, 45, 60), draws=6)
SD = 0.08
"""Of the log ratio between trainings, as in the committed results; that of a draw is the 1.7% that a classifier moves
a difference by."""
OF_DRAW = 0.017


@pytest.mark.parametrize(
    ("looks", "bounds"),
    [
        # Lan and DeMets' program, two-sided 5%, O'Brien-Fleming's spending, equal steps (Reboussin et al. 2000).
        ((1, 2, 3, 4), (4.3326, 2.9631, 2.3590, 2.0141)),
        ((1, 2, 3, 4, 5), (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ((7,), (1.9600,)),
    ],
)
def test_the_levels_are_the_published_ones(looks, bounds):
    found = [stats.norm.isf(p / 2) for p in levels(looks, 0.05, two_sided=True)]
    assert found == pytest.approx(bounds, abs=2e-4)


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("looks", [(15, 30, 45, 60), (10, 12, 60), (6, 50)])
def test_normal_data_without_an_effect_are_found_different_in_five_percent(looks, two_sided):
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(50_000, looks[-1])).astype(np.float32).cumsum(axis=1)[:, np.array(looks) - 1]
    z = sums / np.sqrt(looks)
    p = stats.norm.sf(np.abs(z)) * 2 if two_sided else stats.norm.sf(z)
    found = (p < levels(looks, 0.05, two_sided)).any(axis=1).mean()
    assert found == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / len(z)) ** 0.5)


def simulate(effect: float, studies: int, of_draw: float = OF_DRAW) -> dict[str, float]:
    """Return how often each answer is given where the true change of FD is `effect`."""
    rng = np.random.default_rng(round(1000 * (1 + effect)))
    found = []
    for _ in range(studies):
        drawn = rng.normal(0, of_draw, PLAN.draws)[np.arange(60) % PLAN.draws]
        values = math.log1p(effect) + drawn + rng.normal(0, SD, 60)
        found.append(look(pd.Series(values, index=PLAN.seeds(60)), PLAN, "lower")[-1].finding)
    return {answer: found.count(answer) / studies for answer in ("better", "worse", "equivalent", "undecided")}


@pytest.mark.parametrize("of_draw", [0.0, OF_DRAW, 0.05])
def test_over_all_looks_nothing_is_found_better_or_worse_in_more_than_five_percent(of_draw):
    found = simulate(0.0, 600, of_draw)
    assert found["better"] + found["worse"] <= 0.05 + 2.5 * (0.05 * 0.95 / 600) ** 0.5


@pytest.mark.parametrize("change", [-0.03, 0.03 / 1.03])
def test_over_all_looks_a_change_of_the_margin_is_equivalent_in_at_most_five_percent(change):
    assert simulate(change, 600)["equivalent"] <= 0.05 + 2.5 * (0.05 * 0.95 / 600) ** 0.5


@pytest.mark.parametrize(("change", "answer"), [(-0.06, "better"), (0.06, "worse")])
def test_a_change_of_twice_the_margin_is_found_by_sixty_pairs(change, answer):
    found = simulate(change, 300)
    assert found[answer] >= 0.8
    assert found["better" if answer == "worse" else "worse"] <= 0.01


def test_none_at_all_is_found_equivalent_by_sixty_pairs_that_share_a_small_spread():
    rng = np.random.default_rng(1)
    values = pd.Series(rng.normal(0, 0.03, 60), index=PLAN.seeds(60))
    assert look(values, PLAN, "lower")[-1].finding == "equivalent"


def test_a_look_takes_the_pairs_that_were_planned_for_it_and_no_other():
    values = pd.Series(np.random.default_rng(2).normal(0.1, SD, 60), index=PLAN.seeds(60))
    of_all = look(values, PLAN, "lower")
    assert [taken.pairs for taken in look(values[:40], PLAN, "lower")] == [15, 30]
    assert look(values[:40], PLAN, "lower") == of_all[:2]
    assert look(values[:14], PLAN, "lower") == []
    assert look(values.drop(PLAN.seeds(60)[3]), PLAN, "lower") == []  # one of the first look's is not run yet
    more = pd.concat([values, pd.Series([9.0, 9.0], index=[0, 1])])
    assert look(more, PLAN, "lower") == of_all


def test_the_first_look_that_decides_is_the_answer():
    values = pd.Series(np.random.default_rng(3).normal(-0.3, 0.01, 60), index=PLAN.seeds(60))
    values.iloc[15:] = 0.5
    taken = look(values, PLAN, "lower")
    assert [(each.pairs, each.finding) for each in taken] == [(15, "better")]
    values.iloc[2] = np.nan  # its trial diverged: those that are left are a selection
    assert {each.finding for each in look(values, PLAN, "lower")} == {"undecided"}


def test_the_spread_between_draws_widens_the_interval_and_each_draw_counts_alike():
    values, draws = np.array([1.0, 1.0, 1.2, 2.0, 2.2, 3.1]), [0, 0, 0, 1, 1, 2]
    means = np.array([3.2 / 3, 2.1, 3.1])
    effect = Effect.of(values, draws=draws)
    assert effect.mean == pytest.approx(means.mean())
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) / 3**0.5
    assert effect.interval() == pytest.approx((means.mean() - half, means.mean() + half))
    # Where draws do not differ beyond chance, the pairs' own spread is what counts.
    same = np.array([0.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    assert Effect.of(same, draws=[0, 0, 1, 1, 2, 2]).interval() == pytest.approx(Effect.of(same).interval())


@pytest.mark.parametrize(
    "settings",
    [
        {"looks": ()},
        {"looks": (5, 5)},
        {"looks": (1, 2)},
        {"looks": (5, 9), "draws": 6},
        {"margin": 0.0},
        {"draws": 0},
        {"metric": "val/token_nll"},
        {"metric": "fdd"},
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(settings):
    with pytest.raises(InputError, match="a plan"):
        Plan(**{"profile": "full", "arm": "iar", "metric": "fd", "looks": (5, 9), **settings})


@pytest.mark.parametrize("looks", [(2, 60), (2, 100)])
def test_a_first_look_at_few_of_many_pairs_decides_next_to_nothing(looks):
    first, last = levels(looks, 0.05, two_sided=True)
    assert 0 < first < 1e-20
    assert last == pytest.approx(0.05)

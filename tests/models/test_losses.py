"""The cluster loss against a plain float64 computation, and the identities that the method rests on."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.models.losses import cluster_of_token, token_and_cluster_cross_entropy


@st.composite
def problems(draw):
    """Logits, targets and boundaries with clusters of equal or unequal sizes, large logits among them."""
    sizes = draw(
        st.one_of(
            st.lists(st.integers(1, 6), min_size=1, max_size=6),
            st.builds(lambda n, m: [m] * n, st.integers(1, 6), st.integers(1, 6)),
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1.0, 30.0, 1e4]))
    logits = torch.randn(2, 3, sum(sizes), generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(sum(sizes), (2, 3), generator=generator)
    return logits, targets, torch.tensor([0, *torch.tensor(sizes).cumsum(0)])


def by_definition(logits, targets, boundaries):
    """PAPER's formulas, one target at a time, with probabilities of clusters summed in a loop."""
    tce, cce = [], []
    for y, t in zip(logits.flatten(0, -2), targets.flatten(), strict=True):
        spans = list(zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True))
        own = next(span for span in spans if span[0] <= t < span[1])
        total = torch.logsumexp(y, 0)
        tce.append(total - y[t])
        cce.append(total - torch.logsumexp(y[own[0] : own[1]], 0))
    return torch.stack(tce).mean(), torch.stack(cce).mean()


@settings(deadline=None)
@given(problems())
def test_equals_the_definition(problem):
    torch.testing.assert_close(token_and_cluster_cross_entropy(*problem), by_definition(*problem))


@settings(deadline=None)
@given(problems())
def test_float32_is_right_at_large_logits(problem):
    logits, targets, boundaries = problem
    found = token_and_cluster_cross_entropy(logits.float(), targets, boundaries)
    expected = by_definition(logits.float().double(), targets, boundaries)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * float(logits.abs().max().clamp(min=1)))


@settings(deadline=None)
@given(problems())
def test_chain_rule_token_loss_is_cluster_loss_plus_loss_within_the_cluster(problem):
    logits, targets, boundaries = problem
    tce, cce = token_and_cluster_cross_entropy(*problem)
    label = cluster_of_token(boundaries)
    alone = logits.masked_fill(label != label[targets][..., None], -torch.inf)
    within = F.cross_entropy(alone.flatten(0, -2), targets.flatten())
    torch.testing.assert_close(tce, cce + within)


@settings(deadline=None)
@given(problems())
def test_one_cluster_has_no_loss_and_single_codes_have_the_token_loss(problem):
    logits, targets, _ = problem
    size = logits.shape[-1]
    _, whole = token_and_cluster_cross_entropy(logits, targets, torch.tensor([0, size]))
    torch.testing.assert_close(whole, torch.zeros_like(whole))
    tce, single = token_and_cluster_cross_entropy(logits, targets, torch.arange(size + 1))
    torch.testing.assert_close(single, tce)


@pytest.mark.parametrize("boundaries", [[0, 2, 4, 6], [0, 1, 6]])
def test_gradients(boundaries):
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 3, 5])
    assert torch.autograd.gradcheck(
        lambda y: token_and_cluster_cross_entropy(y, targets, torch.tensor(boundaries)), logits
    )


@pytest.mark.parametrize(
    ("logits", "targets", "boundaries"),
    [((2, 4), (3,), [0, 4]), ((2, 4), (2,), [0, 5]), ((2, 4), (2, 1), [0, 4])],
)
def test_what_does_not_fit_is_refused(logits, targets, boundaries):
    with pytest.raises(ValueError, match="do not fit"):
        token_and_cluster_cross_entropy(
            torch.zeros(logits), torch.zeros(targets, dtype=torch.int64), torch.tensor(boundaries)
        )

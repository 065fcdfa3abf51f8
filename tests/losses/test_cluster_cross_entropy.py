"""The losses against a plain float64 computation, and the identities that the method rests on."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from iar_study.losses.cluster_cross_entropy import (
    token_and_cluster_cross_entropy,
)
from iar_study.losses.smoothing import (
    cluster_spread,
    scheduled_weight,
    similarity_spread,
    smoothed_cross_entropy,
)

EQUAL, UNEQUAL = [0, 4, 8, 12], [0, 1, 8, 12]
LAYOUTS = pytest.mark.parametrize("boundaries", [EQUAL, UNEQUAL, [0, 12], [0, 11, 12], list(range(13))], ids=str)


def boundaries_of(sizes):
    return torch.tensor([0, *sizes]).cumsum(0)


@st.composite
def problems(draw, dimensions=((), (5,), (2, 3), (0,), (2, 0))):
    """Logits, targets and boundaries with clusters of equal or unequal sizes, large logits among them."""
    sizes = draw(
        st.one_of(
            st.lists(st.integers(1, 6), min_size=1, max_size=6),
            st.builds(lambda n, m: [m] * n, st.integers(1, 6), st.integers(1, 6)),
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1.0, 30.0, 1e4]))
    leading = draw(st.sampled_from(dimensions))
    logits = torch.randn(*leading, sum(sizes), generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(sum(sizes), leading, generator=generator)
    return logits, targets, boundaries_of(sizes)


def by_definition(logits, targets, boundaries):
    """PAPER's formulas, one target at a time: both losses, float64, shaped as the targets."""
    losses = []
    for y, t in zip(logits.double().reshape(-1, logits.shape[-1]), targets.flatten(), strict=True):
        clusters = torch.stack([torch.logsumexp(part, 0) for part in y.split(boundaries.diff().tolist())])
        own = int((boundaries[1:] <= t).sum())
        losses.append(torch.stack([torch.logsumexp(y, 0) - y[t], torch.logsumexp(clusters, 0) - clusters[own]]))
    losses = torch.stack(losses) if losses else torch.zeros(0, 2, dtype=torch.float64)
    return [loss.view(targets.shape) for loss in losses.T]


def some_problem(boundaries, rows=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, boundaries[-1], generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return logits, torch.randint(boundaries[-1], (rows,), generator=generator), torch.tensor(boundaries)


def gradient(loss, *inputs):
    grads = torch.autograd.grad(loss, inputs)
    return grads if len(grads) > 1 else grads[0]


@settings(deadline=None)
@given(problems())
def test_equals_the_definition_whatever_the_leading_dimensions(problem):
    expected = by_definition(*problem)
    found = token_and_cluster_cross_entropy(*problem, reduction="none")
    for a, b in zip(found, expected, strict=True):
        assert a.shape == problem[1].shape
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    for reduction, reduce in (("mean", torch.mean), ("sum", torch.sum)):
        found = token_and_cluster_cross_entropy(*problem, reduction=reduction)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, reduce(b), atol=1e-9, rtol=1e-9, equal_nan=True)


@settings(deadline=None)
@given(problems(dimensions=((2, 3),)))
def test_float32_is_right_at_large_logits(problem):
    logits, targets, boundaries = problem
    found = token_and_cluster_cross_entropy(logits.float(), targets, boundaries, "none")
    for a, b in zip(found, by_definition(logits.float(), targets, boundaries), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * float(logits.abs().max().clamp(min=1)))


@pytest.mark.parametrize("boundaries", [EQUAL, UNEQUAL], ids=str)
def test_nearly_sure_predictions_at_logits_of_ten_thousand_keep_their_digits(boundaries):
    """Both losses are far below the spacing of float32 at 1e4 (1e-3), so no logsumexp of such logits may be rounded."""
    boundaries = torch.tensor(boundaries)
    logits = torch.full((2, 12), -1e4)
    logits[:, 9] = 1e4
    logits[0, 10], logits[1, 2] = 1e4 - 8, 1e4 - 8  # a rival in the own cluster; one in another
    logits.requires_grad_()
    tce, cce = token_and_cluster_cross_entropy(logits, torch.tensor([9, 9]), boundaries, "none")
    small = math.log1p(math.exp(-8))
    torch.testing.assert_close(tce, torch.tensor([small, small]), rtol=1e-3, atol=0)
    torch.testing.assert_close(cce, torch.tensor([0.0, small]), rtol=1e-3, atol=1e-7)
    grad = gradient((tce + cce).sum(), logits)
    p = 1 / (1 + math.exp(8))
    torch.testing.assert_close(grad[0, 10], torch.tensor(p), rtol=1e-2, atol=0)
    torch.testing.assert_close(grad[1, 2], torch.tensor(2 * p), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("boundaries", [EQUAL, UNEQUAL], ids=str)
def test_half_precision_is_computed_in_float32(dtype, boundaries):
    logits, targets, boundaries = some_problem(boundaries, rows=50, dtype=dtype)
    wide = logits.detach().float().requires_grad_()
    found = token_and_cluster_cross_entropy(logits, targets, boundaries)
    expected = token_and_cluster_cross_entropy(wide, targets, boundaries)
    assert found[0].dtype == torch.float32
    assert found == expected  # to the last bit: the inputs are the same numbers
    grad = gradient(sum(found), logits)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, gradient(sum(expected), wide).to(dtype), rtol=0, atol=0)


@settings(deadline=None)
@given(problems(dimensions=((2, 3),)))
def test_chain_rule_token_loss_is_cluster_loss_plus_loss_within_the_cluster(problem):
    logits, targets, boundaries = problem
    tce, cce = token_and_cluster_cross_entropy(*problem)
    label = torch.bucketize(torch.arange(logits.shape[-1]), boundaries[1:], right=True)
    alone = logits.masked_fill(label != label[targets][..., None], -torch.inf)
    within = F.cross_entropy(alone.flatten(0, -2), targets.flatten())
    torch.testing.assert_close(tce, cce + within)


@settings(deadline=None)
@given(problems(dimensions=((2, 3),)), st.randoms(use_true_random=False))
def test_the_order_of_clusters_and_of_codes_inside_them_does_not_matter(problem, random):
    logits, targets, boundaries = problem
    clusters = [list(range(a, b)) for a, b in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True)]
    random.shuffle(clusters)
    for cluster in clusters:
        random.shuffle(cluster)
    order = torch.tensor([code for cluster in clusters for code in cluster])
    moved = token_and_cluster_cross_entropy(
        logits[..., order], order.argsort()[targets], boundaries_of([len(cluster) for cluster in clusters])
    )
    torch.testing.assert_close(moved, token_and_cluster_cross_entropy(*problem))


@settings(deadline=None)
@given(problems(dimensions=((2, 3),)))
def test_one_cluster_has_no_loss_and_single_codes_have_the_token_loss(problem):
    logits, targets, _ = problem
    size = logits.shape[-1]
    _, whole = token_and_cluster_cross_entropy(logits.requires_grad_(), targets, torch.tensor([0, size]))
    assert whole == 0
    assert not gradient(whole, logits).any()
    tce, single = token_and_cluster_cross_entropy(logits, targets, torch.arange(size + 1))
    torch.testing.assert_close(single, tce, rtol=0, atol=0)


@LAYOUTS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients(boundaries, reduction):
    logits, targets, boundaries = some_problem(boundaries)
    targets[0] = -100
    assert torch.autograd.gradcheck(
        lambda y: token_and_cluster_cross_entropy(y, targets, boundaries, reduction), logits
    )


@pytest.mark.parametrize("sizes", [[512] * 32, [1, 8000, 383, 8000]], ids=["equal", "unequal"])
def test_losses_and_gradients_over_several_chunks_of_rows(sizes):
    boundaries = boundaries_of(sizes)
    logits, targets, _ = some_problem(boundaries.tolist(), rows=300, dtype=torch.float32)
    factors = torch.rand(2, 300, generator=torch.Generator().manual_seed(1))
    found = torch.stack(token_and_cluster_cross_entropy(logits, targets, boundaries, "none"))
    expected = torch.stack(by_definition(logits, targets, boundaries))
    torch.testing.assert_close(found, expected.float())
    before = logits.detach().clone()
    grads = [gradient((factors * losses).sum(), logits) for losses in (found, expected)]
    torch.testing.assert_close(*grads)
    assert torch.equal(logits, before)


def test_logits_may_lie_in_memory_in_any_way():
    logits, targets, boundaries = some_problem(UNEQUAL, rows=6)
    cube = logits.view(2, 3, 12)
    for odd, rows in (
        (logits.t().contiguous().t(), targets),
        (cube.transpose(0, 1), targets.view(2, 3).t()),
        (torch.cat([logits, logits], 1)[:, :12], targets),
    ):
        tce, cce = token_and_cluster_cross_entropy(odd, rows, boundaries)
        expected = token_and_cluster_cross_entropy(logits, targets, boundaries)
        torch.testing.assert_close((tce, cce), expected)
        torch.testing.assert_close(gradient(tce + cce, logits), gradient(sum(expected), logits))


def largest_allocations(losses, *inputs):
    """Sizes in bytes of what forward and backward pass allocate, the largest first."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        gradient(sum(losses()), *inputs)
    return sorted((event.self_cpu_memory_usage for event in seen.events()), reverse=True)


def test_only_the_gradient_is_as_large_as_the_logits():
    logits, targets, boundaries = some_problem(list(range(0, 8193, 128)), rows=2048, dtype=torch.float32)
    sizes = largest_allocations(lambda: token_and_cluster_cross_entropy(logits, targets, boundaries), logits)
    assert sizes[0] == 4 * logits.numel()
    assert sizes[1] < 4 * logits.numel() / 3


@LAYOUTS
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_ignored_targets_do_not_count(boundaries, ignore_index):
    logits, targets, boundaries = some_problem(boundaries, rows=8)
    targets[targets == ignore_index] = 0
    targets[[1, 4]] = ignore_index
    kept = targets != ignore_index
    found = token_and_cluster_cross_entropy(logits, targets, boundaries, ignore_index=ignore_index)
    expected = token_and_cluster_cross_entropy(logits[kept], targets[kept], boundaries)
    torch.testing.assert_close(found, expected)
    grads = [gradient(tce + 2 * cce, logits) for tce, cce in (found, expected)]
    torch.testing.assert_close(*grads)
    assert not grads[0][~kept].any()
    apart = token_and_cluster_cross_entropy(logits, targets, boundaries, "none", ignore_index)
    assert not torch.stack(apart)[:, ~kept].any()


def test_when_all_targets_are_ignored_there_is_no_mean_and_no_gradient():
    logits, targets, boundaries = some_problem(UNEQUAL)
    targets[:] = -100
    means, sums = (token_and_cluster_cross_entropy(logits, targets, boundaries, r) for r in ("mean", "sum"))
    assert all(loss.isnan() for loss in means)
    assert sums == (0, 0)
    assert not gradient(sum(means), logits).any()
    assert not gradient(sum(sums), logits).any()


@pytest.mark.parametrize("boundaries", [EQUAL, UNEQUAL], ids=str)
def test_compiles_without_a_graph_break_and_means_the_same(boundaries):
    logits, targets, boundaries = some_problem(boundaries, rows=6)
    targets[2] = -100
    compiled = torch.compile(token_and_cluster_cross_entropy, backend="aot_eager", fullgraph=True)
    found, expected = (loss(logits, targets, boundaries) for loss in (compiled, token_and_cluster_cross_entropy))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(gradient(tce + 0.5 * cce, logits) for tce, cce in (found, expected)))
    with pytest.raises(ValueError, match="smallest cluster"):
        compiled(logits, targets, boundaries.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_keep_torchs_rules(dtype):
    """What they say of shapes and strides, gradients and mutation is what they do."""
    logits, targets, boundaries = some_problem(UNEQUAL, dtype=dtype)
    torch.library.opcheck(torch.ops.iar_study.cluster_cross_entropy, (logits, targets, [boundaries]))


NOTHING_FITS = [
    ((2, 4), torch.zeros(3, dtype=torch.int64), [0, 4], "targets"),
    ((2, 4), torch.zeros(2, 1, dtype=torch.int64), [0, 4], "targets"),
    ((2, 4), torch.zeros(2), [0, 4], "targets"),
    ((2, 4), torch.tensor([0, 4]), [0, 4], "target 4"),
    ((2, 4), torch.tensor([0, -1]), [0, 4], "target -1"),
    ((2, 4), torch.tensor([0, 1]), [0, 5], "from 0 to 4"),
    ((2, 4), torch.tensor([0, 1]), [1, 4], "from 0 to 4"),
    ((2, 4), torch.tensor([0, 1]), [0, 2, 2, 4], "smallest cluster has 0"),
    ((2, 4), torch.tensor([0, 1]), [0, 3, 2, 4], "smallest cluster has -1"),
    ((2, 4), torch.tensor([0, 1]), [0], "boundaries"),
    ((2, 4), torch.tensor([0, 1]), [0.0, 4.0], "boundaries"),
    ((2, 4), torch.tensor([0, 1]), [[0, 4]], "boundaries"),
]


@pytest.mark.parametrize(("shape", "targets", "boundaries", "message"), NOTHING_FITS)
def test_what_does_not_fit_is_refused(shape, targets, boundaries, message):
    boundaries = torch.tensor(boundaries)
    with pytest.raises(ValueError, match=message):
        token_and_cluster_cross_entropy(torch.zeros(shape), targets, boundaries)


def test_other_arguments_that_are_refused():
    logits, targets, boundaries = torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([0, 4])
    with pytest.raises(ValueError, match="reduction"):
        token_and_cluster_cross_entropy(logits, targets, boundaries, "max")
    for not_logits in (logits.long(), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="floating"):
            token_and_cluster_cross_entropy(not_logits, targets, boundaries)


@settings(deadline=None)
@given(problems(dimensions=((2, 3),)))
def test_clusters_of_clusters_are_no_harder(problem):
    logits, targets, fine = problem
    coarse = fine[[*range(0, len(fine) - 1, 2), -1]]  # pairs of neighbours become one
    _, fine_loss = token_and_cluster_cross_entropy(logits, targets, fine)
    _, coarse_loss = token_and_cluster_cross_entropy(logits, targets, coarse)
    assert coarse_loss <= fine_loss + 1e-9


def smoothed_by_definition(logits, targets, smoothing, q):
    """Cross-entropy with the targets' distributions written out: (1 - s) * onehot + s * q(. | t)."""
    distribution = (1 - smoothing) * F.one_hot(targets, logits.shape[-1]) + smoothing * q[targets]
    return -(distribution * logits.log_softmax(-1)).sum(-1).mean()


def test_plain_label_smoothing_is_torchs():
    logits, targets, _ = some_problem(EQUAL, rows=6)
    targets[2] = -100
    for reduction in ("mean", "sum", "none"):
        found = smoothed_cross_entropy(logits, targets, 0.2, reduction=reduction)
        expected = F.cross_entropy(logits, targets, label_smoothing=0.2, reduction=reduction)
        torch.testing.assert_close(found, expected)


@LAYOUTS
def test_smoothing_within_the_cluster_leaves_the_cluster_loss_as_it_is(boundaries):
    logits, targets, boundaries = some_problem(boundaries, rows=6)
    label = torch.bucketize(torch.arange(12), boundaries[1:], right=True)
    same = (label[:, None] == label).double()
    found = smoothed_cross_entropy(logits, targets, 0.3, cluster_spread(boundaries))
    torch.testing.assert_close(found, smoothed_by_definition(logits, targets, 0.3, same / same.sum(1, keepdim=True)))
    _, cce = token_and_cluster_cross_entropy(logits, targets, boundaries)
    alone = logits.masked_fill(label != label[targets][:, None], -1e30)
    within = smoothed_by_definition(alone, targets, 0.3, same / same.sum(1, keepdim=True))
    torch.testing.assert_close(found, cce + within)


def test_similarity_smoothing_moves_targets_to_the_most_similar_codes():
    angle = torch.tensor([0.0, 0.1, 0.3, 1.5, 1.6, 3.0], dtype=torch.float64)
    codebook = torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1, 7)[:, None]  # lengths do not matter
    spread = similarity_spread(codebook, k=2, temperature=0.5, chunk=4)
    assert spread.codes.tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2], [4, 3]]
    cosine = (angle[:, None] - angle).cos()
    expected = (cosine.gather(1, spread.codes) / 0.5).softmax(1)
    torch.testing.assert_close(spread.shares, expected)
    logits, targets, _ = some_problem([0, 6], rows=9)
    q = torch.zeros(6, 6, dtype=torch.float64).scatter_(1, spread.codes, expected)
    torch.testing.assert_close(
        smoothed_cross_entropy(logits, targets, 0.4, spread), smoothed_by_definition(logits, targets, 0.4, q)
    )


def test_smoothing_that_is_refused():
    logits, targets, boundaries = some_problem(EQUAL)
    with pytest.raises(ValueError, match="smoothing"):
        smoothed_cross_entropy(logits, targets, 1.1)
    with pytest.raises(ValueError, match="spread of 12 targets"):
        smoothed_cross_entropy(logits[:, :6], targets % 6, 0.1, cluster_spread(boundaries))
    for k, temperature in ((0, 1.0), (4, 1.0), (2, 0.0)):
        with pytest.raises(ValueError, match="k = "):
            similarity_spread(torch.eye(4), k, temperature)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_the_weight_goes_from_start_to_end_without_turning_back(schedule):
    weights = [scheduled_weight(schedule, 3.0, 1.0, i / 8) for i in range(9)]
    assert weights[0] == (1.0 if schedule == "constant" else 3.0)
    assert weights[-1] == 1.0
    assert weights == sorted(weights, reverse=True)
    assert scheduled_weight("cosine", 0.0, 2.0, 0.5) == pytest.approx(1.0)
    assert [scheduled_weight("step", 0.0, 2.0, p) for p in (0.49, 0.5)] == [0.0, 2.0]


def test_schedules_that_are_refused():
    with pytest.raises(ValueError, match="progress"):
        scheduled_weight("linear", 0.0, 1.0, 1.5)
    with pytest.raises(ValueError, match="constant, linear, cosine, step"):
        scheduled_weight("sine", 0.0, 1.0, 0.5)

"""A plan as lines for a person: what a study would take, and what is missing here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

from iar_study.errors import listed
from iar_study.running.needs import GPUS, Needs, duration, hours, plural, short

HEAD = 18
"""Characters of a column's head, which goes on in the next line."""


def needs_text(plan: Needs) -> str:
    """Return the plan as text, in paragraphs: its size, what it takes, the disk, and what it needs on this machine."""
    return "\n\n".join("\n".join(part) for part in (_head(plan), _table(plan), _disk(plan), _needs(plan)))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines, in columns."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def flops(value: float) -> str:
    """Return a number of operations.

    >>> flops(2.13e21)
    '2.1e21 FLOPs'
    """
    return f"{value:.1e} FLOPs".replace("e+0", "e").replace("e+", "e")


def _head(plan: Needs) -> list[str]:
    data, arms, seeds = plan.data, len(plan.arms), len(plan.seeds)
    augmented = f" x {data.augmentations} augmentations" if data.augmentations > 1 else ""
    assumed = " (assumed, as in ImageNet)" if data.assumed else ""
    once = " (equal ones counted once)" if plan.trials < arms * seeds else ""
    lines = {
        "trials": f"{plural(arms, 'arm')} x {plural(seeds, 'seed')} = {plan.trials}{once}",
        "data": f"{data.name}: {data.train_images:,}{augmented} + {data.test_images:,} images of "
        f"{data.tokens_per_image} tokens{assumed}",
        "training": f"{plan.steps:,} steps of {plan.batch_size} images, {plan.epochs:,.3g} epochs",
        "computed": f"on {plan.device} in {plan.precision}; all times below are for {plan.gpu}",
    }
    return [f"{plan.study} at {plan.profile}", *aligned([[f"  {name}", text] for name, text in lines.items()])]


def _table(plan: Needs) -> list[str]:
    """Return a column for each kind of trial, and one for all trials."""
    kinds, works = plan.kinds, [*(kind.each for kind in plan.kinds), plan.total]
    names = ["each trial"] if len(kinds) == 1 else [f"each of {listed(kind.arms)}" for kind in kinds]
    heads = [wrap(name, HEAD, break_on_hyphens=False) for name in ("", *names, f"all {plan.trials} trials")]
    rows = [
        *zip_longest(*heads, fillvalue=""),
        ["  weights", *(short(kind.parameters) for kind in kinds)],
        ["  layers, heads, width", *(f"{kind.layers}, {kind.heads}, {kind.width}" for kind in kinds)],
        ["  tokens trained on", *(short(work.tokens) for work in works)],
        ["  training", *(flops(work.training_flops) for work in works)],
        ["  evaluation", *(flops(work.evaluation_flops) for work in works)],
        ["  sampling", *(flops(work.sampling_flops) for work in works)],
        [f"  {plan.gpu} hours", *(hours(work.gpu_hours) for work in works)],
        [f"  time on {plural(plan.gpus, 'GPU')}", *(duration(work.wall_hours) for work in works)],
        ["  tokens a second and GPU", *(short(kind.tokens_per_second_per_gpu) for kind in kinds)],
        ["  state on a GPU, ddp", *(short(kind.ddp_state_bytes_per_gpu, "B") for kind in kinds)],
        ["  state on a GPU, fsdp", *(short(kind.fsdp_state_bytes_per_gpu, "B") for kind in kinds)],
    ]
    peak = f"{plan.peak_flops_per_second / 1e12:,.0f} TFLOP/s in {GPUS[plan.gpu].precision}"
    return [
        *aligned(rows),
        f"  Assumed, not measured: {plan.assumed_utilisation:.0%} of the peak, {peak}, on any number of GPUs.",
        "  Measure speed/tokens_per_second in a short run, and give --utilisation. Sampling takes longer than this.",
        "  Not counted: tokenizer, clusterings, decoding and measuring samples; in memory, activations and the copy",
        "  of the weights that is evaluated.",
    ]


def _disk(plan: Needs) -> list[str]:
    disk = plan.disk
    rows = [
        (disk.codes_bytes, "codes that are not here yet"),
        (disk.checkpoints_bytes, "two checkpoints of the trial that runs, while a third is written"),
        (disk.kept_bytes, f"weights and samples that {plural(plan.trials, 'trial')} leave"),
        (disk.needed_bytes, "in all"),
    ]
    return ["disk", *aligned([[f"  {short(size, 'B')}", text] for size, text in rows if size])]


def _needs(plan: Needs) -> list[str]:
    rows = []
    for need in plan.needs:
        rows.append([f"{'ok' if need.met else 'NO'}  {need.what}", need.found])
        rows += [["", line] for line in need.remedy.splitlines() if not need.met]
    return ["on this machine", *aligned(rows)]

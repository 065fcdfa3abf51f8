"""Who makes what: the versions that name what is made, and a digest of the source that made it.

Raise a maker's version when a change makes other numbers of the same settings: what it made before is then left, and
what depends on it is made anew; nothing else is. A test of each maker's output on a small input says when to. Version 1
is in no name, so that what was made before there were versions is found.

While one tries ideas, no version is raised. So what is made remembers the digest of its makers' source, and a run tells
where that is another one now; `run --again` makes these anew, under names of their own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

CLUSTERING = "codebook/clustering.py"
STRATEGIES = ("_balanced", "_greedy", "_plain", "_blocks", "_random", "_agglomerative", "_agglomerative_equal")
"""The functions of `CLUSTERING` that are strategies; all else there is every strategy's."""

LLOYD = ("codebook/balanced_kmeans.py", "codebook/assignment.py", "codebook/augmenting_paths.py")
LOOKS = ("evaluation/classifier.py", "tokenizers/vq.py", "tokenizers/patch_vq.py", "pipeline/making.py:decode")
"""What pictures are made and seen by."""


@dataclass(frozen=True)
class Maker:
    """A part of the package that makes something.

    source : its files, below the package. FILE:NAME is one function or class of a file, FILE:-A,B all but these.
    """

    version: int
    source: tuple[str, ...]


def _strategy(*functions: str, source: tuple[str, ...] = ()) -> Maker:
    """Return the maker of a strategy's clusters: what all share, its own functions and other files."""
    others = ",".join(name for name in STRATEGIES if name not in functions)
    return Maker(1, (f"{CLUSTERING}:-{others}", "codebook/norms.py", "codebook/kernels.py", *source))


MAKERS = {
    "tokenizer": Maker(
        1,
        (
            *("tokenizers/patch_vq.py", "tokenizers/vq.py", "training/train_tokenizer.py"),
            *("training/one_cycle.py", "data/batches.py"),
        ),
    ),
    "codes": Maker(1, ("tokenizers/patch_vq.py", "tokenizers/vq.py", "training/train_tokenizer.py:encode_images")),
    "classifier": Maker(
        1, ("evaluation/classifier.py", "training/train_classifier.py", "training/one_cycle.py", "data/batches.py")
    ),
    "clustering none": Maker(1, ()),
    "clustering balanced": _strategy("_balanced", source=LLOYD),
    "clustering greedy": _strategy("_greedy"),
    "clustering plain": _strategy("_plain"),
    "clustering blocks": _strategy("_blocks"),
    "clustering random": _strategy("_blocks", "_random"),
    "clustering agglomerative": _strategy("_agglomerative"),
    "clustering agglomerative-equal": _strategy("_agglomerative", "_agglomerative_equal", source=LLOYD[1:]),
    "orders": Maker(1, ("codebook/ordering.py", "codebook/norms.py", "codebook/kernels.py")),
    "training": Maker(1, ("generators/gpt.py", "training/train_gpt.py", "training/objective.py", "data/batches.py")),
    "cluster loss": Maker(1, ("losses/cluster_cross_entropy.py",)),
    "smoothing": Maker(1, ("losses/smoothing.py",)),
    "predictions": Maker(1, ("evaluation/predictions.py",)),
    "sampling": Maker(
        1,
        (
            *("generators/gpt.py", "generators/sampling.py"),
            *("pipeline/attempt.py:sample_and_measure", "pipeline/attempt.py:draw"),
        ),
    ),
    "samples' metrics": Maker(
        1,
        (
            *("evaluation/features.py", "evaluation/fidelity.py", "pipeline/measuring.py"),
            *(*LOOKS, "pipeline/making.py:make_reference"),
        ),
    ),
    "near codes": Maker(1, ("evaluation/near_codes.py", "pipeline/attempt.py:_replace_tokens")),
}
"""Name -> maker. Of a strategy, "clustering NAME"."""


def versions(makers: Iterable[str]) -> list[tuple[str, int]]:
    """Return (maker, version) of those that have made other numbers before, sorted: a part of names."""
    return sorted((name, MAKERS[name].version) for name in makers if MAKERS[name].version > 1)


def sources(makers: Iterable[str]) -> dict[str, str]:
    """Return maker -> digest of its source as it is now."""
    return {name: _digest(MAKERS[name].source) for name in makers}


def changed(made_by: Mapping[str, str]) -> list[str]:
    """Return the makers whose source is not the one, of these digests, that something was made by."""
    return [name for name, source in made_by.items() if name not in MAKERS or sources([name])[name] != source]


@cache
def _digest(source: tuple[str, ...]) -> str:
    return sha256("\n".join(_code(part) for part in source).encode()).hexdigest()[:16]


def _code(part: str) -> str:
    """Return the code of a part of a maker's source, without comments, docstrings and layout."""
    file, _, name = part.partition(":")
    tree: ast.AST = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    if name.startswith("-"):
        left_out = name[1:].split(",")
        tree.body = [node for node in tree.body if getattr(node, "name", "") not in left_out]  # type: ignore[attr-defined]
    elif name:
        (tree,) = (node for node in ast.iter_child_nodes(tree) if getattr(node, "name", "") == name)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return ast.unparse(tree)  # `dump` differs between versions of Python


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

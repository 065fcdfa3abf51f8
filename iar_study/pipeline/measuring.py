"""Pictures measured: what the evaluators of the data set, or another extractor, see in them, beside a reference.

Evaluators and reference are products that trials share; `stages` makes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from iar_study import parts
from iar_study.config import TrialConfig
from iar_study.errors import InputError
from iar_study.evaluation.evaluators import Evaluators
from iar_study.evaluation.feature_parts import reference_of
from iar_study.evaluation.features import Extractor, Seen, extract_all, load_extractor
from iar_study.evaluation.fidelity import Gaussian, Reference, frechet_distance, measure_fidelity
from iar_study.evaluation.metrics import Metric, declare, fidelity_key
from iar_study.storage import load_arrays

SET = "set"
"""The extractor that stands for all evaluators of the data set."""

REFERENCE = "reference."
"""What the names of a reference's arrays begin with, beside the pictures that are kept with them."""


GAUSSIANS = ("images", "codes")
"""What Frechet distances are measured to: held-out images (FD), and their reconstructions (FD to reconstructions)."""


@dataclass(frozen=True, eq=False)
class References:
    """What samples are measured against.

    Attributes
    ----------
    whole : held-out images, as the first extractor sees them.
    gaussians : one of `GAUSSIANS` -> the name of each extractor -> what is fitted to its features of them.
    """

    whole: Reference
    gaussians: dict[str, dict[str, Gaussian]]

    @classmethod
    def of(cls, extractors: Sequence[Extractor], images: np.ndarray, pictures: np.ndarray) -> References:
        """Look at held-out images, uint8 (n, h, w, c), and at their reconstructions."""
        seen = {what: looked_at(extractors, each) for what, each in zip(GAUSSIANS, (images, pictures), strict=True)}
        fitted = {what: {name: Gaussian.of(by.features) for name, by in of.items()} for what, of in seen.items()}
        return cls(reference_of(seen["images"][extractors[0].name], "held-out images"), fitted)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays, for `load_references`."""
        found = {REFERENCE + name: array for name, array in self.whole.arrays().items()}
        for what, of in self.gaussians.items():
            for name, fitted in of.items():
                moments = {"count": np.array([fitted.count]), "mean": fitted.mean, "root": fitted.root}
                found |= {f"{what}/{name}/{moment}": array for moment, array in moments.items()}
        return found


def load_references(path: Path) -> References:
    """Return what `References.arrays` became, of a product `reference`."""
    arrays, _ = load_arrays(path)
    whole = {name.removeprefix(REFERENCE): array for name, array in arrays.items() if name.startswith(REFERENCE)}
    gaussians: dict[str, dict[str, Gaussian]] = {what: {} for what in GAUSSIANS}
    for key in arrays:
        what, _, rest = key.partition("/")
        name, _, moment = rest.rpartition("/")
        if moment == "mean":
            count, mean, root = (arrays[f"{what}/{name}/{each}"] for each in ("count", "mean", "root"))
            gaussians[what][name] = Gaussian(int(count[0]), mean, root)
    return References(Reference.from_arrays(whole), gaussians)


def extractors_of(config: TrialConfig, evaluators: Evaluators) -> tuple[Extractor, ...]:
    """Return whose features are compared: all members of the set, or the one that the config names, on its device."""
    if config.evaluation.extractor == SET:
        return evaluators.members
    return (load_network(config.evaluation.extractor, config.compute.device),)


def with_classifiers(extractors: Sequence[Extractor], evaluators: Evaluators) -> list[Extractor]:
    """Return all who look at pictures: whose features are compared, and who tell the classes, each once."""
    return [*extractors, *(each for each in evaluators.classifiers if each not in extractors)]


def looked_at(extractors: Sequence[Extractor], pictures: np.ndarray) -> dict[str, Seen]:
    """Return what each extractor, by its name, sees in uint8 pictures (n, h, w, c)."""
    found = {}
    for each in extractors:
        parts = (pictures[first : first + each.batch] for first in range(0, len(pictures), each.batch))
        found[each.name] = extract_all(each, parts, len(pictures))
    return found


@lru_cache(maxsize=1)
def load_network(extractor: str, device: str) -> Extractor:
    """Load a large network once per process."""
    return load_extractor(extractor, device)


def own_metrics(config: TrialConfig) -> dict[str, tuple[Callable[..., Any], Metric]]:
    """Return family -> (what measures, how it is shown) of the metrics in `evaluation.metrics`."""
    found = {}
    for spec in config.evaluation.metrics.split():
        measure, family = parts.load("metric", spec), parts.label("metric", spec)
        meaning = (inspect.getdoc(measure) or "").partition("\n")[0].removesuffix(".")
        found[family] = measure, getattr(measure, "shown", None) or Metric(family, None, 4, meaning)
    declare({family: shown for family, (_, shown) in found.items()})
    return found


def _own_value(family: str, own: Callable[..., Any], *features: np.ndarray) -> float:
    """Return what somebody's metric is of features that it cannot change; raise `InputError` where it is no number."""
    views = [array.view() for array in features]
    for view in views:
        view.flags.writeable = False
    found = own(*views)
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise InputError(f"metric {family} is to return a number, not {type(found).__name__}") from error
    if not np.isfinite(value):
        raise InputError(f"metric {family} is {value} of these samples; it is to be finite")
    return value


def measure_pictures(
    pictures: np.ndarray,
    labels: np.ndarray,
    reference: References,
    evaluators: Evaluators,
    config: TrialConfig,
) -> dict[str, float]:
    """Return the `family/extractor@count` metrics of uint8 pictures (n, h, w, c) of the classes `labels`, int (n,).

    Of a set, FD stands by each member, and the geometric mean over all by the set; what else is measured in features
    is the first classifier's alone. The class is always told by the classifiers of the set.
    """
    extractors = extractors_of(config, evaluators)
    seen = looked_at(with_classifiers(extractors, evaluators), pictures)
    first = extractors[0].name
    values = {(family, first): value for family, value in _measured(seen[first], reference.whole, config).items()}
    fitted = {each.name: Gaussian.of(seen[each.name].features) for each in extractors}
    fd, fd_codes = (
        {name: frechet_distance(reference.gaussians[what][name], fitted[name]) for name in fitted} for what in GAUSSIANS
    )
    values |= {("fd", name): value for name, value in fd.items()}
    primary = evaluators.name if config.evaluation.extractor == SET else first
    values["fd", primary] = geometric_mean(list(fd.values()))
    values["fd_codes", primary] = geometric_mean(list(fd_codes.values()))
    values["class_agreement", evaluators.name] = float(
        np.mean([(told == labels).mean() for told in classes_told(evaluators, seen)])
    )
    return {fidelity_key(family, name, len(pictures)): value for (family, name), value in values.items()}


def measure_seen(seen: Seen, reference: Reference, extractor: str, config: TrialConfig) -> dict[str, float]:
    """Return the `family/extractor@count` metrics of what an extractor saw in samples, beside a reference."""
    values = _measured(seen, reference, config).items()
    return {fidelity_key(family, extractor, len(seen.features)): value for family, value in values}


def _measured(seen: Seen, reference: Reference, config: TrialConfig) -> dict[str, float]:
    """Return family -> value of all that is measured in the features of one extractor."""
    values = {name: each.value for name, each in measure_fidelity(reference, *seen, intervals=False).items()}
    own = own_metrics(config).items()
    return values | {name: _own_value(name, measure, reference.features, seen.features) for name, (measure, _) in own}


def classes_told(evaluators: Evaluators, seen: Mapping[str, Seen]) -> list[np.ndarray]:
    """Return the class, int (n,), that each classifier of the set puts the pictures in that it has seen."""
    probabilities = [seen[each.name].probabilities for each in evaluators.classifiers]
    return [each.argmax(1) for each in probabilities if each is not None]


def geometric_mean(values: Sequence[float]) -> float:
    """Return exp of the mean log of values of 0 or more; of one, that value itself, to the bit.

    >>> geometric_mean([0.3]), round(geometric_mean([1.0, 4.0]), 12), geometric_mean([0.0, 1.0])
    (0.3, 2.0, 0.0)
    """
    if len(values) == 1 or not min(values):
        return float(min(values))
    return float(np.exp(np.mean(np.log(values))))

"""A study's finished trials as tidy DataFrames and pictures: all that reporting may look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from iar_study.config import DataConfig
from iar_study.errors import InputError
from iar_study.evaluation.metrics import (
    METRICS,
    declare,
    extractor_in,
    find_metric,
    is_of_set,
    metric_named,
    without_digest,
)
from iar_study.pipeline.workspace import (
    Workspace,
    ending,
    is_finished,
    near_codes_trials,
    pictures_of,
    read_manifest,
    read_record,
)
from iar_study.storage import load_arrays, read_json
from iar_study.study.plans import departures, plan_of
from iar_study.study.study import Kind
from iar_study.tokenizers.layout import side_in_tokens
from iar_study.training.journal import read_journal

SHOWN_ARM = "balanced"
"""Of near codes, the arm whose pictures are shown; they differ in the column of the same cluster alone."""

MODEL = ("layers", "heads", "width")
"""What tells the size of a GPT."""

STAGES = {"originals": "originals", "decoded": "decoded", "decoded after rearrangement": "rearranged"}
"""Of held-out images, what a report calls them -> the array of the product `reference`."""

PREMISE = {"near/ssim": 0.98, "near/class_agreement": 0.98}
"""What near codes have to keep, by two yardsticks, for the method to have a premise: within 2% of the true tokens."""


PAUSE = 20
"""Times the usual time between two points of a journal from which on it was interrupted. Sampling takes some."""


@dataclass(frozen=True, eq=False)  # frames and arrays have no plain equality
class Results:
    """What a study found.

    Attributes
    ----------
    arms : arm name -> what it varies, in the study's order; the first key need not be the baseline.
    settings : dotted keys that were changed on top of the profile.
    command : the command line that makes these results.
    scale : label -> text or number: what was run, on what data, at which size, on which machine.
    final : tidy frame, one row per trial and metric: arm, seed, trial (hash), run_id (MLflow), metric, value.
    curves : tidy frame, one row per trial, metric and training step: arm, seed, trial, step, metric, value.
    missing : one row per trial that was asked for and is not finished: arm, seed, status, step (where it diverged, or
        how far it got; NaN before its first point).
    n_codes : codes of the codebook.
    tokens_per_step : tokens that a training step is taken on.
    samples : arm -> uint8 (classes, per class, h, w, c), drawn with the same noise for every arm; one seed.
    reconstructions : "originals" | "decoded" | "decoded after rearrangement" -> uint8 (k, h, w, c); empty where the
        images came encoded.
    exact : what must be 0 but for rounding -> how far it is from it, as in `evaluation.exactness`.
    positions : arm -> metric (such as `token_nll`) -> float64 (seeds, grid, grid), by position in the image; NaN for
        a seed that is not finished.
    kind : what the trials did, as in `Study.kind`. Of near codes, the steps of `curves` are ranks.
    beside : arm -> the arm that it is compared with, for arms whose that is not `baseline`; a baseline of its own names
        itself.
    trials : one dict per trial that has ended: arm, seed, trial, run_id, page (address of its run, "" without a
        server), status, seconds (from its first point to its last, interruptions left out), and what trial.json says
        of it: config, inputs, data, code, environment, parameters.
    data : the data set, as a trial's config names it.
    factor : dotted key of the setting that the arms of a series differ in; empty where there is none.
    places : arm -> the series that it is in, and its value of the factor.
    premise : SSIM and the share of images that keep their class, where every token becomes its nearest code, beside the
        image of the true tokens; and the tokenizer's own, beside the original. For this study's own tokenizers; empty
        where no study measured it.
    plan : what the study's manifest recorded of its plan; None without one.
    departures : in what the run is not the one that was planned.
    later : metrics that `measure` has added to what the trials measured themselves.
    replaced : of near codes, in what way tokens were replaced -> uint8 (k, h, w, c), of one trial; else empty.
    """

    study: str
    question: str
    claim: str
    baseline: str
    arms: dict[str, str]
    profile: str
    scale: dict[str, str | int | float]
    final: pd.DataFrame
    curves: pd.DataFrame
    missing: pd.DataFrame
    settings: dict[str, str] = field(default_factory=dict)
    command: str = ""
    class_names: tuple[str, ...] = ()
    n_codes: int = 0
    tokens_per_step: int = 0
    samples_seed: int = 0
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    reconstructions: dict[str, np.ndarray] = field(default_factory=dict)
    exact: dict[str, float] = field(default_factory=dict)
    positions: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    kind: Kind = "training"
    replaced: dict[str, np.ndarray] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    beside: dict[str, str] = field(default_factory=dict)
    factor: str = ""
    places: dict[str, tuple[str, float]] = field(default_factory=dict)
    premise: dict[str, float] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    departures: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    def find(self, name: str) -> str | None:
        """Return the key of a metric that `name` means, see `find_metric`; what trials measured themselves goes first.

        Raises `InputError` where a family was measured in several ways: which of them is meant must then be said.
        """
        own = self.final["metric"][~self.final["metric"].isin(self.later)]
        return find_metric(name, own) or find_metric(name, self.final["metric"])

    @property
    def seeds(self) -> list[int]:
        """The seeds that were asked for."""
        return sorted({*self.final["seed"], *self.missing["seed"]})

    @property
    def draws(self) -> dict[int, int] | None:
        """Each seed's draw of tokenizer and classifier, where a plan draws them."""
        if self.plan is None or self.plan["draws"] == 1:
            return None
        plan = plan_of(self.plan)
        return {seed: plan.draw(seed) for seed in self.seeds}

    @property
    def baselines(self) -> dict[str, str]:
        """Every arm -> the arm that it is compared with: itself where it is a baseline."""
        return {arm: self.beside.get(arm, self.baseline) for arm in self.arms}

    @property
    def data_in_words(self) -> str:
        """On what, in one line: profile, data, codes."""
        parts = (f"profile {self.profile}", self.scale.get("data set"), self.scale.get("tokenizer"))
        return "; ".join(str(part) for part in parts if part)

    @property
    def scale_in_words(self) -> str:
        """On what, and how large, in one line: `data_in_words`, model, training, device, seeds."""
        told = {key: str(value) for key, value in self.scale.items()}
        parts = (
            self.data_in_words,
            told.get("model", "").partition(":")[0],  # its layers, heads and width follow
            told.get("training", "").partition(", learning rate")[0],
            told.get("computed in", ""),
            f"seeds {told.get('seeds', '')}",
        )
        return "; ".join(filter(None, parts))

    @property
    def compared(self) -> list[str]:
        """The arms that are compared with another one."""
        return [arm for arm, than in self.baselines.items() if arm != than]

    @property
    def baseline_in_words(self) -> str:
        """What arms are compared with: the baseline's name, or that each has its own."""
        several = len(set(self.baselines.values())) > 1
        return "its own baseline" if several else self.baseline

    @property
    def compared_in_words(self) -> str:
        """How the arms are compared, as a sentence begins."""
        return f"{'each ' if self.beside else ''}compared with {self.baseline_in_words}"


def load_results(workspace: Workspace, study: str) -> Results:
    """Read what the last `iar-study run STUDY` asked for and has finished, from the trials' own folders.

    Raises
    ------
    InputError : the study was never run here.
    """
    manifest = read_manifest(workspace, study)
    seeds = sorted({trial["seed"] for trial in manifest["trials"]})
    final: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    diverged: list[tuple[dict[str, Any], str]] = []
    samples: dict[str, np.ndarray] = {}
    positions: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    replaced: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {}
    values: dict[str, float] = {}
    tokenizers: dict[int, dict[str, Any]] = {}
    ended: list[dict[str, Any]] = []
    for trial in manifest["trials"]:
        folder = workspace.trials / trial["hash"]
        key = {"arm": trial["arm"], "seed": trial["seed"], "trial": trial["hash"]}
        journal = read_journal(folder / "journal.jsonl")
        result: dict[str, Any] = {"status": "not finished", "metrics": {}}
        if is_finished(folder):
            result = read_json(folder / "result.json")
        metrics = result["metrics"]
        if result["status"] == "diverged":
            diverged.append((key, trial["run_id"]))
        if result["status"] != "finished":
            step = result.get("step", journal[-1]["step"] if journal else float("nan"))
            missing.append({"arm": trial["arm"], "seed": trial["seed"], "status": result["status"], "step": step})
        elif trial["seed"] == seeds[0] and (folder / "samples.safetensors").exists():
            samples[trial["arm"]] = load_arrays(folder / "samples.safetensors")[0]["samples"]
        if result["status"] == "finished" and (folder / "predictions.safetensors").exists():
            positions.setdefault(trial["arm"], {})[trial["seed"]] = load_arrays(folder / "predictions.safetensors")[0]
        if (folder / "replaced.safetensors").exists() and (not replaced or trial["arm"] == SHOWN_ARM):
            arrays, header = load_arrays(folder / "replaced.safetensors")
            if trial["seed"] == seeds[0]:
                replaced = dict(zip(header["columns"], arrays["replaced"].swapaxes(0, 1), strict=True))
        final += [{**key, "run_id": trial["run_id"], "metric": name, "value": value} for name, value in metrics.items()]
        if is_finished(folder):
            curves += [
                {**key, "step": point["step"], "metric": name, "value": value}
                for point in journal
                for name, value in point["metrics"].items()
            ]
            own = read_record(folder)
            declare(own.get("metrics", {}))
            page = f"{manifest['page']}/{trial['run_id']}" if manifest["page"] and trial["run_id"] else ""
            said = {name: own[name] for name in ("config", "inputs", "data", "code", "environment", "parameters")}
            told = {"page": page, "status": result["status"], "seconds": _seconds(journal)}
            ended.append({**key, "run_id": trial["run_id"], **told, **said})
            if not about or (trial["arm"] == manifest["baseline"] != about["arm"]):
                about = {**own, "arm": trial["arm"]}
            if manifest["factor"]:
                values[trial["arm"]] = float(own["config"][manifest["factor"]])
            tokenizers.setdefault(own["config"]["tokenizer.codebook_size"], own)
    own_metrics = {row["metric"] for row in final}
    final += _measured_later(manifest, workspace, final)
    if not about:
        raise InputError(f"no trial of study {study!r} is finished yet; `iar-study run {study}` goes on with them")
    # An arm must not look better for the seeds that it lost: what the others have, these have as NaN.
    measured = dict.fromkeys(row["metric"] for row in final) or dict.fromkeys(
        m for m in METRICS if m.startswith("val/")
    )
    lost = [{**key, "run_id": run, "metric": name, "value": float("nan")} for key, run in diverged for name in measured]
    final += lost
    final, curves = _by_one_name(final), _by_one_name(curves)
    asked = {trial["arm"] for trial in manifest["trials"]}
    arms = {arm["name"]: arm for arm in manifest["arms"] if arm["name"] in asked}
    return Results(
        later=tuple(sorted({row["metric"] for row in final} - own_metrics)),
        study=manifest["study"],
        question=manifest["question"],
        claim=manifest["claim"],
        baseline=manifest["baseline"],
        arms={name: arm["description"] for name, arm in arms.items()},
        profile=manifest["profile"],
        settings=manifest["settings"],
        command=_command(manifest, seeds),
        scale=_scale(about, seeds, manifest["kind"], [tokenizers[size] for size in sorted(tokenizers)], ended),
        final=pd.DataFrame(final, columns=["arm", "seed", "trial", "run_id", "metric", "value"]),
        curves=pd.DataFrame(curves, columns=["arm", "seed", "trial", "step", "metric", "value"]),
        missing=pd.DataFrame(missing, columns=["arm", "seed", "status", "step"]),
        class_names=tuple(about["data"]["class_names"]),
        n_codes=about["config"]["tokenizer.codebook_size"],
        tokens_per_step=about["config"]["train.batch_size"] * _grid(about) ** 2,
        samples_seed=seeds[0],
        samples=samples,
        reconstructions=_reconstructions(manifest["reference"], workspace),
        exact=about["exact"],
        positions={arm: _on_grid(of_seeds, seeds) for arm, of_seeds in positions.items()},
        kind=manifest["kind"],
        replaced=replaced,
        trials=ended,
        data=DataConfig(about["config"]["data.name"], about["config"]["data.image_size"]),
        beside={name: arm["beside"] for name, arm in arms.items() if arm["beside"] != manifest["baseline"]},
        factor=manifest["factor"],
        premise=_premise(workspace, {of["inputs"]["tokenizer"] for of in ended if "tokenizer" in of["inputs"]}),
        places={name: (arm["series"], values[name]) for name, arm in arms.items() if arm["series"] and name in values},
        plan=manifest.get("plan"),
        departures=_departures(manifest, workspace),
    )


def _by_one_name(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of metrics, in which several sets of evaluators, of other draws or arms, go by one name.

    What a member of one of several sets found by itself has no partner to be compared with, and is left out.
    """
    if len({extractor_in(row["metric"]) for row in rows if is_of_set(row["metric"])}) < 2:
        return rows
    named = [{**row, "metric": without_digest(row["metric"])} for row in rows]
    return [row for row in named if row["metric"]]


def _seconds(journal: list[dict[str, Any]]) -> float:
    """Return how long the steps between the points of a journal took; a gap of many times the usual is a pause."""
    gaps = np.diff([point["time_ms"] for point in journal]) / 1000
    # The times are of a clock on the wall: where it was set back, a gap is below 0.
    return float(np.minimum(gaps, PAUSE * np.median(gaps)).clip(0).sum()) if gaps.size else 0.0


def _departures(manifest: dict[str, Any], workspace: Workspace) -> tuple[str, ...]:
    """Return in what the run is not the one that was planned; empty without a plan."""
    plan, older = manifest.get("plan"), []
    if plan is None:
        return ()
    since_ms = 1000 * datetime.fromisoformat(plan["committed"]).timestamp() if plan["committed"] else 0.0
    for trial in manifest["trials"]:
        journal = read_journal(workspace.trials / trial["hash"] / "journal.jsonl")
        if journal and journal[0]["time_ms"] < since_ms:
            older.append(f"{trial['arm']}, seed {trial['seed']}")
    return tuple(departures(plan, manifest["profile"], manifest["settings"], older))


def _premise(workspace: Workspace, tokenizers: set[str]) -> dict[str, float]:
    """Return the means over those of these tokenizers (digests) of which somebody measured near codes here."""
    keys = [*PREMISE, *(key.replace("near/", "tokenizer/") for key in PREMISE)]
    measured: dict[str, dict[str, float]] = {}
    for folder in near_codes_trials(workspace):
        tokenizer, result = read_record(folder)["inputs"].get("tokenizer"), read_json(folder / "result.json")
        if tokenizer in tokenizers and set(PREMISE) <= set(result["metrics"]):
            measured[tokenizer] = {key: result["metrics"][key] for key in keys}
    return {key: float(np.mean([of[key] for of in measured.values()])) for key in keys} if measured else {}


def _on_grid(of_seeds: dict[int, dict[str, np.ndarray]], seeds: list[int]) -> dict[str, np.ndarray]:
    """Put values by position, (T,) for each seed, on the grid of the image: (seeds, grid, grid)."""
    some = next(iter(of_seeds.values()))
    grid = side_in_tokens(len(next(iter(some.values()))))
    lost = {name: np.full(grid**2, np.nan) for name in some}
    return {name: np.stack([of_seeds.get(seed, lost)[name].reshape(grid, grid) for seed in seeds]) for name in some}


def _reconstructions(reference: str | None, workspace: Workspace) -> dict[str, np.ndarray]:
    if reference is None or (product := pictures_of(reference, workspace)) is None:
        return {}
    pictures = load_arrays(product)[0]
    return {label: pictures[name] for label, name in STAGES.items()}


def _measured_later(
    manifest: dict[str, Any], workspace: Workspace, final: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return rows like `final` of what `measure` has found of the same trainings and the trials did not measure."""
    known = {(row["arm"], row["trial"], row["metric"]) for row in final}
    run_ids = {(trial["arm"], trial["hash"]): trial["run_id"] for trial in manifest["trials"]}
    found = []
    for each in manifest.get("measured", []):
        folder, key = workspace.trials / each["hash"], (each["arm"], each["trial"])
        if ending(folder) != "finished" or key not in run_ids:
            continue
        declare(read_record(folder).get("metrics", {}))
        row = {"arm": each["arm"], "seed": each["seed"], "trial": each["trial"], "run_id": run_ids[key]}
        for metric, value in read_json(folder / "result.json")["metrics"].items():
            if (*key, metric) not in known:
                known.add((*key, metric))
                found.append({**row, "metric": metric, "value": value})
    return found


def _command(manifest: dict[str, Any], seeds: list[int]) -> str:
    words = ["iar-study", "run", manifest["study"], "--profile", manifest["profile"], "--seeds", *map(str, seeds)]
    arms = list(dict.fromkeys(trial["arm"] for trial in manifest["trials"]))
    if len(arms) < len(manifest["arms"]):
        words += ["--arms", *arms]
    if manifest["settings"]:
        words += ["--set", *(f"{key}={value}" for key, value in manifest["settings"].items())]
    return shlex.join(words)


def _scale(
    about: dict[str, Any],
    seeds: list[int],
    kind: Kind,
    tokenizers: list[dict[str, Any]],
    ended: list[dict[str, Any]],
) -> dict[str, str | int | float]:
    """Say what was run, on what, how large, and with which code and machine.

    about : of a trial that stands for the others; tokenizers : of one trial for each number of codes; ended : of all.
    """
    config, data = about["config"], about["data"]
    grid = _grid(about)
    lengths = sorted({trial["config"]["train.steps"] for trial in ended})
    steps = " or ".join(f"{length:,}" for length in lengths)
    tokens = " or ".join(f"{length * config['train.batch_size'] * grid**2 / 1e6:.1f}" for length in lengths)
    weights = sorted({trial["parameters"] for trial in ended})
    sizes = sorted({tuple(trial["config"][f"model.{name}"] for name in MODEL) for trial in ended})
    named = {str(trial["config"].get("model.name", "gpt")).rpartition(":")[2].partition(",")[0] for trial in ended}
    names = sorted(name.replace("gpt", "GPT") for name in named)
    colours = "grey" if data["channels"] == 1 else "colour"
    threads = "one thread" if config["compute.threads"] == 1 else f"{config['compute.threads']} threads"
    views = f" ({data['augmentations']} augmentations each)" if data.get("augmentations", 1) > 1 else ""
    averaged = f"; evaluated: moving average, decay {config['train.ema']:g}" if config.get("train.ema") else ""
    rates = " or ".join(f"{rate:g}" for rate in sorted({trial["config"]["train.lr"] for trial in ended}))
    guidance = "guided as each arm says" if kind == "sampling" else f"guidance {config['evaluation.guidance']:g}"
    judged = f"judged by {config['evaluation.clusters']} balanced clusters"
    held_out = min(config["evaluation.images"], data["test_images"])
    training = {
        "model": f"{', '.join(names)}, {_range(weight / 1e6 for weight in weights)} M weights: "
        + "; ".join(f"{layers} layers, {heads} heads, width {width}" for layers, heads, width in sizes),
        "training": f"{steps} steps of {config['train.batch_size']} images ({tokens} M tokens), "
        f"learning rate {rates}, {config['train.decay']} decay{averaged}",
        "evaluation": f"{held_out:,} held-out images; {config['evaluation.samples']:,} samples, "
        f"{guidance}, no top-k or top-p; {judged}",
    }
    replacing = {"evaluation": f"every token of {held_out:,} held-out images replaced; no GPT"}
    return {
        "data set": data["name"],
        "images": f"{data['train_images']:,} for training{views}, {data['test_images']:,} held out, "
        f"{data['classes']} classes",
        "image size": f"{data['image_size']} x {data['image_size']} pixels, {colours}",
        "data digest": data["digest"][:16],
        "tokenizer": f"{config['tokenizer.codebook_size']} codes of dimension {config['tokenizer.code_dim']}, "
        f"{grid} x {grid} = {grid**2} tokens an image",
        **_quality(about, tokenizers),
        **(replacing if kind == "near-codes" else training),
        "seeds": ", ".join(map(str, seeds)) + _shared_by_seeds(ended),
        "trials": trials_in_words(ended),
        "computed in": f"{config['compute.precision']} on {config['compute.device']}, {threads} a trial"
        f"{', compiled' if config['compute.compile'] else ''}",
        "code": _each(_code(trial["code"]) for trial in ended),
        "environment": _each(_environment(trial["environment"]) for trial in ended),
    }


def _shared_by_seeds(ended: list[dict[str, Any]]) -> str:
    """Say whether an interval over seeds covers the tokenizer, too."""
    if len({trial["seed"] for trial in ended}) == 1:
        return ""
    made = {(trial["config"]["tokenizer.codebook_size"], trial["inputs"]["tokenizer"]) for trial in ended}
    sizes, seeds = len({size for size, _ in made}), len({trial["seed"] for trial in ended})
    if len(made) == sizes:
        return "; the same tokenizer for all"
    return "; another tokenizer for each" if len(made) >= sizes * seeds else f"; {len(made)} tokenizers"


def trials_in_words(trials: Iterable[dict[str, Any]]) -> str:
    """Say how many trials there are, each once, how long they took together, and on which processors."""
    distinct = {trial["trial"]: trial for trial in trials}.values()
    hours = sum(trial["seconds"] for trial in distinct) / 3600
    on = _each(_machine(trial["environment"]) for trial in distinct)
    return f"{len(distinct):,}, {hours:.1f} hours of them together, on {on}"


def _machine(environment: dict[str, Any]) -> str:
    return f"{environment.get('processor') or environment['machine']} ({environment['cpu_capability']})"


def _code(code: dict[str, Any]) -> str:
    return f"commit {code['commit'][:10]}{' with uncommitted changes' if code['dirty'] else ''}"


def _environment(environment: dict[str, Any]) -> str:
    return (
        f"Python {environment['python']}, torch {environment['torch']}, {environment['machine']} "
        f"({environment['cpu_capability']})"
    )


def _range(values: Iterable[float]) -> str:
    """Return the lowest and the highest of numbers, or the one that there is."""
    texts = [f"{value:.2f}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} to {texts[-1]}"


def _each(texts: Iterable[str]) -> str:
    """Return what differs among texts, each once."""
    return "; ".join(dict.fromkeys(texts))


def _grid(about: dict[str, Any]) -> int:
    """Return the tokens along one side of a picture."""
    return about["data"]["image_size"] // about["config"]["tokenizer.patch"]


def _quality(about: dict[str, Any], tokenizers: list[dict[str, Any]]) -> dict[str, str]:
    """Say how good tokenizers and classifier are, as far as it was measured."""
    rows = {}
    for of in tokenizers:
        tokenizer, floor = of["tokenizer"], of["reconstruction"]
        by = f", by {of['config']['tokenizer.codebook_size']:,} codes" if len(tokenizers) > 1 else ""
        used = f"{tokenizer['usage']:.0%} of the codes used, perplexity {tokenizer['perplexity']:.0f}"
        if "psnr" in tokenizer:
            rows[f"reconstruction of held-out images{by}"] = f"PSNR {tokenizer['psnr']:.1f} dB, {used}"
        else:
            rows[f"codes of training images{by}"] = used
        if floor:
            fd = find_metric("fd", floor) or ""
            rows[f"{metric_named(fd).label} of reconstructions{by}"] = f"{floor[fd]:.2f} (the floor for samples)"
    if not about["reconstruction"] and not about["config"]["evaluation.reference"]:
        rows["FD"] = "not measured: encoded data without images"
    accuracy = about["classifier_accuracy"]
    if accuracy is not None and "evaluators" in about["inputs"]:
        rows["classifiers"] = f"five, {accuracy:.1%} accurate on held-out images in the mean"
    elif accuracy is not None:
        rows["classifier"] = f"{accuracy:.1%} accurate on held-out images"
    return rows

"""Who made what: each maker's output on a small input stands with its version, and a changed one is made anew or told.

Where a golden value here no longer holds, the maker makes other numbers: raise its version in `iar_study/parts.py`, so
that what it made before is left, and write the new value down.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from iar_study import parts
from iar_study.codebook import Codebook, Rearrangement, cluster_codes, clustering
from iar_study.codebook.ordering import order_vectors
from iar_study.config import ClassifierConfig, TokenizerConfig, with_settings
from iar_study.data.images import load_images
from iar_study.evaluation.evaluators import principal_components
from iar_study.evaluation.fidelity import Reference, measure_fidelity
from iar_study.evaluation.near_codes import measure_near_codes
from iar_study.evaluation.predictions import Judge, prediction_metrics
from iar_study.generators.sampling import generate
from iar_study.losses import smoothed_cross_entropy, token_and_cluster_cross_entropy
from iar_study.losses.smoothing import cluster_spread
from iar_study.parts import MAKERS, changed, sources
from iar_study.pipeline.attempt import run_trial
from iar_study.pipeline.stages import prepare
from iar_study.pipeline.trial import outdated, trial_of
from iar_study.pipeline.workspace import studies_made
from iar_study.running.display import Display
from iar_study.running.dry_run import look
from iar_study.running.runner import run_study
from iar_study.storage import read_json, write_json
from iar_study.study.study import load_profile, load_study
from iar_study.training.train_classifier import train_classifier
from iar_study.training.train_gpt import initial_model
from iar_study.training.train_tokenizer import encode_images, train_tokenizer
from tests.training.small import CLUSTERS, curves, make_codes, make_config, train

POINTS = np.random.default_rng(0).normal(size=(48, 3))
LOGITS = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 16)))
BOUNDARIES = torch.tensor([0, 4, 8, 12, 16])
TARGETS = torch.tensor([0, 3, 7, 15, 9, 4])


def pictures():
    return load_images(with_settings(make_config(), {"data.name": "digits"}).data)


def small_tokenizer():
    config = TokenizerConfig(codebook_size=16, channels=8, patch=2, steps=20)
    return train_tokenizer(pictures().train[:200], config, threads=1)


def small_classifier():
    images = pictures()
    config = ClassifierConfig(channels=8, steps=20)
    return train_classifier(images.train[:200], images.train_labels[:200], 10, config, threads=1)


def small_components():
    found = principal_components(pictures().train)
    return [float(np.abs(found[name].astype(float)).mean()) for name in ("mean", "vectors", "scales")]


def size_of(module):
    """The mean absolute weight."""
    return float(torch.cat([p.detach().flatten() for p in module.parameters()]).abs().mean())


def clustered(strategy):
    labels = cluster_codes(POINTS, strategy, 6, seed=0)
    return [float(labels @ np.arange(1, 49)), float(len(np.unique(labels)))]


def ordered(name):
    return [float(order_vectors(POINTS, name) @ np.arange(48))]


def trained():
    with TemporaryDirectory() as folder:
        model = train(make_config(), make_codes(), CLUSTERS, Path(folder))
        return [size_of(model), curves(Path(folder))[-1][1]["train/token_nll"]]


def sampled():
    model = initial_model(make_config(), make_codes(), CLUSTERS).eval()
    drawn = generate(model, torch.arange(20) % 2, cfg_scale=2.0, generator=torch.Generator().manual_seed(0))
    return [float(drawn.double().mean())]


def measured():
    rng = np.random.default_rng(0)
    reference, samples = rng.normal(size=(60, 4)), rng.normal(0.3, 1.2, size=(50, 4))
    found = measure_fidelity(Reference(reference), samples, None, intervals=False)
    return [found[family].value for family in ("fd", "kd", "precision", "recall", "coverage")]


def predicted():
    whole = Rearrangement.identity(16)
    judge = Judge(
        Rearrangement.from_labels(np.arange(16) // 4), whole, make_codes().codebook.vectors, torch.device("cpu")
    )
    found = prediction_metrics(judge.sums(LOGITS[None].float(), TARGETS[None]), "val")
    return [found["val/token_nll"], found["val/cluster_nll"], found["val/cluster_accuracy"]]


def near_codes():
    codebook, rng = Codebook(POINTS, "euclidean"), np.random.default_rng(2)
    tokens = rng.integers(48, size=(8, 4))
    table = rng.integers(0, 256, size=(48, 1), dtype=np.uint8)

    def show(tokens):
        return np.kron(table[tokens].reshape(-1, 2, 2, 1), np.ones((1, 8, 8, 1))).astype(np.uint8)

    def look(shown):
        return [shown.reshape(len(shown), -1).astype(float)], [shown[:, 0, 0, 0] // 64]

    arranged = Rearrangement.from_labels(np.arange(48) // 8)
    found = measure_near_codes(tokens, show(tokens), show, codebook, arranged, look, 0)
    return [found.curve[1]["ssim"], found.same_cluster["feature_distance"], found.random_code["psnr"]]


def losses():
    return [float(loss) for loss in token_and_cluster_cross_entropy(LOGITS, TARGETS, BOUNDARIES)]


def smoothed():
    return [float(smoothed_cross_entropy(LOGITS, TARGETS, 0.1, cluster_spread(BOUNDARIES)))]


GOLDEN = {
    ("tokenizer", 1): (lambda: [size_of(small_tokenizer())], [0.09310241]),
    ("codes", 1): (lambda: [float(encode_images(small_tokenizer(), pictures().test[:50]).mean())], [7.49875]),
    ("evaluators", 1): (
        lambda: [size_of(small_classifier()), *small_components()],
        [0.042253271, 0.30544773, 0.072632477, 42.122168],
    ),
    ("clustering none", 1): (list, []),
    ("clustering balanced", 1): (partial(clustered, "balanced"), [2815, 6]),
    ("clustering greedy", 1): (partial(clustered, "greedy"), [2850, 6]),
    ("clustering plain", 1): (partial(clustered, "plain"), [3029, 6]),
    ("clustering blocks", 1): (partial(clustered, "blocks"), [4060, 6]),
    ("clustering random", 1): (partial(clustered, "random"), [3152, 6]),
    ("clustering agglomerative", 1): (partial(clustered, "agglomerative"), [1621, 6]),
    ("clustering agglomerative-equal", 1): (partial(clustered, "agglomerative-equal"), [2699, 6]),
    ("order none", 1): (partial(ordered, "none"), [35720]),
    ("order chain", 1): (partial(ordered, "chain"), [25753]),
    ("order spectral", 1): (partial(ordered, "spectral"), [27630]),
    ("order path", 1): (partial(ordered, "path"), [24964]),
    ("training", 1): (trained, [0.056926105, 1.6240158]),
    ("loss cluster", 1): (losses, [2.9224706, 1.6015372]),
    ("smoothing", 1): (smoothed, [2.9459575]),
    ("predictions", 1): (predicted, [2.9224705, 1.6015372, 0.0]),
    ("sampling", 1): (sampled, [7.1888889]),
    ("samples' metrics", 1): (measured, [0.83795629, 0.39944176, 0.8, 0.96666667, 0.91666667]),
    ("near codes", 1): (near_codes, [0.4674938, 1.0533511, 7.9604702]),
}
"""(maker, its version) -> what it does, and the numbers that it gives, as far as they are the same on every machine."""


def test_every_maker_has_its_golden_numbers():
    unmeasured = (
        "data ",
        "extractor ",
        "executor ",
        "generator ",
    )  # told by their content, or by "samples' metrics", or no numbers
    makers = {name: maker.version for name, maker in MAKERS.items() if not name.startswith(unmeasured)}
    assert list(GOLDEN) == list(makers.items())
    functions = [maker.where.rpartition(":")[2] for name, maker in MAKERS.items() if name.startswith("clustering ")]
    assert {*functions} - {""} == set(parts.STRATEGIES)


@pytest.mark.parametrize(("work", "expected"), GOLDEN.values(), ids=[name for name, _ in GOLDEN])
def test_a_maker_makes_what_its_version_says(work, expected):
    assert work() == pytest.approx(expected, rel=1e-3)


SMALL = {
    **{"tokenizer.steps": 20, "classifier.steps": 20, "train.steps": 4, "train.warmup_steps": 0, "model.layers": 1},
    **{"evaluation.images": 40, "evaluation.samples": 40, "evaluation.sampled_times": 1, "train.kept": 1},
}


@pytest.fixture
def run(workspace, capsys, monkeypatch):
    def call(again=False):
        """Return (trained, found), and what was told of makers."""
        study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
        with Display() as display:
            outcome = run_study(
                study,
                profile,
                replace(workspace, again=again),
                display,
                seeds=[0],
                arms=["iar", "blocks"],
                settings=SMALL,
                executor="here",
            )
        told = [line for line in capsys.readouterr().err.splitlines() if "another source" in line]
        return (outcome.trained, outcome.found), told

    return call


def other(monkeypatch, name, **changes):
    """As if the maker's file had been edited, or its version raised."""
    monkeypatch.setitem(MAKERS, name, replace(MAKERS[name], **changes))


EDITED = {"source": ("errors.py",)}


def test_a_raised_version_makes_anew_what_depends_on_it_and_nothing_else(run, workspace, monkeypatch):
    assert run()[0] == (3, 0)
    assert run()[0] == (0, 3)
    other(monkeypatch, "clustering greedy", version=2)
    before = set(workspace.cache.iterdir())
    assert run()[0] == (0, 3)  # its clusters are made anew, and are the same
    assert [path.name.partition("-")[0] for path in set(workspace.cache.iterdir()) - before] == ["clustering"]
    monkeypatch.setattr(clustering, "_greedy", clustering._blocks)
    other(monkeypatch, "clustering greedy", version=3)
    assert run()[0] == (0, 3)  # it now makes what another arm has
    other(monkeypatch, "loss cluster", version=2)
    assert run()[0] == (2, 0)  # two arms are the same trial
    assert run()[0] == (0, 3)


def test_an_edited_strategy_is_told_and_made_anew_on_demand(run, workspace, monkeypatch):
    run()
    other(monkeypatch, "clustering greedy", **EDITED)
    monkeypatch.setattr(clustering, "_greedy", clustering._random)
    found, told = run()
    assert found == (0, 3)
    assert told == [
        "1 product made by another source of: clustering greedy; `iar-study run ... --again` makes them anew"
    ]
    before = {trial["arm"]: trial["hash"] for trial in read_json(workspace.studies / "components.json")["trials"]}
    kept = sorted(workspace.root.rglob("*"))
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    arms = {"arms": ["iar", "blocks"], "settings": SMALL, "seeds": [0]}
    seen = look(study, profile, replace(workspace, again=True), **arms)
    assert {trial.state for trial in seen.trials} == {"finished", "unknown"}  # the clusters are to be made first
    assert sorted(workspace.root.rglob("*")) == kept
    assert run(again=True) == ((1, 2), [])
    after = {trial["arm"]: trial["hash"] for trial in read_json(workspace.studies / "components.json")["trials"]}
    assert {arm for arm in before if before[arm] != after[arm]} == {"iar"}
    assert run() == ((0, 3), [])  # what was made again is what is found from now on
    other(monkeypatch, "clustering greedy", source=("config.py",))  # a second edit
    found, told = run()
    assert (found, len(told)) == ((0, 3), 1)
    assert {trial["hash"] for trial in read_json(workspace.studies / "components.json")["trials"]} == set(
        after.values()
    )


def test_an_edited_metric_is_told_and_measured_anew_on_demand(run, workspace, monkeypatch):
    run()
    other(monkeypatch, "samples' metrics", **EDITED)
    found, (told,) = run()
    assert (found, told.partition(";")[0]) == (
        (0, 3),
        "3 trials and 1 product made by another source of: samples' metrics",
    )
    assert run(again=True) == ((3, 0), [])
    assert run(again=True) == ((0, 3), [])
    assert outdated(*studies_made(workspace, ["components"])) == ""


def test_a_training_that_was_begun_by_another_source_tells_so_and_begins_anew_on_demand(workspace, monkeypatch):
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    config = with_settings(profile.config, SMALL)
    shared = prepare(config, workspace, lambda *_: None)

    def trial(again=False):
        return trial_of("baseline", 0, config, shared, study.kind, replace(workspace, again=again))

    begun = trial().training
    folder = begun.folder(workspace.trials)
    write_json(folder / "training.json", {"makers": dict(begun.made_by)})
    assert outdated([folder], []) == ""
    other(monkeypatch, "training", **EDITED)
    assert "1 training made by another source of: training;" in outdated([folder], [])
    assert trial().training.hash == begun.hash
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "000002.json").write_text("{}")
    (folder / "codebook.safetensors").touch()
    run_trial(trial(), workspace.trials)
    assert read_json(folder / "training.json")["makers"] == begun.made_by  # it went on from what the first source did
    assert trial(again=True).training.hash != begun.hash
    assert trial().training.hash == trial(again=True).training.hash


def test_of_samples_the_training_is_told_too(workspace, monkeypatch, capsys):
    study, profile = load_study(workspace.experiments, "guidance"), load_profile(workspace.experiments, "smoke")

    def run():
        with Display() as display:
            arms = ["baseline, s=1"]
            run_study(study, profile, workspace, display, seeds=[0], arms=arms, settings=SMALL, executor="here")
        return [line for line in capsys.readouterr().err.splitlines() if "another source" in line]

    assert run() == []
    other(monkeypatch, "loss cluster", **EDITED)
    (told,) = run()
    assert told.startswith("1 training made by another source of: loss cluster;")
    assert outdated(*studies_made(workspace, ["guidance"])) == told


def test_comments_and_layout_are_no_other_source(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "__file__", str(tmp_path / "parts.py"))
    digests = []
    for text in (
        'def f(x):\n    """Say."""\n    return x + 1\n',
        "def f(x):  # why\n    return (x + 1)\ny = 2",
        "def f(x): return x",
    ):
        (tmp_path / "a.py").write_text(text)
        parts._digest.cache_clear()
        digests.append(parts._digest(("a.py:f",)))
    parts._digest.cache_clear()
    assert digests[0] == digests[1] != digests[2]


def test_what_tells_no_makers_is_passed_over(tmp_path):
    assert changed({}) == []
    assert changed(sources(MAKERS)) == []
    assert changed({"training": "0" * 16, "gone": "1" * 16}) == ["training", "gone"]
    assert outdated([tmp_path / "none"], [tmp_path / "none.safetensors"]) == ""

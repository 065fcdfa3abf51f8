"""Exported samples are those that the trial was measured on, and `evaluate` finds what the trial found."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from iar_study.cli import main
from iar_study.config import DataConfig
from iar_study.data.images import load_images
from iar_study.data.picture_sets import open_pictures
from iar_study.errors import InputError
from iar_study.evaluation import features
from iar_study.evaluation.fidelity import frechet_distance, score_of_parts
from iar_study.evaluation.metrics import FIDELITY, SPATIAL, find_metric
from iar_study.pipeline import drawing
from iar_study.pipeline.workspace import Workspace
from iar_study.running import samples
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.running.samples import evaluate_samples, export_samples, spans
from iar_study.storage import load_arrays, read_json, write_json
from iar_study.study.study import load_profile, load_study
from tests.workspaces import BY_A_SET, encode_digits, evaluators_in, make_workspace

MEASURED = 130
SMALL = {
    "tokenizer.steps": 30,
    "classifier.steps": 60,
    "train.steps": 20,
    "train.log_every": 10,
    "train.kept": 2,
    "evaluation.images": 100,
    "evaluation.samples": MEASURED,
    "evaluation.sampled_times": 1,
}
QUIET = Display(quiet=True)


def run(workspace, **settings):
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    outcome = run_study(study, profile, workspace, QUIET, seeds=[0], arms=["iar"], settings={**SMALL, **settings})
    assert not outcome.failed


def trial_of(workspace, strategy):
    """The hash of the trial whose codes are clustered so, `none` or `greedy`."""
    for path in workspace.trials.glob("*/trial.json"):
        if read_json(path)["config"]["clustering.strategy"] == strategy:
            return path.parent.name
    raise AssertionError(strategy)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(workspace)
    return workspace


@pytest.fixture(scope="module")
def exported(workspace, tmp_path_factory):
    """An export of the trial `iar`, 20 pictures more than it was measured on."""
    path = tmp_path_factory.mktemp("exported") / "samples.npz"
    export_samples(workspace, trial_of(workspace, "greedy"), path, MEASURED + 20, QUIET)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Evaluators that are made at once."""
    config = samples.ClassifierConfig(channels=8, steps=20)
    monkeypatch.setattr(samples, "ClassifierConfig", lambda: config)


@pytest.mark.parametrize("strategy", ["none", "greedy"])
def test_an_export_is_what_the_trial_was_measured_on(workspace, tmp_path, strategy):
    name = trial_of(workspace, strategy)
    opened = export_samples(workspace, name[:12], tmp_path / "s.npz")
    assert (opened.count, opened.shape) == (MEASURED, (8, 8, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    np.testing.assert_array_equal(opened.labels, np.arange(MEASURED) % 10)
    grid = load_arrays(workspace.trials / name / "samples.safetensors")[0]["samples"]
    [pictures] = opened.batches(MEASURED)
    for row, column in np.ndindex(grid.shape[:2]):
        np.testing.assert_array_equal(pictures[row + 10 * column], np.repeat(grid[row, column], 3, -1))

    found = evaluate_samples(tmp_path / "s.npz", "digits", f"set:{name}", workspace, QUIET)
    own = read_json(workspace.trials / name / "result.json")["metrics"]
    own = {key: value for key, value in own.items() if key.partition("/")[0] in FIDELITY}
    del own[find_metric("fd_codes", own)]  # what the tokenizer lost is known to the trial alone
    assert own.keys() == found.measured.keys()
    assert evaluators_in(own, MEASURED) == {family: by for family, by in BY_A_SET.items() if family != "fd_codes"}
    for key, value in own.items():
        assert found.measured[key].value == pytest.approx(value, rel=0, abs=1e-9), key
        assert found.measured[key].low <= value <= found.measured[key].high


def test_what_goes_beyond_does_not_change_the_first(workspace, exported, tmp_path):
    assert spans(MEASURED, 250, 100) == [(0, 100), (100, 130), (130, 230), (230, 330)]
    first = export_samples(workspace, trial_of(workspace, "greedy"), tmp_path / "first.npz", 40)
    more = open_pictures(exported)
    assert (first.count, more.count) == (40, MEASURED + 20)
    np.testing.assert_array_equal(next(first.batches(40)), next(more.batches(40)))
    np.testing.assert_array_equal(more.labels, np.arange(MEASURED + 20) % 10)
    with np.load(exported, allow_pickle=False) as loaded:
        assert (loaded["arr_0"].dtype, loaded["arr_1"].dtype) == (np.uint8, np.int64)


def test_a_killed_export_goes_on_to_the_same_bytes(workspace, exported, tmp_path):
    """In the middle of drawing what the trial did not draw, and again."""
    copy, path = Workspace(tmp_path / "copy"), tmp_path / "out" / "killed.npz"
    shutil.copytree(workspace.root, copy.root)
    name = trial_of(copy, "greedy")
    [tokens] = (copy.trainings / read_json(copy.trials / name / "trial.json")["training"]).glob("tokens-*")
    tokens.unlink()
    script = (
        "import os, signal, sys; from iar_study.pipeline import drawing; calls = []; real = drawing.draw\n"
        "drawing.Kept.offer = lambda kept, arrays: drawing.save_arrays(kept.path, arrays())\n"
        "def draw(*given, **named):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*given, **named)\n"
        "drawing.draw = draw\n"
        "from iar_study.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "export-samples", name, "--npz", str(path), "--samples", "150"]
    done = subprocess.run(command, cwd=copy.root, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    (path.parent / f".{path.name}.123.tmp").write_bytes(b"what a kill while writing leaves")
    with pytest.MonkeyPatch.context() as patch:
        drawn = []
        draw = drawing.draw
        patch.setattr(drawing, "draw", lambda *a, **k: drawn.append(1) or draw(*a, **k))
        export_samples(copy, name, path, 150)
    assert len(drawn) == 1, "one of two parts was drawn before"
    assert path.read_bytes() == exported.read_bytes()
    assert [left.name for left in path.parent.iterdir()] == [path.name]


def test_images_that_came_encoded_are_decoded_by_their_tokenizer(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = make_workspace(tmp_path / "w")
    settings = encode_digits(tmp_path)
    run(workspace, **settings, **{"train.steps": 2, "evaluation.samples": 10})
    name = trial_of(workspace, "greedy")
    opened = export_samples(workspace, name, tmp_path / "s.npz")
    assert (opened.count, opened.shape) == (10, (8, 8, 3))
    with pytest.raises(InputError, match="has no evaluators of its own"):
        evaluate_samples(tmp_path / "s.npz", "digits", f"set:{name}", workspace, QUIET)
    tokenizer = tmp_path / "tokenizer.safetensors"
    arrays, metadata = load_arrays(tokenizer)
    arrays["post_quant_conv.bias"] = arrays["post_quant_conv.bias"] + 1
    drawing.save_arrays(tokenizer, arrays, metadata)
    with pytest.raises(InputError, match=f"{tokenizer} is not the tokenizer that trial {name} had"):
        export_samples(workspace, name, tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "result.json").unlink(), "is not finished; run its study again"),
        (
            lambda folder: shutil.rmtree(folder.parents[1] / "cache"),
            "the tokenizer of trial .* can no longer be found in",
        ),
    ],
)
def test_what_is_missing_of_a_trial_is_named(workspace, tmp_path, change, message):
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(workspace.root / "runs", copy.root / "runs")
    name = trial_of(copy, "none")
    change(copy.trials / name)
    with pytest.raises(InputError, match=message):
        export_samples(copy, name, tmp_path / "s.npz")
    assert not (tmp_path / "s.npz").exists()


def test_a_trial_of_a_gpu_is_exported_on_one(workspace, tmp_path, monkeypatch):
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(workspace.root / "runs", copy.root / "runs")
    name = trial_of(copy, "none")
    described = read_json(copy.trials / name / "trial.json")
    described["config"]["compute.device"] = "cuda"
    write_json(copy.trials / name / "trial.json", described)
    for tokens in copy.trainings.glob("*/tokens-*"):
        tokens.unlink()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="drew its samples on a GPU"):
        export_samples(copy, name, tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("trial", "name", "count", "message"),
    [
        ("xyz", "s.npz", None, r"'xyz' begins the hash of 0 trials in .*, not of one; there: \w{16}, \w{16}"),
        ("", "s.npz", None, "begins the hash of 0 trials"),
        (None, "s.zip", None, "samples are written as .npz, not to .*s.zip"),
        (None, "s.npz", 0, "0 samples cannot be drawn"),
    ],
)
def test_bad_requests_are_one_line(workspace, tmp_path, trial, name, count, message):
    trial = trial_of(workspace, "none") if trial is None else trial
    with pytest.raises(InputError, match=message) as raised:
        export_samples(workspace, trial, tmp_path / name, count)
    assert "\n" not in str(raised.value)


def test_two_exports_to_one_file_do_not_meet(workspace, tmp_path):
    path = tmp_path / "s.npz"
    with samples._parts(path), pytest.raises(InputError, match="is being written by another process"):
        export_samples(workspace, trial_of(workspace, "none"), path)


def test_the_command_line_exports_and_evaluates(workspace, tmp_path, monkeypatch, capsys, quick):
    monkeypatch.chdir(workspace.root)
    path, name = tmp_path / "s.npz", trial_of(workspace, "none")
    assert main(["export-samples", name[:14], "--npz", str(path), "--samples", "20"]) == 0
    assert f"{path}: 20 images of 8 x 8 pixels" in capsys.readouterr().out
    given = ["evaluate", str(path), "--reference", "digits"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for word in (f"20 images, 8 x 8 x 3, SHA-256 {sha256[:12]}", "digits, held out: 360 images", "right about"):
        assert word in shown
    for word in (
        r"FD \(set-\w{8}, 20\) †",
        r"fd/set-\w{8}@20",
        r"fd/components-\w{8}@20",
        r"class_agreement/set-\w{8}@20",
    ):
        assert re.search(word, shown), word
    assert main([*given, "--samples", "10", "--extractor", f"set:{name}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"]["count"] == 10
    assert told["samples"]["sha256"] == sha256
    fd = told["metrics"][find_metric("fd", told["metrics"])]
    assert set(fd) == {"label", "value", "low", "high", "better", "fewest_samples"}
    assert fd["fewest_samples"] == 256
    assert fd["low"] < fd["value"] < fd["high"]
    assert {key.partition("/")[0] for key in told["metrics"]} == set(FIDELITY) - {"fd_codes", *SPATIAL}


def test_few_samples_are_said_to_be_too_few(workspace, tmp_path, quick):
    pictures = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "s.npz", arr_0=pictures)
    few, more = (
        evaluate_samples(tmp_path / "s.npz", "digits", "set", workspace, Display(), samples=count)
        for count in (90, 300)
    )
    marked = {line.partition(" (")[0] for line in few.text().splitlines() if "90) †" in line}
    assert marked == {metric.label for metric in FIDELITY.values()} - {
        "class agreement",
        *(FIDELITY[family].label for family in ("fd_codes", *SPATIAL)),
    }
    assert "† 90 samples are too few: from 256 on there is a meaning in FD, FD at infinity" in few.text()
    assert "coverage: 90 perfect samples beside 360 images would have 0.68" in few.text()
    assert re.search(r"FD \(set-\w{8}, 300\)  ", more.text())
    assert {line.partition(" (")[0] for line in more.text().splitlines() if "300) †" in line} == {
        "score",
        "recall",
        "coverage",
    }
    told = json.loads(more.as_json())["metrics"]
    assert told[find_metric("recall", told)]["fewest_samples"] == 1000


def test_a_distance_below_0_is_told(workspace, tmp_path, quick):
    images = held_out()
    np.savez(tmp_path / "s.npz", arr_0=images.train[:100])
    told = evaluate_samples(tmp_path / "s.npz", "digits", "set", workspace, Display())
    assert told.measured[find_metric("fd_inf", told.measured)].value < 0
    assert any("FD at infinity is below 0" in note for note in told.compared["notes"])


def held_out():
    return load_images(DataConfig("digits"))


def test_real_pictures_in_folders_named_by_class_are_nearly_perfect(workspace, tmp_path, quick):
    images = held_out()
    for number, (picture, label) in enumerate(zip(images.test, images.test_labels, strict=True)):
        folder = tmp_path / "real" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(folder / f"{number:04}.png")
    found = evaluate_samples(tmp_path / "real", "digits", "set", workspace, QUIET)
    assert found.measured[find_metric("fd", found.measured)].value == pytest.approx(0, abs=1e-6)
    for family in ("precision", "recall", "coverage"):
        assert found.measured[find_metric(family, found.measured)].value == 1
    agreement = found.measured[find_metric("class_agreement", found.measured)]
    assert agreement.value == pytest.approx(found.compared["extractor"]["accuracy"])
    assert agreement.low < agreement.value < agreement.high


@pytest.mark.parametrize(
    ("labels", "note"),
    [(None, "does not tell the classes"), (np.arange(20) % 11, "has classes 0 to 10, the classifiers know 10")],
)
def test_unknown_classes_are_a_note(workspace, tmp_path, quick, labels, note):
    arrays = {"arr_0": held_out().test[:20]} | ({} if labels is None else {"arr_1": labels})
    np.savez(tmp_path / "s.npz", **arrays)
    found = evaluate_samples(tmp_path / "s.npz", "digits", "set", workspace, QUIET)
    assert not any(key.startswith("class_agreement") for key in found.measured)
    assert note in found.text()


def test_folders_of_other_names_tell_no_class(workspace, tmp_path, quick):
    for number, name in enumerate(["one", "two"] * 4):
        (tmp_path / "s" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(held_out().test[number, ..., 0]).save(tmp_path / "s" / name / f"{number}.png")
    found = evaluate_samples(tmp_path / "s", "digits", "set", workspace, QUIET)
    assert "the reference has no class one, two" in found.text()


@pytest.mark.parametrize(
    ("reference", "extractor", "options", "message"),
    [
        ("digit", "set", {}, "no images at digit, and no data set of that name; did you mean 'digits'?"),
        ("SELF", "set", {}, "the evaluators are of a data set, and .* is none; choose --extractor incep"),
        ("codes:x", "set", {}, "has codes, and no images"),
        ("SELF", "inception", {"image_size": 8}, "--image-size is for folder:PATH"),
        ("digits", "incepton", {}, "did you mean 'inception'"),
        ("digits", "set", {"samples": 21}, "holds 20 images, not 21"),
        ("LARGE", "set", {}, r"s\.npz has 8 x 8 pixels and .*large\.npz has 9 x 8 pixels; resize"),
    ],
)
def test_what_cannot_be_compared_is_one_line(workspace, tmp_path, reference, extractor, options, message):
    np.savez(tmp_path / "s.npz", held_out().test[:20])
    np.savez(tmp_path / "large.npz", np.zeros((9, 9, 8, 1), np.uint8))
    reference = {"SELF": str(tmp_path / "s.npz"), "LARGE": str(tmp_path / "large.npz")}.get(reference, reference)
    with pytest.raises(InputError, match=message) as raised:
        evaluate_samples(tmp_path / "s.npz", reference, extractor, workspace, QUIET, **options)
    assert "\n" not in str(raised.value)


class StandIn(nn.Module):
    """As torch-fidelity's Inception, with 4 features."""

    def forward(self, x):
        pooled = torch.stack([x.float().mean((1, 2, 3)), *(x[:, 0, i, i].float() for i in range(3))], 1) / 255
        return pooled, 3 * pooled


@pytest.fixture
def inception(monkeypatch):
    network = features.NetworkFeatures("inception", StandIn(), "stand-in", "cpu")
    monkeypatch.setattr(samples, "load_extractor", lambda *_, **__: network)
    return network


def test_inception_compares_any_sizes_and_uses_the_moments_of_a_reference_batch(tmp_path, inception):
    workspace = Workspace(tmp_path)
    np.savez(tmp_path / "s.npz", held_out().test[:60])
    shapes = np.random.default_rng(0).integers(0, 256, (30, 12, 9, 3), dtype=np.uint8)
    mu, sigma = np.full(4, 0.5), np.eye(4) / 10
    np.savez(tmp_path / "r.npz", shapes, mu=mu, sigma=sigma)
    np.savez(tmp_path / "plain.npz", shapes)
    found, plain = (
        evaluate_samples(tmp_path / "s.npz", str(tmp_path / name), "inception", workspace, QUIET)
        for name in ("r.npz", "plain.npz")
    )
    assert "FD is to mu of" in found.text()
    assert "FD is to" not in plain.text()
    assert found.measured["fd/inception@60"] != plain.measured["fd/inception@60"]
    assert found.measured["kd/inception@60"] == plain.measured["kd/inception@60"]
    np.savez(tmp_path / "r.npz", shapes, mu=mu[:3], sigma=sigma[:3, :3])
    with pytest.raises(InputError, match="mu is of 3 features, the extractor has 4"):
        evaluate_samples(tmp_path / "s.npz", str(tmp_path / "r.npz"), "inception", workspace, QUIET)


class Spatial(StandIn):
    """The same with a block that spatial features are taken of, (B, 8, 2, 2)."""

    def __init__(self):
        super().__init__()
        self.block = nn.AdaptiveAvgPool2d(2)

    def forward(self, x):
        self.block(x[:, :1].float().expand(-1, 8, -1, -1))
        return super().forward(x)


def test_inception_finds_what_adms_evaluator_does(tmp_path, monkeypatch):
    network = features.NetworkFeatures("inception", Spatial(), "stand-in", "cpu", "block")
    monkeypatch.setattr(samples, "load_extractor", lambda *_, **__: network)
    monkeypatch.setattr(samples, "KEPT_AT_ONCE", 50)
    np.savez(tmp_path / "s.npz", held_out().test[:120])
    others = held_out().train[:90]
    seen, of_others = network(held_out().test[:120]), network(others)
    mu, sigma = seen.features.mean(0), np.cov(seen.features, rowvar=False)
    mu_s, sigma_s = seen.spatial.mean(0), np.cov(seen.spatial, rowvar=False)
    np.savez(tmp_path / "r.npz", others, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    np.savez(tmp_path / "plain.npz", others)
    found, plain = (
        evaluate_samples(tmp_path / "s.npz", str(tmp_path / name), "inception", Workspace(tmp_path), QUIET)
        for name in ("r.npz", "plain.npz")
    )
    assert "FD is to mu and mu_s of" in found.text()
    assert set(SPATIAL) <= {key.partition("/")[0] for key in found.measured}
    assert "sFD (inception, 120)" in found.text()
    for family in ("fd", "sfd"):
        assert found.measured[f"{family}/inception@120"].value == pytest.approx(0, abs=1e-3)
    expected = frechet_distance(of_others.spatial, seen.spatial)
    assert plain.measured["sfd/inception@120"].value == pytest.approx(expected, rel=1e-9)
    assert expected > 1
    assert plain.measured["score10/inception@120"].value == score_of_parts(seen.probabilities).value


def test_features_that_take_long_are_kept_as_they_go_on(tmp_path, inception, monkeypatch):
    monkeypatch.setattr(samples, "KEPT_AT_ONCE", 100)
    workspace = Workspace(tmp_path)
    images = held_out()
    np.savez_compressed(tmp_path / "s.npz", images.test)
    np.savez(tmp_path / "r.npz", images.train[:220])
    given = (tmp_path / "s.npz", str(tmp_path / "r.npz"), "inception", workspace, QUIET)
    whole = evaluate_samples(*given)
    [kept] = workspace.cache.glob("features-*")
    assert len(list(kept.iterdir())) == 3, "of the reference, for the next time; those of the samples are gone"
    shutil.rmtree(kept)

    seen = []

    class Killed(features.NetworkFeatures):
        def __call__(self, images):
            seen.append(len(images))
            if len(seen) == 9:
                raise KeyboardInterrupt
            return super().__call__(images)

    monkeypatch.setattr(samples, "load_extractor", lambda *_, **__: Killed("inception", StandIn(), "stand-in", "cpu"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_samples(*given)
    assert sum(len(list(folder.iterdir())) for folder in workspace.cache.glob("features-*")) == 4
    assert evaluate_samples(*given) == whole
    assert len(seen) == 9 + 6, "the reference and the first 100 samples were not computed again"

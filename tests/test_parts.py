"""Parts of one's own: those of the manual do what it says, and what a part made is named by its file's code."""

import ast
import glob
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iar_study import parts
from iar_study.cli import main
from iar_study.codebook import Rearrangement, cluster_codes
from iar_study.config import PARTS, TrialConfig, measuring_identity, parts_of, training_identity, with_settings
from iar_study.errors import InputError
from iar_study.pipeline.codebooks import load_codebook_results
from iar_study.pipeline.stages import prepare
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting import unchanged
from iar_study.running import executors
from iar_study.running.display import Display
from iar_study.running.estimate import operations
from iar_study.running.executors import Executor
from iar_study.running.runner import run_study
from iar_study.storage import read_json
from iar_study.study.study import load_profile, load_study
from iar_study.training.journal import read_journal
from tests.workspaces import make_workspace

MANUAL = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", MANUAL, re.S | re.M))
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", MANUAL, re.S) for line in block.replace("\\\n", "").splitlines()
]
SMALL = (
    *("tokenizer.steps=20", "classifier.steps=20", "train.steps=4", "train.warmup_steps=0", "model.layers=1"),
    *("evaluation.images=40", "evaluation.samples=40", "evaluation.sampled_times=1", "train.kept=1"),
)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with what the trials of `components` share at these sizes."""
    workspace = make_workspace(tmp_path_factory.mktemp("shared"))
    settings = {**dict(each.split("=") for each in SMALL), "clustering.strategy": "greedy"}
    config = with_settings(load_profile(workspace.experiments, "smoke").config, settings)
    prepare(config, workspace, lambda *_: None)
    return workspace


@pytest.fixture
def mine(workspace: Workspace, made_once: Workspace) -> Workspace:
    for name, text in FILES.items():
        (workspace.root / name).write_text(text)
    shutil.copytree(made_once.cache, workspace.cache)
    return workspace


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write no pages, which take longer than their small trainings."""
    monkeypatch.setattr(unchanged, "write_changed", lambda workspace, *_: [workspace.reports])


def run(*given: str) -> int:
    return main(["run", "components", "--profile", "smoke", "--seeds", "0", "--executor", "here", *given])


def made(workspace: Workspace, *arms: str, **settings: Any) -> tuple[int, int]:
    """Run these arms without a report; return how many trials were trained and how many found."""
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    chosen = dict(each.split("=") for each in SMALL) | settings
    with Display() as display:
        done = run_study(study, profile, workspace, display, arms=arms, seeds=[0], settings=chosen, executor="here")
    return done.trained, done.found


def trials(workspace: Workspace, study: str = "components") -> dict[str, dict]:
    """Arm -> record of each trial that the last run of the study asked for."""
    found = read_json(workspace.studies / f"{study}.json")["trials"]
    return {trial["arm"]: read_json(workspace.trials / trial["hash"] / "trial.json") for trial in found}


def test_the_manual_tells_every_kind_its_setting_and_what_it_is_called_with():
    rows = re.findall(r"^\| (\w+) \| (.*?) \| (.*?) \| .* \|$", MANUAL, re.M)
    told = {
        kind: ([*re.findall(r"`([^`]+)`", of)], [*re.findall(r"`([^`]+)`", called)]) for kind, of, called in rows[1:]
    }
    assert told.keys() == parts.KINDS.keys()
    for kind, (settings, called) in told.items():
        assert tuple(called) == parts.KINDS[kind], kind
        others = {"tokenizer": ["tokenizer.checkpoint"], "executor": ["--executor"]}
        assert settings == others.get(kind, [key for key in PARTS if PARTS[key] == kind]), kind
    assert FILES
    for text in FILES.values():
        ast.parse(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_manual_runs(command, mine, undrawn, capsys):
    program, *arguments = shlex.split(command)
    if program == "python":
        subprocess.run([sys.executable, *arguments], check=True)
        return
    if "patches.py" in command:
        subprocess.run([sys.executable, "patches.py"], check=True)
    if arguments[0] == "run":
        small = [each for each in SMALL if "tokenizer" not in each or "patches.py" not in command]
        if "--set" in arguments:
            arguments += small
        else:
            arguments += ["--set", *small]
        if "--executor" not in arguments:
            arguments += ["--executor", "here"]
    else:
        arguments = [path for each in arguments for path in (glob.glob(each) if "*" in each else [each])]
    assert main(arguments) == 0, capsys.readouterr().err


def test_a_loss_is_minimised_and_its_terms_are_told(mine):
    assert (
        run("--arms", "baseline", "iar", "--set", "loss.name=focal.py:Focal,gamma=0", *SMALL, "train.log_every=1") == 0
    )
    for arm, weight in (("baseline", 0.0), ("iar", 1.0)):
        folder = mine.trials / trials(mine)[arm]["hash"]
        point = read_journal(folder / "journal.jsonl")[-1]["metrics"]
        assert point["train/focal"] == pytest.approx(point["train/token_nll"])  # without gamma it is the token loss
        expected = point["train/focal"] + weight * point["train/own_cluster_nll"]
        assert point["train/loss"] == pytest.approx(expected)


def test_a_metric_and_its_extractor_stand_on_the_page_as_they_say(mine):
    given = ("evaluation.extractor=eyes.py:pixels", "evaluation.metrics=eyes.py:mean_shift")
    assert run("--arms", "baseline", "iar", "--set", *given, *SMALL) == 0
    record = trials(mine)["iar"]
    (family,) = record["metrics"]
    assert family.startswith("mean_shift-")
    found = read_json(mine.trials / record["hash"] / "result.json")["metrics"]
    (key,) = [key for key in found if key.startswith(family)]
    assert re.fullmatch(r"mean_shift-\w{8}/pixels-\w{8}@40", key)
    page = (mine.reports / "components" / "index.md").read_text()
    assert "### mean shift (pixels-" in page or "mean shift (pixels-" in page
    assert "distance between the mean features of samples and held-out images; 40 samples" in page


def test_an_edit_makes_anew_what_depends_on_it_and_nothing_else(mine):
    path, setting = mine.root / "ward.py", {"clustering.within": "ward.py:by_length"}
    assert made(mine, "baseline", "blocks", **setting) == (2, 0)
    path.write_text(f"# a comment\n{path.read_text()}")
    assert made(mine, "baseline", "blocks", **setting) == (0, 2)
    path.write_text(path.read_text().replace("axis=1)", "axis=1) * 1.0"))
    assert made(mine, "baseline", "blocks", **setting) == (0, 2)  # its order is made anew, and is the same
    path.write_text(path.read_text().replace("np.argsort(", "np.argsort(-"))
    assert made(mine, "baseline", "blocks", **setting) == (1, 1)  # the baseline has no clusters, and no order of them
    path.rename(mine.root / "elsewhere.py")
    assert made(mine, "baseline", "blocks", **{"clustering.within": "elsewhere.py:by_length"}) == (0, 2)


def test_a_part_that_is_edited_while_its_trial_waits_is_not_taken_for_the_old_one(mine, monkeypatch, capsys):
    start = executors.Here.start

    def edited_first(self: Executor, trial) -> None:
        path = mine.root / "focal.py"
        path.write_text(path.read_text().replace("focal + weight", "2 * focal + weight"))
        start(self, trial)

    monkeypatch.setattr(executors.Here, "start", edited_first)
    assert run("--arms", "baseline", "--set", "loss.name=focal.py:Focal", *SMALL) != 0
    assert "loss focal.py:Focal: the file was edited since the run began; run it again" in capsys.readouterr().err


def test_a_tokenizer_of_ones_own_has_what_a_trained_one_has_and_is_clustered_by_its_own_rule(mine, capsys):
    subprocess.run([sys.executable, "patches.py"], check=True)
    given = {"tokenizer.checkpoint": "patches.py:Given", "tokenizer.code_dim": 4}
    assert made(mine, "baseline", "iar-exact", **given) == (2, 0)
    (record,) = [record for arm, record in trials(mine).items() if arm == "iar-exact"]
    assert record["tokenizer"]["psnr"] > 15
    assert record["exact"]["decoding"] == 0
    assert len(list(mine.cache.glob("tokenizer-*"))) == 1  # of `made_once`
    vectors = torch.load(mine.root / "patches.pt", weights_only=True).numpy()
    arranged = Rearrangement.load(mine.trainings / record["training"] / "codebook.safetensors")
    by_rule = {rule: cluster_codes(vectors, "balanced", 8, metric=rule) for rule in ("euclidean", "cosine")}
    np.testing.assert_array_equal(arranged.labels, Rearrangement.from_labels(by_rule["euclidean"]).labels)
    assert (arranged.labels != Rearrangement.from_labels(by_rule["cosine"]).labels).any()
    assert load_codebook_results(mine, "components").metric == "euclidean"
    sampled = mine.root / "samples.npz"
    assert main(["export-samples", record["hash"], "--npz", str(sampled)]) == 0
    with np.load(sampled) as found:
        assert found["arr_0"].shape == (40, 8, 8, 3)
    torch.save(torch.from_numpy(vectors[::-1].copy()), mine.root / "patches.pt")
    capsys.readouterr()
    assert main(["export-samples", record["hash"], "--npz", str(mine.root / "others.npz")]) == 2
    assert "is not the tokenizer that trial" in capsys.readouterr().err


WRONG = {
    "none.py:f": "there is no file .*none.py",
    "ward.py:wards": "has no 'wards'; did you mean 'ward'",
    "ward.py:by_length": r"by_length is to be called with \(points, n_clusters, seed, progress\)",
    "ward.py:ward,linkage=x": "ward has no settings; a dataclass's fields are",
    "broken.py:f": "broken.py does not run: NameError: name 'nothing' is not defined",
    "short.py:few": r"is to give each of 64 codes a cluster 0 \.\.\. 7",
    "short.py:one": "leaves 7 of 8 clusters empty",
}


@pytest.mark.parametrize("spec", WRONG)
def test_a_part_that_is_none_is_one_line(spec, mine, capsys):
    (mine.root / "broken.py").write_text("nothing()\n")
    (mine.root / "short.py").write_text(
        "def few(points, n, seed, progress):\n    return points[:3, 0]\n\n\n"
        "def one(points, n, seed, progress):\n    return 0 * points[:, 0]\n"
    )
    assert run("--arms", "baseline", "--set", *SMALL, f"clustering.strategy={spec}") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("iar-study:")]
    assert re.search(WRONG[spec], line), line


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("focal.py:Focal,gama=1", "unknown setting 'gama'; did you mean 'gamma'"),
        ("focal.py:Focal,gamma=1,gamma=2", "settings follow the name as NAME=VALUE, each once"),
        ("focal.py:Focal,gamma", "settings follow the name as NAME=VALUE, each once"),
        ("focal.py:Focal,gamma=high", "gamma: Input should be a valid number"),
        ("focl", "unknown loss 'focl'; known: cluster; one's own is FILE.py:NAME"),
    ],
)
def test_settings_are_those_of_the_part(spec, message, mine):
    with pytest.raises(InputError, match=message):
        parts.check("loss", spec)
    assert parts.load("loss", "focal.py:Focal,gamma=3").gamma == 3.0


def test_what_is_no_loss_no_data_and_no_picture_features_is_one_line(mine, capsys):
    (mine.root / "bad.py").write_text(
        "import numpy as np\n\n\n"
        "def loss(logits, targets, boundaries, codebook, weight):\n    return logits.mean()\n\n\n"
        "def data():\n    return [1]\n\n\n"
        "def eyes(images, device):\n    return np.zeros((1, 3))\n"
    )
    for setting, message in {
        "loss.name=bad.py:loss": 'to return its terms by name, "loss" among them',
        "data.name=bad.py:data": "to return iar_study.data.Images",
        "evaluation.extractor=bad.py:eyes": r"expected \(50, features\), got \(1, 3\)",
    }.items():
        assert run("--arms", "baseline", "--set", *SMALL, setting) != 0
        assert re.search(message, capsys.readouterr().err), setting


def test_the_size_of_ones_own_images_is_known_to_estimates_and_plans(mine, capsys):
    given = {"data.name": "rings.py:Rings,images=40"}
    config = with_settings(load_profile(mine.experiments, "smoke").config, given)
    like_it = with_settings(config, {"data.name": "folder:any", "data.image_size": 16})
    assert operations(config).training == operations(like_it).training
    assert main(["plan", "components", "--profile", "smoke", "--set", "data.name=rings.py:Rings,images=40"]) == 0
    assert "32 + 8 images of 64 tokens" in capsys.readouterr().out


def test_what_differs_in_settings_or_beside_the_weights_is_another_tokenizer(mine):
    subprocess.run([sys.executable, "patches.py"], check=True)
    shifted = 'file: str = "patches.pt"\n    shift: float = 0.0\n'
    (mine.root / "patches.py").write_text(FILES["patches.py"].replace('file: str = "patches.pt"\n', shifted))

    def of(spec: str) -> tuple[int, int]:
        return made(mine, "baseline", **{"tokenizer.checkpoint": f"patches.py:{spec}", "tokenizer.code_dim": 4})

    assert of("Given") == (1, 0)
    assert of("Given,shift=0") == (0, 1)
    assert of("Given,shift=1") == (1, 0)


def test_what_a_moved_or_absent_file_made_is_not_told_as_another_sources(mine):
    setting = {"loss.name": "focal.py:Focal"}
    assert made(mine, "baseline", **setting) == (1, 0)
    record = read_json(mine.trainings / trials(mine)["baseline"]["training"] / "training.json")
    assert "loss focal.py:Focal" in record["makers"]
    (mine.root / "focal.py").unlink()
    assert parts.changed(record["makers"]) == []
    assert parts.edited(record["makers"]) == ["loss focal.py:Focal"]


def test_a_loss_does_not_say_what_is_measured_and_a_metric_does_not_touch_features(mine, capsys):
    (mine.root / "sly.py").write_text(
        "import sibling\n\n\n"
        "def loss(logits, targets, boundaries, codebook, weight):\n"
        "    zero = 0 * logits.sum()\n"
        "    return {'loss': logits.square().mean(), 'token_nll': zero, 'own_cluster_nll': zero}\n\n\n"
        "def vector(logits, targets, boundaries, codebook, weight):\n    return {'loss': logits.square()}\n\n\n"
        "def number(logits, targets, boundaries, codebook, weight):\n    return {'loss': 1.0}\n\n\n"
        "def write(reference, features):\n    features[:] = 0\n    return 0.0\n\n\n"
        "def nothing(reference, features):\n    return float('nan')\n\n\n"
        "def halves(points, n, seed, progress):\n    return (points[:, 0] > 0) + 0.5\n"
    )
    (mine.root / "sibling.py").write_text("")
    assert made(mine, "baseline", **{"loss.name": "sly.py:loss"}) == (1, 0)
    folder = mine.trials / trials(mine)["baseline"]["hash"]
    assert read_journal(folder / "journal.jsonl")[-1]["metrics"]["train/token_nll"] > 1
    for name in ("vector", "number"):
        assert run("--arms", "baseline", "--set", *SMALL, f"loss.name=sly.py:{name}") != 0
        assert f"loss sly.py:{name}: its term 'loss' is to be a tensor of one number" in capsys.readouterr().err
    with pytest.raises(ValueError, match="read-only"):
        made(mine, "baseline", **{"evaluation.metrics": "sly.py:write"})
    with pytest.raises(InputError, match="is nan of these samples; it is to be finite"):
        made(mine, "baseline", **{"evaluation.metrics": "sly.py:nothing"})
    with pytest.raises(InputError, match="is to give each of 64 codes a cluster"):
        made(mine, "baseline", **{"clustering.strategy": "sly.py:halves"})


def test_an_installed_package_offers_parts_by_their_names(mine, monkeypatch):
    class Installed(EntryPoint):
        dist = type("Release", (), {"version": "1.2"})()

    (mine.root / "offered.py").write_text(FILES["focal.py"])
    monkeypatch.syspath_prepend(mine.root)
    offered = Installed("focal", "offered:Focal", "iar_study.loss")
    monkeypatch.setattr(parts, "entry_points", lambda group: [offered] if group == "iar_study.loss" else [])
    assert parts.load("loss", "focal,gamma=4").gamma == 4.0
    config = with_settings(TrialConfig(), {"loss.name": "focal,gamma=4"})
    assert training_identity(config)["loss.name"] == "focal@1.2,gamma=4.0"
    del sys.modules["offered"]


def test_a_size_keeps_the_generator_and_a_tokenizer_of_ones_own_is_among_the_parts():
    config = with_settings(TrialConfig(), {"model.name": "factorised.py:Factorised", "model": "small"})
    assert (config.model.name, config.model.width) == ("factorised.py:Factorised", 128)
    given = with_settings(config, {"tokenizer.checkpoint": "patches.py:Given"})
    assert set(parts_of(given)) - set(parts_of(config)) == {("tokenizer", "patches.py:Given")}
    assert parts_of(with_settings(config, {"tokenizer.checkpoint": "vq.pt"})) == parts_of(config)


def test_built_in_parts_go_by_their_names_alone():
    for kind, name in parts_of(TrialConfig()):
        assert parts.identity(kind, name) == name
    assert parts.identity("extractor", "inception:/somewhere/weights.pth") == "inception"
    assert json.dumps([each(TrialConfig()) for each in (training_identity, measuring_identity)]).count(".py") == 0

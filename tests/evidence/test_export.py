"""The results of studies as one file: what is in it, that it is always the same, and what happens to a damaged one."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iar_study.errors import InputError
from iar_study.evidence.export import export, find_store, open_store, take_in
from iar_study.evidence.results import STAGES, load_results
from iar_study.pipeline import making, stages
from iar_study.pipeline.workspace import Workspace, studies_run
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.running.status import status_of
from iar_study.storage import read_json, write_json
from iar_study.study.study import load_profile, load_study
from tests.workspaces import make_workspace

SMALL = {
    "train.steps": 10,
    "train.checkpoint_every": 5,
    "tokenizer.steps": 20,
    "classifier.steps": 20,
    "train.kept": 2,
    "evaluation.images": 60,
    "evaluation.samples": 100,
    "evaluation.sampled_times": 1,
}


def run(workspace: Workspace, seeds=(0, 1), arms=("baseline", "iar")):
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    with Display(quiet=True) as display:
        return run_study(study, profile, workspace, display, seeds=seeds, arms=arms, settings=SMALL, executor="here")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("done"))
    assert not run(workspace).failed
    return workspace


@pytest.fixture(scope="module")
def file(done) -> Path:
    path = done.root / "results.tar.xz"
    assert export(done, ["components"], path) == 4
    return path


def assert_same(a, b):
    pd.testing.assert_frame_equal(a.final, b.final)
    pd.testing.assert_frame_equal(a.curves, b.curves)
    for name in ("samples", "reconstructions"):
        assert getattr(a, name).keys() == getattr(b, name).keys() != set()
        for key, pictures in getattr(a, name).items():
            np.testing.assert_array_equal(pictures, getattr(b, name)[key])
    assert (a.scale, a.command, a.trials, a.exact) == (b.scale, b.command, b.trials, b.exact)


def test_an_export_holds_all_that_reports_need_and_no_weights(done, file):
    with open_store(file) as store:
        assert studies_run(store) == ["components"]
        assert_same(load_results(store, "components"), load_results(done, "components"))
        assert all(trial.ended for trial in status_of(store, "components"))
        folder = store.root
        assert not [path for path in folder.rglob("*") if path.name.startswith(("weights", "tokenizer", "codes"))]
        # Pictures of the study's first seed alone: no report shows others.
        assert len(list(folder.rglob("samples.safetensors"))) == 2
    assert not folder.exists()
    with open_store(done.root) as store:
        assert_same(load_results(store, "components"), load_results(done, "components"))


def test_the_same_results_give_the_same_bytes(done, file):
    again = done.root / "again.tar.xz"
    for path in done.trials.rglob("*.json"):
        path.touch()
    export(done, ["components"], again)
    assert again.read_bytes() == file.read_bytes()


def test_evaluators_go_along_and_pin_what_is_measured_by(done, file, tmp_path, monkeypatch):
    (own,) = done.cache.glob("evaluators-*")
    workspace = make_workspace(tmp_path / "elsewhere")
    take_in(file, workspace)
    assert (workspace.cache / own.name).read_bytes() == own.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(making, "make_evaluators", None)  # nothing is trained
        assert run(workspace, seeds=[0], arms=["baseline"]).failed == {}
    # What the package ships need not go along.
    (tmp_path / "fixed").mkdir()
    shutil.copy(own, tmp_path / "fixed")
    monkeypatch.setattr(stages, "SHIPPED", tmp_path / "fixed")
    export(done, ["components"], tmp_path / "slim.tar.xz")
    with open_store(tmp_path / "slim.tar.xz") as store:
        assert not list(store.cache.glob("evaluators-*"))


def test_an_export_has_its_own_samples_whatever_else_was_drawn_of_its_trainings(done, file, tmp_path):
    [names] = {tuple(sorted(path.name for path in each.glob("tokens-*"))) for each in done.trainings.iterdir()}
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(done.root, copy.root)
    for trained in copy.trainings.iterdir():
        shutil.copy(trained / names[-1], trained / "tokens-000000010-0123456789abcdef.safetensors")
    export(copy, ["components"], tmp_path / "again.tar.xz")
    assert (tmp_path / "again.tar.xz").read_bytes() == file.read_bytes()
    with open_store(file) as store:
        assert len(list(store.trainings.glob("*/tokens-*"))) == 4


def test_a_study_goes_on_from_an_export_with_its_inputs(done, tmp_path):
    path = tmp_path / "all.tar.xz"
    export(done, ["components"], path, inputs=True)
    workspace = make_workspace(tmp_path / "elsewhere")
    assert take_in(path, workspace) == (4, 0)
    assert take_in(path, workspace) == (0, 4)
    made = {each.name: each.stat().st_mtime_ns for each in workspace.cache.glob("*.safetensors")}
    outcome = run(workspace, seeds=(0, 1, 2))
    assert (outcome.trained, outcome.found, outcome.failed) == (2, 4, {})
    assert {name: (workspace.cache / name).stat().st_mtime_ns for name in made} == made
    both = load_results(workspace, "components").final.set_index(["arm", "seed", "metric"])["value"]
    first = load_results(done, "components").final.set_index(["arm", "seed", "metric"])["value"]
    assert both.loc[first.index].equals(first)


def test_what_a_workspace_has_is_kept(file, tmp_path):
    workspace = make_workspace(tmp_path / "own")
    take_in(file, workspace)
    manifest = workspace.studies / "components.json"
    write_json(manifest, read_json(manifest) | {"question": "mine?"})
    (gone, *_) = workspace.trials.iterdir()
    shutil.rmtree(gone)
    assert take_in(file, workspace) == (1, 3)
    assert read_json(manifest)["question"] == "mine?"
    # The slim reference of an export is no product that a run could use; its pictures go on to pages and exports.
    assert not list(workspace.cache.glob("reference*"))
    assert load_results(workspace, "components").reconstructions.keys() == STAGES.keys()
    again = tmp_path / "again.tar.xz"
    export(workspace, ["components"], again)
    with open_store(again) as store:
        assert load_results(store, "components").reconstructions.keys() == STAGES.keys()


def test_without_results_of_ones_own_the_example_is_shown(done, file, tmp_path, monkeypatch, capsys):
    workspace = make_workspace(tmp_path / "fresh")
    monkeypatch.chdir(workspace.root)
    with pytest.raises(InputError, match="no study was run here yet"):
        find_store("components")
    workspace.example.parent.mkdir(parents=True)
    shutil.copy(file, workspace.example)
    for study in ("components", None):
        assert_same(load_results(find_store(study), "components"), load_results(done, "components"))
        assert "the committed example" in capsys.readouterr().out
    with pytest.raises(InputError, match="no results of study 'balance'"):
        find_store("balance")
    take_in(file, workspace)
    assert find_store("components").root == workspace.root
    assert "your own results" in capsys.readouterr().out


def test_nothing_to_export_is_an_input_error(done, tmp_path):
    with pytest.raises(InputError, match=r"no results of study .balance.*run here so far: components"):
        export(done, ["balance"], tmp_path / "f.tar.xz")
    manifest = read_json(done.studies / "components.json")
    other = make_workspace(tmp_path / "other")
    with pytest.raises(InputError, match="no study was run here yet"):
        studies_run(other)
    write_json(other.studies / "components.json", manifest)
    with pytest.raises(InputError, match="no trial of study 'components' is finished yet"):
        export(other, ["components"], tmp_path / "f.tar.xz")
    assert not (tmp_path / "f.tar.xz").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "absent", "empty folder", "strange", "climbing", "link"])
def test_what_is_no_store_is_an_input_error(file, tmp_path, damage):
    path = tmp_path / "f.tar.xz"
    if damage == "cut":
        path.write_bytes(file.read_bytes()[:-2000])
    elif damage == "text":
        path.write_text("results")
    elif damage == "empty folder":
        path.mkdir()
    elif damage == "strange":
        with tarfile.open(path, "w:xz") as archive:
            archive.add(__file__, "../escape.py")
    elif damage in ("climbing", "link"):
        member = tarfile.TarInfo("runs/../escape" if damage == "climbing" else "runs/link")
        if damage == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        with tarfile.open(path, "w:xz") as archive:
            archive.addfile(member)
    message = {
        "absent": "no results at",
        "empty folder": "no folder runs/studies",
        **dict.fromkeys(("strange", "climbing", "link"), "no export of results"),
    }
    with (
        pytest.raises(InputError, match=message.get(damage, "damaged or no file of `iar-study export`")),
        open_store(path),
    ):
        pass

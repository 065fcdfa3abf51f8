"""What no study uses is told and removed; what a study needs stays, to the last file."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from iar_study.cli import main
from iar_study.errors import InputError
from iar_study.evidence.results import load_results
from iar_study.pipeline.cache import Product, find_product, list_cache, prune, unused
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting.cache_text import cache_text, product_text
from iar_study.reporting.report import write_report
from iar_study.running import runner
from iar_study.running.display import Display
from iar_study.running.runner import Outcome, run_study
from iar_study.storage import save_arrays
from iar_study.study.study import load_profile, load_study
from tests.running.test_dry_run import SMALL, tree
from tests.workspaces import make_workspace


def run(workspace: Workspace, **changes: Any) -> Outcome:
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    asked: dict[str, Any] = {"seeds": [0], "arms": ["baseline", "iar-exact"], "settings": SMALL, **changes}
    return run_study(study, profile, workspace, Display(quiet=True), **asked)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A study that was run with other images in mind first: of that run, no study uses anything but the evaluators."""
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert run(workspace, arms=["baseline"], settings={**SMALL, "tokenizer.seed": 1}).trained == 1
        assert run(workspace).trained == 2
    return workspace


@pytest.fixture
def workspace(twice: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    shutil.copytree(twice.root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path / "copy")


def manifest_of(workspace: Workspace) -> dict[str, Any]:
    return json.loads((workspace.studies / "components.json").read_text())


def edit_manifest(workspace: Workspace, **changes: Any) -> None:
    kept = {key: value for key, value in (manifest_of(workspace) | changes).items() if value is not None}
    (workspace.studies / "components.json").write_text(json.dumps(kept))


def kinds(products: list[Product]) -> list[str]:
    return [each.kind for each in products]


USED = [
    *("tokenizer", "codes", "evaluators", "clustering", "clustering", "reference", "exactness"),
    *("training", "training", "trial", "trial"),
]
UNUSED = ["tokenizer", "codes", "clustering", "clustering", "reference", "exactness", "training", "trial"]
"""Of the first run: all but the evaluators."""


def test_each_product_is_listed_with_who_uses_it(workspace: Workspace) -> None:
    products = list_cache(workspace)
    unneeded = unused(products)
    assert [each.kind for each in products if each not in unneeded] == USED
    assert kinds(unneeded) == UNUSED
    files = [
        path
        for folder in (workspace.cache, workspace.trainings, workspace.trials)
        for path in folder.rglob("*")
        if path.is_file()
    ]
    listed = sum(each.bytes for each in products)
    assert listed == sum(path.stat().st_size for path in files if path.parent != workspace.cache or path.name != "lock")
    hashes = [trial["hash"] for trial in manifest_of(workspace)["trials"]]
    of_kind = {each.kind: each for each in products if each.studies}
    assert set(hashes) <= set(of_kind["evaluators"].trials)
    assert set(of_kind["tokenizer"].trials) == set(hashes)
    text = cache_text(products)
    assert "64 codes, 20 steps, seed 1" in text
    assert "components" in text


def test_pruning_keeps_all_that_a_report_and_a_run_need(workspace: Workspace, tmp_path: Path) -> None:
    def report(name: str) -> str:
        return write_report(load_results(workspace, "components"), tmp_path / name).read_text()

    before = report("before")
    expected = unused(list_cache(workspace))
    removed = prune(workspace)
    assert removed == expected
    assert not any(each.path.exists() for each in removed)
    assert unused(list_cache(workspace)) == []
    assert prune(workspace) == []
    assert report("after") == before
    kept = tree(workspace.cache)
    assert (run(workspace).trained, run(workspace).found) == (0, 2)
    assert tree(workspace.cache).keys() == kept.keys()


def test_of_an_older_manifest_the_trials_tell_what_they_need(workspace: Workspace, tmp_path: Path) -> None:
    edit_manifest(workspace, products=None, trainings=None)
    prune(workspace)
    left = kinds(list_cache(workspace))
    assert [kind for kind in USED if kind != "exactness"] == [
        kind for kind in dict.fromkeys(left) for _ in range(USED.count(kind))
    ]
    assert write_report(load_results(workspace, "components"), tmp_path).exists()
    assert run(workspace).trained == 0


def test_what_is_asked_for_and_not_finished_is_kept(workspace: Workspace) -> None:
    first, second = (workspace.trials / trial["hash"] for trial in manifest_of(workspace)["trials"])
    (first / "result.json").unlink()
    shutil.rmtree(second)  # asked for, and not begun
    prune(workspace)
    assert first.exists()
    assert kinds(list_cache(workspace)) == USED[:-1]


def test_a_training_that_a_study_measures_is_kept(workspace: Workspace) -> None:
    [trained] = [each for each in list_cache(workspace) if each.kind == "training" and not each.studies]
    edit_manifest(workspace, trainings=[*manifest_of(workspace)["trainings"], trained.name])
    prune(workspace)
    assert trained.path.exists()


def test_a_trial_that_a_process_is_at_work_on_is_kept(workspace: Workspace) -> None:
    [busy] = [each for each in list_cache(workspace) if each.kind == "trial" and not each.studies]
    with FileLock(busy.path / "lock"):
        assert "trial" not in kinds(prune(workspace))
        assert (busy.path / "trial.json").exists()
    assert "trial" in kinds(prune(workspace))


def test_while_a_run_prepares_nothing_is_removed(workspace: Workspace) -> None:
    before = tree(workspace.root)
    with FileLock(workspace.cache / "lock"), pytest.raises(InputError, match="is being written by another process"):
        prune(workspace)
    assert tree(workspace.trials).keys() == {
        path for path in before if Path(path).is_relative_to(workspace.trials) and Path(path) != workspace.trials
    }


def test_what_a_run_has_prepared_is_never_without_a_study(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is pruned in the very moment that the lock of the preparation is free."""
    first_to_prepare, removed = runner.first_to_prepare, []

    @contextmanager
    def followed_by_a_prune(*given: Any) -> Iterator[None]:
        with first_to_prepare(*given):
            yield
        removed.extend(prune(workspace))

    monkeypatch.setattr(runner, "first_to_prepare", followed_by_a_prune)
    assert run(workspace, arms=["baseline"], settings={**SMALL, "tokenizer.seed": 2}, executor="here").trained == 1
    assert (
        kinds(removed).count("trial") == kinds(removed).count("training") == 3
    )  # the ones before, which this run follows
    assert unused(list_cache(workspace)) == []


def test_what_a_kill_left_is_removed_once_it_is_old(workspace: Workspace) -> None:
    prune(workspace)
    fresh, old = (workspace.cache / f".codes-0.safetensors.{pid}.tmp" for pid in (1, 2))
    half = workspace.trials / ".0123.removed"
    half.mkdir()
    for path in (fresh, old, half / "weights.safetensors"):
        path.write_text("half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    assert sorted(each.path for each in prune(workspace)) == [old, half]
    assert fresh.exists()


def test_damage_is_told_and_does_not_stop_the_rest(workspace: Workspace) -> None:
    (workspace.cache / "codes-0123.safetensors").write_text("damaged")
    trial = next(workspace.trials.iterdir())
    (trial / "trial.json").write_text("{")
    damaged = [each.name for each in list_cache(workspace) if "damaged" in each.about]
    assert damaged == ["codes-0123.safetensors", trial.name]
    assert cache_text(list_cache(workspace)).count("damaged") == 2
    (workspace.studies / "components.json").write_text("{")  # now nobody knows what is needed
    with pytest.raises(InputError, match="is not valid JSON"):
        prune(workspace)


def test_a_product_is_found_by_how_its_name_begins_and_explained(workspace: Workspace) -> None:
    products = list_cache(workspace)
    tokenizer = next(each for each in products if each.kind == "tokenizer" and each.studies)
    for name in (tokenizer.name, str(tokenizer.path), tokenizer.name[:14], tokenizer.path.stem.rpartition("-")[2][:6]):
        assert find_product(products, name) == tokenizer
    with pytest.raises(InputError, match="begins the name of 2 products"):
        find_product(products, "tokenizer")
    with pytest.raises(InputError, match="begins the name of 0 products"):
        find_product(products, "")
    told = product_text(tokenizer, products)
    for words in ("psnr", "digest", "codebook_size  64", tokenizer.trials[0], "components"):
        assert words in told
    trial = next(each for each in products if each.name == tokenizer.trials[0])
    assert f"made from tokenizer                {tokenizer.name}" in product_text(trial, products)


def test_the_command_says_first_and_removes_only_with_yes(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(workspace.root)
    assert main(["cache"]) == 0
    assert "of which no study uses" in capsys.readouterr().out
    assert main(["cache", "--prune"]) == 0
    shown = capsys.readouterr().out
    assert "MB; --prune --yes removes it" in shown
    assert tree(workspace.root) == before
    assert main(["cache", "--prune", "--yes"]) == 0
    assert "removed: 6 products and 1 training and 1 trial" in capsys.readouterr().out
    assert main(["cache", "--prune"]) == 0
    assert capsys.readouterr().out == "no study uses: nothing\n"
    for given in (["cache", "--yes"], ["cache", "x", "--prune"], ["cache", "x"]):
        assert main(given) == 2


def test_an_empty_workspace_holds_nothing(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "empty")
    before = tree(workspace.root)
    assert (list_cache(workspace), prune(workspace)) == ([], [])
    assert cache_text([]) == "nothing is cached here yet"
    assert tree(workspace.root) == before


def test_a_trial_whose_inputs_are_of_another_product_does_not_keep_it(workspace: Workspace) -> None:
    save_arrays(workspace.cache / "classifier-0123.safetensors", {"a": np.zeros(3)}, {"digest": "0123"})
    assert "classifier-0123.safetensors" in [each.name for each in prune(workspace)]

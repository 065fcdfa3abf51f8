"""What was trained is measured anew without training: from kept tokens, from weights, from trainings of before."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from iar_study.cli import main
from iar_study.errors import InputError
from iar_study.evidence.export import export, take_in
from iar_study.evidence.results import load_results
from iar_study.pipeline import attempt, drawing
from iar_study.pipeline.carried_over import OLD_WEIGHTS
from iar_study.pipeline.workspace import Workspace
from iar_study.running.display import Display
from iar_study.running.dry_run import look
from iar_study.running.measure_study import measure_study
from iar_study.running.runner import run_study
from iar_study.storage import load_arrays, read_json, write_json
from iar_study.study.study import load_profile, load_study
from tests import forked
from tests.workspaces import make_workspace

SMALL = {
    "tokenizer.steps": 30,
    "classifier.steps": 30,
    "train.steps": 20,
    "train.kept": 1,
    "train.micro_batch": 16,
    "evaluation.images": 60,
    "evaluation.samples": 200,
    "evaluation.sampled_times": 1,
}
EVALUATORS = """
import numpy as np

def pixels(images, device):
    return images.reshape(len(images), -1)[:, ::8]

def rows(images, device):
    return images.mean(axis=(2, 3))

def columns(images, device):
    return images.mean(axis=(1, 3))
"""
QUIET = Display(quiet=True)


def run(workspace, **settings):
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    asked = {**SMALL, **settings}
    outcome = run_study(study, profile, workspace, QUIET, seeds=[0], arms=["iar"], settings=asked, executor="here")
    assert not outcome.failed


def measure(workspace, **settings):
    settings = {f"evaluation.{name}": value for name, value in settings.items()}
    return measure_study("components", workspace, QUIET, settings, executor="here")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("done"))
    (workspace.root / "own.py").write_text(EVALUATORS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(workspace)
    return workspace


@pytest.fixture
def workspace(done, tmp_path, monkeypatch) -> Workspace:
    """A copy of what is done, in which nothing may be trained."""
    shutil.copytree(done.root, tmp_path / "copy")
    monkeypatch.setattr(attempt, "train_gpt", None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def drawn(workspace) -> dict[str, np.ndarray]:
    """The tokens of each training, the last that were drawn."""
    return {path.parent.name: load_arrays(path)[0]["tokens"] for path in workspace.trainings.glob("*/tokens-*")}


def test_three_evaluators_are_put_on_the_same_samples(workspace, monkeypatch, capsys):
    before = drawn(workspace)
    for folder in workspace.trainings.iterdir():
        for weights in folder.glob("weights-*"):
            weights.unlink()  # the tokens will do
    own = load_results(workspace, "components").find("fd")
    names = [f"own.py:{name}" for name in ("pixels", "rows", "columns")]
    assert main(["measure", "components", "--evaluators", *names, "--executor", "here"]) == 0
    results = load_results(workspace, "components")
    families = {metric.partition("-")[0] for metric in results.later if metric.startswith("fd/")}
    assert families == {"fd/pixels", "fd/rows", "fd/columns"}
    assert results.find("fd") == own  # what the trials measured themselves stays what a claim means
    assert results.final.groupby("metric")["arm"].nunique().eq(2).all()
    after = drawn(workspace)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    for page in ("index.md", "index.html"):
        text = (workspace.reports / "components" / page).read_text()
        assert "Measured later" in text
        assert all(f"FD ({name}-" in text for name in ("pixels", "rows", "columns"))
    capsys.readouterr()
    assert main(["measure", "components", "--evaluators", names[0], "--executor", "here"]) == 0
    assert "2 found measured" in capsys.readouterr().err
    assert main(["sync", "components"]) == 0
    run(workspace)  # it is found, and what was measured of it is not forgotten
    assert set(load_results(workspace, "components").later) == set(results.later)


def test_more_samples_go_on_where_those_that_are_kept_end(workspace):
    before = drawn(workspace)
    assert measure(workspace, samples=330).trained == 2
    more = drawn(workspace)
    for name, tokens in before.items():
        assert len(tokens) == 200
        assert len(more[name]) == 400  # whole parts
        np.testing.assert_array_equal(more[name][:200], tokens)
    for path in workspace.trainings.glob("*/tokens-*"):
        path.unlink()
    found = load_results(workspace, "components").final
    for folder in [workspace.trials / each["hash"] for each in manifest(workspace)["measured"]]:
        (folder / "result.json").unlink()
        (folder / "journal.jsonl").unlink()
    measure(workspace, samples=330)
    assert all(np.array_equal(more[name], tokens) for name, tokens in drawn(workspace).items())
    assert load_results(workspace, "components").final.equals(found)


def manifest(workspace):
    return read_json(workspace.studies / "components.json")


def counted(folder: Path, part: int) -> None:
    with open(folder / "drawn.txt", "a") as file:
        file.write(f"{part}\n")


def measured_slowly(folder: Path, ends_after: int = 0) -> None:
    """Measure in a process that tells which parts it draws, and maybe ends in the middle."""
    draw, done = drawing.draw, []

    def told(model, config, part, n_classes):
        if ends_after and len(done) == ends_after:
            os._exit(9)
        done.append(part)
        counted(folder, part)
        return draw(model, config, part, n_classes)

    drawing.draw = told
    drawing.Kept.offer = lambda kept, arrays: drawing.save_arrays(kept.path, arrays())  # at once, not after a second
    outcome = measure(Workspace(folder), samples=600)
    assert not outcome.failed


def test_two_measurers_share_the_work(workspace):
    processes = [forked.start(measured_slowly, workspace.root) for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    parts = sorted(map(int, (workspace.root / "drawn.txt").read_text().split()))
    assert parts == [part for part in (2, 3, 4, 5) for _ in range(2)]  # of two trainings, each part once
    assert len(load_results(workspace, "components").later) > 5


def test_a_kill_in_any_part_ends_in_the_same_bits(workspace, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(workspace.root, killed)
    measure(workspace, samples=600)
    for _ in range(3):
        process = forked.start(measured_slowly, killed, 2)
        process.join()
        assert process.exitcode == 9
    process = forked.start(measured_slowly, killed)
    process.join()
    assert process.exitcode == 0
    here, there = drawn(workspace), drawn(Workspace(killed))
    assert all(np.array_equal(here[name], there[name]) for name in here)
    assert load_results(Workspace(killed), "components").final.equals(load_results(workspace, "components").final)
    drawn_there = (killed / "drawn.txt").read_text().split()
    assert len(drawn_there) == 8  # a kill costs no part that was whole


def measured_on_a_full_disk(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))  # the samples take more
    os.chdir(folder)
    with open(folder / "told", "w") as file:
        os.dup2(file.fileno(), 2)
    sys.exit(main(["measure", "components", "--samples", "600", "--executor", "here"]))


def test_a_full_disk_is_one_line_and_loses_nothing(workspace, tmp_path):
    full = tmp_path / "full"
    shutil.copytree(workspace.root, full)
    process = forked.start(measured_on_a_full_disk, full)
    process.join()
    assert process.exitcode == 2
    last = (full / "told").read_text().splitlines()[-1]
    assert "cannot write" in last
    assert "free some space" in last
    before = drawn(workspace)
    assert all(np.array_equal(before[name], tokens) for name, tokens in drawn(Workspace(full)).items())
    for each in (workspace, Workspace(full)):
        assert not measure(each, samples=600).failed
    assert load_results(Workspace(full), "components").final.equals(load_results(workspace, "components").final)


def test_imported_samples_are_measured_without_weights(workspace, tmp_path):
    export(workspace, ["components"], tmp_path / "all.tar.xz", inputs=True)
    elsewhere = make_workspace(tmp_path / "elsewhere")
    take_in(tmp_path / "all.tar.xz", elsewhere)
    assert measure(elsewhere, samples=150).trained == 2
    later = load_results(elsewhere, "components").later
    assert any(metric.startswith("fd/set-") and metric.endswith("@150") for metric in later)
    with pytest.raises(InputError, match=r"of 2 trainings neither the weights nor 500 samples are here \(baseline, se"):
        measure(elsewhere, samples=500)
    assert len(manifest(elsewhere)["measured"]) == 2


MEASURED_ELSEWHERE = ["measure", "components", "--samples", "150", "--executor", "here"]


def test_with_other_kernels_trainings_keep_their_hash_and_distances_their_digits(workspace, tmp_path):
    """As on another machine, which imports what pins the tokenizer, the codes, the clusters and the evaluators."""
    export(workspace, ["components"], tmp_path / "all.tar.xz", inputs=True)
    found = {}
    for capability in ("default", ""):
        there = make_workspace(tmp_path / f"elsewhere{capability}")
        take_in(tmp_path / "all.tar.xz", there)
        environment = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        process = forked.start(run_command, *MEASURED_ELSEWHERE, FOLDER=str(there.root), **environment)
        process.join()
        assert process.exitcode == 0
        told = manifest(there)
        results = load_results(there, "components")
        values = results.final[results.final["metric"].isin(results.later)].set_index(["arm", "metric"])["value"]
        found[capability] = ([each["hash"] for each in told["measured"]], told["trainings"], values)
    (hashes, trainings, other), (own_hashes, own_trainings, own) = found["default"], found[""]
    assert (hashes, trainings) == (own_hashes, own_trainings)
    assert trainings == manifest(workspace)["trainings"]
    assert other.index.equals(own.index)
    distances = [key for key in own.index if key[1].startswith(("fd", "kd", "score"))]
    np.testing.assert_allclose(other[distances], own[distances], rtol=1e-4)


def run_command(*arguments: str) -> None:
    os.chdir(os.environ["FOLDER"])
    sys.exit(main(list(arguments)))


def test_two_processes_measure_together(workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("FOLDER", str(workspace.root))
    copy = tmp_path / "alone"
    shutil.copytree(workspace.root, copy)
    for folder in (workspace.root, copy):
        for path in (folder / "runs" / "trainings").glob("*/tokens-*"):
            path.unlink()  # so that both have something to draw
    assert measure(Workspace(copy), samples=300).trained == 2
    assert forked.exit_code(forked.start_two(run_command, *MEASURED_ELSEWHERE[:3], "300")) == 0
    here, there = load_results(workspace, "components").final, load_results(Workspace(copy), "components").final
    assert here.equals(there)


def test_weights_that_were_not_kept_or_are_gone_are_trained_again_to_the_same_bits(done, tmp_path, monkeypatch):
    """At another number of times, where no point of the journal is; with files gone; and the dry run says so first."""
    shutil.copytree(done.root, tmp_path / "copy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path / "copy")
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    before = {path: path.read_bytes() for path in workspace.trainings.glob("*/weights-*")}

    def states(**settings):
        asked = look(study, profile, workspace, seeds=[0], arms=["iar"], settings={**SMALL, **settings})
        return [trial.state for trial in asked.trials]

    assert states(**{"evaluation.guidance": 1.5}) == ["trained", "trained"]
    thrice = {"train.kept": 3, "train.log_every": 7}
    assert states(**thrice) == ["new", "new"]
    run(workspace, **thrice)
    results = load_results(workspace, "components")
    assert set(results.curves[results.curves.metric == "val/token_nll"].step) == {6, 13, 20}
    assert {path: path.read_bytes() for path in before} == before
    for path in [*before, *workspace.trainings.glob("*/journal.jsonl")]:
        path.unlink()
    with pytest.raises(InputError, match=r"train here: `iar-study run \.\.\. --set evaluation\.samples=300`"):
        measure(workspace, samples=300)
    run(workspace, **{"evaluation.samples": 300})
    assert {path: path.read_bytes() for path in before} == before
    for path in workspace.trainings.glob("*/journal.jsonl"):
        path.unlink()
    run(workspace, **{"evaluation.guidance": 1.5})  # the weights are here, and are measured without a journal
    assert load_results(workspace, "components").final["metric"].str.startswith("fd/set-").any()


def make_old(workspace: Workspace) -> None:
    """Turn trials into those of before trainings had folders of their own."""
    for folder in workspace.trials.iterdir():
        about = read_json(folder / "trial.json")
        trained = workspace.trainings / about.pop("training")
        del about["config"]["train.kept"]
        about["config"] |= {"evaluation.every": 10, "evaluation.sampled_times": 4}
        write_json(folder / "trial.json", about)
        shutil.copy(trained / "weights-000000020.safetensors", folder / OLD_WEIGHTS)
        shutil.copy(trained / "codebook.safetensors", folder)
    shutil.rmtree(workspace.trainings)
    told = manifest(workspace)
    told["bases"] = told.pop("trainings") and []
    write_json(workspace.studies / "components.json", told)


def test_a_training_of_before_is_measured_by_three_evaluators_without_training(workspace):
    names = sorted(path.name for path in workspace.trainings.iterdir())
    weights = {path.parent.name: path.read_bytes() for path in workspace.trainings.glob("*/weights-*")}
    make_old(workspace)
    old = load_results(workspace, "components")  # an old store opens
    for name in ("pixels", "rows", "columns"):
        assert measure(workspace, extractor=f"own.py:{name}").trained == 2
    results = load_results(workspace, "components")
    assert len([metric for metric in results.later if metric.startswith("fd/")]) == 3
    assert results.final[~results.final["metric"].isin(results.later)].equals(old.final)
    # The trainings have the names that they would have today, and the same weights.
    assert sorted(path.name for path in workspace.trainings.iterdir()) == names
    assert {path.parent.name: path.read_bytes() for path in workspace.trainings.glob("*/weights-*")} == weights
    assert not list(workspace.trials.glob(f"*/{OLD_WEIGHTS}"))
    run(workspace)  # and are found by a run
    for path in workspace.trainings.glob("*/journal.jsonl"):
        points = [json.loads(line) for line in path.read_text().splitlines()]
        assert points[-1]["step"] == 20
        assert not [name for point in points for name in point["metrics"] if name.startswith(("val/", "fd/"))]


def test_what_was_drawn_by_other_code_is_drawn_anew_where_weights_are_here(workspace):
    measure(workspace, samples=100)
    [path, *_] = workspace.trainings.glob("*/tokens-*")
    arrays, about = load_arrays(path)
    about["drawn"]["makers"]["sampling"] = "0" * 16
    drawing.save_arrays(path, {"tokens": np.zeros_like(arrays["tokens"])}, about)
    measure(workspace, samples=150)
    assert load_arrays(path)[0]["tokens"].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 1.5}, r"measure does not change evaluation\.guidance, for no metric's name tells it"),
        ({"extractor": "classifer"}, "unknown extractor 'classifer'"),
        ({"samples": 2}, r"evaluation\.samples"),
        ({"image_size": 16}, "--image-size is for samples of codes:PATH"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message, workspace):
    with pytest.raises(InputError, match=message):
        measure(workspace, **settings)
    assert "measured" not in manifest(workspace)


def test_other_inputs_than_a_training_had_are_refused(workspace):
    shutil.rmtree(workspace.cache)
    record = next(workspace.trials.glob("*/trial.json"))
    write_json(record, read_json(record) | {"inputs": {**read_json(record)["inputs"], "codes": "0" * 64}})
    with pytest.raises(InputError, match="was trained on other codes than there are now; import what it was made from"):
        measure(workspace, samples=100)


def test_nothing_to_say_is_an_error_and_so_is_a_study_of_near_codes(workspace, capsys):
    assert main(["measure", "components"]) == 2
    assert "say what is to be measured" in capsys.readouterr().err
    assert main(["measure", "balance", "--samples", "100"]) == 2
    told = manifest(workspace)
    write_json(workspace.studies / "components.json", told | {"kind": "near-codes"})
    with pytest.raises(InputError, match="trains nothing"):
        measure(workspace, samples=100)

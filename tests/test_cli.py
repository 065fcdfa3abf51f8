"""The command line: exit codes, one clear line for bad input, and help that shows an example."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from iar_study.cli import build_parser, main
from iar_study.codebook import ORDERINGS, STRATEGIES, Codebook, Rearrangement
from iar_study.codebook.rearrangement import load_rearrangement
from iar_study.data import fashion_mnist
from iar_study.data.llamagen_codes import open_codes
from iar_study.running.needs import GPUS
from iar_study.running.status import counted, status_of
from iar_study.storage import load_arrays
from iar_study.study.study import load_profiles, load_studies, load_study
from tests import forked
from tests.workspaces import make_workspace


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IAR_DATA", str(tmp_path / "data"))
    return make_workspace(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "component"], "unknown study 'component'; did you mean 'components'?"),
        (["run", "components", "--profile", "smok"], "unknown profile 'smok'; did you mean 'smoke'?"),
        (["run", "components", "--arms", "irr"], "has no arm 'irr'; did you mean 'iar'?"),
        (["run", "components", "--set", "train.lrr=1"], "unknown setting 'train.lrr'; did you mean 'train.lr'?"),
        (["run", "components", "--set", "train.lr"], "--set takes KEY=VALUE"),
        (["run", "components", "--set", "train.lr=fast"], "train.lr = 'fast'"),
        (["run", "components", "--data", "digit"], "did you mean 'digits'?"),
        (["run", "components", "--data", "folder:nowhere"], "nowhere"),
        (["run", "components", "--profile", "smoke", "--set", "tokenizer.patch=3"], "patch"),
        (["plan", "component"], "unknown study 'component'; did you mean 'components'?"),
        (["plan", "components", "--gpu", "H10"], "unknown GPU 'H10'; did you mean 'H100'?"),
        (["plan", "components", "--set", "model=X"], "unknown model 'X'; did you mean 'XL'?"),
        (["pack", "nowhere_codes", "-o", "codes"], "nowhere_codes"),
        (["run", "all", "--set", "train.lrr=1"], "unknown setting 'train.lrr'; did you mean 'train.lr'?"),
        (["run", "all", "--arms", "iar"], "--arms is for one study"),
        *(
            ([*command, "--profile", "smoke", "--set", setting], message)
            for command in (["run", "components"], ["run", "components", "--dry-run"], ["plan", "components"])
            for setting, message in (
                ("model.heads=3", "model.width = 32 does not fit model.heads = 3"),
                ("model.width=30", "model.width = 30 does not fit"),
                ("seed=5", "use --seeds"),
                ("loss.first_weight=1", "set loss.schedule, too"),
            )
        ),
        (["run", "all", "--profile", "smoke", "--set", "model.heads=3"], "does not fit model.heads = 3"),
        (["run", "all", "--set", "seed=5"], "seed=5 changes nothing in any study: use --seeds"),
        (["run", "components", "--set", "train.lr=1", "train.lr=2"], "train.lr is given twice, as 1 and as 2"),
        (["run", "components", "--data", "digits", "--set", "data.name=x"], "data.name is given twice"),
        (["run", "components", "--dry-run", "--executor", "rya"], "did you mean 'ray'?"),
        (["run", "component", "--dry-run"], "unknown study 'component'; did you mean 'components'?"),
        (["run", "components", "--dry-run", "--profile", "smoke", "--set", "tokenizer.patch=3"], "patch"),
        (["list", "--profile", "smok"], "unknown profile 'smok'; did you mean 'smoke'?"),
        (["results", "components"], "no results of study 'components'"),
        (["results", "components", "--curves"], "--curves is for a tidy table"),
        (["compare", "nowhere", "experiments"], "no results at nowhere"),
        (["compare", "experiments", "nowhere"], "it has no folder runs/studies"),
        (["cache", "tokenizer-0"], "begins the name of 0 products"),
        (["cache", "--yes"], "--yes goes with --prune"),
        (["report"], "no study was run here yet"),
        (["report", "components"], "no results of study 'components'"),
        (["ui"], "no runs yet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(workspace, capsys, arguments, message):
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("iar-study: ")
    assert message in lines[0]
    assert not (workspace.root / "runs" / "trials").exists()


def test_what_libraries_warn_of_goes_to_the_log(workspace):
    profiles = workspace.experiments / "profiles.py"
    profiles.write_text("import warnings\nwarnings.warn('old way', FutureWarning)\n" + profiles.read_text())
    workspace.warnings.parent.mkdir(exist_ok=True)

    def stderr_of(*options: str) -> list[str]:
        command = [sys.executable, *options, "-m", "iar_study.cli", "run", "components", "--profile", "tiny"]
        ended = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        return ended.stderr.splitlines()

    (told,) = stderr_of()
    assert told.startswith("iar-study: ")
    assert "tiny" in told
    (line, *_) = workspace.warnings.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*profiles.py:\d+: FutureWarning: old way", line)
    assert any("FutureWarning" in line for line in stderr_of("-W", "default"))  # asked for: shown


def test_an_unwritable_folder_is_one_line_and_exit_code_2(workspace, capsys):
    (workspace.root / "runs").write_text("a file where a folder should be")
    assert main(["run", "components", "--profile", "smoke", "--set", "tokenizer.steps=20"]) == 2
    assert "cannot write" in capsys.readouterr().err.splitlines()[-1]


def on_a_full_disk(told, *given):
    with open(told, "wb") as file:
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    sys.exit(main(list(given)))


def test_a_full_disk_is_one_line_and_exit_code_2(workspace):
    """A file-size limit is what a full disk looks like to a process: the write fails half-way."""
    told = workspace.root / "told"
    process = forked.start(
        on_a_full_disk, told, "run", "components", "--profile", "smoke", "--set", "tokenizer.steps=20"
    )
    process.join()
    assert process.exitcode == 2, told.read_text()
    assert "cannot write" in told.read_text().strip().splitlines()[-1]
    assert not any((workspace.root / "runs").rglob("*.safetensors"))
    assert not any((workspace.root / "runs").rglob("*.tmp"))


def test_plan_prints_text_or_json_and_writes_nothing(workspace, capsys):
    assert main(["plan", "components", "--profile", "paper", "--seeds", "0", "--arms", "iar", "--set", "model=L"]) == 0
    shown = capsys.readouterr().out
    for word in ("343 M", "2 arms x 1 seed = 2", "time on 8 GPUs", "NO  codes", "iar-study pack", "Assumed"):
        assert word in shown
    assert main(["plan", "loss-weight", "--profile", "smoke", "--gpu", "A100", "--gpus", "2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["study"], plan["gpu"], plan["gpus"], plan["assumed_utilisation"]) == ("loss-weight", "A100", 2, 0.4)
    assert [path.name for path in workspace.root.iterdir()] == ["experiments"]


def test_help_of_plan_names_every_gpu(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["plan", "--help"])
    assert set(GPUS) <= set(capsys.readouterr().out.replace(",", " ").split())


def test_pack_turns_llamagens_files_into_a_folder_of_codes(tmp_path, capsys):
    for i in range(3):
        for part, values in (("codes", np.full((1, 2, 4), i)), ("labels", np.array([i]))):
            folder = tmp_path / f"imagenet32_{part}"
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{i}.npy", values)
    given = ["pack", str(tmp_path / "imagenet32_codes"), "-o", str(tmp_path / "codes")]
    assert main([*given, "--images", "2", "--codebook-size", "3", "--classes", "3"]) == 0
    shown = capsys.readouterr()
    assert f"{tmp_path / 'codes'}: 2 images x 2 augmentations x 4 tokens" in shown.out
    assert "packing: 2/2" in shown.err
    packed = open_codes(tmp_path / "codes")
    assert packed.codes[:, 0, 0].tolist() == packed.labels.tolist() == [0, 1]
    assert packed.codes.dtype == np.uint8
    assert main([*given, "--codebook-size", "2"]) == 2
    assert "was made of something else" in capsys.readouterr().err


@pytest.fixture
def codebook(tmp_path):
    path = tmp_path / "codebook.npy"
    np.save(path, np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    return path


def test_rearrange_writes_what_the_package_reads(codebook, tmp_path, capsys):
    output = tmp_path / "out" / "rearranged.safetensors"
    assert main(["rearrange", str(codebook), "--clusters", "8", "--within", "chain", "-o", str(output)]) == 0
    shown = capsys.readouterr().out
    for word in ("inertia", "gap", "seconds", "look-up taken to be by cosine", str(output)):
        assert word in shown
    arranged, facts = Rearrangement.load(output), load_arrays(output)[1]
    assert (np.diff(arranged.boundaries) == 8).all()
    assert facts["strategy"] == "balanced"
    assert facts["digest"] == Codebook.load(codebook).digest
    assert main(["rearrange", str(codebook), "--clusters", "8", "-o", str(tmp_path / "mapping.pt")]) == 0
    assert load_rearrangement(tmp_path / "mapping.pt", 8).labels.shape == (64,)


def test_rearrange_writes_the_tokenizer_in_the_new_order(tmp_path):
    from iar_study.tokenizers.vq import VQConfig, VQModel

    source, destination = tmp_path / "vq.pt", tmp_path / "rearranged.pt"
    model = VQModel(VQConfig(multipliers=(1, 1), channels=32, z_channels=32, codebook_size=64, code_dim=4)).eval()
    model.save_llamagen(source)
    output = tmp_path / "r.safetensors"
    given = ["--clusters", "8", "-o", str(output), "--checkpoint", str(destination)]
    assert main(["rearrange", str(source), *given]) == 0
    tokens = torch.arange(64).view(1, 8, 8)
    moved = Rearrangement.load(output).tokens(tokens)
    assert torch.equal(VQModel.load_llamagen(destination).decode_codes(moved), model.decode_codes(tokens))


def test_inspect_describes_compares_and_judges(codebook, tmp_path, capsys):
    np.save(tmp_path / "tokens.npy", np.arange(32))
    assert main(["inspect", str(codebook), "--tokens", str(tmp_path / "tokens.npy"), "--clusters", "8"]) == 0
    shown = capsys.readouterr().out
    for word in ("dead codes", "spanning tree", "balanced", "agglomerative-equal", "neighbours: how many"):
        assert word in shown
    saved = tmp_path / "r.safetensors"
    main(["rearrange", str(codebook), "--clusters", "8", "-o", str(saved)])
    assert main(["inspect", str(codebook), "--rearrangement", str(saved)]) == 0
    assert "within_similarity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rearrange", "CODEBOOK", "--clusters", "7", "-o", "x.safetensors"], "7 does not divide the 64 codes"),
        (["rearrange", "CODEBOOK", "--clusters", "8", "-o", "x.txt"], "written as .safetensors or .pt"),
        (["rearrange", "nowhere.npy", "--clusters", "8", "-o", "x.pt"], "no codebook at nowhere.npy"),
        (
            ["rearrange", "CODEBOOK", "--clusters", "8", "--strategy", "blanced", "-o", "x.pt"],
            "did you mean 'balanced'",
        ),
        (["rearrange", "CODEBOOK", "--clusters", "8", "--within", "chian", "-o", "x.pt"], "did you mean 'chain'"),
        (["rearrange", "CODEBOOK", "--clusters", "8", "--tensor", "w", "-o", "x.pt"], "no table 'w'"),
        (["rearrange", "CODEBOOK", "--clusters", "8", "-o", "CODEBOOK/x.pt"], "cannot write"),
        (["inspect", "CODEBOOK", "--tokens", "nowhere.npy"], "no tokens in nowhere.npy"),
        (["inspect", "CODEBOOK", "--rearrangement", "nowhere.safetensors"], "nowhere.safetensors"),
        (["inspect", "CODEBOOK", "--clusters", "0"], "0 clusters do not fit"),
    ],
)
def test_bad_input_about_a_codebook_is_one_line_and_exit_code_2(codebook, capsys, arguments, message, monkeypatch):
    monkeypatch.chdir(codebook.parent)
    assert main([part.replace("CODEBOOK", str(codebook)) for part in arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("iar-study: ")
    assert message in last
    assert not list(codebook.parent.glob("x.*"))


def test_list_fits_a_screen_and_has_a_line_for_every_study_and_profile(workspace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "--profile", "smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 26
    begins = [line.split()[0] for line in lines if line]
    assert {*load_studies(workspace.experiments), *load_profiles(workspace.experiments), "all"} <= set(begins)
    (row,) = [line for line in lines if line.startswith("components ")]
    assert re.fullmatch(r"components +12 +[\d.]+ to [\d.]+ (s|min|h) +[Ww]hich .*\.\.\.", row)
    assert "assumed, not measured" in " ".join(lines)


def test_list_of_a_study_tells_its_claim_and_its_arms(workspace, capsys):
    assert main(["list", "components", "--profile", "smoke"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    study = load_study(workspace.experiments, "components")
    assert shown.startswith(f"components {study.question} claim: {study.claim}")
    assert all(f" {arm.name} {arm.description}" in shown for arm in study.arms)
    assert shown.count("(baseline)") == 1
    assert " at smoke: 12 trials, " in shown
    assert main(["list", "componnets"]) == 2
    assert "did you mean 'components'?" in capsys.readouterr().err


TWO_STUDIES = """
from iar_study.study import Arm, Study

study = Study(
    "{name}", "?", "!", "baseline",
    (Arm("baseline", ""), Arm("{arm}", "", {{"clustering.strategy": "balanced", "clustering.n_clusters": {clusters}}})),
)
"""
TINY = ["tokenizer.steps=20", "classifier.steps=20", "train.steps=6", "evaluation.samples=20", "evaluation.images=20"]


@pytest.fixture
def three_studies(workspace, monkeypatch):
    """A registry of three small studies, of which the second asks for what does not fit."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for path in workspace.experiments.glob("*.py"):
        if path.name != "profiles.py":
            path.unlink()
    for name, arm, clusters in (("a", "same", 8), ("b", "unfit", 7), ("c", "equal", 8)):
        (workspace.experiments / f"{name}.py").write_text(TWO_STUDIES.format(name=name, arm=arm, clusters=clusters))
    return workspace


def test_run_all_runs_every_study_though_one_fails_and_trains_equal_trials_once(three_studies, capsys):
    given = ["run", "all", "--executor", "here", "--profile", "smoke", "--seeds", "0", "--set", *TINY]
    before = {str(path): path.stat().st_mtime_ns for path in three_studies.root.rglob("*.py")}
    assert main([*given, "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert "c at smoke" in shown.out
    assert "= a: same" in shown.out
    assert "study b: equal clusters: clustering.n_clusters = 7 does not divide" in shown.err
    assert {str(path): path.stat().st_mtime_ns for path in three_studies.root.rglob("*.*")} == before

    assert main(given) == 1
    shown = capsys.readouterr()
    reports = three_studies.reports
    assert shown.out.splitlines() == [
        "a: 2 trials run, 0 found finished, 0 failed",
        str(reports / "a" / "index.html"),
        "c: 0 trials run, 2 found finished, 0 failed",
        str(reports / "c" / "index.html"),
        "all: 2 of 3 studies done; failed: b",
    ]
    assert "iar-study: study b failed: equal clusters: clustering.n_clusters = 7" in shown.err
    assert "Traceback" not in shown.err
    (three_studies.experiments / "b.py").unlink()
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all: 2 of 2 studies done"
    assert main([*given, "--dry-run"]) == 0
    assert "all 2 studies: 2 trials: 2 finished; 2 more are the same as others" in capsys.readouterr().out


def test_a_study_whose_trials_diverge_does_not_end_as_a_success(three_studies, capsys):
    given = ["run", "a", "--executor", "here", "--profile", "smoke", "--seeds", "0"]
    given += ["--set", *TINY, "train.lr=1e30", "train.warmup_steps=0"]
    report = str(three_studies.reports / "a" / "index.html")
    assert main(given) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["a: 2 trials run, 0 found finished, 0 failed; 2 diverged", report]
    told = "iar-study: diverged: baseline, seed 0 at step 2; same, seed 0 at step 2"
    assert shown.err.splitlines()[-1] == f"{told}; --allow-diverged takes that for a result"
    assert main(given) == 1  # as it was found
    assert capsys.readouterr().out.splitlines()[0] == "a: 0 trials run, 2 found finished, 0 failed; 2 diverged"
    assert main([*given, "--allow-diverged"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert main([*given, "--dry-run"]) == 0
    assert "2 trials: 2 diverged" in capsys.readouterr().out
    text = (three_studies.reports / "a" / "index.md").read_text()
    assert "nothing is compared: every trial that has ended diverged" in text
    assert "| same | 0 | diverged at step 2 |" in text
    assert counted(status_of(three_studies, "a")) == "2 of 2 trials have ended, 2 of them diverged"


def test_compare_tells_by_its_exit_code_whether_two_stores_agree(three_studies, capsys):
    assert main(["run", "a", "--executor", "here", "--profile", "smoke", "--seeds", "0", "--set", *TINY]) == 0
    shutil.copytree(three_studies.root / "runs", "other/runs")
    capsys.readouterr()
    assert main(["compare", ".", "other", "a"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["A", "."]
    assert shown[-1] == "A and B agree"
    assert main(["compare", ".", "other", "--csv", "arms.csv"]) == 0
    assert "arms.csv: 4 rows" in capsys.readouterr().out
    assert main(["compare", ".", "other", "--csv", "-"]) == 0
    assert capsys.readouterr().out == (three_studies.root / "arms.csv").read_text()

    path = next((three_studies.root / "other" / "runs" / "trials").rglob("result.json"))
    result = json.loads(path.read_text())
    result["metrics"]["val/token_nll"] += 1e-9
    path.write_text(json.dumps(result))
    assert main(["compare", ".", "other"]) == 1
    assert "! 1 of their" in capsys.readouterr().out
    assert main(["compare", ".", "other", "b"]) == 2
    assert "study 'b' is not in A and B; of those in both, known: a" in capsys.readouterr().err
    (three_studies.root / "other" / "runs" / "studies" / "a.json").unlink()
    assert main(["compare", ".", "other"]) == 2
    assert capsys.readouterr().err == "iar-study: nothing to compare: of studies, A has a and B has nothing\n"


def test_doctor_finds_this_environment_fit(workspace, capsys):
    assert main(["doctor", "--data", "digits"]) == 0
    shown = capsys.readouterr().out
    for word in ("python", "torch", "device", "data digits", "workspace", "store"):
        assert word in shown


def test_doctor_looks_and_touches_nothing(workspace, capsys, monkeypatch):
    monkeypatch.setenv("IAR_DATA", str(workspace.root / "data"))
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", workspace.root / "none")
    monkeypatch.setattr(fashion_mnist, "_fetch", lambda *_: pytest.fail("something is fetched"))
    pictures = workspace.root / "pictures"
    for index in range(40):
        (pictures / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), index).save(pictures / f"class{index % 2}" / f"{index}.png")
    before = sorted(workspace.root.rglob("*"))
    assert main(["doctor"]) == 0
    assert "Fashion-MNIST is to be fetched: the first run does that" in capsys.readouterr().out
    assert main(["doctor", "--data", f"folder:{pictures}"]) == 0
    assert f"the images of {pictures} are to be decoded: the first run does that" in capsys.readouterr().out
    assert sorted(workspace.root.rglob("*")) == before


def test_doctor_says_what_does_not_fit(workspace, capsys):
    workspace.store.write_text("no database")
    assert main(["doctor", "--data", "folder:nowhere"]) == 1
    shown = capsys.readouterr().out
    assert "NO  data folder:nowhere" in shown
    assert "it is no database; move it away" in shown


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "run",
        "plan",
        "report",
        "results",
        "compare",
        "cache",
        "rearrange",
        "inspect",
        "encode",
        "pack",
        "ui",
        "doctor",
    ],
)
def test_help_gives_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert f"example: iar-study {command}" in capsys.readouterr().out


def test_help_says_one_thing_by_one_word():
    """The words of the house: image, study, trial, code, token, seed; none of their neighbours."""
    parser = build_parser()
    (commands,) = (action.choices for action in parser._actions if action.choices)
    others = re.compile(r"\b(pictures?|photos?|experiments?|jobs?|codewords?|repetitions?|hyperparameters?)\b", re.I)
    for name, command in commands.items():
        assert not others.findall(command.format_help()), name


def test_help_names_every_strategy_and_order(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["rearrange", "--help"])
    shown = capsys.readouterr().out.replace(",", " ").split()
    assert {*STRATEGIES, *ORDERINGS} <= set(shown)


def test_help_and_list_import_nothing_that_takes_long(workspace):
    script = (
        "import sys; from iar_study.cli import main; main(['list']);"
        "sys.exit(' '.join({'torch', 'mlflow', 'pandas', 'numpy', 'sklearn'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_a_reader_who_has_had_enough_is_no_error(workspace):
    """As in `iar-study list | head -1`: what cannot be written is neither told of nor an error of the input."""
    command = [sys.executable, "-m", "iar_study.cli", "list"]
    listing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=workspace.root)
    listing.stdout.close()
    assert listing.stderr.read() == b""
    assert listing.wait() == 141

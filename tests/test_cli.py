"""The command line: exit codes, one clear line for bad input, and help that shows an example."""

import os
import subprocess
import sys

import pytest

from iar_study.cli import build_parser, main
from tests.study.conftest import make_workspace


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


def test_an_unwritable_folder_is_one_line_and_exit_code_2(workspace, capsys):
    (workspace.root / "runs").write_text("a file where a folder should be")
    assert main(["run", "components", "--profile", "smoke", "--set", "tokenizer.steps=2"]) == 2
    assert "cannot write" in capsys.readouterr().err.splitlines()[-1]


def test_a_full_disk_is_one_line_and_exit_code_2(workspace):
    """A file-size limit is what a full disk looks like to a process: the write fails half-way."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from iar_study.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "run", "components", "--profile", "smoke", "--set", "tokenizer.steps=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=workspace.root)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr.strip().splitlines()[-1]
    assert not any((workspace.root / "runs").rglob("*.safetensors"))
    assert not any((workspace.root / "runs").rglob("*.tmp"))


def test_list_shows_every_study_and_profile(workspace, capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for word in ("components", "cluster-count", "balance", "loss-weight", "smoke", "quick", "full", "(baseline)"):
        assert word in shown


def test_doctor_finds_this_environment_fit(workspace, capsys):
    assert main(["doctor", "--data", "digits"]) == 0
    shown = capsys.readouterr().out
    for word in ("python", "torch", "device", "data digits", "workspace", "store"):
        assert word in shown


def test_doctor_says_what_does_not_fit(workspace, capsys):
    workspace.store.write_text("no database")
    assert main(["doctor", "--data", "folder:nowhere"]) == 1
    shown = capsys.readouterr().out
    assert "NO  data folder:nowhere" in shown
    assert "is no MLflow store" in shown


@pytest.mark.parametrize("command", ["list", "run", "report", "ui", "doctor"])
def test_help_gives_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert f"example: iar-study {command}" in capsys.readouterr().out


def test_help_and_list_do_not_load_torch_or_mlflow(workspace):
    script = (
        "import sys; from iar_study.cli import main; main(['list']);"
        "sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, env=os.environ)

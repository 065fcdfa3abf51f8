"""The command `iar-study`: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from iar_study.errors import InputError

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 fine, 1 a trial failed, 2 bad input, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.call(arguments)
    except InputError as error:
        print(f"iar-study: {error}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("iar-study: stopped; the same command goes on from the last checkpoints", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        print(
            f"iar-study: {error.strerror}: {error.filename or 'writing a file'}; mend it and run again", file=sys.stderr
        )
        return EXIT_INPUT


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="iar-study",
        description="Does cluster-oriented token prediction (IAR, CVPR 2025) hold on your images, model and budget?",
        epilog="example: iar-study run components --profile quick && iar-study report components",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, call: Any, text: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        added.set_defaults(call=call)
        return added

    command("list", _list, "List the studies with their questions and arms, and the profiles.", "iar-study list")

    run = command(
        "run",
        _run,
        "Run a study: prepare data, tokenizer and clusterings, then train and measure every arm with every seed. "
        "Finished trials are not run again; interrupted ones go on.",
        "iar-study run cluster-count --profile quick --seeds 0 1 2 --set train.steps=800",
    )
    run.add_argument("study", metavar="STUDY", help="a name from `iar-study list`")
    run.add_argument("--profile", default="quick", metavar="P", help="how big and how long (default: quick)")
    run.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="default: the profile's")
    run.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms, and the baseline (default: all)")
    run.add_argument("--data", metavar="D", help="digits, fashion-mnist or folder:PATH (default: the profile's)")
    run.add_argument("--image-size", type=int, metavar="PIXELS", help="for folder:PATH: resize and crop to this side")
    run.add_argument(
        "--set", dest="settings", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change a setting"
    )

    report = command(
        "report",
        _report,
        "Write reports/STUDY/index.html and .md from the finished trials of the study's last run.",
        "iar-study report components",
    )
    report.add_argument("study", nargs="?", metavar="STUDY", help="default: every study that was run here")
    report.add_argument("-o", "--output", metavar="FOLDER", help="default: reports/ of the workspace")

    ui = command(
        "ui", _ui, "Open the runs in MLflow's web page: starts `mlflow ui` on the right store.", "iar-study ui"
    )
    ui.add_argument("--port", type=int, default=5000, help="default: 5000")

    doctor = command(
        "doctor",
        _doctor,
        "Say what is installed, which device, data and store there are, and whether they fit. Exit code 1 if not.",
        "iar-study doctor",
    )
    doctor.add_argument("--data", metavar="D", help="also load this data set")
    return parser


def _list(arguments: argparse.Namespace) -> int:
    from iar_study.study.study import load_profiles, load_studies
    from iar_study.study.workspace import Workspace

    experiments = Workspace.find().experiments
    for study in load_studies(experiments).values():
        print(f"{study.name}\n  {study.question}")
        width = max(len(arm.name) for arm in study.arms)
        for arm in study.arms:
            mark = " (baseline)" if arm.name == study.baseline else ""
            print(f"    {arm.name:<{width}}  {arm.description}{mark}")
        print()
    print("profiles")
    for profile in load_profiles(experiments).values():
        print(f"    {profile.name:<6}  {profile.description} Seeds {', '.join(map(str, profile.seeds))}.")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from iar_study.study.study import load_profile, load_study
    from iar_study.study.workspace import Workspace

    workspace = Workspace.find()
    study = load_study(workspace.experiments, arguments.study)
    profile = load_profile(workspace.experiments, arguments.profile)
    settings = _settings(arguments)

    from iar_study.study.display import Display
    from iar_study.study.runner import run_study

    with Display() as display:
        outcome = run_study(
            study, profile, workspace, display, seeds=arguments.seeds, arms=arguments.arms, settings=settings
        )
    print(f"{study.name}: {outcome.trained} trials run, {outcome.found} found finished, {len(outcome.failed)} failed")
    for trial, error in outcome.failed.items():
        print(f"iar-study: trial {trial} failed: {error}", file=sys.stderr)
    return EXIT_FAILED if outcome.failed else 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in arguments.settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, not {item!r}; for example --set train.lr=3e-4")
        settings[key] = value
    if arguments.data is not None:
        settings["data.name"] = arguments.data
    if arguments.image_size is not None:
        settings["data.image_size"] = arguments.image_size
    return settings


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from iar_study.study.workspace import Workspace

    workspace = Workspace.find()
    studies = [arguments.study] if arguments.study else sorted(p.stem for p in workspace.studies.glob("*.json"))
    if not studies:
        raise InputError("no study was run here yet; begin with `iar-study run components`")
    folder = Path(arguments.output) if arguments.output else workspace.reports

    from iar_study.reporting.report import write_index, write_report
    from iar_study.study.results import load_results

    for study in studies:
        print(write_report(load_results(workspace, study), folder))
    write_index(folder)
    return 0


def _ui(arguments: argparse.Namespace) -> int:
    from iar_study.study.tracking import store_uri
    from iar_study.study.workspace import Workspace

    workspace = Workspace.find()
    if store_uri(workspace) == f"sqlite:///{workspace.store}" and not workspace.store.exists():
        raise InputError(f"no runs yet: {workspace.store} is made by `iar-study run`")
    print(f"MLflow on http://127.0.0.1:{arguments.port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri(workspace)]
    os.execv(sys.executable, [*command, "--port", str(arguments.port)])


def _doctor(arguments: argparse.Namespace) -> int:
    from iar_study.study.doctor import examine

    findings = examine(arguments.data)
    for finding in findings:
        print(f"{'ok ' if finding.fits else 'NO '} {finding.what:<22} {finding.text}")
    return 0 if all(finding.fits for finding in findings) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())

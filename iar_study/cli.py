"""The command `iar-study`: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iar_study.errors import InputError

if TYPE_CHECKING:
    from iar_study.pipeline.workspace import Workspace

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
EXIT_TERMINATED = 143

STOPPED = "iar-study: stopped; the same command goes on from the last checkpoints"

SHOWN = 5
"""Diverged trials that `run` names."""

WATCH_S = 5.0
"""Seconds between two looks of `report --watch`."""

LEGEND = """
gap: the share of the inertia that an optimal assignment to the same centroids would save; similarity: mean cosine
within clusters and between them; neighbours: how many of the 8 nearest by index are among the 8 nearest in space;
path: length of the path through all codes in this order, as a share of a random order's"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 fine, 1 a trial failed or diverged or a check found a difference, 2 bad input, 130 and 143 stopped by SIGINT
    (Ctrl-C) and SIGTERM, 141 nobody reads the output any more.
    """
    arguments = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        with _warnings_in_log():
            code = arguments.call(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"iar-study: {error}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stopped:
        if stopped.code == EXIT_TERMINATED:
            print(STOPPED, file=sys.stderr)
        return int(stopped.code or 0)
    except BrokenPipeError:  # `iar-study list | head`: who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        print(
            f"iar-study: {error.strerror}: {error.filename or 'writing a file'}; mend it and run again", file=sys.stderr
        )
        return EXIT_INPUT


@contextmanager
def _warnings_in_log() -> Iterator[None]:
    """Write what libraries warn of to runs/warnings.log, if there is a runs/, so that our own line stands alone.

    Nothing is changed where Python was told what to do with warnings (`-W`, `PYTHONWARNINGS`).
    """
    if sys.warnoptions:
        yield
        return

    def write(
        message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        told = warnings.formatwarning(message, category, filename, lineno, line)
        with suppress(InputError, OSError), open(_workspace().warnings, "a", encoding="utf-8") as log:
            log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {told}")

    with warnings.catch_warnings():
        warnings.showwarning = write
        yield


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

    listing = command(
        "list",
        _list,
        "List the studies, a line each, with trials and about how long they take, and the profiles; or one study with "
        "its claim and its arms.",
        "iar-study list components --profile full",
    )
    listing.add_argument("study", nargs="?", metavar="STUDY", help="tell of this one alone (default: a line for each)")
    listing.add_argument("--profile", metavar="P", help="that the times are for (default: quick, or the plan's)")

    run = command(
        "run",
        _run,
        "Run a study, or all: prepare data, tokenizer and clusterings, then train and measure every arm with every "
        "seed. Finished trials are not run again; interrupted ones go on.",
        "iar-study run cluster-count --profile quick --seeds 0 1 2 --set train.steps=800",
    )
    _add_study(run, "a name from `iar-study list`, or all: every study, one after the other")
    _add_executor(run)
    run.add_argument(
        "--until", choices=["decided"], help="of a study with a plan: add pairs, look by look, until the plan says stop"
    )
    run.add_argument(
        "--allow-diverged",
        action="store_true",
        help="take a trial that diverged for a result; without it, the exit code is then 1",
    )
    run.add_argument(
        "--again",
        action="store_true",
        help="make anew what was made by code that is another one now; a run without it says so and finds it finished",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="say what is there, what would be made and what is shared; compute, download and write nothing",
    )

    measure = command(
        "measure",
        _measure,
        "Measure anew what the last run of a study has trained, by other evaluators or metrics, or on more samples. "
        "Nothing is trained, and samples that were drawn already are used again. The report then tells of it, too.",
        "iar-study measure components --evaluators inception dinov2 --samples 10000",
    )
    measure.add_argument("study", metavar="STUDY", help="a study that was run here")
    measure.add_argument(
        "--evaluators", nargs="+", default=[], metavar="E", help="extractors, each put on the same samples"
    )
    measure.add_argument("--samples", type=int, metavar="N", help="of each training (default: as many as before)")
    measure.add_argument(
        "--reference", metavar="R", help="of codes:PATH: images to measure against, a folder or ADM's .npz"
    )
    measure.add_argument("--image-size", type=int, metavar="PIXELS", help="with it: bring samples to this side")
    measure.add_argument("--metrics", nargs="+", default=[], metavar="FILE.py:NAME", help="beside the built-in ones")
    _add_executor(measure)

    plan = command(
        "plan",
        _plan,
        "Say what a study would take, before anything runs: operations, GPU hours, memory and disk, and what is "
        "missing on this machine. Nothing is downloaded, trained or written.",
        "iar-study plan components --profile paper --set model=L --gpu A100 --gpus 4",
    )
    _add_study(plan)
    plan.add_argument(
        "--gpu", default="H100", metavar="NAME", help="V100, A100, RTX4090, L40S, H100 (default), H200 or B200"
    )
    plan.add_argument("--gpus", type=int, default=8, metavar="N", help="that share one trial (default: 8)")
    plan.add_argument(
        "--utilisation", type=float, default=0.4, metavar="U", help="assumed share of the GPU's peak (default: 0.4)"
    )
    plan.add_argument("--json", action="store_true", help="for programs; the names of the numbers end in their units")

    results = command(
        "results",
        _results,
        "Print the means of every arm in every metric, over the finished trials of the study's last run; or write "
        "them, trial by trial, as a tidy table.",
        "iar-study results components --csv results.csv",
    )
    results.add_argument("study", metavar="STUDY", help="a study that was run here")
    results.add_argument(
        "--curves", action="store_true", help="of the tidy table: every metric at every step, in place of the end alone"
    )
    form = results.add_mutually_exclusive_group()
    form.add_argument("--csv", metavar="F", help="write the tidy table; - prints it")
    form.add_argument("--parquet", metavar="F", help="write it as Parquet")

    compare = command(
        "compare",
        _compare,
        "Set two stores, of two machines or two commits, side by side, study by study: what was asked and recorded, "
        "whether trials of the same hash have the same values, whether what arms differ from their baseline agrees, "
        "and the verdicts. Exit code 1 if a trial of the same hash has another value, or a finding or verdict is at "
        "odds; 2 if there is nothing to compare.",
        "iar-study compare . other-machine.tar.xz components",
    )
    compare.add_argument("a", metavar="A", help="a workspace's folder, or a file that `iar-study export` wrote")
    compare.add_argument("b", metavar="B", help="the same of another one")
    compare.add_argument("study", nargs="?", metavar="STUDY", help="default: every study that both have")
    compare.add_argument("--csv", metavar="F", help="write the table of arms, a row per metric and arm; - prints it")

    cache = command(
        "cache",
        _cache,
        "List what runs/cache and runs/trials hold, what it was made from and which studies use it; explain one "
        "product; or remove what no study that was run here uses any more.",
        "iar-study cache --prune --yes",
    )
    cache.add_argument("product", nargs="?", metavar="PRODUCT", help="a product's or trial's name, or how it begins")
    cache.add_argument("--prune", action="store_true", help="say what no study uses, and how large it is")
    cache.add_argument("--yes", action="store_true", help="with --prune: remove it")

    report = command(
        "report",
        _report,
        "Write reports/STUDY/ from the finished trials of the study's last run: pages, figures, tables for LaTeX, CSV. "
        "Only what has changed is drawn again.",
        "iar-study report components",
    )
    report.add_argument("study", nargs="?", metavar="STUDY", help="default, or `all`: every study that was run here")
    report.add_argument("-o", "--output", metavar="FOLDER", help="default: reports/ of the workspace")
    report.add_argument("--from", dest="store", metavar="STORE", help="another workspace, or a file of `export`")
    report.add_argument(
        "--check", action="store_true", help="write nothing; say what differs from the reports there, exit code 1 if so"
    )
    report.add_argument("--watch", action="store_true", help="follow a study that runs, until its trials have ended")

    results_file = command(
        "export",
        _export,
        "Write what reports need of the studies' last runs as one file, without weights: for `report --from`, `import` "
        "and `compare`.",
        "iar-study export components -o results.tar.xz",
    )
    results_file.add_argument("studies", nargs="*", metavar="STUDY", help="default: every study that was run here")
    results_file.add_argument("-o", "--output", required=True, metavar="F", help="a .tar.xz")
    results_file.add_argument(
        "--inputs", action="store_true", help="add tokenizers, codes and references, so that a run elsewhere can go on"
    )

    taken = command(
        "import",
        _import,
        "Add the trials of an export to this workspace; what is finished here is kept. `run` then finds them.",
        "iar-study import results.tar.xz",
    )
    taken.add_argument("store", metavar="STORE", help="a file of `export`, or another workspace")

    export = command(
        "export-samples",
        _export_samples,
        "Draw samples from a finished trial into an .npz that ADM's evaluator reads. The first ones are those that the "
        "trial was measured on. The same command goes on after an interruption.",
        "iar-study export-samples 3f9c --npz samples.npz --samples 50000",
    )
    export.add_argument("trial", metavar="TRIAL", help="hash of a folder in runs/trials, or how it begins")
    export.add_argument("--npz", required=True, metavar="F", help="gets arr_0, uint8 (N, H, W, 3), and arr_1, classes")
    export.add_argument("--samples", type=int, metavar="N", help="default: as many as the trial was measured on")

    evaluate = command(
        "evaluate",
        _evaluate,
        "Measure samples of any model against real images: Frechet and kernel distance, score, precision, recall, "
        "density and coverage, with intervals. The same command goes on after an interruption.",
        "iar-study evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --extractor inception",
    )
    evaluate.add_argument(
        "samples", metavar="SAMPLES", help=".npz with arr_0, uint8 (N, H, W, C), or a folder of images"
    )
    evaluate.add_argument(
        "--reference",
        required=True,
        metavar="R",
        help="digits, fashion-mnist or folder:PATH (their held-out images), or another .npz or folder of images",
    )
    evaluate.add_argument(
        "--extractor",
        default="set",
        metavar="E",
        help="set of the data set's evaluators (default), set:TRIAL by which that trial was measured, inception, "
        "inception:FILE with its weights, dinov2, or FILE.py:NAME",
    )
    evaluate.add_argument("--samples", dest="count", type=int, metavar="N", help="the first N alone (default: all)")
    evaluate.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="for folder:PATH: resize and crop to this side"
    )
    evaluate.add_argument("--json", action="store_true", help="for programs")

    encode = command(
        "encode",
        _encode,
        "Turn images into codes, memory-mapped, with LlamaGen's augmentations of the training images. The same command "
        "goes on after an interruption, and ends with the same bytes.",
        "iar-study encode images/ --tokenizer vq_ds16_c2i.pt -o codes/",
    )
    encode.add_argument("images", metavar="IMAGES", help="digits, fashion-mnist or the folder of a --data folder:PATH")
    encode.add_argument(
        "--tokenizer", required=True, metavar="T", help="LlamaGen's .pt, or a study's tokenizer-*.safetensors"
    )
    encode.add_argument("-o", "--output", required=True, metavar="CODES", help="folder that gets train/ and test/")
    encode.add_argument(
        "--augment", choices=["ten-crop", "flip", "none"], default="ten-crop", help="of train (default: ten-crop)"
    )
    encode.add_argument("--crop-range", type=float, default=1.1, help="side that is ten-cropped (default: 1.1 sides)")
    encode.add_argument("--image-size", type=int, metavar="PIXELS", help="default: the set's own, or 256 for LlamaGen")
    encode.add_argument("--batch", type=int, default=16, metavar="B", help="images at once (default: 16)")
    encode.add_argument("--split", choices=["train", "test"], help="encode this one alone (default: both)")
    encode.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")

    pack = command(
        "pack",
        _pack,
        "Turn LlamaGen's extracted codes, two small files an image, into one memory-mapped file with an index. The "
        "same command goes on after an interruption.",
        "iar-study pack imagenet256_codes -o data/imagenet256/train",
    )
    pack.add_argument("codes", metavar="CODES_FOLDER", help="imagenet{size}_codes; imagenet{size}_labels stands beside")
    pack.add_argument("-o", "--output", required=True, metavar="OUT", help="folder that gets codes, labels and index")
    pack.add_argument("--images", type=int, metavar="N", help="the first N alone, 1281167 for ImageNet (default: all)")
    pack.add_argument("--codebook-size", type=int, default=16_384, metavar="K", help="default: 16384")
    pack.add_argument("--classes", type=int, default=1000, metavar="C", help="default: 1000")

    rearrange = command(
        "rearrange",
        _rearrange,
        "Cluster a codebook and rearrange it so that the codes of a cluster are contiguous. Nothing is trained.",
        "iar-study rearrange vq_ds16_c2i.pt --clusters 128 -o rearranged.safetensors",
    )
    _add_codebook(rearrange)
    rearrange.add_argument("--clusters", type=int, required=True, metavar="N", help="number of clusters")
    rearrange.add_argument(
        "--strategy",
        default="balanced",
        metavar="S",
        help="balanced (default), greedy, plain, blocks, random, agglomerative or agglomerative-equal",
    )
    rearrange.add_argument("--seed", type=int, default=0, help="default: 0")
    _add_orders(rearrange, "none")
    rearrange.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help=".safetensors, or .pt for the tensor the authors' code reads",
    )
    rearrange.add_argument(
        "--checkpoint", metavar="OUT", help="of a LlamaGen tokenizer: also write it with its codes in the new order"
    )

    inspect = command(
        "inspect",
        _inspect,
        "Describe a codebook; with --clusters, compare strategies on it. A language model's embeddings will do too.",
        "iar-study inspect vq_ds16_c2i.pt --clusters 128",
    )
    _add_codebook(inspect)
    inspect.add_argument(
        "--tokens", metavar="FILE", help="tokens (.npy, or a study's codes-*.safetensors): also tell how codes are used"
    )
    inspect.add_argument("--clusters", type=int, metavar="N", help="compare the strategies at N clusters")
    inspect.add_argument("--strategies", nargs="+", metavar="S", help="only these (default: all)")
    inspect.add_argument("--seed", type=int, default=0, help="default: 0")
    _add_orders(inspect, "chain")
    inspect.add_argument(
        "--rearrangement", metavar="FILE", help="judge this one: a .safetensors, or the authors' .pt with --clusters"
    )

    sync = command(
        "sync",
        _sync,
        "Fill in what MLflow lacks of the studies that were run here, as after its server was down: from the trials' "
        "own journals, every point once. Exit code 1 if the store cannot be reached.",
        "iar-study sync",
    )
    sync.add_argument("study", nargs="?", metavar="STUDY", help="default: every study that was run here")

    ui = command(
        "ui", _ui, "Open the runs in MLflow's web page: starts `mlflow ui` on the right store.", "iar-study ui"
    )
    ui.add_argument("--port", type=int, default=5000, help="default: 5000")

    doctor = command(
        "doctor",
        _doctor,
        "Say what is installed, which device, data and store there are, and whether they fit. Nothing is fetched or "
        "written. Exit code 1 if something does not fit.",
        "iar-study doctor",
    )
    doctor.add_argument("--data", metavar="D", help="look at this data set, too")
    return parser


def _add_study(parser: argparse.ArgumentParser, names: str = "a name from `iar-study list`") -> None:
    parser.add_argument("study", metavar="STUDY", help=names)
    parser.add_argument("--profile", metavar="P", help="how big and how long (default: quick, or the plan's)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="default: the profile's")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms, and the baseline (default: all)")
    parser.add_argument(
        "--data", metavar="D", help="digits, fashion-mnist, folder:PATH or codes:PATH (default: the profile's)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="for folder:PATH: resize and crop to this side"
    )
    parser.add_argument(
        "--set", dest="settings", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change a setting"
    )


def _add_executor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor",
        default="processes",
        metavar="E",
        help="processes (default): as many trials at once as there are cores or GPUs; here: one after the other, in "
        "this process; ray: on a Ray cluster that runs already, runs/ being on a file system that its machines share; "
        "or FILE.py:NAME",
    )
    parser.add_argument(
        "--address", metavar="A", help="of the Ray cluster (default: RAY_ADDRESS, else one on this machine)"
    )


def _add_codebook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codebook", metavar="CODEBOOK", help=".npy, .npz, .safetensors, or a .pt or .ckpt checkpoint")
    parser.add_argument(
        "--lookup", choices=["cosine", "euclidean"], help="default: the checkpoint's own, cosine where it does not tell"
    )
    parser.add_argument("--tensor", metavar="NAME", help="the table in the file, where it holds several")


def _add_orders(parser: argparse.ArgumentParser, default: str) -> None:
    text = f"none, chain, spectral or path (default: {default})"
    parser.add_argument("--within", default=default, metavar="O", help=f"order of the codes inside a cluster: {text}")
    parser.add_argument("--between", default=default, metavar="O", help=f"order of the clusters: {text}")


def _workspace() -> Workspace:
    """Return the workspace that the command is called in."""
    from iar_study.pipeline.workspace import Workspace

    return Workspace.find()


def _list(arguments: argparse.Namespace) -> int:
    from iar_study.reporting.registry_text import registry_text, study_text
    from iar_study.running.estimate import estimate
    from iar_study.study.study import load_profile, load_profiles, load_studies, load_study

    workspace = _workspace()
    asked = load_study(workspace.experiments, arguments.study) if arguments.study else None
    profile = load_profile(workspace.experiments, _profile(arguments, asked))
    profiles = list(load_profiles(workspace.experiments).values())
    every = load_studies(workspace.experiments).values()
    studies, planned = ([study for study in every if bool(study.plan) == with_plan] for with_plan in (False, True))
    if asked:
        print(study_text(asked, profile, estimate([asked], profile, workspace)[1]))
        return 0
    print(registry_text(studies, planned, profiles, profile, *estimate(studies, profile, workspace)))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from iar_study.study.study import load_profile, load_studies, load_study

    workspace, every = replace(_workspace(), again=arguments.again), arguments.study == "all"
    if every:
        studies = [study for study in load_studies(workspace.experiments).values() if not study.plan]
    else:
        studies = [load_study(workspace.experiments, arguments.study)]
    profile, settings = load_profile(workspace.experiments, _profile(arguments, studies[0])), _settings(arguments)
    if arguments.until:
        return _until_decided(arguments, studies[0], profile, settings, workspace)
    unfit = _unfit(arguments, studies, profile, settings)
    if arguments.dry_run:
        return _dry_run(arguments, studies, profile, settings, workspace)
    codes = dict.fromkeys(unfit, EXIT_FAILED)
    for name, error in unfit.items():
        print(f"iar-study: study {name} failed: {error}", file=sys.stderr)
    for study in (study for study in studies if study.name not in unfit):
        try:
            codes[study.name] = _run_study(arguments, study, profile, settings, workspace)
        except Exception as error:
            if not every:
                raise
            # The others do not wait for someone to mend this one.
            if not isinstance(error, InputError | OSError):
                traceback.print_exc()  # ours to mend
            print(f"iar-study: study {study.name} failed: {_one_line(error)}", file=sys.stderr)
            codes[study.name] = EXIT_FAILED
    failed = [name for name, code in codes.items() if code]
    if every and _is_first():
        print(
            f"all: {len(codes) - len(failed)} of {len(codes)} studies done"
            + f"; failed: {', '.join(failed)}" * bool(failed)
        )
    return EXIT_FAILED if failed else 0


def _until_decided(
    arguments: argparse.Namespace, study: Any, profile: Any, settings: dict[str, Any], workspace: Workspace
) -> int:
    """Run a planned study look by look, until one of them decides or the last is taken."""
    if study.plan is None or arguments.study == "all":
        raise InputError(f"study {arguments.study} has no plan; --until is for those of experiments/plans")
    if arguments.seeds or arguments.dry_run:
        raise InputError("--until takes the seeds of the plan, look by look; leave --seeds and --dry-run out")
    if arguments.arms and study.plan.arm not in arguments.arms:
        raise InputError(f"the plan compares arm {study.plan.arm}; add it to --arms")
    from iar_study.training.processes import n_processes

    if n_processes() > 1:
        raise InputError("--until looks at results in one process; under torchrun give --seeds, look by look")
    for pairs in study.plan.looks:
        arguments.seeds = list(study.plan.seeds(pairs))
        _unfit(arguments, [study], profile, settings)
        if code := _run_study(arguments, study, profile, settings, workspace):
            return code
        from iar_study.evidence.results import load_results
        from iar_study.evidence.rules import planned_looks

        results = load_results(workspace, study.name)
        looks = planned_looks(results)
        if not looks or looks[-1].effect.pairs < looks[-1].pairs:
            raise InputError(f"a planned pair is lost: {study.name} can no longer be decided; see its report")
        print(f"{study.name}: look at {looks[-1].pairs} pairs: {looks[-1].finding}")
        if looks[-1].finding != "undecided":
            break
    return 0


def _profile(arguments: argparse.Namespace, study: Any) -> str:
    """Return the name of the profile that is asked for: else the plan's, or quick."""
    return arguments.profile or (study.plan.profile if study and study.plan else "quick")


def _unfit(
    arguments: argparse.Namespace, studies: list[Any], profile: Any, settings: dict[str, Any]
) -> dict[str, InputError]:
    """Return the studies that cannot run so, before anything starts -> why; raise where that is each of them."""
    from iar_study.study.checks import asked, check_effects, check_executor
    from iar_study.training.processes import n_processes

    if arguments.arms and arguments.study == "all":
        raise InputError("--arms is for one study; `iar-study run all` runs every arm of each")
    check_executor(arguments.executor, arguments.address)
    processes = n_processes()
    check_effects(studies, profile, arguments.arms, settings, processes)
    unfit = {}
    for study in studies:
        try:
            asked(study, profile, arguments.arms, arguments.seeds, settings, processes)
        except InputError as error:
            unfit[study.name] = error
    if len(unfit) == len(studies):
        raise unfit[studies[0].name]
    return unfit


def _is_first() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    from iar_study.training.processes import process_rank

    return process_rank() == 0


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _dry_run(
    arguments: argparse.Namespace, studies: list[Any], profile: Any, settings: dict[str, Any], workspace: Workspace
) -> int:
    from iar_study.reporting.dry_run_text import dry_run_text
    from iar_study.running.dry_run import look

    known: dict[Any, str] = {}
    found, failed = [], False
    for study in studies:
        try:
            found.append(
                look(
                    study,
                    profile,
                    workspace,
                    seeds=arguments.seeds,
                    arms=arguments.arms,
                    settings=settings,
                    known=known,
                )
            )
        except InputError as error:
            if len(studies) == 1:
                raise
            print(f"iar-study: study {study.name}: {error}", file=sys.stderr)
            failed = True
    if found and _is_first():
        print(dry_run_text(found))
    return EXIT_FAILED if failed else 0


def _run_study(
    arguments: argparse.Namespace, study: Any, profile: Any, settings: dict[str, Any], workspace: Workspace
) -> int:
    from iar_study.reporting.provisional import Provisional
    from iar_study.running.display import Display
    from iar_study.running.runner import run_study

    first = _is_first()
    with Display(quiet=not first) as display, Provisional(study.name, workspace) as write_provisional:
        outcome = run_study(
            study,
            profile,
            workspace,
            display,
            seeds=arguments.seeds,
            arms=arguments.arms,
            settings=settings,
            executor=arguments.executor,
            address=arguments.address,
            seed_done=write_provisional,
        )
    diverged = len(outcome.diverged)
    if first:
        print(
            f"{study.name}: {outcome.trained} trials run, {outcome.found} found finished, {len(outcome.failed)} failed"
            + f"; {diverged} diverged" * bool(diverged)
        )
    for trial, error in outcome.failed.items():
        print(f"iar-study: trial {trial} failed: {error}", file=sys.stderr)
    if first and diverged:
        more = f" and {diverged - SHOWN} more, see the report" if diverged > SHOWN else ""
        advice = "" if arguments.allow_diverged else "; --allow-diverged takes that for a result"
        print(f"iar-study: diverged: {'; '.join(outcome.diverged[:SHOWN])}{more}{advice}", file=sys.stderr)
    if first and outcome.trained + outcome.found:
        from iar_study.reporting.unchanged import write_changed

        page, *_ = write_changed(workspace, [study.name], workspace.reports, workspace.experiments)
        print(page)
    return EXIT_FAILED if outcome.failed or (outcome.diverged and not arguments.allow_diverged) else 0


MEASURED = ("samples", "reference", "image_size")
"""Settings of `evaluation` that `measure` has as options."""


def _measure(arguments: argparse.Namespace) -> int:
    from iar_study.running.display import Display
    from iar_study.running.measure_study import measure_study
    from iar_study.study.checks import check_executor

    workspace = _workspace()
    check_executor(arguments.executor, arguments.address)
    settings: dict[str, Any] = {f"evaluation.{key}": getattr(arguments, key) for key in MEASURED}
    settings = {key: value for key, value in settings.items() if value is not None}
    settings |= {"evaluation.metrics": " ".join(arguments.metrics)} if arguments.metrics else {}
    if not (arguments.evaluators or settings):
        raise InputError("say what is to be measured: --evaluators, --metrics, --reference or --samples")
    ways = [{**settings, "evaluation.extractor": name} for name in arguments.evaluators] or [settings]
    failed: dict[str, str] = {}
    with Display(quiet=not _is_first()) as display:
        for way in ways:
            outcome = measure_study(
                arguments.study, workspace, display, way, executor=arguments.executor, address=arguments.address
            )
            failed |= outcome.failed
    for trial, error in failed.items():
        print(f"iar-study: trial {trial} failed: {error}", file=sys.stderr)
    if _is_first():
        _tell_measured(arguments.study, workspace)
    return EXIT_FAILED if failed else 0


def _tell_measured(study: str, workspace: Workspace) -> None:
    """Add what was measured to MLflow and to the report."""
    from iar_study.reporting.unchanged import write_changed
    from iar_study.tracking.tracker import StoreError, fill_in

    try:
        fill_in(workspace, study)
    except StoreError as error:  # nothing is lost
        print(f"iar-study: {error}; `iar-study sync` adds what was measured", file=sys.stderr)
    page, *_ = write_changed(workspace, [study], workspace.reports, workspace.experiments)
    print(page)


def _plan(arguments: argparse.Namespace) -> int:
    from iar_study.reporting.needs_text import needs_text
    from iar_study.running.needs import find_needs
    from iar_study.study.checks import check_effects
    from iar_study.study.study import load_profile, load_study

    workspace, settings = _workspace(), _settings(arguments)
    study = load_study(workspace.experiments, arguments.study)
    profile = load_profile(workspace.experiments, _profile(arguments, study))
    check_effects([study], profile, arguments.arms, settings, arguments.gpus)
    plan = find_needs(
        study,
        profile,
        workspace,
        seeds=arguments.seeds,
        arms=arguments.arms,
        settings=settings,
        gpu=arguments.gpu,
        gpus=arguments.gpus,
        utilisation=arguments.utilisation,
    )
    print(plan.as_json() if arguments.json else needs_text(plan))
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    given = []
    for item in arguments.settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, not {item!r}; for example --set train.lr=3e-4")
        given.append((key, value))
    if arguments.data is not None:
        given.append(("data.name", arguments.data))
    if arguments.image_size is not None:
        given.append(("data.image_size", str(arguments.image_size)))
    settings: dict[str, Any] = {}
    for key, value in given:
        if settings.setdefault(key, value) != value:
            raise InputError(f"{key} is given twice, as {settings[key]} and as {value}; give it once")
    return settings


def _results(arguments: argparse.Namespace) -> int:
    workspace, path = _workspace(), arguments.csv or arguments.parquet
    if arguments.curves and not path:
        raise InputError("--curves is for a tidy table: give --csv F or --parquet F too")

    from iar_study.evidence.results import load_results
    from iar_study.reporting.results_text import export_results, results_text

    results = load_results(workspace, arguments.study)
    if not path:
        print(results_text(results))
        return 0
    rows = export_results(results, path, "csv" if arguments.csv else "parquet", curves=arguments.curves)
    if path != "-":
        print(f"{path}: {rows:,} rows")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from iar_study.evidence.claims import load_claims
    from iar_study.evidence.comparison import compare_stores
    from iar_study.evidence.export import open_store
    from iar_study.reporting.comparison_text import comparison_text, export_comparison
    from iar_study.reporting.tables import HEADLINE

    claims = load_claims(_workspace().experiments)
    with open_store(Path(arguments.a)) as a, open_store(Path(arguments.b)) as b:
        found = compare_stores(a, b, claims, HEADLINE, arguments.study)
    if arguments.csv != "-":
        print(comparison_text(found, arguments.a, arguments.b))
    if arguments.csv:
        rows = export_comparison(found, arguments.csv)
        if arguments.csv != "-":
            print(f"{arguments.csv}: {rows:,} rows")
    return 0 if found.agree else EXIT_FAILED


def _cache(arguments: argparse.Namespace) -> int:
    from iar_study.pipeline.cache import find_product, list_cache, prune, unused
    from iar_study.reporting.cache_text import cache_text, counted, product_text, unused_text

    workspace = _workspace()
    if arguments.yes and not arguments.prune:
        raise InputError("--yes goes with --prune")
    if arguments.prune and arguments.product:
        raise InputError("--prune removes what no study uses; it takes no name")
    products = list_cache(workspace)
    if arguments.prune:
        print(unused_text(unused(products)))
        if arguments.yes:
            print(f"removed: {counted(prune(workspace))}", flush=True)
    elif arguments.product:
        print(product_text(find_product(products, arguments.product), products))
    else:
        print(cache_text(products))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from iar_study.pipeline.workspace import studies_made, studies_run

    workspace = _workspace()
    name = None if arguments.study in (None, "all") else arguments.study
    if arguments.check and arguments.watch:
        raise InputError("--check compares what is there, --watch writes; give one of them")
    if arguments.watch and name is None:
        raise InputError("--watch follows one study; name it")
    folder = Path(arguments.output) if arguments.output else workspace.reports
    if not arguments.store:
        studies_run(workspace, name)  # before anything slow is imported

    from iar_study.evidence.export import open_store
    from iar_study.pipeline.trial import outdated
    from iar_study.reporting.unchanged import write_changed
    from iar_study.running.status import counted

    with open_store(Path(arguments.store)) if arguments.store else nullcontext(workspace) as store:
        studies = studies_run(store, name)
        if told := outdated(*studies_made(store, studies)):
            print(f"iar-study: {told}", file=sys.stderr)
        if not arguments.check and not arguments.watch:
            for page in write_changed(store, studies, folder, workspace.experiments):
                print(page, flush=True)
            return 0
        from iar_study.evidence.claims import load_claims
        from iar_study.reporting.site import check_site, watch

        claims = load_claims(workspace.experiments)
        if arguments.check:
            found = check_site(store, studies, folder, claims)
            for line in found:
                print(line)
            print(f"{folder}: {f'{len(found)} files differ' if found else 'every byte is as written anew'}")
            return EXIT_FAILED if found else 0
        for status in watch(store, studies[0], folder, claims, every_s=WATCH_S):
            print(f"{folder / studies[0] / 'index.html'}: {counted(status)}", flush=True)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from iar_study.evidence.export import export
    from iar_study.pipeline.workspace import studies_run

    workspace = _workspace()
    studies = arguments.studies or studies_run(workspace)
    trials = export(workspace, studies, Path(arguments.output), arguments.inputs)
    size = os.stat(arguments.output).st_size
    print(f"{arguments.output}: {trials} trials of {', '.join(studies)}, {size / 1e6:.1f} MB")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from iar_study.evidence.export import take_in

    workspace = _workspace()
    new, had = take_in(Path(arguments.store), workspace)
    print(f"{workspace.root}: {new} trials added, {had} were here; `iar-study sync` shows them in MLflow")
    return 0


def _export_samples(arguments: argparse.Namespace) -> int:
    from iar_study.running.display import Display
    from iar_study.running.samples import export_samples

    workspace = _workspace()
    with Display() as display:
        drawn = export_samples(workspace, arguments.trial, Path(arguments.npz), arguments.samples, display)
    print(f"{drawn.source}: {drawn.count} images of {drawn.height} x {drawn.width} pixels with their classes")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from iar_study.running.display import Display
    from iar_study.running.samples import evaluate_samples

    workspace = _workspace()
    with Display() as display:
        evaluation = evaluate_samples(
            Path(arguments.samples),
            arguments.reference,
            arguments.extractor,
            workspace,
            display,
            image_size=arguments.image_size,
            samples=arguments.count,
        )
    print(evaluation.as_json() if arguments.json else evaluation.text())
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    from iar_study.data.encoding import extract_codes
    from iar_study.running.display import Display
    from iar_study.tokenizers.given import load_tokenizer
    from iar_study.training.parallel import connected

    folder = Path(arguments.output)
    with Display(quiet=not _is_first()) as display, connected():
        found = extract_codes(
            arguments.images,
            load_tokenizer(arguments.tokenizer),
            folder,
            augmentation=arguments.augment,
            image_size=arguments.image_size,
            crop_range=arguments.crop_range,
            batch=arguments.batch,
            device=arguments.device,
            split=arguments.split,
            progress=display.update,
        )
    for split, extracted in found.items() if _is_first() else ():
        images, augmentations, tokens = extracted.codes.shape
        print(f"{folder / split}: {images} images x {augmentations} augmentations x {tokens} tokens")
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    from iar_study.data.llamagen_codes import pack_codes
    from iar_study.running.display import Display

    with Display() as display:
        packed = pack_codes(
            Path(arguments.codes),
            Path(arguments.output),
            codebook_size=arguments.codebook_size,
            classes=arguments.classes,
            images=arguments.images,
            progress=lambda *at: display.update("packing", *at),
        )
    images, augmentations, tokens = packed.codes.shape
    print(f"{arguments.output}: {images} images x {augmentations} augmentations x {tokens} tokens")
    return 0


def _rearrange(arguments: argparse.Namespace) -> int:
    from iar_study.codebook import Codebook
    from iar_study.codebook.analysis import rearrange
    from iar_study.running.display import Display

    output = Path(arguments.output)
    if output.suffix not in (".safetensors", ".pt"):
        raise InputError(f"-o {output}: a rearrangement is written as .safetensors or .pt")
    codebook = Codebook.load(Path(arguments.codebook), arguments.lookup, arguments.tensor)
    with Display() as display:
        arranged, facts = rearrange(
            codebook,
            arguments.strategy,
            arguments.clusters,
            seed=arguments.seed,
            within=arguments.within,
            between=arguments.between,
            progress=lambda *at: display.update("clustering", *at),
        )
    arranged.save(output, facts)
    print(table(facts))
    print(f"written to {output}")
    if arguments.checkpoint:
        from iar_study.tokenizers.vq import save_rearranged

        save_rearranged(Path(arguments.codebook), arranged.order, Path(arguments.checkpoint))
        print(f"tokenizer with rearranged codes written to {arguments.checkpoint}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from iar_study.codebook import STRATEGIES, Codebook
    from iar_study.codebook.analysis import compare_strategies, judge, load_tokens, summary
    from iar_study.codebook.rearrangement import load_rearrangement
    from iar_study.running.display import Display

    codebook = Codebook.load(Path(arguments.codebook), arguments.lookup, arguments.tensor)
    print(codebook.source)
    use = codebook.use(load_tokens(Path(arguments.tokens))) if arguments.tokens else None
    print(table(summary(codebook, use)))
    if arguments.rearrangement:
        arranged = load_rearrangement(Path(arguments.rearrangement), arguments.clusters)
        print(f"\n{arguments.rearrangement}\n{table(judge(codebook, arranged, use))}")
    elif arguments.clusters is not None:
        with Display() as display:
            compared = compare_strategies(
                codebook.points,
                arguments.clusters,
                arguments.strategies or list(STRATEGIES),
                seed=arguments.seed,
                within=arguments.within,
                between=arguments.between,
                progress=lambda *at: display.update("comparing", *at),
            )
        print(f"\n{arguments.clusters} clusters\n{compared.to_string(index=False, float_format='{:.4g}'.format)}")
    if arguments.rearrangement or arguments.clusters is not None:
        print(LEGEND)
    return 0


def table(facts: Any) -> str:
    """Return named facts as aligned lines."""
    width = max(map(len, facts.keys()))
    return "\n".join(
        f"  {name:<{width}}  {f'{value:.6g}' if isinstance(value, float) else value}" for name, value in facts.items()
    )


def _sync(arguments: argparse.Namespace) -> int:
    from iar_study.tracking.tracker import StoreError, fill_in

    try:
        filled = fill_in(_workspace(), arguments.study)
    except StoreError as error:
        print(f"iar-study: {error}", file=sys.stderr)
        return EXIT_FAILED
    for problem in filled.skipped:
        print(f"iar-study: {problem}", file=sys.stderr)
    print(f"{', '.join(filled.studies) or 'no study'}: {filled.runs} trials and {filled.points} points added to MLflow")
    return EXIT_FAILED if filled.skipped else 0


def _ui(arguments: argparse.Namespace) -> int:
    from iar_study.tracking.store import check_store, store_uri

    workspace = _workspace()
    check_store(store_uri(workspace))
    if store_uri(workspace) == f"sqlite:///{workspace.store}" and not workspace.store.exists():
        raise InputError(f"no runs yet: {workspace.store} is made by `iar-study run`")
    print(f"MLflow on http://127.0.0.1:{arguments.port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri(workspace)]
    os.execv(sys.executable, [*command, "--port", str(arguments.port)])


def _doctor(arguments: argparse.Namespace) -> int:
    from iar_study.running.doctor import examine

    findings = examine(arguments.data)
    for finding in findings:
        print(f"{'ok ' if finding.fits else 'NO '} {finding.what:<22} {finding.text}")
    return 0 if all(finding.fits for finding in findings) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())

"""The committed reports are what the committed results give, byte for byte, and the README tells their verdicts."""

import re
import shutil
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from iar_study.evidence.claims import load_claims
from iar_study.evidence.export import open_store
from iar_study.pipeline.workspace import Workspace, studies_run
from iar_study.reporting.site import check_site, write_index
from iar_study.study.study import load_profile

ROOT = Workspace(Path(__file__).parents[2])
README = (ROOT.root / "README.md").read_text()
LOCK = (ROOT.root / "requirements.lock").read_text()
DRAW = ("matplotlib", "numpy", "pandas", "pillow", "scipy", "seaborn")
"""What draws and counts: the same bytes are promised for the same versions."""
locked = pytest.mark.skipif(
    any(f"\n{name}=={version(name)}\n" not in LOCK for name in DRAW), reason="not the versions of requirements.lock"
)

EXAMPLES = sorted(path.parent for path in (ROOT.root / "reports").glob("example*/results.tar.xz"))
REPORTS = [page.parent for example in EXAMPLES for page in sorted(example.glob("*/results.csv"))]
QUICK = ("components", "code-distance", "guidance", "model-scale")
"""Each kind of study, and one with a factor; the others are written by the same code, and `make slow` compares them."""


@pytest.fixture(scope="module")
def stores():
    """Each example -> its store, unpacked once."""
    with ExitStack() as stack:
        yield {example: stack.enter_context(open_store(example / "results.tar.xz")) for example in EXAMPLES}


@locked
@pytest.mark.parametrize(
    "report",
    [pytest.param(report, marks=[] if report.name in QUICK else pytest.mark.slow) for report in REPORTS],
    ids=lambda report: f"{report.parent.name}/{report.name}",
)
def test_a_committed_report_is_what_the_committed_results_give(report, stores):
    assert check_site(stores[report.parent], [report.name], report.parent, load_claims(ROOT.experiments)) == []


@locked
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_committed_index_is_that_of_the_committed_reports(example, stores, tmp_path):
    assert studies_run(stores[example]) == [report.name for report in REPORTS if report.parent == example]
    copy = shutil.copytree(example, tmp_path / "example")
    write_index(copy, load_claims(ROOT.experiments))
    for name in ("index.html", "index.md"):
        assert (copy / name).read_bytes() == (example / name).read_bytes()


def test_the_committed_results_are_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in (ROOT.root / "reports").glob("example*/*.tar.xz")) < 20e6


INDEX = (ROOT.example.parent / "index.md").read_text()


def plain(text):
    """A text of Markdown as it is read."""
    return re.sub(r"\\([\\`*_{}\[\]<>#|~!$&])", r"\1", " ".join(text.split()))


def test_the_readme_tells_what_was_found_of_every_claim():
    """Each row is the committed one, word for word, with the profile and the seeds; none is left out."""
    found = pd.concat(pd.read_csv(path, keep_default_na=False) for path in ROOT.example.parent.glob("*/verdicts.csv"))
    scales = {row["claim"]: row["scale"] for row in found.to_dict("records")}
    shown = re.findall(r"^\| \[(.+?)\]\(#claim-(\d+)\) \| \*\*(.+?)\*\* \| (.*) \|$", INDEX, re.MULTILINE)
    cells = r"\[(.+?)\]\(reports/example/index\.md#claim-(\d+)\) \| (.+?) \| (.+?) \| (.*?)"
    rows = re.findall(rf"^\| {cells} \|$", README, re.MULTILINE)
    assert [row[:4] for row in rows] == [(plain(name), i, answer, plain(said)) for name, i, answer, said in shown]
    for name, *_, scale in rows:
        run = re.search(r"profile (\w+)(?:;.*seeds ([\d, ]+))?", scales.get(name, ""))
        seeds = f"{len(run[2].split(','))} seeds" if run and run[2] else "exact"  # no chance enters
        assert scale == (f"{run[1]}, {seeds}" if run else "")


def test_the_readme_answers_as_the_committed_index_does():
    said = plain(INDEX.partition("## Does IAR help?")[2].partition("[The paper's own numbers]")[0])
    assert said
    assert said in " ".join(README.split())


def test_the_readme_tells_the_profile_as_it_is():
    """What stands under "here" is what `full` has."""
    table = README.partition("## How far this is from the paper")[2].partition("##")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("| ")]
    here = {row[0]: row[-1] for row in rows}
    profile = load_profile(ROOT.experiments, "full")
    config = profile.config
    assert here["codes N"] == f"{config.tokenizer.codebook_size:,}"
    n = config.clustering.n_clusters
    assert here["clusters n, codes of each m"] == f"n = {n}, m = {config.tokenizer.codebook_size // n}"
    epochs = config.train.steps * config.train.batch_size / 60_000
    assert here["epochs"] == f"{epochs:.1f} ({config.train.steps:,} steps of {config.train.batch_size} images)"
    assert here["learning rate"].startswith(f"{config.train.lr:.0e}".replace("e-0", "e-"))
    assert here["dropout, moving average"] == f"{config.model.dropout:g}, {config.train.ema:g}"
    assert here["guidance"].startswith(f"{config.evaluation.guidance:g};")
    assert f"{config.evaluation.samples:,} samples" in here["evaluator"]
    assert here["seeds"] == f"{len(profile.seeds)}"
    side = 28 // config.tokenizer.patch
    assert here["tokens of an image"] == f"{side} x {side}"

"""The committed reports are what the committed results give, byte for byte, and the README tells their verdicts."""

import re
import shutil
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iar_study.reporting.site import check_site, write_index
from iar_study.study.claims import load_claims
from iar_study.study.export import open_store
from iar_study.study.workspace import Workspace, studies_run

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


@pytest.fixture(scope="module")
def stores():
    """Each example -> its store, unpacked once."""
    with ExitStack() as stack:
        yield {example: stack.enter_context(open_store(example / "results.tar.xz")) for example in EXAMPLES}


@locked
@pytest.mark.parametrize("report", REPORTS, ids=lambda report: f"{report.parent.name}/{report.name}")
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


def numbers(text):
    """The numbers of a text, with as many digits as they are written with."""
    return re.findall(r"[-+]?\d+(?:\.\d+)?", text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


def test_the_readme_tells_the_committed_verdicts():
    """Every claim has its row: the verdict, no number that the evidence does not have, the profile and the seeds."""
    found = pd.concat(pd.read_csv(path, keep_default_na=False) for path in ROOT.example.parent.glob("*/verdicts.csv"))
    told = {row["claim"]: row for row in found.to_dict("records")}
    untold = {"verdict": "not tested", "evidence": "", "alternatives": "", "scale": ""}
    cells = r"\[(.+?)\]\(reports/example/index\.md#claim-(\d+)\) \| (.+?) \| (.+?) \| (.*?)"
    rows = re.findall(rf"^\| {cells} \|$", README, re.MULTILINE)
    claims = load_claims(ROOT.experiments)
    assert [(row[0], int(row[1])) for row in rows] == [(claim.name, i + 1) for i, claim in enumerate(claims)]
    for name, _, verdict, evidence, scale in rows:
        row = told.get(name, untold)
        assert verdict == row["verdict"]
        said = [float(number) for number in numbers(row["evidence"] + row["alternatives"])]
        for number in numbers(evidence):
            half = 0.5 * 10 ** -len(number.partition(".")[2])  # of the last digit that is told
            assert any(abs(value - float(number)) <= half + 1e-9 for value in said), (name, number)
        run = re.search(r"profile (\w+)(?:;.*seeds ([\d, ]+))?", row["scale"])
        seeds = f"{len(run[2].split(','))} seeds" if run and run[2] else "exact"  # no chance enters
        assert scale == (f"{run[1]}, {seeds}" if run else "")


def intervals(text):
    """The differences of a text with their intervals, as they are written."""
    signed = r"([-+]\d+\.\d+)"
    return re.findall(rf"{signed} \[{signed}, {signed}\]", text.replace("\N{MINUS SIGN}", "-"))


def differences(example, metrics):
    """(p, 3): mean and 95% interval of any arm minus any other, in any of these metrics, of an example's studies."""
    found = []
    for table in map(pd.read_csv, sorted(example.glob("*/results.csv"))):
        for _, of_metric in table[table["metric"].isin(metrics)].groupby("metric"):
            arms = of_metric.pivot(index="seed", columns="arm", values="value").to_numpy()
            pairs = (arms[:, :, None] - arms[:, None, :]).reshape(len(arms), -1)
            reach = stats.t.ppf(0.975, len(arms) - 1) * stats.sem(pairs, axis=0)
            found.append(np.stack([pairs.mean(axis=0), pairs.mean(axis=0) - reach, pairs.mean(axis=0) + reach], axis=1))
    return np.concatenate([np.empty((0, 3)), *found])


def test_the_readme_tells_no_interval_that_is_not_in_the_committed_results():
    """Nor does its prose: each is counted anew from the tables of the reports."""
    metrics = ["fd/classifier@2k", "fd/classifier@5k", "val/token_nll", "val/cluster_nll"]
    evidence = " ".join(path.read_text() for example in EXAMPLES for path in example.glob("*/verdicts.csv"))
    judged = np.array(intervals(evidence), float).reshape(-1, 3)
    known = np.concatenate([judged, *(differences(example, metrics) for example in EXAMPLES)])
    prose = " ".join(line.strip() for line in README.splitlines() if not line.startswith("|"))
    assert intervals(prose)
    for interval in intervals(prose):
        halves = [0.5 * 10 ** -len(number.partition(".")[2]) + 1e-9 for number in interval]
        assert (abs(known - np.array(interval, float)) <= halves).all(axis=1).any(), interval

"""The index, the check of a site, the same bytes everywhere, and the watch."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from iar_study.evidence.claims import Past, judge
from iar_study.pipeline.workspace import Workspace
from iar_study.reporting import site
from iar_study.reporting.index import write_index
from iar_study.reporting.report import conclusion, write_report
from iar_study.reporting.site import check_site, watch, write_site
from iar_study.running.status import Status
from tests.reporting.made_up import ANSWERS, CLAIMS, FD, files, light, values_of, with_values
from tests.reporting.pages import Page, rendered

PAPER = "paper/index.html"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def verdicts(results):
    return judge(CLAIMS, results)


@pytest.fixture
def bare(results):
    return replace(light(results), samples={}, reconstructions={})


@pytest.fixture
def store(bare, monkeypatch) -> Workspace:
    """A store whose studies are all like the made-up one."""
    monkeypatch.setattr(site, "load_results", lambda store, study: replace(bare, study=study))
    monkeypatch.setattr(site, "status_of", lambda store, study: [Status("baseline", 0, True, 500, 500)])
    return Workspace(Path("nowhere"))


def test_index_lists_reports_and_nothing_else(results, tmp_path):
    assert "No report yet" in write_index(tmp_path).read_text()
    write_report(replace(light(results), samples={}), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<title>not ours</title>")
    page = Page(write_index(tmp_path).read_text())
    assert conclusion(results) in page.text
    picture = "components/difference-fd-classifier-2k.png"
    assert page.addresses == ["data:,", PAPER, "components/index.html", picture, "components/index.html"]
    assert not page.tables


def rows_of(page):
    """The rows on claims of all boxes of an index: claim, answer, evidence."""
    tables = [rows for _, rows in page.tables if rows[0] == ["claim", "found", "evidence"]]
    return {row[0]: row for rows in tables for row in rows[1:]}


def test_index_tells_the_verdicts_of_all_reports(results, verdicts, tmp_path):
    bare = replace(light(results), samples={}, reconstructions={})
    write_report(bare, tmp_path, verdicts)
    other = replace(bare, study="balance")
    write_report(other, tmp_path, judge(CLAIMS, other))
    page = Page(write_index(tmp_path, CLAIMS).read_text())
    rows = rows_of(page)
    assert set(rows) == {c.name for c in CLAIMS}
    answers = [*ANSWERS, "not tested", "not tested"]
    assert [rows[c.name][1] for c in CLAIMS] == answers
    told = [*(verdict.evidence for verdict in verdicts), "arm 'balanced' was not run", "one generator is built here"]
    assert [rows[c.name][2] for c in CLAIMS] == told
    within = [f"#claim-{i + 1}" for i in range(len(CLAIMS))]
    assert {link[1:] for link in within} <= set(page.ids)
    for i, (each, evidence) in enumerate(zip(CLAIMS, told, strict=True)):
        heading = f"{each.name[:1].upper()}{each.name[1:]}: {answers[i]}"
        words = f"{heading} {each.sentence} ({each.source}) Evidence {evidence} Rule"
        assert words in page.words
    pictures = [address for address in page.addresses if address.endswith(".png") and "/" in address]
    assert pictures == [f"{name}/difference-fd-classifier-2k.png" for name in ("balance", "components")]
    pages = {"components/index.html", "balance/index.html", PAPER, "data:,", "effects.png", "effects.svg", *within}
    assert {address for address in page.addresses if address not in pictures} == pages
    assert (tmp_path / "effects.png").is_file()
    marked = Page(rendered(tmp_path / "index.md"))
    assert {name: row[2] for name, row in rows_of(marked).items()} == {name: row[2] for name, row in rows.items()}
    assert {unquote(address) for address in marked.addresses} == {
        *("paper/index.md", "components/index.md", "balance/index.md", "effects.png"),
        *pictures,
        *within,
    }
    assert "not-tested" in " ".join(page.classes)
    for study in ("components", "balance"):
        assert 'id="verdicts"' in (tmp_path / study / "index.html").read_text()


def test_index_answers_whether_it_helps(results, tmp_path):
    """By rule, from the comparisons that are conditions of the question; what counts goes through Holm."""
    bare = replace(light(results), samples={}, reconstructions={})
    pooled = [replace(CLAIMS[0], pooled="the method"), replace(CLAIMS[1], name="another", pooled="the method")]
    write_report(bare, tmp_path, judge(pooled, bare))
    page = Page(write_index(tmp_path, pooled).read_text())
    (said,) = (row for row in page.text.split("\n") if "over 2 conditions (6 pairs of trainings)" in row)
    effects = [np.log(values_of(bare, FD, arm) / values_of(bare, FD, "baseline")).mean() for arm in ("iar", "random")]
    change = f"{100 * np.expm1(np.mean(effects)):+.1f}%".replace("-", MINUS)
    assert "By the method, " in said
    assert f"FD changes by {change} [" in said
    assert (
        "Rules that stood before their data, at this scale: iar helps: supported here; another: contradicted here."
        in said
    )
    assert "A gain of 5.9%, as the paper's for its model B at 16x16 tokens in another FID, is" in said
    twice = [*pooled, replace(pooled[0], name="the same again")]
    write_report(bare, tmp_path, judge(twice, bare))
    assert "over 2 conditions (6 pairs of trainings)" in Page(write_index(tmp_path, twice).read_text()).text
    old = [replace(each, past=Past("2026-11-27", after_data=True)) for each in pooled]
    write_report(bare, tmp_path, judge(old, bare))
    assert "No result here counts as a test of the paper" in Page(write_index(tmp_path, old).read_text()).text


def test_index_before_any_report_says_that_nothing_is_tested(tmp_path):
    page = Page(write_index(tmp_path, CLAIMS).read_text())
    rows = rows_of(page)
    assert {row[1] for row in rows.values()} == {"not tested"}
    evidence = [rows[c.name][2] for c in CLAIMS]
    assert evidence == ["study components was not run"] * 5 + [
        "study balance was not run",
        "one generator is built here",
    ]
    assert [address for address in page.addresses if "#" not in address] == ["data:,", PAPER]
    assert "answer" not in page.ids
    assert "No report yet" in page.text


def test_index_follows_a_report_that_was_written_again(results, verdicts, tmp_path):
    bare = replace(light(results), samples={}, reconstructions={})
    write_report(bare, tmp_path, verdicts)
    write_index(tmp_path, CLAIMS)
    worse = with_values(bare, FD, "iar", values_of(bare, FD, "random"))
    write_report(worse, tmp_path, judge(CLAIMS, worse))
    assert rows_of(Page(write_index(tmp_path, CLAIMS).read_text()))["iar helps"][1] == "worse"
    # A claim that is no longer made is not told of, though the report still tells of it.
    assert set(rows_of(Page(write_index(tmp_path, CLAIMS[1:]).read_text()))) == {c.name for c in CLAIMS[1:]}


def test_index_does_not_deny_a_study_whose_report_is_older_than_the_claim(results, verdicts, tmp_path):
    write_report(replace(light(results), samples={}, reconstructions={}), tmp_path, verdicts[1:])
    row = rows_of(Page(write_index(tmp_path, CLAIMS).read_text()))["iar helps"]
    assert row[1] == "not tested"
    assert "older than the claim" in row[2]


def test_index_follows_the_study_and_not_a_copy_that_was_put_aside(results, verdicts, tmp_path):
    bare = replace(light(results), samples={}, reconstructions={})
    old = with_values(bare, FD, "iar", values_of(bare, FD, "random"))
    write_report(old, tmp_path, judge(CLAIMS, old)).parent.rename(tmp_path / "components-old")
    write_report(bare, tmp_path, verdicts)
    assert rows_of(Page(write_index(tmp_path, CLAIMS).read_text()))["iar helps"][1] == "better"


def write(store, studies, folder):
    return [path.relative_to(folder).as_posix() for path in write_site(store, studies, folder, CLAIMS)]


def test_a_site_is_its_reports_and_their_index(store, tmp_path):
    pages = ["balance/index.html", "components/index.html", "index.html"]
    assert write(store, ["balance", "components"], tmp_path) == pages
    assert check_site(store, ["balance", "components"], tmp_path, CLAIMS) == []
    # One of several studies: the index tells of the others too, and is not compared.
    assert check_site(store, ["balance"], tmp_path, CLAIMS) == []


def test_every_link_of_the_site_leads_somewhere(store, results, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "load_results", lambda store, study: replace(results, study=study))
    write(store, ["components"], tmp_path)
    pages = {path: Page(path.read_text()) for path in tmp_path.rglob("*.html")}
    assert len(pages) == 3
    for path, page in pages.items():
        for address in page.addresses:
            if re.match("https?:|data:", address):
                continue
            name, _, anchor = address.partition("#")
            target = path.parent / name if name else path
            assert target.is_file(), address
            assert not anchor or anchor in pages[target].ids, address


def test_a_check_names_exactly_what_was_changed(store, tmp_path):
    write(store, ["components"], tmp_path)
    folder = tmp_path / "components"
    page = folder / "index.html"
    page.write_text(page.read_text().replace("3 seeds)", "9 seeds)", 1))
    picture = folder / "difference-fd-classifier-2k.png"
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).copy()
    pixels[5, 7] ^= 255
    Image.fromarray(pixels).save(picture)
    (folder / "difference-val-token_nll.svg").unlink()
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "README.md").write_text("mine, and no report's")
    found = check_site(store, ["components"], tmp_path, CLAIMS)
    assert [line.partition(":")[0] for line in found] == [
        "components/difference-fd-classifier-2k.png",
        "components/difference-val-token_nll.svg",
        "components/index.html",
        "components/notes.txt",
    ]
    assert re.search(r"1 of [\d,]+ pixels differ", found[0])
    assert found[1].endswith("missing")
    assert "3 seeds)" in found[2]
    assert "9 seeds)" in found[2]
    assert found[3].endswith("no report writes it")


def test_the_same_bytes_in_another_place_and_time(tmp_path):
    """Another process, locale, time zone, folder and hash seed."""
    code = """
import sys
from pathlib import Path
from iar_study.reporting.report import write_report
from iar_study.reporting.site import write_index
from iar_study.evidence.claims import judge
from tests.reporting.conftest import make_results
from tests.reporting.made_up import CLAIMS, light
results = light(make_results())
folder = Path(sys.argv[1])
write_report(results, folder, judge(CLAIMS, results))
write_index(folder, CLAIMS)
"""
    places = {
        "here": {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"},
        "there": {"TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "2"},
    }
    made = []
    for name, environment in places.items():
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        subprocess.run(command, check=True, env={**os.environ, **environment})
        index = (tmp_path / name / "index.html").read_bytes()
        made.append({"index": index} | files(tmp_path / name / "components"))
    assert made[0] == made[1]


@pytest.mark.parametrize("running", [True, False])
def test_a_report_of_a_study_that_has_not_ended_is_provisional(store, tmp_path, monkeypatch, running):
    ended, other = Status("baseline", 0, True, 500, 500), Status("iar", 0, False, 40, 500, running=running)
    monkeypatch.setattr(site, "status_of", lambda store, study: [ended, other])
    page, *_ = write_site(store, ["components"], tmp_path, CLAIMS)
    words = "Provisional: 1 of 2 trials have ended"
    assert words in Page(page.read_text()).headings
    assert words in page.with_suffix(".md").read_text()
    assert ("refresh" in page.read_text()) is running


def test_a_watch_follows_until_all_trials_have_ended(store, bare, tmp_path, monkeypatch):
    steps = [
        [Status("baseline", 0, True, 500, 500), Status("iar", 0, False, 40, 500)],
        [Status("baseline", 0, True, 500, 500), Status("iar", 0, False, 40, 500)],  # nothing new: nothing is written
        [Status("baseline", 0, True, 500, 500), Status("iar", 0, False, 90, 500)],
        [Status("baseline", 0, True, 500, 500), Status("iar", 0, True, 500, 500)],
    ]
    looks = iter(steps)
    monkeypatch.setattr(site, "status_of", lambda store, study: next(looks))
    shown = []
    for status in watch(store, "components", tmp_path, CLAIMS, every_s=0.0):
        page = Page((tmp_path / "components" / "index.html").read_text())
        shown.append((status, [title for title in page.headings if title.startswith("Provisional")]))
    running = ["Provisional: 1 of 2 trials have ended"]
    assert shown == [(steps[0], running), (steps[2], running), (steps[3], [])]
    assert next(looks, None) is None
    # What is left is what a report alone writes.
    again = tmp_path / "again"
    write_report(replace(bare, study="components"), again, judge(CLAIMS, bare))
    assert files(again / "components") == files(tmp_path / "components")

import csv
import re
from dataclasses import replace
from itertools import groupby
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from iar_study.errors import InputError
from iar_study.evaluation.metrics import FIDELITY, METRICS
from iar_study.evidence.claims import judge
from iar_study.evidence.rules import Better, percent
from iar_study.reporting import pages
from iar_study.reporting.illustrations import save
from iar_study.reporting.pages import markdown
from iar_study.reporting.report import conclusion, in_short, write_report
from iar_study.reporting.site import write_index
from iar_study.reporting.tables import VERDICT, verdict_rows
from iar_study.reporting.unchanged import ABOUT
from iar_study.running.status import Status
from tests.reporting.made_up import (
    ANSWERS,
    CLAIMS,
    FD,
    NLL,
    ODD,
    ascii_minus,
    claim,
    files,
    light,
    values_of,
    with_values,
    without,
)
from tests.reporting.pages import Page, rendered


@pytest.fixture(scope="module")
def verdicts(results):
    return judge(CLAIMS, results)


@pytest.fixture(scope="module")
def report(results, verdicts, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("reports"), verdicts)


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


@pytest.fixture(scope="module")
def marked(report):
    """The Markdown page, rendered."""
    return Page(rendered(report.with_suffix(".md")))


def test_same_results_same_bytes(results, verdicts, report, tmp_path):
    shuffled = replace(
        results,
        final=results.final.sample(frac=1, random_state=0),
        curves=results.curves.sample(frac=1, random_state=0),
    )
    again = write_report(shuffled, tmp_path, verdicts)
    assert files(again.parent) == files(report.parent)


def test_the_folder_holds_these_files_and_no_others(report):
    compared = ("fd-classifier-2k", "val-token_nll", "class_agreement-classifier-2k", "val-cluster_accuracy")
    curves = ("val-token_nll", "val-cluster_accuracy", "train-token_nll")
    charts = {f"difference-{metric}" for metric in compared} | {"quality-fd-classifier-2k"}
    charts |= {f"{kind}-{metric}" for kind in ("curve", "curve-difference") for metric in curves}
    drawn = {f"{name}.svg" for name in charts} | {f"{name}.png" for name in charts}
    drawn |= {"positions.png", "samples.png", "reconstructions.png"}
    assert files(report.parent).keys() == drawn | {
        "index.html",
        "index.md",
        "tables.tex",
        "results.csv",
        "verdicts.csv",
        "trials.json",
        ABOUT,
    }


def test_everything_the_pages_ask_for_is_there(report, page, marked):
    charts, pictures = ({path.name for path in report.parent.glob(f"*.{kind}")} for kind in ("svg", "png"))
    for text, drawn in ((page, charts | pictures), (marked, pictures)):
        local = {unquote(a) for a in text.addresses if not re.match("https://|data:|#", a)}
        local.remove("../paper/index.html" if text is page else "../paper/index.md")  # written with the index
        assert local == drawn | {"results.csv", "verdicts.csv", "tables.tex", "trials.json"}
        assert all((report.parent / address).is_file() for address in local)
    anchors = {address[1:] for address in page.addresses if address.startswith("#")}
    assert anchors == {f"arm-{i}" for i in range(1, 6)} <= set(page.ids)


def test_the_page_is_small_and_needs_no_script(report, page):
    assert sum(map(len, files(report.parent).values())) < 1_600_000
    assert "script" not in page.tags
    assert len(page.alts) == 14
    assert all(page.alts)
    with Image.open(report.parent / "samples.png") as picture:
        assert picture.info.keys() <= {"dpi"}


def test_what_a_reader_looks_for_comes_in_order(page, marked, results):
    first = [results.question, results.claim, conclusion(results), "What it says of the claims, at this scale"]
    places = [page.text.rindex(part) for part in first]
    assert places == sorted(places)
    shared = [
        "What these seeds can and cannot show",
        "What was run",
        "During training",
        "How much training until the baseline's final quality",
        "By position in the image",
        "Samples",
        "The tokenizer, before and after rearrangement",
        "The paper's own numbers, apart from ours",
        "How each metric is defined",
        "Where the numbers come from",
    ]
    beside = [f"{title}: every arm beside the baseline" for title in ("Samples", "Predictions on held-out images")]
    begin = ["What it says of the claims, at this scale", "Differences from the baseline"]
    assert [title.replace("\u2019", "'") for title in page.headings] == [*begin, *beside, *shared]
    assert marked.headings == [*begin, "Every arm beside the baseline", *shared]


def test_the_pages_tell_how_to_check_them(page, marked, results):
    for text in (page, marked):
        assert "iar-study run components --profile quick --seeds 0 1 2" in text.words
        assert "not comparable with the numbers above" in text.words
        assert "of this comparison alone" in text.words
        assert "this page makes 56 such comparisons" in text.words
        rows = [row for table in text.under("Where the numbers come from") for row in table[1:]]
        ids = results.final[["seed", "trial", "run_id"]].drop_duplicates()
        expected = [[str(seed), trial[:12], run, "0123456789"] for seed, trial, run in ids.itertuples(index=False)]
        assert [row[-6:-2] for row in rows] == expected
        assert all(row[-1] == "Python 3.11.7, torch 2.13.0, x86_64, AVX512" for row in rows)


def test_every_metric_that_is_shown_is_defined(report, page, marked, results):
    measured = dict.fromkeys(results.final["metric"])
    shown = [*(key for key in measured if "right_cluster" not in key), "train/token_nll"]
    assert sorted(re.findall("<dt>.*?<code>(.*?)</code>", report.read_text())) == sorted(shown)
    for text in (page, marked):
        assert "2k samples, classifier features. Not FID: other features. Lower is better." in text.words
    assert all(f"({key})" in marked.words for key in shown)


def test_the_numbers_are_in_the_csv(report, results):
    with (report.parent / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(results.final.columns)
    named = {(row["arm"], int(row["seed"]), row["metric"]): float(row["value"]) for row in rows}
    columns = ("arm", "seed", "metric", "value")
    assert named == {tuple(key): value for *key, value in results.final[list(columns)].itertuples(index=False)}
    assert len(rows) == len(results.final)


def test_conclusion_tells_findings_scale_and_limit(results):
    said = conclusion(results)
    assert said.startswith("On fashion-mnist (28 x 28 pixels; GPT, 0.28 M weights; 3 seeds), compared with baseline")
    assert re.search(
        r"FD \(classifier, 2k\) is better for iar \(-14\.\d% \[-[\d.]+%, -[\d.]+%\]\), "
        r"worse for random \(\+\d\.\d% \[\+[\d.]+%, \+[\d.]+%\]\), "
        r"equivalent for rearranged \(.*?\) and blocks \(.*?\); token NLL is",
        ascii_minus(said),
    )
    assert said.endswith("none of it says anything about other data or other sizes.")
    assert said.count(". ") == 0


def test_conclusion_is_never_stronger_than_its_intervals(build):
    said = conclusion(build(seeds=(0,)))
    assert "FD (classifier, 2k) is undecided for every arm; token NLL is undecided for every arm" in said
    assert "can tell neither a difference nor that there is none that matters" in said
    assert not re.search("better|worse|(equal|equivalent) for", said)


def test_each_arm_is_tested_by_itself(build):
    """What is better alone is better among others that are as clear."""
    for results in (build(arms={"baseline": "", "iar": ""}), build()):
        shifted = results
        for arm in [arm for arm in results.arms if arm != "baseline"]:
            shifted = with_values(shifted, NLL, arm, values_of(results, NLL, "baseline") - [0.7, 1.0, 1.3])
        assert "token NLL is better for" in conclusion(shifted)


def test_conclusion_without_headline_metric(results):
    said = conclusion(replace(results, final=results.final[results.final["metric"] != FD]))
    assert "FD was not measured; token NLL is better" in said


def test_a_page_first_answers_its_question(page, verdicts, results):
    said = in_short(verdicts, results)
    assert said == f"In short: iar helps: better ({verdicts[0].evidence})."
    assert page.words.index(said) < page.words.index("On fashion-mnist (28 x 28 pixels;")
    assert in_short(verdicts[3:], results) == ""  # not tested, and an identity
    logs = np.log(values_of(results, FD, "iar") / values_of(results, FD, "baseline"))
    moved = in_short([], results)
    assert moved.startswith("In short: FD (classifier, 2k) of arm and baseline of the same seed differs by this much")
    assert f", iar {percent(logs.std(ddof=1)).lstrip('+')}" in moved


def test_conclusion_of_a_lone_baseline(results):
    lone = replace(results, arms={"baseline": ""}, final=results.final[results.final["arm"] == "baseline"])
    assert "only the baseline baseline was run" in conclusion(lone)


def test_a_bound_is_not_rounded_to_the_zero_it_excludes(build):
    results = build(arms={"baseline": "", "iar": ""})
    results = with_values(results, NLL, "baseline", 41.0)
    said = ascii_minus(conclusion(with_values(results, NLL, "iar", 41 - np.array([0.0300, 0.0301, 0.0302]))))
    assert "better for iar (-0.0301 [-0.0303, -0.0299])" in said
    # The interval ends at -0.00003: with four digits it would seem to hold 0.
    said = ascii_minus(conclusion(with_values(results, NLL, "iar", 41 - 0.0015 - 0.00059174 * np.array([-1, 0, 1]))))
    assert "better for iar (-0.00150 [-0.00297, -0.00003])" in said


def test_many_findings_are_named_without_their_intervals(build):
    results = build(arms={f"k{i}": "" for i in range(6)})
    final = results.final.copy()
    arms = (final["metric"] == FD) & (final["arm"] != "k0")
    final.loc[arms, "value"] -= 30
    said = conclusion(replace(results, final=final))
    assert "FD (classifier, 2k) is better for k1, k2, k3, k4 and k5;" in said
    final.loc[arms & ~final["arm"].isin(["k1"]), "value"] += 30 + 100 * final["seed"]
    said = conclusion(replace(results, final=final))
    assert re.search(r"FD \(classifier, 2k\) is better for k1 \(.*?\), undecided for the other 4 arms;", said)


def test_the_same_numbers_are_called_equal(build, tmp_path):
    results = light(build(arms={"baseline": "", "rearranged": "", "iar": ""}))
    same = values_of(results, NLL, "baseline")
    results = with_values(with_values(results, NLL, "rearranged", same), NLL, "iar", same - [0.1, 0.1, 0.11])
    said = conclusion(results)
    assert re.search(r"token NLL is better for iar \(.*?\), equal for rearranged; none of it", said)
    path = write_report(replace(results, samples={}, reconstructions={}), tmp_path)
    page, marked = Page(path.read_text()), Page(rendered(path.with_suffix(".md")))
    assert said in page.words
    (rows,) = page.under("Predictions on held-out images")
    assert re.fullmatch(r"3\.\d{4} ± 0\.\d{4} Δ 0\.0000 \[0\.0000, 0\.0000\] equal", rows[2][1])
    _, rows = marked.under("Every arm beside the baseline")
    assert rows[2][2:] == ["0.0000 [0.0000, 0.0000]", "", "equal"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_where_all_numbers_are_the_same_nothing_is_undecided(build, seeds):
    results = build(arms={"baseline": "", "rearranged": "", "iar": ""}, seeds=seeds)
    for metric in (FD, NLL):
        for arm in ("rearranged", "iar"):
            results = with_values(results, metric, arm, values_of(results, metric, "baseline"))
    said = conclusion(results)
    assert (
        "FD (classifier, 2k) is equal for rearranged and iar; token NLL is equal for rearranged and iar; none" in said
    )
    assert "undecided" not in said


@pytest.mark.parametrize("make", ["one seed", "missing arm", "missing baseline", "not a number", "bare"])
def test_gaps_are_shown_not_hidden(build, results, tmp_path, make):
    if make == "one seed":
        results = light(build(seeds=(3,)))
    elif make.startswith("missing"):
        results = without(light(results), "blocks" if make == "missing arm" else "baseline")
    elif make == "not a number":
        results = light(results)
        final = results.final.copy()
        final.loc[(final["arm"] == "iar") & (final["seed"] == 1) & final["metric"].str.startswith("val/"), "value"] = (
            np.nan
        )
        results = replace(results, final=final)
    else:
        results = replace(results, samples={}, reconstructions={}, curves=results.curves[:0], class_names=(), scale={})
        results = replace(results, positions={}, exact={}, n_codes=0, tokens_per_step=0)
    page = Page(write_report(results, tmp_path).read_text())
    text, said = page.text, conclusion(results)
    assert said in text
    assert "nan" not in re.sub("[^a-z ]", "", text).split()
    if make == "one seed":
        assert "undecided for every arm" in said
        assert "--seeds 3" in text
        assert not page.under("What these seeds")
    elif make == "missing arm":
        assert "of 15 trials 3 not finished" in said
        assert "No samples of blocks." in text
        assert "0 of 3 seeds" in text
        assert "Missing trials" in text
        assert [row[0] for row in page.under("What these seeds")[0]] == ["arm", "rearranged", "random", "iar"]
    elif make == "missing baseline":
        assert "undecided for every arm" in said
        assert not page.under("What these seeds")
    elif make == "not a number":
        assert "2 of 3 seeds, 1 not finite" in text
        assert re.search("token NLL is worse for random .*, undecided for rearranged, blocks and iar", said)
    else:
        assert "On a data set not stated (image size not stated; no GPT; 3 seeds)" in said


def test_positions_without_those_of_the_baseline_cost_the_figure_alone(results, tmp_path):
    positions = {"iar": results.positions["iar"]}
    results = replace(without(light(results), "baseline"), positions=positions, samples={}, reconstructions={})
    path = write_report(results, tmp_path)
    assert not (path.parent / "positions.png").exists()
    assert "By position in the image" not in path.read_text()


def test_positions_are_shown_where_they_were_measured(results, report, page, marked, tmp_path):
    caption = "by position of the token in the image, mean over seeds"
    assert (report.parent / "positions.png").is_file()
    for text in (page, marked):
        assert caption in text.words
        assert "By position in the image" in text.headings
    again = write_report(replace(light(results), samples={}, reconstructions={}), tmp_path)
    assert not (again.parent / "positions.png").exists()
    assert caption not in Page(again.read_text()).words


def test_quality_over_training_is_drawn_from_two_sampled_points_on(results, report, page, marked, tmp_path):
    name, caption = "quality-fd-classifier-2k.png", "How soon each arm reaches a quality"
    assert (report.parent / name).is_file()
    assert caption in page.words
    assert caption in marked.words
    once = results.curves[(results.curves["metric"] == FD) & (results.curves["step"] == 500)]
    again = write_report(replace(light(results), curves=once, samples={}), tmp_path)
    assert not (again.parent / name).exists()


def test_a_report_without_pictures_to_compare_with_says_so(results, tmp_path):
    final, curves = (frame[~frame["metric"].str.contains("@")] for frame in (results.final, results.curves))
    scale = {**results.scale, "FD": "not measured: encoded data without images"}
    results = replace(results, final=final, curves=curves, scale=scale, reconstructions={}, positions={})
    path = write_report(results, tmp_path)
    page = Page(path.read_text())
    assert "FD was not measured; token NLL is better" in page.text
    assert "not measured: encoded data without images" in page.text
    # The samples themselves are shown, but nothing is told of them.
    assert (path.parent / "samples.png").is_file()
    assert not [p.name for p in path.parent.iterdir() if re.search("fd|class_agreement", p.name)]
    assert not page.under("Samples")
    assert "this page makes 28 such comparisons" in page.words
    assert "nan" not in page.text.lower()


def test_missing_trials_say_how_far_they_got(results, tmp_path):
    missing = pd.DataFrame(
        [("iar", 1, "diverged", 237), ("blocks", 0, "not finished", 40), ("random", 1, "not finished", np.nan)],
        columns=results.missing.columns,
    )
    path = write_report(replace(light(results), missing=missing, samples={}), tmp_path)
    expected = [["blocks", "0", "not finished, at step 40"], ["random", "1", "not finished"]]
    expected.append(["iar", "1", "diverged at step 237"])
    for page in (Page(path.read_text()), Page(rendered(path.with_suffix(".md")))):
        (rows,) = page.under("Missing trials")
        assert rows[1:] == expected


@pytest.mark.parametrize(
    "lost",
    [{("iar", 1)}, {("iar", None)}, {("baseline", 0)}, {("baseline", None)}, {(None, None)}],
    ids=["one trial", "an arm", "the baseline once", "the baseline", "all"],
)
def test_a_study_with_trials_that_diverged_ends_in_a_page_that_names_them(results, tmp_path, lost):
    ((arm, seed),) = lost
    final = results.final.copy()
    gone = final["arm"].isin([arm] if arm else results.arms) & final["seed"].isin([0, 1, 2] if seed is None else [seed])
    final.loc[gone, "value"] = np.nan
    missing = final.loc[gone, ["arm", "seed"]].drop_duplicates().assign(status="diverged", step=3)
    places = {name: ("line", number) for number, name in enumerate(results.arms)}
    results = replace(
        light(replace(results, final=final)), factor="train.lr", places=places, samples={}, reconstructions={}
    )
    page = Page(write_report(replace(results, missing=missing), tmp_path, judge(CLAIMS, results)).read_text())
    (rows,) = page.under("Missing trials")
    told = [[name, str(of), "diverged at step 3"] for name, of in missing[["arm", "seed"]].to_numpy().tolist()]
    assert sorted(rows[1:]) == sorted(told)
    assert f"of 15 trials {len(told)} diverged" in page.words
    assert ("every trial that has ended diverged" in page.words) == (arm is None)
    assert "nan" not in page.text.lower()


def test_a_metric_without_a_direction_reads_naturally(results, tmp_path, monkeypatch):
    for name, table in ((NLL, METRICS), ("fd", FIDELITY)):
        monkeypatch.setitem(table, name, replace(table[name], better=None))
    kept = results.curves[results.curves["metric"] == NLL]
    path = write_report(replace(light(results), curves=kept, samples={}, reconstructions={}), tmp_path)
    texts = [path.read_text(), path.with_suffix(".md").read_text(), path.with_name("tables.tex").read_text()]
    for text in texts:
        assert "None" not in text
        assert "is better" not in text
        assert "neither is" not in text
    assert "token NLL is neither better nor worse, for it has no direction" in texts[1]
    assert "### token NLL\n\n|" in texts[1]


def told_of(row):
    return f"{row['kind']}{'' if row['counts'] else ', no test of the paper'}; rule since {row['since']}"


def test_verdicts_stand_in_both_pages(report, page, marked, verdicts):
    assert tuple(verdict.answer for verdict in verdicts) == ANSWERS
    (shown,), (in_markdown,) = (
        page.under("What it says of the claims, at this scale"),
        marked.under("What it says of the claims, at this scale"),
    )
    assert shown[0] == ["claim", "found", "evidence"]
    assert in_markdown[0] == ["claim", "found", "evidence", "rule"]
    rows = verdict_rows(verdicts)
    assert shown[1:] == [
        [
            f"{r['claim'][:1].upper()}{r['claim'][1:]} {r['sentence']} ({r['source']}) {told_of(r)}",
            r["answer"],
            f"{r['evidence']} {r['rule']} Limits: {r['limits']}",
        ]
        for r in rows
    ]
    assert in_markdown[1:] == [
        [
            f"{r['claim']}: {r['sentence']} ({r['source']}; {told_of(r)})",
            r["answer"],
            r["evidence"],
            f"{r['rule']} Limits: {r['limits']}",
        ]
        for r in rows
    ]
    assert "arm 'plain' was not run" in shown[4][2]
    assert "equivariance is off by 3.1e\N{MINUS SIGN}16" in shown[5][2]
    looks = [name.removeprefix("verdict ") for name in page.classes if name.startswith("verdict ")]
    assert looks == [answer.replace(" ", "-") for answer in ANSWERS]


def test_verdicts_csv_holds_what_the_page_tells(report, verdicts):
    with (report.parent / "verdicts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == verdict_rows(verdicts)
    first = rows[0]
    assert list(first) == list(VERDICT)
    assert (first["claim"], first["study"], first["answer"]) == ("iar helps", "components", "better")
    assert first["sentence"] == "It is said: iar helps."
    assert first["evidence"].startswith("iar / baseline, FD (classifier, 2k): \N{MINUS SIGN}14.6% [")
    assert first["rule"] == CLAIMS[0].rule.text()
    assert (first["source"], first["limits"]) == ("the abstract", "Else none.")


def test_a_run_of_one_arm_and_one_seed_has_its_report(build, tmp_path):
    alone = light(build(arms={"baseline": "token loss alone"}, seeds=(0,)))
    page = Page(write_report(replace(alone, samples={}, reconstructions={}), tmp_path).read_text())
    assert "only the baseline baseline was run, so nothing is compared" in page.words


def test_a_study_that_tests_no_claim_has_no_verdicts(results, tmp_path):
    path = write_report(replace(light(results), samples={}, reconstructions={}), tmp_path)
    assert not any(
        "What it says of the claims" in text
        for text in (path.read_text().partition("</style>")[2], path.with_suffix(".md").read_text())
    )
    assert (path.parent / "verdicts.csv").read_text() == ",".join(VERDICT) + "\n"


def test_odd_names_are_shown_as_they_are(build, tmp_path):
    study, arms = "100% <b>|_", {"base": "plain", ODD: ODD}
    command = "iar-study run '100% <b>|_' --set 'data.name=folder:a b|c'"
    results = replace(
        build(arms=arms, study=study),
        question=ODD,
        claim=ODD,
        settings={"data.name": "folder:a b|c"},
        command=command,
    )
    results = replace(results, curves=results.curves[results.curves["metric"] == NLL], reconstructions={})
    odd = f'{ODD} "g", h;\n&amp; \N{MINUS SIGN}1'
    claims = [claim(odd, Better(ODD, "fd"), study=study, sentence=f"s {odd}", source=f"o {odd}", limits=f"l {odd}")]
    verdicts = judge(claims, results)
    path = write_report(results, tmp_path, verdicts)
    assert path == tmp_path / study / "index.html"
    page, source = Page(path.read_text()), path.with_suffix(".md").read_text()
    shown = Page(rendered(path.with_suffix(".md")))
    one_line = " ".join(odd.split())
    for text in (page, shown):
        assert "script" not in text.tags
        assert text.text.count(ODD) >= 4
        assert command in text.text
        assert all(f"{part} {one_line}" in text.words for part in "sol")
        (rows,) = text.under("What it says of the claims")
        assert f"{ODD} / base, FD (classifier, 2k): " in rows[1][2]
        of_arms = [rows for _, rows in text.tables if rows[0][0] == "arm"]
        assert len(of_arms) == (5 if text is page else 18)
        assert all(any(row[0].startswith(ODD) for row in rows) for rows in of_arms)
        assert all(len({len(row) for row in rows}) == 1 for _, rows in text.tables)
    # A table cuts off what is too much in a row, so the bars are counted, in the text itself.
    for is_row, lines in groupby(source.splitlines(), lambda line: line.startswith("|")):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert not is_row or len(bars) == 1
    with (path.parent / "verdicts.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == verdict_rows(verdicts)
    index = Page(write_index(tmp_path, claims).read_text())
    assert "script" not in index.tags
    assert all(f"{part} {one_line}" in index.words for part in "sol")
    links = [urlsplit(link) for link in index.addresses if link != "data:,"]
    assert {link.fragment for link in links} == {"claim-1", ""}
    assert all((tmp_path / unquote(link.path)).is_file() for link in links if link.path and not link.netloc)


@pytest.mark.parametrize("name", ["", ".", "..", "../out", "a/b", ".hidden", "codebook", "paper"])
def test_a_study_name_cannot_leave_the_folder(results, tmp_path, name):
    with pytest.raises(InputError, match="cannot name a folder"):
        write_report(replace(results, study=name), tmp_path / "reports")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_users_is_left_alone(results, tmp_path):
    (tmp_path / "components").mkdir()
    (tmp_path / "components" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"'notes\.txt', which no report wrote"):
        write_report(results, tmp_path)
    assert files(tmp_path / "components") == {"notes.txt": b"mine"}


def test_a_new_report_takes_the_place_of_the_old(results, tmp_path):
    assert (write_report(light(results), tmp_path).parent / "samples.png").exists()
    path = write_report(replace(light(results), samples={}), tmp_path)
    assert not (path.parent / "samples.png").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["components"]


def test_only_what_changed_is_drawn_again(results, verdicts, tmp_path, monkeypatch):
    results = light(results)
    drawn = []
    monkeypatch.setattr(pages, "save", lambda *given: drawn.append(given[2]) or save(*given))
    path = write_report(results, tmp_path, verdicts)
    assert len(drawn) == len(set(drawn)) == 4
    drawn.clear()
    before = {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    write_report(results, tmp_path, verdicts)
    assert {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()} == before
    write_report(results, tmp_path, verdicts[1:])  # words alone
    assert not drawn
    assert CLAIMS[0].sentence not in path.read_text()
    (path.parent / "samples.png").unlink()
    write_report(results, tmp_path, verdicts)
    assert drawn == ["samples"]
    write_report(with_values(results, FD, "iar", 3.0), tmp_path, verdicts)
    assert len(drawn) == 1 + 4


def test_a_running_study_shows_how_far_it_is_and_renews_itself(results, tmp_path):
    status = [Status("baseline", 0, True, 500, 500), Status(ODD, 1, False, 1234, 5000), Status("iar", 2, False, 0, 0)]
    results = replace(light(results), samples={}, reconstructions={})
    text = write_report(results, tmp_path, status=status, renews=True).read_text()
    page = Page(text)
    (rows,) = page.under("Provisional: 1 of 3 trials have ended")
    assert rows[1:] == [[ODD, "1", "step 1,234 of 5,000"], ["iar", "2", "not begun"]]
    assert 'http-equiv="refresh"' in text
    again = write_report(results, tmp_path).read_text()
    assert "Provisional" not in again
    assert "refresh" not in again


def test_arms_are_compared_with_the_baseline_of_their_own(build, tmp_path):
    arms = dict.fromkeys(("baseline", "iar", "baseline-half", "iar-half"), "")
    results = light(build(arms=arms))
    beside = {"baseline-half": "baseline-half", "iar-half": "baseline-half"}
    results = replace(results, beside=beside, samples={}, reconstructions={})
    same = values_of(results, NLL, "baseline-half")
    path = write_report(with_values(results, NLL, "iar-half", same - [0.1, 0.1, 0.11]), tmp_path)
    page = Page(path.read_text())
    assert "compared with its own baseline seed by seed" in page.words
    (rows,) = page.under("Predictions on held-out images")
    assert [row[1].split()[-1] for row in rows[1:]] != ["better"] * 4
    assert rows[4][1].endswith("better")
    assert "Δ" not in rows[1][1] + rows[3][1]


def test_a_failure_leaves_the_old_report(results, tmp_path):
    results = replace(light(results), samples={})
    path = write_report(results, tmp_path)
    before = files(path.parent)
    broken = replace(results, reconstructions={"originals": np.zeros((2, 4, 4, 2), np.uint8)})
    with pytest.raises(InputError):
        write_report(broken, tmp_path)
    assert files(path.parent) == before
    assert [p.name for p in tmp_path.iterdir()] == ["components"]


def test_no_finished_trial_is_an_input_error(results, tmp_path):
    with pytest.raises(InputError, match="no finished trial"):
        write_report(replace(results, final=results.final[:0]), tmp_path)


def test_changed_pixels_after_rearrangement_are_told(results, tmp_path):
    stages = dict(results.reconstructions)
    stages["decoded after rearrangement"] = stages["decoded"] ^ 1
    page = write_report(replace(light(results), reconstructions=stages, samples={}), tmp_path).read_text()
    assert "pixels differ by up to 1 of 255; they should not differ at all" in page


@pytest.mark.parametrize("text", ["1. one", "- a", "+ b", "a | b", "<b>", "# x", "$x$", "&amp;", "`c`", "a\nb", "5.46"])
def test_markdown_shows_text_as_it_is(text):
    shown = Page(MarkdownIt("commonmark").render(markdown(text)))
    assert shown.tags == ["p"]
    assert shown.text.strip() == " ".join(text.split())

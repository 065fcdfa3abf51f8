"""The page of the paper's own numbers: all of Table 2, its gains, and what does not agree."""

import csv
import re
from pathlib import Path

import pytest

from iar_study.errors import InputError
from iar_study.evidence import published
from iar_study.evidence.published import TABLE_2, gains
from iar_study.reporting import paper
from iar_study.reporting.paper import gains_over_size, write_paper_page
from iar_study.reporting.unchanged import is_unchanged, of_paper
from tests.reporting.made_up import files
from tests.reporting.pages import Page, rendered


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paper_page(tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="module", params=["html", "md"])
def page(request: pytest.FixtureRequest, path: Path) -> Page:
    return Page(path.read_text() if request.param == "html" else rendered(path.with_suffix(".md")))


def test_the_page_tells_all_of_table_2_and_its_gains(page: Page) -> None:
    (rows,) = page.under("Table 2")
    told = {row[0]: row[1:] for row in rows}
    for gain in gains():
        cells = told.pop(f"{gain.iar.size}, {gain.iar.tokens}, {gain.iar.epochs} epochs")
        expected = [
            f"{value:.{digits}f}"
            for each in (gain.llamagen, gain.iar)
            for value, digits in (
                (each.fid, 2),
                (each.inception_score, 1),
                (each.precision, 2),
                (each.recall, 2),
            )
        ]
        assert cells == [*expected, f"{gain.fid:.2f}", f"{gain.percent:.1f}%"]
    untold = {name for name, cells in told.items() if cells[0] == "not trained"}
    assert untold == {"XL, 16x16, 300 epochs", "XXL, 16x16, 300 epochs"}


def test_the_page_says_what_does_not_agree_and_what_was_not_found(page: Page) -> None:
    said = page.words.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    for sentence in (published.CONCLUSION, published.NOTE, *published.DISAGREEMENTS, *published.CLAIMS):
        assert sentence in said
    assert said.index(published.CONCLUSION) < said.index("Table 2: LlamaGen and IAR")
    assert "about epoch 174 of 300, which is 0.58 of the training" in said
    assert "the number of clusters n, their size m or the weight lambda were not found" in said
    assert "read by eye from its image on the authors' project page" in said
    assert "commit a46074a" in said
    (rows,) = page.under("The released code")
    assert [row[0] for row in rows[1:]] == [each.point for each in published.DEVIATIONS]
    assert rows[1][2].startswith("Not as released.")
    own, others = page.under("LlamaGen")
    assert [row[:3] for row in own if row[0] == "L 24x24"] == [["L 24x24", "2.0", "3.07"]]
    assert [row[2] for row in others[1:]] == [each.reported for each in published.REPRODUCTIONS]
    assert all(each.url in page.addresses for each in published.REPRODUCTIONS)


def test_both_pages_say_the_same_and_what_they_ask_for_is_there(path: Path) -> None:
    html, marked = Page(path.read_text()), Page(rendered(path.with_suffix(".md")))
    assert [title.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") for title in html.headings] == marked.headings
    assert len(html.tables) == len(marked.tables) == 6
    for (_, one), (_, other) in zip(html.tables, marked.tables, strict=True):
        rows = [[cell for cell in row if cell] for row in one]
        assert rows[-len(other) + 1 :] == [[cell for cell in row if cell] for row in other[1:]]
    assert all(html.alts)
    assert all(marked.alts)
    for page, index in ((html, "../index.html"), (marked, "../index.md")):
        local = {address for address in page.addresses if not re.match("https://|data:", address)}
        assert local - {index} <= {each.name for each in path.parent.iterdir()}
        assert index in local


def test_the_table_is_there_as_a_file(path: Path) -> None:
    with (path.parent / "table-2.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["size"], float(row["fid"])) for row in rows] == [
        (each.method, each.size, each.fid) for each in TABLE_2
    ]


def test_the_figure_draws_every_gain_once() -> None:
    axes = gains_over_size().axes[0]
    drawn = [
        (*line.get_label().split(", "), round(y, 6))
        for line in axes.lines
        if "epochs" in str(line.get_label())
        for y in line.get_ydata()
    ]
    assert sorted(drawn) == sorted(
        (gain.iar.tokens, f"{gain.iar.epochs} epochs", round(gain.percent, 6)) for gain in gains()
    )
    low, high = axes.get_ylim()
    assert low == 0 < max(gain.percent for gain in gains()) < high


def test_the_caption_says_what_the_figure_shows() -> None:
    (illustration,) = [paper._illustration()]
    assert "The smallest is that of XXL at 24x24 tokens after 50 epochs, 0.7%" in illustration.caption
    assert "the largest is that of L at 16x16 tokens after 300 epochs, 10.5%" in illustration.caption
    # "No order by size, by tokens or by epochs holds throughout."
    percent = {(gain.iar.size, gain.iar.tokens, gain.iar.epochs): gain.percent for gain in gains()}
    assert percent["B", "16x16", 300] < percent["L", "16x16", 300]
    assert percent["B", "24x24", 300] > percent["L", "24x24", 300]
    assert percent["B", "16x16", 50] < percent["B", "24x24", 50]
    assert percent["B", "16x16", 300] > percent["B", "24x24", 300]
    assert percent["B", "16x16", 50] < percent["B", "16x16", 300]
    assert percent["B", "24x24", 50] > percent["B", "24x24", 300]


def test_it_is_written_once_and_again_when_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_paper_page(tmp_path)
    whole = files(path.parent)
    assert is_unchanged(path.parent, of_paper())
    written: list[object] = []
    monkeypatch.setattr(paper, "write_pages", lambda *given: written.append(given))
    write_paper_page(tmp_path)
    assert not written
    monkeypatch.undo()
    path.write_text("torn")
    write_paper_page(tmp_path)
    assert files(path.parent) == whole


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "draft.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'draft\.tex', which no report wrote"):
        write_paper_page(tmp_path)
    assert files(tmp_path / "paper") == {"draft.tex": b"mine"}

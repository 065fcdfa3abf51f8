"""Results at a terminal and as a file: every number as it was measured, and what is missing said."""

import io

import pandas as pd
import pytest

from iar_study.errors import InputError
from iar_study.reporting.results_text import export_results, results_text


def test_the_table_has_the_mean_of_every_arm_and_metric(results):
    lines = results_text(results).splitlines()
    assert lines[1].split() == ["metric", "baseline", "*", *list(results.arms)[1:]]
    assert lines[2].split() == ["n,", "seeds", *["3"] * 5]
    by_key = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert set(by_key) == set(results.final.metric)
    means = results.final.groupby(["metric", "arm"]).value.mean()
    for key in ("val/token_nll", "fd/classifier@2k"):
        assert [float(cell) for cell in by_key[key][:5]] == pytest.approx(
            [means[key, arm] for arm in results.arms], abs=6e-4
        )
    assert by_key["val/token_nll"][5:] == ["lower", "is", "better"]


def test_what_is_not_there_is_said(build):
    results = build(seeds=(0, 1))
    lost = (results.final.arm == "iar") & (results.final.seed == 1)
    results.final.loc[lost, "value"] = float("nan")
    one = (results.final.arm == "random") & (results.final.metric == "val/token_nll")
    results.final.loc[one & (results.final.seed == 0), "value"] = float("nan")
    results.final.loc[(results.final.arm == "blocks"), "value"] = float("nan")
    results.missing.loc[0] = ["iar", 1, "diverged", 20]
    text = results_text(results)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["n,"].split()[2:] == ["2", "2", "0", "2", "1"]
    assert lines["val/token_nll"].count("(n=1)") == 1
    assert "\N{EN DASH}" in lines["val/token_nll"]
    assert text.splitlines()[-1] == "  iar, seed 1: diverged at step 20"


@pytest.mark.parametrize("curves", [False, True])
def test_files_hold_what_was_measured_to_the_last_bit(results, tmp_path, curves):
    frame = results.curves if curves else results.final
    assert export_results(results, str(tmp_path / "new" / "r.csv"), "csv", curves=curves) == len(frame)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "r.csv"), frame, check_exact=True)
    export_results(results, str(tmp_path / "r.parquet"), "parquet", curves=curves)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "r.parquet"), frame, check_exact=True)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["r.csv", "r.parquet"]


def test_csv_is_printed(results, capsys):
    export_results(results, "-", "csv")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(capsys.readouterr().out)), results.final)


def test_what_cannot_be_written_is_one_line(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        export_results(results, str(tmp_path / "file" / "r.csv"), "csv")
    with pytest.raises(InputError, match="Parquet is not printed"):
        export_results(results, "-", "parquet")

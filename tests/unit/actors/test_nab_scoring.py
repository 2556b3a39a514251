"""NAB's rules on series small enough to be scored by hand."""

import json
import math
import sys
from pathlib import Path

import pytest

# The benchmarks are scripts, not part of the package; at the end, so that they hide no module.
sys.path.append(str(Path(__file__).parents[3] / "bench"))

from nab.corpus import CorpusError, load_corpus
from nab.scoring import (
    REWARD_LOW_FN,
    REWARD_LOW_FP,
    STANDARD,
    Scored,
    normalised,
    probation_rows,
    raw_at,
    raw_scores,
    scaled_sigmoid,
    score_corpus,
    tally,
)

WINDOW = (40, 49)
"""Ten rows of a series of 100, whose first 15 are not scored."""


def spoken(*rows: int, at: float = 1.0, windows: tuple[tuple[int, int], ...] = (WINDOW,)) -> Scored:
    return Scored("s", [at if row in rows else 0.0 for row in range(100)], windows)


def test_the_scale_goes_from_silence_to_every_window_at_its_first_row():
    for profile in (STANDARD, REWARD_LOW_FP, REWARD_LOW_FN):
        assert score_corpus([spoken()], profile, 0.5).score == pytest.approx(0.0)
        assert score_corpus([spoken(40)], profile, 0.5).score == pytest.approx(100.0)


def test_a_late_detection_earns_the_sigmoid_of_what_is_left_of_the_window():
    # The last row: one tenth of the window before its end. 2 / (1 + e^-0.5) - 1 = 0.244919, the first row's
    # 2 / (1 + e^-5) - 1 = 0.986614; (0.248242 + 1) / 2 of the way from silence.
    assert score_corpus([spoken(49)], STANDARD, 0.5).score == pytest.approx(62.4121, abs=1e-3)
    # A missed window costs twice as much there: (0.248242 + 2) / 3.
    assert score_corpus([spoken(49)], REWARD_LOW_FN, 0.5).score == pytest.approx(74.9414, abs=1e-3)


def test_of_a_window_only_the_earliest_detection_counts():
    assert score_corpus([spoken(*range(40, 50))], STANDARD, 0.5).score == pytest.approx(100.0)
    assert score_corpus([spoken(44, 49)], STANDARD, 0.5) == score_corpus([spoken(44)], STANDARD, 0.5)


@pytest.mark.parametrize(
    ("row", "worth"),
    [
        (39, -1.0),  # nothing behind it
        (50, scaled_sigmoid(1 / 9)),  # nine steps lie between the window's ends
        (58, scaled_sigmoid(1.0)),
        (76, scaled_sigmoid(3.0)),
        (77, -1.0),
    ],
)
def test_a_false_positive_costs_more_the_farther_behind_a_window_it_is(row: int, worth: float):
    silent_but_one = raw_at(raw_scores([spoken(40, row)], STANDARD), 0.5)
    assert silent_but_one == pytest.approx(1.0 + 0.11 * worth)
    assert score_corpus([spoken(40, row)], REWARD_LOW_FP, 0.5).score == pytest.approx(100 + 50 * 0.22 * worth)


def test_the_sigmoid_at_the_points_the_paper_names():
    assert scaled_sigmoid(-1.0) == pytest.approx(0.98661, abs=1e-5)
    assert scaled_sigmoid(0.0) == 0.0
    assert scaled_sigmoid(3.01) == -1.0


def test_what_is_said_in_probation_is_not_heard():
    assert [probation_rows(rows) for rows in (0, 6, 100, 5_000, 22_695)] == [0, 0, 15, 750, 750]
    assert raw_at(raw_scores([spoken(*range(15))], STANDARD), 0.5) == -1.0
    assert raw_at(raw_scores([spoken(*range(16))], STANDARD), 0.5) == pytest.approx(-1.11)


def test_the_threshold_is_the_best_of_the_whole_corpus():
    # At 0.9 the second series' window is missed, at 0.3 a false positive is taken into the bargain.
    loud, faint = spoken(40, at=0.9), spoken(40, at=0.6)
    noisy = spoken(20, at=0.3, windows=())
    found = score_corpus([loud, faint, noisy], STANDARD)
    assert (found.threshold, found.score) == (0.6, pytest.approx(100.0))
    assert score_corpus([loud, faint, noisy], STANDARD, 0.9).score == pytest.approx(50.0)
    assert score_corpus([loud, faint, noisy], STANDARD, 0.3).score == pytest.approx(100 - 100 * 0.11 / 4)


def test_silence_is_best_where_nothing_can_be_won():
    found = score_corpus([spoken(20, at=0.7)], STANDARD)
    assert (found.threshold, found.score) == (math.inf, 0.0)


def test_rows_of_one_score_are_taken_together():
    curve = raw_scores([spoken(20, 40, at=0.7)], STANDARD)
    assert [threshold for threshold, _ in curve] == [math.inf, 0.7, 0.0]
    assert raw_at(curve, 0.7) == pytest.approx(1.0 - 0.11)


def test_a_corpus_without_windows_has_no_scale():
    with pytest.raises(ValueError, match="nothing to score against"):
        score_corpus([spoken(windows=())], STANDARD)
    with pytest.raises(ValueError, match="nothing to score against"):
        normalised(0.0, 0, STANDARD)


def test_the_tally_counts_windows_once_and_false_rows_each():
    two = spoken(3, 20, 40, 45, 60, 61, windows=(WINDOW, (80, 89)))
    counted = tally([two, spoken(40)], 0.5)
    assert (counted.windows, counted.found, counted.false_positives) == (3, 2, 3)


def test_a_folder_becomes_series_with_windows_in_rows(tmp_path: Path):
    (tmp_path / "kind").mkdir()
    lines = [f"2024-01-01 00:0{minute}:00,{minute}.5" for minute in range(6)]
    (tmp_path / "kind" / "one.csv").write_text("\n".join(["timestamp,value", *lines]))
    window = ["2024-01-01 00:01:30.000000", "2024-01-01 00:04:00.000000"]
    (tmp_path / "windows.json").write_text(json.dumps({"kind/one.csv": [window]}))
    (series,) = load_corpus(tmp_path)
    assert (series.name, series.category, list(series.windows)) == ("one", "kind", [(2, 4)])
    assert series.readings[1] == (1_704_067_260_000, 1.5)


@pytest.mark.parametrize(
    ("labels", "rows", "said"),
    [
        (None, "", r"no .*windows\.json; name a folder"),
        ("{", "", "is not JSON"),
        ("[]", "", "has to map"),
        ('{"b.csv": []}', "", "b.csv: No such file"),
        ('{"a.csv": []}', "when,value\n2024-01-01,1\n", "a.csv: no column 'timestamp'"),
        (
            '{"a.csv": []}',
            "timestamp,value\n2024-01-01,1\n2024-01-02,nan\n",
            "a.csv, reading 2: 'nan' is not",
        ),
        ('{"a.csv": []}', "timestamp,value\nnoon,1\n", "a.csv, reading 1: "),
        (
            '{"a.csv": [["2025-01-01", "2025-01-02"]]}',
            "timestamp,value\n2024-01-01,1\n",
            "windows of a.csv: no reading lies between",
        ),
    ],
)
def test_a_folder_that_is_not_the_benchmark_is_refused(
    labels: str | None, rows: str, said: str, tmp_path: Path
):
    if labels is not None:
        (tmp_path / "windows.json").write_text(labels)
    (tmp_path / "a.csv").write_text(rows)
    with pytest.raises(CorpusError, match=said):
        load_corpus(tmp_path)

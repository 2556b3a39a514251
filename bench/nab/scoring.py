"""NAB's scoring rules: how early, how often and how wrongly a detector spoke, as one number a profile.

Written from the published description: A. Lavin and S. Ahmad, "Evaluating Real-time Anomaly Detection
Algorithms – the Numenta Anomaly Benchmark", IEEE ICMLA 2015 (arXiv:1510.03336), and the NAB
whitepaper. It knows
rows and scores, not files and not detectors.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PROBATION_FRACTION: Final = 0.15
"""The share of a series at its beginning that is never scored: a detector may learn from it."""
PROBATION_MAX_ROWS: Final = 750
FAR_FROM_WINDOW: Final = 3.0
"""Window lengths behind a window after which a false positive costs all that it can."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a user pays: the weights of a detected window, a false positive and a missed window."""

    name: str
    true_positive: float
    false_positive: float
    false_negative: float


STANDARD: Final = Profile("standard", 1.0, 0.11, 1.0)
REWARD_LOW_FP: Final = Profile("reward_low_fp", 1.0, 0.22, 1.0)
REWARD_LOW_FN: Final = Profile("reward_low_fn", 1.0, 0.11, 2.0)
PROFILES: Final = (STANDARD, REWARD_LOW_FP, REWARD_LOW_FN)


@dataclass(frozen=True, slots=True)
class Scored:
    """A series with a detector's score a row, and its windows as (first row, last row), both included."""

    name: str
    scores: Sequence[float]
    windows: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Result:
    """A corpus's score under one profile: `score` is 0 for silence and 100 for every window at its
    first row."""

    profile: str
    threshold: float
    score: float


def probation_rows(rows: int) -> int:
    """How many rows at the beginning of a series of `rows` are not scored."""
    return min(math.floor(PROBATION_FRACTION * rows), PROBATION_MAX_ROWS)


def scaled_sigmoid(position: float) -> float:
    """The worth of a detection at `position` window lengths from a window's end (inside: -1 to 0)."""
    if position > FAR_FROM_WINDOW:
        return -1.0
    return 2.0 / (1.0 + math.exp(5.0 * position)) - 1.0


_FIRST_ROW: Final = scaled_sigmoid(-1.0)


@dataclass(frozen=True, slots=True)
class _Worth:
    """What one row is worth if a detector speaks there: inside of `window`, or outside when that is None."""

    score: float
    window: int | None
    worth: float


def _rows_worth(series: Scored, number_from: int) -> list[_Worth]:
    """Every row after probation; the series' windows are numbered from `number_from`."""
    windows = sorted(series.windows)
    firsts = [first for first, _ in windows]
    found = []
    for row in range(probation_rows(len(series.scores)), len(series.scores)):
        behind = bisect_right(firsts, row) - 1
        score = series.scores[row]
        if behind < 0:
            found.append(_Worth(score, None, -1.0))
            continue
        first, last = windows[behind]
        if row <= last:
            worth = scaled_sigmoid(-(last - row + 1) / (last - first + 1)) / _FIRST_ROW
            found.append(_Worth(score, number_from + behind, worth))
        else:
            # A window of one row has no length to measure a distance in: all of it counts as far.
            away = (row - last) / (last - first) if last > first else math.inf
            found.append(_Worth(score, None, scaled_sigmoid(away)))
    return found


def raw_scores(corpus: Sequence[Scored], profile: Profile) -> list[tuple[float, float]]:
    """(threshold, raw score) for every threshold that makes a difference, the highest (silence) first.

    A row is a detection when its score is at least the threshold. Of a window's detections the earliest
    counts; every detection outside of windows counts.
    """
    rows: list[_Worth] = []
    windows = 0
    for series in corpus:
        rows.extend(_rows_worth(series, windows))
        windows += len(series.windows)
    rows.sort(key=lambda row: row.score, reverse=True)
    raw = -profile.false_negative * windows
    best: dict[int, float] = {}
    curve = [(math.inf, raw)]
    for row in rows:
        if row.score != curve[-1][0]:
            curve.append((row.score, raw))
        if row.window is None:
            raw += profile.false_positive * row.worth
        else:
            now = profile.true_positive * row.worth
            before = best.get(row.window, -profile.false_negative)
            if row.window not in best or now > before:
                best[row.window] = now
                raw += now - before
        curve[-1] = (row.score, raw)
    return curve


def raw_at(curve: Sequence[tuple[float, float]], threshold: float) -> float:
    """The raw score that a curve of `raw_scores` has at `threshold`."""
    return next(raw for at, raw in reversed(curve) if at >= threshold)


def normalised(raw: float, windows: int, profile: Profile) -> float:
    """A raw score on the scale where silence is 0 and each of `windows` found at its first row is 100.

    Raises ValueError without a window: there is no scale from the null to the perfect detector.
    """
    if not windows:
        raise ValueError("no series of the corpus has a labelled window; there is nothing to score against")
    null = -profile.false_negative * windows
    return 100.0 * (raw - null) / (profile.true_positive * windows - null)


def score_corpus(corpus: Sequence[Scored], profile: Profile, threshold: float | None = None) -> Result:
    """The score of `corpus`: at `threshold`, or at the one that serves the whole corpus best when None.

    Raises ValueError for a corpus without a window.
    """
    curve = raw_scores(corpus, profile)
    if threshold is None:
        threshold, raw = max(curve, key=lambda point: point[1])
    else:
        raw = raw_at(curve, threshold)
    windows = sum(len(series.windows) for series in corpus)
    return Result(profile.name, threshold, normalised(raw, windows, profile))


@dataclass(frozen=True, slots=True)
class Tally:
    """What a detector did, uninterpreted: windows that it found, of how many, and rows that it raised
    outside of any."""

    windows: int
    found: int
    false_positives: int


def tally(corpus: Sequence[Scored], threshold: float) -> Tally:
    """Count the detections after probation: rows whose score is at least `threshold`."""
    windows = found = false_positives = 0
    for series in corpus:
        spoken = [row for row in _rows_worth(series, 0) if row.score >= threshold]
        windows += len(series.windows)
        found += len({row.window for row in spoken} - {None})
        false_positives += sum(row.window is None for row in spoken)
    return Tally(windows, found, false_positives)

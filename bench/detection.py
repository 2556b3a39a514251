"""How well the default detector finds the labelled anomalies of the Numenta Anomaly Benchmark, and its cost.

`make bench-detection` or `python bench/detection.py [--json] [--data FOLDER]`. One `EnsembleDetector` with
one configuration for all series, started empty for each. As NAB prescribes, a profile's threshold is the best
for the whole corpus; what it is worth elsewhere is estimated by choosing it without the category judged.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from nab.corpus import CorpusError, Series, load_corpus
from nab.scoring import (
    PROFILES,
    STANDARD,
    Profile,
    Scored,
    normalised,
    raw_at,
    raw_scores,
    score_corpus,
    tally,
)

from sensorium.actors.detectors import EnsembleDetector
from sensorium.actors.detectors.score import WARNING_FROM

DEFAULT_DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "nab"


class Watched:
    """The detector's scores over a corpus, with the time of each call and the largest state."""

    def __init__(self) -> None:
        self.took_ns: list[int] = []
        self.state_numbers = 0
        self.state_json_bytes = 0

    def run(self, series: Series) -> Scored:
        detector = EnsembleDetector()
        scores = []
        clock_ns = time.perf_counter_ns
        for time_ms, value in series.readings:
            began_ns = clock_ns()
            score = detector.update(time_ms, value)
            self.took_ns.append(clock_ns() - began_ns)
            scores.append(score.value)
        state = detector.dump()
        self.state_numbers = max(self.state_numbers, len(state))
        self.state_json_bytes = max(self.state_json_bytes, len(msgspec.json.encode(state)))
        return Scored(series.name, scores, series.windows)

    def cost(self) -> dict[str, float]:
        """Microseconds of one call, among them the two readings of the clock, and the state's size."""
        took_ns = sorted(self.took_ns)
        return {
            "median_us_a_reading": took_ns[len(took_ns) // 2] / 1000,
            "p99_us_a_reading": took_ns[len(took_ns) * 99 // 100] / 1000,
            "state_numbers": self.state_numbers,
            "state_json_bytes": self.state_json_bytes,
        }


def windows_of(corpus: Sequence[Scored]) -> int:
    return sum(len(series.windows) for series in corpus)


def by_category(categories: dict[str, list[Scored]], threshold: float) -> dict[str, dict[str, Any]]:
    """Each category under the standard profile, all at one threshold. One without windows has no score."""
    found = {}
    for name, corpus in categories.items():
        counted = tally(corpus, threshold)
        found[name] = {
            "series": len(corpus),
            "score": score_corpus(corpus, STANDARD, threshold).score if counted.windows else None,
            "windows": counted.windows,
            "windows_found": counted.found,
            "false_positive_rows": counted.false_positives,
        }
    return found


def threshold_held_out(categories: dict[str, list[Scored]], profile: Profile) -> float | None:
    """Judge each category at the threshold that is best for all others, and sum up; None when the
    others of one have no window to choose by."""
    raw = 0.0
    for name, held_out in categories.items():
        others = [series for other, corpus in categories.items() if other != name for series in corpus]
        if not windows_of(others):
            return None
        raw += raw_at(raw_scores(held_out, profile), score_corpus(others, profile).threshold)
    return normalised(raw, sum(map(windows_of, categories.values())), profile)


def judge(series: Sequence[Series]) -> dict[str, Any]:
    watched = Watched()
    categories: dict[str, list[Scored]] = {}
    for one in series:
        categories.setdefault(one.category, []).append(watched.run(one))
    corpus = [scored for scoreds in categories.values() for scored in scoreds]
    profiles = {}
    for profile in PROFILES:
        best = score_corpus(corpus, profile)
        profiles[profile.name] = {
            "score": best.score,
            # JSON has no infinity: silence, best where nothing can be won, has no threshold.
            "threshold": best.threshold if math.isfinite(best.threshold) else None,
            "score_of_a_warning": score_corpus(corpus, profile, WARNING_FROM).score,
            "score_with_threshold_of_other_categories": threshold_held_out(categories, profile),
        }
    return {
        "series": len(corpus),
        "readings": sum(len(one.readings) for one in series),
        "windows": windows_of(corpus),
        "profiles": profiles,
        "categories": by_category(categories, score_corpus(corpus, STANDARD).threshold),
        "cost": watched.cost(),
    }


def figure(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"


def report(result: dict[str, Any]) -> None:
    print(
        f"EnsembleDetector, one configuration: {result['series']} series, {result['readings']:,} readings,"
        f" {result['windows']} labelled windows"
    )
    print(f"\n{'NAB profile':<24}{'score':>8}{'threshold':>11}{'at ' + str(WARNING_FROM):>8}{'held out':>10}")
    for name, found in result["profiles"].items():
        print(
            f"{name:<24}{figure(found['score'], 8)}{figure(found['threshold'], 11, 4)}"
            f"{figure(found['score_of_a_warning'], 8)}"
            f"{figure(found['score_with_threshold_of_other_categories'], 10)}"
        )
    print("score: at the threshold that is best for all these series, as on NAB's board.")
    print(f"at {WARNING_FROM}: at the score from which a reading is a warning.")
    print("held out: each category at the threshold that is best for the other ones. Only the threshold is")
    print("  held out: the detector's constants were chosen with these series in view.")
    print(
        f"\n{'category (standard)':<24}{'score':>8}{'series':>8}{'windows':>9}{'found':>7}{'false rows':>12}"
    )
    for name, found in result["categories"].items():
        print(
            f"{name:<24}{figure(found['score'], 8)}{found['series']:>8}{found['windows']:>9}"
            f"{found['windows_found']:>7}{found['false_positive_rows']:>12}"
        )
    cost = result["cost"]
    print(
        f"\n{cost['median_us_a_reading']:.1f} µs a reading"
        f" (median; 99 % under {cost['p99_us_a_reading']:.1f});"
        f" state {cost['state_numbers']:,} numbers, {cost['state_json_bytes']:,} bytes as JSON"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with windows.json")
    options = parser.parse_args()
    try:
        result = judge(load_corpus(options.data))
    except (CorpusError, ValueError) as error:
        sys.exit(f"bench: {error}")
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        report(result)


if __name__ == "__main__":
    main()

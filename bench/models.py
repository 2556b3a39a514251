"""How well the outlier model finds the labelled anomalies of the Skoltech Anomaly Benchmark, and its cost.

`make bench-models` or `python bench/models.py [--json] [--data FOLDER]`. As on SKAB's board: trained on the
first 400 rows of each experiment, all rows of all experiments judged together, one setting for all of them.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from skab.judging import Counts, count, total
from skab.recordings import Recording, RecordingError, load_recordings

from sensorium.actors.models.outliers import OutlierModel, Settings, reference_of

DEFAULT_DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "skab"
TRAINING_ROWS: Final = 400
FLEET: Final = 1_000
"""Devices of one batch, for the cost in a host."""

GRID: Final = [
    Settings(quick, slow, weight, drift, 1.0)
    for quick, (slow, weight), drift in itertools.product(
        (5, 10, 15, 20), ((40, 0.0), (40, 0.6), (80, 0.6)), (0.0, 0.1, 0.3)
    )
]
LIMITS: Final = np.arange(2.0, 12.1, 0.5)

Floats = npt.NDArray[np.float64]


def deviations(recording: Recording, settings: Settings) -> tuple[Floats, float, float]:
    """By how many units each row deviates, and the seconds that training and judging took."""
    began_s = time.perf_counter()
    reference = reference_of(recording.rows[:TRAINING_ROWS], settings)
    model = OutlierModel(recording.metrics, {"device": reference}, settings._replace(limit=1.0))
    trained_s = time.perf_counter()
    states = model.begin([0])
    found = np.empty(len(recording.rows))
    for i, row in enumerate(recording.rows):
        found[i] = model.step(states, row[None], [0])[0]
    return np.sqrt(found / (1 - found)), trained_s - began_s, time.perf_counter() - trained_s


def judge(recording: Recording, odd: Floats, limit: float) -> Counts:
    labels = recording.labels
    return count(np.zeros(len(odd), bool) if labels is None else labels, odd >= limit)


def held_out(
    recordings: Sequence[Recording],
    grid: Sequence[tuple[Settings, float]],
    judged: Sequence[list[Counts]],
    fold_of: Callable[[Recording], str],
) -> Counts | None:
    """Each fold judged with what of `grid` is best for all other folds; None where there is only one.

    `judged` has for each entry of `grid` the counts of each recording.
    """
    folds = [fold_of(r) for r in recordings]
    if len(set(folds)) < 2:
        return None
    parts = []
    for fold in sorted(set(folds)):
        scores = [total(c for c, f in zip(counts, folds, strict=True) if f != fold).f1 for counts in judged]
        best = judged[scores.index(max(scores))]
        parts += [c for c, f in zip(best, folds, strict=True) if f == fold]
    return total(parts)


def held_out_figures(recordings: Sequence[Recording]) -> dict[str, dict[str, float]]:
    """What is left when the choice of settings, or of the limit alone, does not see what is judged."""
    grid: list[tuple[Settings, float]] = []
    judged: list[list[Counts]] = []
    for settings in GRID:
        odd = [deviations(r, settings)[0] for r in recordings]
        for limit in LIMITS:
            grid.append((settings, limit))
            judged.append([judge(r, o, limit) for r, o in zip(recordings, odd, strict=True)])
    own = [i for i, (settings, _) in enumerate(grid) if settings == Settings(limit=1.0)]
    limits = ([grid[i] for i in own], [judged[i] for i in own])
    by_group, by_file = (lambda r: r.group), (lambda r: f"{r.group}/{r.name}")
    found = {
        "limit of the other groups": held_out(recordings, *limits, by_group),
        "limit of the other files": held_out(recordings, *limits, by_file),
        "settings of the other files": held_out(recordings, grid, judged, by_file),
        "settings of the other groups": held_out(recordings, grid, judged, by_group),
    }
    return {name: figures(counts) for name, counts in found.items() if counts is not None}


def false_alarms(recording: Recording, trained: int) -> float:
    """Of the rows after the first `trained` of a recording without anomalies, the share of false alarms."""
    model = OutlierModel(recording.metrics, {"device": reference_of(recording.rows[:trained])})
    states = model.begin([0])
    scores = [model.step(states, row[None], [0])[0] for row in recording.rows[trained:]]
    return float(np.mean(np.array(scores) >= 0.5))


def batch_us_a_row(recording: Recording) -> float:
    """Microseconds a row where the newest readings of `FLEET` devices come in one batch."""
    reference = reference_of(recording.rows[:TRAINING_ROWS])
    model = OutlierModel(recording.metrics, {f"device-{i}": reference for i in range(FLEET)})
    references = list(range(FLEET))
    states = model.begin(references)
    rounds = recording.rows[:50]
    began_s = time.perf_counter()
    for row in rounds:
        model.step(states, np.broadcast_to(row, (FLEET, len(row))), references)
    return (time.perf_counter() - began_s) / (len(rounds) * FLEET) * 1e6


def figures(counts: Counts) -> dict[str, float]:
    return {
        "f1": counts.f1,
        "false_alarm_rate": counts.false_alarm_rate,
        "missed_alarm_rate": counts.missed_alarm_rate,
    }


def run(recordings: Sequence[Recording]) -> dict[str, Any]:
    settings = Settings()
    judged, train_s, score_s = [], 0.0, 0.0
    for recording in recordings:
        odd, trained_s, scored_s = deviations(recording, settings)
        train_s += trained_s
        score_s += scored_s
        judged.append((recording, judge(recording, odd, settings.limit)))
    labelled = [(r, c) for r, c in judged if r.labels is not None and r.labels.any()]
    if not labelled:
        raise RecordingError("no recording has a labelled anomaly")
    sound = [r for r, _ in judged if r.labels is None or not r.labels.any()]
    groups = sorted({r.group for r, _ in labelled})
    rows = sum(len(r.rows) for r in recordings)
    return {
        "experiments": len(labelled),
        "rows": sum(len(r.rows) for r, _ in labelled),
        "all": figures(total(c for _, c in labelled)),
        "groups": {g: figures(total(c for r, c in labelled if r.group == g)) for g in groups},
        "files": {f"{r.group}/{r.name}": figures(c) for r, c in labelled},
        "held_out": held_out_figures([r for r, _ in labelled]),
        "without_anomalies": {
            f"{r.group}/{r.name}": {n: false_alarms(r, n) for n in (TRAINING_ROWS, len(r.rows) // 2)}
            for r in sound
        },
        "train_us_a_row": train_s / (TRAINING_ROWS * len(recordings)) * 1e6,
        "score_us_a_row": score_s / rows * 1e6,
        "score_us_a_row_in_a_batch": batch_us_a_row(recordings[0]),
    }


def line(name: str, found: dict[str, float]) -> str:
    shares = (found["f1"], found["false_alarm_rate"] * 100, found["missed_alarm_rate"] * 100)
    return f"{name:<32}{shares[0]:>8.3f}{shares[1]:>10.1f} %{shares[2]:>10.1f} %"


def report(result: dict[str, Any]) -> None:
    print(
        f"OutlierModel, one setting: {result['experiments']} experiments, {result['rows']:,} rows,"
        f" trained on the first {TRAINING_ROWS} of each"
    )
    print(f"\n{'':<32}{'F1':>8}{'false al.':>12}{'missed':>12}")
    print(line("all together", result["all"]))
    for name, found in (*result["groups"].items(), *result["files"].items()):
        print(line(f"  {name}", found))
    print("\nchosen without what is judged")
    for name, found in result["held_out"].items():
        print(line(f"  {name}", found))
    for name, rates in result["without_anomalies"].items():
        for trained, rate in rates.items():
            print(f"{name}, trained on {trained} rows: {rate * 100:.1f} % of the others are false alarms")
    print(
        f"\ntrain {result['train_us_a_row']:.1f} µs a row, score {result['score_us_a_row']:.1f} one by one,"
        f" {result['score_us_a_row_in_a_batch']:.2f} in a batch of {FLEET:,} devices"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with SKAB's folders")
    options = parser.parse_args()
    try:
        result = run(load_recordings(options.data))
    except (RecordingError, ValueError) as error:
        sys.exit(f"bench: {error}")
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        report(result)


if __name__ == "__main__":
    main()

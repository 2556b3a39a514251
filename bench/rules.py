"""What rules, schemas and detectors add to a device's turn, in microseconds of CPU a reading.

`make bench-rules` or `python bench/rules.py [--json] [--readings N]`. One process, one device, readings of
ten metrics whose rules do not hold, as nearly all do not. The turn's cost without any rule is subtracted; of
several runs the fastest counts, since everything else on a machine only adds.
"""

import argparse
import gc
import json
import random
import sys
import time
from typing import Any, Final

import msgspec
from surroundings import machine

from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.messages import Reading, Register
from sensorium.actors.profile import DetectorSpec, Profile, Profiles
from sensorium.actors.records import Commit
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Condition, Operator, Rule, RuleSpec, Scope, Threshold, WindowAggregate
from sensorium.actors.schema import MetricSpec, Schema

METRICS: Final = tuple(f"metric_{number}" for number in range(10))
RUNS: Final = 7
BATCH: Final = 500
"""Readings a commit, as under load."""
GOALS_US: Final = {
    "ten threshold rules": 3.0,
    "ten window rules": 10.0,
    "the ensemble on one metric": 20.0,
    "1,000 threshold rules on ten metrics": 3.0,
}


def rules(*conditions: Condition) -> list[Rule]:
    """An enabled rule for each, for one device type."""
    return [
        Rule(
            rule_id=f"r{number}",
            version=1,
            spec=RuleSpec(name=f"r{number}", condition=condition, scope=Scope(device_type="bench")),
            created_ms=0,
            updated_ms=0,
        )
        for number, condition in enumerate(conditions)
    ]


def thresholds(count: int, metrics: tuple[str, ...]) -> list[Rule]:
    """So many over these metrics, one after the other."""
    return rules(*(Threshold(metrics[n % len(metrics)], Operator.GT, 1e6 + n) for n in range(count)))


def windows(window_s: float | None) -> list[Rule]:
    """The mean of each metric, over the profile's window or one of the rules' own."""
    return rules(*(WindowAggregate(m, "mean", Operator.GT, 1e6, window_s) for m in METRICS))


def turn_us(book: list[Rule], readings: int, profile: Profile | None = None, standing: int = 0) -> float:
    """CPU time of one reading's turn: the fastest of `RUNS`. `standing` of the rules hold all the time."""
    around = Surroundings(Profiles(profile or Profile()), RuleBook(book))
    device = Device("bench", Shard(0, 0))
    device.handle(Register("bench", "bench"), 0, around, Commit())
    chance = random.Random(5)
    values: list[list[Any]] = [[chance.gauss(20, 1) for _ in METRICS] for _ in range(BATCH)]
    at_ms, fastest_s = 1_700_000_000_000, float("inf")
    for _ in range(RUNS):
        # What a host does with its own garbage is not the rules' cost.
        gc.collect()
        gc.disable()
        spent_s = 0.0
        for _ in range(max(1, readings // BATCH)):
            batch = [
                Reading("bench", at_ms + 1000 * n, at_ms, n, 0, list(row)) for n, row in enumerate(values)
            ]
            at_ms += 1000 * BATCH
            effects = Commit()
            began_s = time.process_time()
            for reading in batch:
                device.read(reading, METRICS, at_ms, around, effects)
            spent_s += time.process_time() - began_s
        gc.enable()
        fastest_s = min(fastest_s, spent_s)
    assert len(device.alarms) == standing, "no other rule of the benchmark may hold"
    around = Surroundings(Profiles(profile or Profile()), RuleBook(book[standing:]))
    huge: list[Any] = [1e12] * len(METRICS)
    device.read(Reading("bench", at_ms, at_ms, -1, 0, huge), METRICS, at_ms, around, Commit())
    watching = sum(rule.spec.condition.metric in METRICS for rule in book[standing:])
    assert len(device.alarms) == watching, "each rule on the metrics must have looked"
    return fastest_s / (max(1, readings // BATCH) * BATCH) * 1e6


def run(readings: int) -> dict[str, Any]:
    """The turn without rules, and what each set of rules adds to it."""
    other = tuple(f"other_{number}" for number in range(990))
    sets = {
        "ten threshold rules": thresholds(10, METRICS),
        "ten window rules": windows(None),
        "ten window rules of a length of their own": windows(600.0),
        "1,000 threshold rules on the type, ten of them on its metrics": thresholds(10, METRICS)
        + [rule for rule in thresholds(1_000, (*METRICS, *other)) if rule.spec.condition.metric in other],
        "1,000 threshold rules on ten metrics": thresholds(1_000, METRICS),
    }
    watches = {
        "the ensemble on one metric": (DetectorSpec(metrics=METRICS[:1]),),
        "z-scores on ten metrics": (DetectorSpec("zscore"),),
        "the ensemble on ten metrics": (DetectorSpec(),),
    }
    bare_us = turn_us([], readings)
    added = {name: round(turn_us(book, readings) - bare_us, 2) for name, book in sets.items()}
    holding = rules(*(Threshold(name, Operator.GT, -1e6) for name in METRICS))
    others = [msgspec.structs.replace(r, rule_id=f"x{r.rule_id}") for r in thresholds(990, METRICS)]
    added["1,000 threshold rules on ten metrics, ten of them with an alarm that stands"] = round(
        turn_us([*holding, *others], readings, standing=len(holding)) - bare_us, 2
    )
    ranges = Schema({name: MetricSpec(unit="Cel", minimum=-40.0, maximum=1e13) for name in METRICS})
    schema = Profile(schema=ranges)
    added["no rule, and a schema with ten ranges"] = round(turn_us([], readings, schema) - bare_us, 2)
    for name, specs in watches.items():
        added[name] = round(turn_us([], readings, Profile(detectors=specs)) - bare_us, 2)
    return {
        "machine": machine(),
        "readings": readings,
        "metrics_a_reading": len(METRICS),
        "turn_without_rules_us": round(bare_us, 2),
        "added_us": added,
    }


def show(result: dict[str, Any]) -> None:
    """For people."""
    print(result["machine"])
    print(
        f"a turn of {result['metrics_a_reading']} metrics without rules: {result['turn_without_rules_us']} us"
    )
    for name, added_us in result["added_us"].items():
        goal = f"   (goal {GOALS_US[name]:g})" if name in GOALS_US else ""
        print(f"+ {added_us:8.2f} us  {name}{goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--readings", type=int, default=20_000, help="of each of the runs (20000)")
    arguments = parser.parse_args()
    result = run(arguments.readings)
    if arguments.json:
        json.dump(result, sys.stdout)
        print()
    else:
        show(result)


if __name__ == "__main__":
    main()

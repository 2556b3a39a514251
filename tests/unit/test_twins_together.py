"""The same messages with the C modules and without them: the same bytes come out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import hashlib, json, random
from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.messages import Reading, Register
from sensorium.actors.profile import Profile, Profiles, WindowSpec
from sensorium.actors.records import Commit
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Operator, Range, Rule, RuleSpec, Threshold, ZScore
from sensorium.actors.turns import Work, lookups, run
from sensorium.ingest.decode import TelemetryDecoder
from sensorium.ingest.errors import Undecodable
from sensorium.storage.encode import encode_readings

chance = random.Random(SEED)
conditions = [
    Threshold("t", Operator.GT, 30.0), Range("h", 20.0, 60.0, inside=False), ZScore("t", 2.5),
    Threshold("mode", Operator.EQ, "off"), ZScore("h", 2.0, window_s=60.0),
]
rules = [
    Rule(
        rule_id=f"r{n}", version=1, created_ms=0, updated_ms=0,
        spec=RuleSpec(name="r", condition=c, for_s=n % 2),
    )
    for n, c in enumerate(conditions)
]
profile = Profile(windows=(WindowSpec(), WindowSpec(60.0, 10.0)), lateness_s=90.0)
around = Surroundings(Profiles(profile), RuleBook(rules))
shard = Shard(7, 0)
devices = {name: Device(name, shard) for name in ("a", "b", "c")}
digest = hashlib.sha256()
for device in devices.values():
    device.handle(Register(device.id, "climate"), 0, around, Commit())
decode = TelemetryDecoder().decode
now_ms = 1_700_000_000_000
for step in range(60):
    names, messages = [], []
    for _ in range(chance.randrange(1, 40)):
        now_ms += chance.choice((0, 10, 500, 5_000))
        metrics = {
            "t": round(chance.gauss(20, 5), 2), "h": chance.gauss(45, 9),
            **({"on": True} if chance.random() < 0.1 else {}),
            **({"mode": chance.choice(("on", "off"))} if chance.random() < 0.1 else {}),
        }
        if chance.random() < 0.1:
            del metrics["t"]
        if chance.random() < 0.8:
            metrics["timestamp"] = now_ms - chance.choice((0, 0, 0, 1, 4_000, 100_000, 2_000_000))
        payload = json.dumps(metrics).encode()
        if chance.random() < 0.02:
            payload = payload[:-3]
        try:
            [(time_ms, found, values, _)] = decode(payload, now_ms)
        except Undecodable as error:
            digest.update(str(error).encode())
            continue
        names.append(found)
        key = chance.choice((chance.getrandbits(62), hash(time_ms) % 50))
        for _ in range(chance.choice((1, 1, 1, 2))):
            flags = chance.choice((0, 0, 0, 2))
            device = chance.choice("abc")
            messages.append(Reading(device, time_ms, now_ms, key, len(names) - 1, values, flags))
    works = [Work(messages, names)]
    turns = run(works, devices, around, now_ms, set(lookups(works, devices)[::2]))
    digest.update(encode_readings(turns.commit.readings) + repr(turns.commit.events).encode())
    digest.update(repr((turns.outcomes, turns.commit.alarms, turns.commit.timers)).encode())
    for device in devices.values():
        # What is added up of closed panes may differ in its last bit between versions of Python.
        state = take_snapshot(device).offset, device.newest_values(), device.seen.dump()
        digest.update(repr(state).encode())
        for window in device.windows:
            cells = [window.cells(position) for position in range(len(device.metrics.names))]
            digest.update(repr([cell and list(cell) for cell in cells]).encode())
print(digest.hexdigest(), len(turns.commit.readings) > 0, shard.head > 500)
"""


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_a_stream_of_messages_leaves_the_same_bytes(seed: int) -> None:
    pytest.importorskip("sensorium.actors._judge", exc_type=ImportError)
    program = PROGRAM.replace("SEED", str(seed))
    source = Path(__file__).parents[2] / "src"
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"SENSORIUM_PURE": pure, "PYTHONPATH": str(source)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for pure in ("", "1")
    ]
    assert told[0] == told[1]
    assert told[0][1:] == ["True", "True"], "the messages were readings"

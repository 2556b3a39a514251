"""The turn that has a device forget."""

from sensorium.actors.device import NEVER_MS, Device, Shard, Surroundings
from sensorium.actors.messages import (
    Answer,
    EraseData,
    Patch,
    Reading,
    Refusal,
    Register,
    SendCommand,
)
from sensorium.actors.records import StoredDevice
from sensorium.actors.recovery import activate
from sensorium.actors.turns import Turns, Work, run

AROUND = Surroundings()


def measured() -> tuple[Device, Turns]:
    device = Device("d", Shard(0, 0))
    messages = [
        Register("d", "pump"),
        Reading("d", 1_000, 1_000, 7, 0, [20.5]),
        SendCommand("d", "c-1", "reboot", {}, 1_000, 90_000),
    ]
    return device, run([Work(messages, [("t",)])], {"d": device}, AROUND, 2_000, set())


def test_it_is_as_one_that_was_only_registered() -> None:
    device, _ = measured()
    turns = run([Work([EraseData("d", "j")])], {"d": device}, AROUND, 3_000, set())
    assert isinstance(turns.outcomes[0], Answer)
    [erasure] = turns.commit.erasures
    assert (erasure.offset, erasure.registration) == (turns.commit.events[0].offset, False)
    info = device.info(3_000, AROUND)
    assert info is not None
    assert (info.last_seen_ms, info.connectivity, device.newest_ms) == (None, "never_seen", NEVER_MS)
    assert device.newest_values() is not None
    assert (device.latest, device.commands.open, device.twin.desired.version) == ([], {}, 0)
    again = run(
        [Work([Reading("d", 4_000, 4_000, 8, 0, ["on"])], [("t",)])], {"d": device}, AROUND, 4_000, set()
    )
    assert again.outcomes == {}
    assert device.metrics.names == ("t",)


def test_what_was_seen_is_recognised_still() -> None:
    device, _ = measured()
    turns = run([Work([EraseData("d", "j")])], {"d": device}, AROUND, 3_000, set())
    stored = StoredDevice("d", device.registration, turns.commit.erasures[0].snapshot, [], [])
    for one in (device, activate(stored, Shard(0, 9), AROUND)):
        assert one.seen.holds(1_000, 7)


def test_what_the_same_commit_would_write_is_taken_back() -> None:
    device = Device("d", Shard(0, 0))
    messages = [
        Register("d", "pump"),
        SendCommand("d", "c-1", "reboot", {}, 1_000, 90_000),
        EraseData("d", "j", True),
        Patch("d", "valve"),
    ]
    turns = run([Work(messages)], {"d": device}, AROUND, 2_000, set())
    assert (turns.commit.registrations, turns.commit.commands, turns.commit.timers) == ([], [], [])
    assert isinstance(turns.outcomes[3], Refusal)
    assert device.registration is None


def test_who_is_not_there_cannot_forget() -> None:
    turns = run([Work([EraseData("d", "j")])], {"d": Device("d", Shard(0, 0))}, AROUND, 2_000, set())
    assert isinstance(turns.outcomes[0], Refusal)
    assert not turns.commit

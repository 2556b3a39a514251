"""What turns tell the audit log: who, what was before and after, in the effects of the change itself."""

from typing import Any

from sensorium.actors.audit import Asked
from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.messages import (
    ActOnAlarm,
    CancelCommand,
    ChangeTwin,
    Decommission,
    GetDevice,
    Message,
    Patch,
    Refusal,
    Register,
    SendCommand,
)
from sensorium.actors.origin import ASKED_BY, Origin, asked_by, this_user
from sensorium.actors.records import AuditRow, Commit
from sensorium.actors.turns import Work, run

ADA = Origin("ada", "192.0.2.7", "rest", "r-1")


class Bench:
    """One device whose messages are run as a host runs them."""

    def __init__(self) -> None:
        self.device = Device("d-1", Shard(0, 0))

    def __call__(self, message: Message) -> tuple[Any, list[AuditRow]]:
        turns = run([Work([message])], {"d-1": self.device}, Surroundings(), 1_000, set())
        assert isinstance(turns.commit, Commit)
        return turns.outcomes.get(0), turns.commit.audits


def test_registration_and_changes_have_before_and_after() -> None:
    turn = Bench()
    _, [row] = turn(Register("d-1", "pump", None, {"floor": 2}, origin=ADA))
    assert (row.what, row.thing, row.origin, row.before) == ("device.register", "d-1", ADA, None)
    assert row.after["metadata"] == {"floor": 2}
    _, [row] = turn(Patch("d-1", metadata={"floor": 3}, origin=ADA))
    assert (row.before["metadata"], row.after["metadata"]) == ({"floor": 2}, {"floor": 3})
    _, [row] = turn(Decommission("d-1", origin=ADA))
    assert (row.what, row.before["status"], row.after["status"]) == (
        "device.retire",
        "active",
        "decommissioned",
    )


def test_what_changes_nothing_or_is_refused_is_not_told() -> None:
    turn = Bench()
    outcome, rows = turn(Patch("d-1", metadata={}, origin=ADA))
    assert (type(outcome), rows) == (Refusal, [])
    turn(Register("d-1", "pump", origin=ADA))
    for message in (Patch("d-1", device_type="pump", origin=ADA), GetDevice("d-1"), Patch("d-1", "valve")):
        assert turn(message)[1] == []


def test_commands_and_the_twin_are_told() -> None:
    turn = Bench()
    turn(Register("d-1", "pump"))
    send = SendCommand("d-1", "c-1", "reboot", {}, 1_000, 90_000, origin=ADA)
    _, [row] = turn(send)
    assert (row.what, row.thing, row.before, row.after["state"]) == ("command.send", "c-1", None, "QUEUED")
    assert turn(send)[1] == []
    _, [row] = turn(CancelCommand("d-1", "c-1", origin=ADA))
    assert (row.before["state"], row.after) == ("QUEUED", None)
    _, [row] = turn(ChangeTwin("d-1", {"rate": 5}, origin=ADA))
    assert (row.what, row.before["version"], row.after["version"]) == ("twin.change", 0, 1)
    assert turn(ChangeTwin("d-1", None, {"rate": 5}, origin=ADA))[1] == []


def test_what_people_say_about_ended_alarms_is_told_too() -> None:
    turn = Bench()
    turn(Register("d-1", "pump"))
    _, [row] = turn(ActOnAlarm("d-1", "a-1", "comment", "ada", "seen", origin=ADA))
    assert (row.what, row.thing, row.note) == ("alarm.comment", "a-1", {"by": "ada", "text": "seen"})


def test_every_message_that_has_an_origin_is_asked() -> None:
    have = {kind for kind in Message.__args__ if "origin" in kind.__struct_fields__}
    assert have == set(Asked.__args__)


def test_who_asked_is_so_for_a_while() -> None:
    with asked_by(this_user("cli")):
        asked = ASKED_BY.get()
        assert asked is not None
        assert (asked.way, bool(asked.client)) == ("cli", True)
    assert ASKED_BY.get() is None

"""The life of a command: told in order, at most once an attempt, ended once, whatever happens when."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.commands import MAX_OPEN, REMEMBERED
from sensorium.actors.messages import (
    ACCEPTED,
    DUPLICATE,
    Answer,
    CancelCommand,
    ClaimCommand,
    CommandReply,
    CommandUndelivered,
    Decommission,
    Outcome,
    Patch,
    PresenceSaid,
    Refusal,
    Register,
    SendCommand,
    TakeCommands,
    TimerFired,
)
from sensorium.actors.profile import Profile
from sensorium.actors.records import OPEN_STATES, Command
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver, around_of

DAY_MS = 86_400_000


def send(driver: Driver, command_id: str = "c1", **more: Any) -> Outcome:
    fields = {"timeout_ms": 10_000, "expires_ms": driver.now_ms + DAY_MS} | more
    return driver.send(SendCommand(DEVICE_ID, command_id, "open", {"n": 1}, **fields))


def claim(driver: Driver, command_id: str = "c1", attempt: int = 1) -> Outcome:
    return driver.send(ClaimCommand(DEVICE_ID, command_id, attempt))


def reply(driver: Driver, command_id: str = "c1", status: str = "succeeded", **more: Any) -> Outcome:
    return driver.send(CommandReply(DEVICE_ID, command_id, status, driver.now_ms, **more))


def stored(driver: Driver) -> dict[str, Command]:
    """The commands as the log has them."""
    return {command.command_id: command for command in driver.log.commands}


def way(driver: Driver, command_id: str = "c1") -> list[tuple[str, int]]:
    return [(str(step.state), step.attempt) for step in stored(driver)[command_id].steps]


def test_a_command_is_queued_told_and_answered() -> None:
    driver = Driver()
    answer = send(driver)
    assert isinstance(answer, Answer)
    assert answer.value.ready
    told = claim(driver)
    assert isinstance(told, Answer)
    assert (told.value.command, told.value.parameters, told.value.attempt) == ("open", {"n": 1}, 1)
    assert reply(driver, status="delivered") is ACCEPTED
    assert reply(driver, status="delivered") is DUPLICATE
    assert reply(driver, result=[7], reason="done") is ACCEPTED
    assert reply(driver, result=[7], reason="done") is DUPLICATE
    assert way(driver) == [("QUEUED", 0), ("SENT", 1), ("DELIVERED", 1), ("SUCCEEDED", 1)]
    ended = stored(driver)["c1"]
    assert (ended.result, ended.reason, ended.due_ms, ended.ready) == ([7], "done", None, False)
    kinds = [event.kind for event in driver.log.events if event.kind.startswith("command")]
    assert kinds == ["command_queued", "command_sent", "command_delivered", "command_succeeded"]


def test_who_claims_second_is_refused() -> None:
    driver = Driver()
    send(driver)
    claim(driver)
    for attempt in (1, 2):
        assert isinstance(claim(driver, attempt=attempt), Refusal)


def test_who_tells_by_another_protocol_is_refused() -> None:
    driver = Driver()
    send(driver)
    assert isinstance(driver.send(ClaimCommand(DEVICE_ID, "c1", 1, "coap")), Refusal)
    assert isinstance(driver.send(ClaimCommand(DEVICE_ID, "c1", 1, "mqtt")), Answer)


def test_the_same_command_again_is_the_same() -> None:
    driver = Driver()
    first = send(driver)
    assert send(driver) == first
    other = driver.send(SendCommand(DEVICE_ID, "c1", "close", {}, 1000, driver.now_ms + 1000))
    assert isinstance(other, Refusal)
    assert other.code == "conflict"
    claim(driver)
    reply(driver)
    assert send(driver) is DUPLICATE
    assert send(driver.recovered()) is DUPLICATE


def test_one_is_told_at_a_time_and_a_delivered_one_does_not_hold_the_next() -> None:
    driver = Driver()
    send(driver, "c1")
    send(driver, "c2")
    assert isinstance(claim(driver, "c2"), Refusal)
    claim(driver, "c1")
    assert isinstance(claim(driver, "c2"), Refusal)
    reply(driver, "c1", "delivered")
    assert isinstance(claim(driver, "c2"), Answer)
    reply(driver, "c2", "failed", reason="stuck")
    reply(driver, "c1")
    assert [stored(driver)[c].state for c in ("c1", "c2")] == ["SUCCEEDED", "FAILED"]


@pytest.mark.parametrize("retries", [0, 2])
def test_silence_ends_after_the_retries(retries: int) -> None:
    driver = Driver()
    send(driver, retries=retries)
    for attempt in range(1, retries + 2):
        assert isinstance(claim(driver, attempt=attempt), Answer)
        driver.wait(11)
    assert stored(driver)["c1"].state == "TIMED_OUT"
    assert isinstance(claim(driver, attempt=retries + 2), Refusal)
    late = reply(driver)
    assert isinstance(late, Refusal)
    assert (late.code, late.dead_lettered) == ("late_reply", True)


def test_a_delivered_one_is_not_told_again_but_may_time_out() -> None:
    driver = Driver()
    send(driver, retries=5)
    claim(driver)
    reply(driver, status="delivered")
    driver.wait(11)
    assert way(driver)[-1] == ("TIMED_OUT", 1)


def test_an_answer_to_an_earlier_attempt_counts() -> None:
    driver = Driver()
    send(driver, retries=1)
    claim(driver)
    driver.wait(11)
    assert stored(driver)["c1"].state == "QUEUED"
    assert reply(driver) is ACCEPTED
    assert stored(driver)["c1"].state == "SUCCEEDED"


def test_an_expired_command_is_never_told() -> None:
    driver = Driver()
    send(driver, expires_ms=driver.now_ms + 500)
    driver.now_ms += 500  # the claim comes before the timer
    assert claim(driver) == Answer(None)
    assert way(driver) == [("QUEUED", 0), ("EXPIRED", 0)]
    send(driver, "c2", expires_ms=driver.now_ms + 500)
    driver.wait(1)
    assert stored(driver)["c2"].state == "EXPIRED"
    refused = send(driver, "c3", expires_ms=driver.now_ms)
    assert isinstance(refused, Refusal)
    assert refused.code == "invalid"


def test_who_is_away_waits_until_it_is_heard_of() -> None:
    driver = Driver()
    driver.send(PresenceSaid(DEVICE_ID, False))
    answer = send(driver)
    assert isinstance(answer, Answer)
    assert not answer.value.ready
    assert isinstance(claim(driver), Refusal)
    driver = driver.recovered()
    assert isinstance(claim(driver), Refusal)
    driver.read({"t": 1.0}, 0)
    assert isinstance(claim(driver), Answer)
    info = driver.device.info(driver.now_ms, driver.around)
    assert info is not None
    assert info.connectivity == "online"


def test_what_was_not_delivered_is_tried_again_later_or_at_an_uplink() -> None:
    driver = Driver()
    send(driver)
    claim(driver)
    driver.send(CommandUndelivered(DEVICE_ID, "c1", 1, "nobody"))
    assert isinstance(claim(driver), Refusal)
    driver.wait(61)
    assert isinstance(claim(driver), Answer)
    driver.send(CommandUndelivered(DEVICE_ID, "c1", 1, "nobody"))
    driver.read({"t": 1.0}, 0)
    assert isinstance(claim(driver), Answer)
    assert driver.send(CommandUndelivered(DEVICE_ID, "c1", 2, "of another attempt")) is ACCEPTED
    assert stored(driver)["c1"].state == "SENT"
    driver.send(CommandUndelivered(DEVICE_ID, "c1", 1, "not allowed", final=True))
    assert stored(driver)["c1"].state == "FAILED"


def test_cancelling() -> None:
    driver = Driver()
    send(driver)
    assert isinstance(driver.send(CancelCommand(DEVICE_ID, "c1")), Answer)
    again = driver.send(CancelCommand(DEVICE_ID, "c1"))
    unknown = driver.send(CancelCommand(DEVICE_ID, "c9"))
    assert isinstance(again, Refusal)
    assert isinstance(unknown, Refusal)
    assert (again.code, unknown.code) == ("conflict", "not_found")
    assert isinstance(claim(driver), Refusal)


def test_a_reply_out_of_nowhere_is_a_dead_letter() -> None:
    driver = Driver()
    for command_id in ("c9", "c1"):
        send(driver)
        outcome = reply(driver, command_id, result={"a": 1})
        assert isinstance(outcome, Refusal)
        assert outcome.code == "unknown_command"
    assert stored(driver)["c1"].state == "QUEUED"


def test_the_bounds_of_a_device() -> None:
    driver = Driver()
    for n in range(MAX_OPEN):
        assert isinstance(send(driver, f"c{n}"), Answer)
    refused = send(driver, "one too many")
    assert isinstance(refused, Refusal)
    assert refused.code == "overloaded"
    for n in range(MAX_OPEN):
        claim(driver, f"c{n}")
        reply(driver, f"c{n}")
    assert len(driver.device.commands._ended) == REMEMBERED


def test_a_retired_device_has_no_open_commands() -> None:
    driver = Driver()
    send(driver)
    driver.send(Decommission(DEVICE_ID))
    assert stored(driver)["c1"].reason == "device_decommissioned"
    refused = send(driver, "c2")
    assert isinstance(refused, Refusal)
    assert refused.code == "conflict"
    nobody = send(Driver(register=False))
    assert isinstance(nobody, Refusal)
    assert nobody.code == "not_found"


def test_a_device_that_asks_is_not_published_to() -> None:
    driver = Driver(around_of(profile=Profile(downlink="coap")))
    answer = send(driver)
    assert isinstance(answer, Answer)
    assert (answer.value.ready, answer.value.downlink) == (True, "coap")
    send(driver, "c2")
    for _ in range(2):  # asking again tells the same
        taken = driver.send(TakeCommands(DEVICE_ID))
        assert isinstance(taken, Answer)
        assert [(t.command_id, t.attempt) for t in taken.value] == [("c1", 1)]
    reply(driver)
    taken = driver.send(TakeCommands(DEVICE_ID))
    assert isinstance(taken, Answer)
    assert [t.command_id for t in taken.value] == ["c2"]


# --- any schedule --------------------------------------------------------------------------------------

_ids = st.sampled_from([f"c{n}" for n in range(4)])
_steps = st.one_of(
    st.tuples(st.just("send"), _ids, st.integers(0, 2)),
    st.tuples(st.just("claim"), _ids),
    st.tuples(st.just("claim"), _ids),
    st.tuples(st.just("reply"), _ids, st.sampled_from(["delivered", "succeeded", "failed"])),
    st.tuples(st.just("undelivered"), _ids),
    st.tuples(st.just("cancel"), _ids),
    st.tuples(st.just("presence"), st.booleans()),
    st.tuples(st.just("read")),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, 12.0, 70.0])),
    st.tuples(st.just("old timer")),
    st.tuples(st.just("restart")),
)


class _Schedule:
    """A driver with a dispatcher that claims, and what was told so far."""

    def __init__(self) -> None:
        self.driver = Driver(register=False)
        self.driver.send(Register(DEVICE_ID, TYPE))
        self.told: list[tuple[str, int]] = []

    def take(self, step: tuple[Any, ...]) -> None:
        driver = self.driver
        match step:
            case ("send", command_id, retries):
                send(driver, command_id, retries=retries, expires_ms=driver.now_ms + 60_000)
            case ("claim", command_id):
                known = stored(driver).get(command_id)
                outcome = claim(driver, command_id, 1 if known is None else known.attempt + 1)
                if isinstance(outcome, Answer) and outcome.value is not None:
                    self.told.append((command_id, outcome.value.attempt))
            case ("reply", command_id, status):
                reply(driver, command_id, status)
            case ("undelivered", command_id):
                known = stored(driver).get(command_id)
                if known is not None and known.state == "SENT":
                    self.told.remove((command_id, known.attempt))
                    driver.send(CommandUndelivered(DEVICE_ID, command_id, known.attempt, "nobody"))
            case ("cancel", command_id):
                driver.send(CancelCommand(DEVICE_ID, command_id))
            case ("presence", online):
                driver.send(PresenceSaid(DEVICE_ID, online))
            case ("read",):
                driver.read({"t": 1.0}, driver.now_ms - T0_MS)
            case ("wait", seconds):
                driver.wait(seconds)
            case ("old timer",):
                driver.send(TimerFired(DEVICE_ID, "commands", driver.now_ms - 1))
            case ("restart",):
                self.driver = driver.recovered()

    def check(self) -> None:
        commands = stored(self.driver)
        for command in commands.values():
            ends = [step for step in command.steps if step.state not in OPEN_STATES]
            assert len(ends) == (command.state not in OPEN_STATES), "ends once"
            assert not ends or command.steps[-1] is ends[0], "nothing follows the end"
            attempts = [attempt for told, attempt in self.told if told == command.command_id]
            assert attempts == sorted(set(attempts)), "told twice in one attempt"
            assert len(attempts) <= command.retries + 1, "told more often than allowed"
            assert not command.ready or command.state == "QUEUED"
        assert sum(command.state == "SENT" for command in commands.values()) <= 1
        assert sum(command.ready for command in commands.values()) <= 1
        firsts = [commands[told].number for told, attempt in self.told if attempt == 1]
        assert firsts == sorted(firsts), "out of order"
        assert {c.command_id: c for c in commands.values() if c.state in OPEN_STATES} == (
            self.driver.device.commands.open
        ), "memory is not what the log has"


@given(st.lists(_steps, max_size=40))
def test_in_any_schedule_each_is_told_once_an_attempt_and_ends_once(steps: list[tuple[Any, ...]]) -> None:
    schedule = _Schedule()
    for step in steps:
        schedule.take(step)
        schedule.check()
    schedule.driver.wait(200)
    schedule.check()
    assert not schedule.driver.device.commands.open, "everything ends"
    assert not schedule.driver.timers, "no timer is left"


def test_where_a_device_is_found_goes_with_what_it_is_told() -> None:
    driver = Driver()
    answer = send(driver)
    assert isinstance(answer, Answer)
    assert answer.value.downlink == "mqtt"
    driver.send(Patch(DEVICE_ID, metadata={"tts": {"application": "app"}}))
    assert (stored(driver)["c1"].downlink, stored(driver)["c1"].ready) == ("tts", True)
    driver = driver.recovered()
    told = claim(driver)
    assert isinstance(told, Answer)
    assert told.value.route == {"application": "app"}
    driver.send(Patch(DEVICE_ID, metadata={"tts": None}))
    send(driver, "c2")
    assert stored(driver)["c2"].downlink == "mqtt"


def test_a_patch_that_changes_nothing_writes_nothing() -> None:
    driver = Driver()
    driver.send(Patch(DEVICE_ID, metadata={"a": 1}))
    before = driver.device.registration
    driver.wait(1_000)
    driver.send(Patch(DEVICE_ID, metadata={"a": 1}))
    assert driver.device.registration == before

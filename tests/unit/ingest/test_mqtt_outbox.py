import asyncio
from collections.abc import Callable

import pytest
from gmqtt.client import Message

from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.mqtt_outbox import Codec, Outbox

PUBLISH_QOS1, PUBLISH_QOS2, PUBREL = 0x32, 0x34, 0x62


class Wire:
    """What was written, as (first byte, packet id); topics are one character."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def write(self, data: bytes | bytearray) -> None:
        at = 2 if data[0] & 0xF0 == 0x60 else 5
        self.sent.append((data[0], data[at] << 8 | data[at + 1]))


async def turn() -> None:
    """Let everybody run who can."""
    for _ in range(5):
        await asyncio.sleep(0)


def sending(outbox: Outbox, *qos: int) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(outbox.send(Message("t", b"x", qos=q))) for q in qos]


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(Codec())


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def test_a_message_is_sent_when_its_exchange_is_over(outbox: Outbox, wire: Wire) -> None:
    outbox.connected(wire.write, 10, session_present=False)
    once, exactly = sending(outbox, 1, 2)
    await turn()
    assert wire.sent == [(PUBLISH_QOS1, 1), (PUBLISH_QOS2, 2)]
    outbox.puback(1, 0)
    outbox.pubrec(2, 0)
    await turn()
    assert once.done()
    assert not exactly.done()
    assert wire.sent[2:] == [(PUBREL, 2)]
    outbox.puback(2, 0)
    await asyncio.gather(once, exactly)
    assert len(outbox) == 0


@pytest.mark.parametrize("answer", [Outbox.puback, Outbox.pubrec])
async def test_a_refusal_is_raised(
    outbox: Outbox, wire: Wire, answer: Callable[[Outbox, int, int], None]
) -> None:
    outbox.connected(wire.write, 10, session_present=False)
    [task] = sending(outbox, 2)
    await turn()
    answer(outbox, 1, 0x87)
    with pytest.raises(BrokerRefused, match="0x87"):
        await task
    assert len(outbox) == 0


async def test_the_window_admits_in_the_order_of_asking(outbox: Outbox, wire: Wire) -> None:
    tasks = sending(outbox, 1, 1)
    await turn()
    assert wire.sent == []
    outbox.connected(wire.write, 2, session_present=False)
    tasks += sending(outbox, 1, 1)
    await turn()
    assert [mid for _, mid in wire.sent] == [1, 2]
    outbox.puback(2, 0)
    await turn()
    assert len(wire.sent) == 3
    assert [task.done() for task in tasks] == [False, True, False, False]
    for mid in (1, 3, 4):
        outbox.puback(mid, 0)
        await turn()
    await asyncio.gather(*tasks)


async def test_a_waiter_that_gives_up_does_not_cost_a_place(outbox: Outbox, wire: Wire) -> None:
    outbox.connected(wire.write, 1, session_present=False)
    first, second, third = sending(outbox, 1, 1, 1)
    await turn()
    # Cancelled in the same turn in which its place comes free.
    second.cancel()
    outbox.puback(1, 0)
    await turn()
    assert second.cancelled()
    assert first.done()
    assert len(wire.sent) == 2
    outbox.puback(wire.sent[1][1], 0)
    await third


async def test_a_waiter_that_gives_up_after_its_place_came_hands_it_on(outbox: Outbox, wire: Wire) -> None:
    outbox.connected(wire.write, 1, session_present=False)
    first, second, third = sending(outbox, 1, 1, 1)
    await turn()
    outbox.puback(1, 0)
    second.cancel()
    await turn()
    assert second.cancelled()
    assert first.done()
    outbox.puback(wire.sent[1][1], 0)
    await third


async def test_what_is_open_is_sent_again_in_the_kept_session(outbox: Outbox, wire: Wire) -> None:
    outbox.connected(wire.write, 10, session_present=False)
    tasks = sending(outbox, 1, 2, 2)
    await turn()
    outbox.pubrec(3, 0)
    outbox.disconnected()
    again = Wire()
    outbox.connected(again.write, 10, session_present=True)
    assert again.sent == [(PUBLISH_QOS1 | 8, 1), (PUBLISH_QOS2 | 8, 2), (PUBREL, 3)]
    outbox.pubrec(2, 0)
    for mid in (1, 2, 3):
        outbox.puback(mid, 0)
    await asyncio.gather(*tasks)


async def test_a_smaller_window_is_respected_when_sending_again(outbox: Outbox, wire: Wire) -> None:
    outbox.connected(wire.write, 10, session_present=False)
    tasks = sending(outbox, 1, 1, 1)
    await turn()
    again = Wire()
    outbox.connected(again.write, 2, session_present=True)
    assert [mid for _, mid in again.sent] == [1, 2]
    outbox.puback(1, 0)
    assert [mid for _, mid in again.sent] == [1, 2, 3]
    outbox.puback(2, 0)
    outbox.puback(3, 0)
    await asyncio.gather(*tasks)


async def test_a_lost_session_repeats_qos_1_and_fails_qos_2(outbox: Outbox, wire: Wire) -> None:
    outbox.connected(wire.write, 10, session_present=False)
    once, exactly = sending(outbox, 1, 2)
    await turn()
    again = Wire()
    outbox.connected(again.write, 10, session_present=False)
    assert again.sent == [(PUBLISH_QOS1, 1)]
    with pytest.raises(Disconnected, match="lost the session"):
        await exactly
    outbox.puback(1, 0)
    await once


async def test_closing_fails_everybody(outbox: Outbox, wire: Wire) -> None:
    outbox.connected(wire.write, 1, session_present=False)
    tasks = sending(outbox, 1, 1)
    await turn()
    outbox.close()
    for task in tasks:
        with pytest.raises(Disconnected):
            await task


async def test_what_must_not_be_repeated_fails_when_the_connection_breaks(wire: Wire) -> None:
    outbox = Outbox(Codec(), repeat=False)
    outbox.connected(wire.write, 10, session_present=False)
    [cut] = sending(outbox, 1)
    await turn()
    outbox.disconnected()
    with pytest.raises(Disconnected):
        await cut
    outbox.connected(wire.write, 10, session_present=False)
    assert len(wire.sent) == 1

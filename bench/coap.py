"""How many readings a second come in over CoAP, each answered with 2.04 after its commit.

`make bench-coap` or `python bench/coap.py [--json] [--seconds 12] [--open 200]`: confirmable POSTs of JSON
from many sockets through a whole platform, so many of them open at once. What is not answered in time is sent
again by the same message id, as RFC 7252 has it. At the end the answers are held against the log.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

from commands import start
from surroundings import machine, mosquitto, readings_of

from sensorium.actors.messages import Register
from sensorium.actors.runtime import join_ray, make_router
from sensorium.cluster.run_directory import read_state
from sensorium.ingest.broker import free_port
from sensorium.storage.database import open_pool

DEVICES = 1_000
SOCKETS = 40
WARM_UP_S = 3.0
ACK_TIMEOUT_S = 2.0
TIMEOUT_S = 240.0

_CON_POST = b"\x42\x02"
"""With a token of two bytes, which is the message id again."""
_JSON_AND_PAYLOAD = b"\x11\x32\xff"
_CON, _ACK, _EMPTY, _CHANGED = 0, 2, 0x00, 0x44
_EMPTY_ACK = b"\x60\x00"


class Answers:
    """What all sockets were answered, and how late, while it counts."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.counted = self.repeated = 0
        self.late_ms: list[float] = []
        self.counts = self.ended = False


class Sensors(asyncio.DatagramProtocol):
    """A socket that speaks for some devices and has so many requests open."""

    def __init__(self, device_ids: list[str], open_at_once: int, answers: Answers) -> None:
        self._heads = [_path("sensors", device_id) for device_id in device_ids]
        self._open_at_once = open_at_once
        self._answers = answers
        self._mid = int.from_bytes(os.urandom(2), "big")
        self._sent = 0
        self._open: dict[int, tuple[float, float, bytes]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every datagram transport of asyncio is an instance of its class.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def begin(self) -> None:
        for _ in range(self._open_at_once):
            self._post()

    def _post(self) -> None:
        self._mid = (self._mid + 1) % 65_536
        self._sent += 1
        head = self._heads[self._sent % len(self._heads)]
        reading = b'{"temperature":%d.5,"n":%d}' % (self._sent % 40, self._sent)
        mid = self._mid.to_bytes(2, "big")
        packet = _CON_POST + mid + mid + head + _JSON_AND_PAYLOAD + reading
        now_s = time.perf_counter()
        self._open[self._mid] = (now_s, now_s, packet)
        assert self._transport is not None
        self._transport.sendto(packet)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if len(data) < 4:
            return
        kind, code, mid, token = data[0] >> 4 & 3, data[1], data[2:4], data[4:6]
        if code == _EMPTY:
            # It is there, and its answer follows by itself (RFC 7252, section 5.2.2).
            sent = self._open.get(int.from_bytes(mid, "big")) if kind == _ACK else None
            if sent is not None:
                self._open[int.from_bytes(mid, "big")] = (sent[0], math.inf, sent[2])
            return
        if kind == _CON and self._transport is not None:
            self._transport.sendto(_EMPTY_ACK + mid)
        sent = self._open.pop(int.from_bytes(token, "big"), None)
        if sent is None:
            return
        answers = self._answers
        answers.codes[f"{data[1] >> 5}.{data[1] & 31:02}"] += 1
        if answers.counts:
            answers.counted += data[1] == _CHANGED
            answers.late_ms.append((time.perf_counter() - sent[0]) * 1000)
        if not answers.ended:
            self._post()

    def repeat(self) -> int:
        """Send again what was not answered in time; how many requests are open."""
        now_s = time.perf_counter()
        for mid, (first_s, last_s, packet) in self._open.items():
            if now_s - last_s > ACK_TIMEOUT_S and self._transport is not None:
                self._open[mid] = (first_s, now_s, packet)
                self._answers.repeated += 1
                self._transport.sendto(packet)
        return len(self._open)


def _path(*segments: str) -> bytes:
    """Uri-Path options, each of up to 268 bytes (RFC 7252, section 3.1)."""
    out = b""
    for number, segment in enumerate(segments):
        delta, text = (0 if number else 11) << 4, segment.encode()
        out += bytes([delta | len(text)]) if len(text) < 13 else bytes([delta | 13, len(text) - 13])
        out += text
    return out


async def measured(port: int, device_ids: list[str], options: argparse.Namespace) -> dict[str, Any]:
    answers = Answers()
    loop = asyncio.get_running_loop()
    sockets = []
    for n in range(SOCKETS):
        own = device_ids[n::SOCKETS]
        _, protocol = await loop.create_datagram_endpoint(
            lambda own=own: Sensors(own, max(1, options.open // SOCKETS), answers),  # type: ignore[misc]
            remote_addr=("127.0.0.1", port),
        )
        sockets.append(protocol)
    for each in sockets:
        each.begin()
    begin_s = time.perf_counter()
    start_s = end_s = 0.0
    while (now_s := time.perf_counter()) - begin_s < WARM_UP_S + options.seconds:
        if not answers.counts and now_s - begin_s >= WARM_UP_S:
            answers.counts, start_s = True, now_s
        await asyncio.sleep(0.05)
        for each in sockets:
            each.repeat()
    answers.counts, answers.ended, end_s = False, True, time.perf_counter()
    async with asyncio.timeout(60):
        while sum(each.repeat() for each in sockets):
            await asyncio.sleep(0.05)
    cuts = statistics.quantiles(answers.late_ms, n=100)
    return {
        "open_at_once": max(1, options.open // SOCKETS) * SOCKETS,
        "readings_per_s": round(answers.counted / (end_s - start_s)),
        "p50_ms": round(cuts[49], 1),
        "p99_ms": round(cuts[98], 1),
        "answers": dict(answers.codes),
        "sent_again": answers.repeated,
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as name:
        directory = Path(name)
        with mosquitto(directory) as (broker_port, _):
            coap_port = free_port()
            process = await asyncio.to_thread(start, directory / "data", broker_port, coap_port)
            try:
                state = read_state(directory / "data")
                await asyncio.to_thread(join_ray, state.ray_address)
                pool = await open_pool(state.database, 2)
                device_ids = [f"bench-{n:05}" for n in range(DEVICES)]
                async with make_router(f"bench-{os.getpid()}") as router, asyncio.timeout(TIMEOUT_S):
                    await asyncio.gather(*(router.ask(Register(d, "bench"), 60) for d in device_ids))
                    result = await measured(coap_port, device_ids, options)
                    result["committed"] = await readings_of(pool)
                pool.terminate()
            finally:
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(process.wait, 60)
    return {"machine": machine(), **result}


def show(result: dict[str, Any]) -> None:
    print(result["machine"])
    print(
        f"CoAP, {result['open_at_once']} requests open: {result['readings_per_s']:,} readings/s,"
        f" request → 2.04 p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms"
    )
    print(
        f"answers {result['answers']}, sent again {result['sent_again']}, committed {result['committed']:,}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the measured run")
    parser.add_argument("--open", type=int, default=200, help="requests open at once")
    options = parser.parse_args()
    result = asyncio.run(run(options))
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()

"""How many readings a second come in over CoAP, each answered with 2.04 after its commit.

`make bench-coap` or `python bench/coap.py [--json] [--seconds 12] [--open 200]`: confirmable POSTs of JSON
from many sockets through a whole platform, so many of them open at once. What is not answered in time is sent
again by the same message id, as RFC 7252 has it. At the end the answers are held against the log.

Beside it stands what the same requests get of a bare aiocoap server that answers at once and keeps nothing,
just before and just after: what the library and the machine allow.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Any, cast

import aiocoap
from aiocoap import resource
from registered import platform_with
from surroundings import cpu_s, machine

from sensorium.ingest.broker import free_port

DEVICES = 1_000
SOCKETS = 40
WARM_UP_S = 3.0
ACK_TIMEOUT_S = 2.0

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


async def measured(
    port: int, device_ids: list[str], options: argparse.Namespace, server: str
) -> dict[str, Any]:
    """Rates and delays of so many open requests.

    `server` is what the command line of the process that answers has in it, for its CPU time.
    """
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
    start_s = end_s = cpu_before_s = 0.0
    while (now_s := time.perf_counter()) - begin_s < WARM_UP_S + options.seconds:
        if not answers.counts and now_s - begin_s >= WARM_UP_S:
            answers.counts, start_s, cpu_before_s = True, now_s, cpu_s(server)
        await asyncio.sleep(0.05)
        for each in sockets:
            each.repeat()
    answers.counts, answers.ended, end_s = False, True, time.perf_counter()
    used_s = cpu_s(server) - cpu_before_s
    async with asyncio.timeout(60):
        while sum(each.repeat() for each in sockets):
            await asyncio.sleep(0.05)
    cuts = statistics.quantiles(answers.late_ms, n=100)
    return {
        "open_at_once": max(1, options.open // SOCKETS) * SOCKETS,
        "readings_per_s": round(answers.counted / (end_s - start_s)),
        "cpu_us": round(used_s / answers.counted * 1e6),
        "p50_ms": round(cuts[49], 1),
        "p99_ms": round(cuts[98], 1),
        "answers": dict(answers.codes),
        "sent_again": answers.repeated,
    }


class Bare(resource.Resource):
    """Answers every POST below it with 2.04, at once."""

    def render_post(self, request: aiocoap.Message) -> Awaitable[aiocoap.Message]:
        answer: asyncio.Future[aiocoap.Message] = asyncio.get_running_loop().create_future()
        answer.set_result(aiocoap.Message(code=aiocoap.CHANGED))
        return answer


class Everything(Bare, resource.PathCapable):
    """Whatever the path is."""


async def serve_bare(port: int) -> None:
    """Until this process is ended."""
    site = resource.Site()
    site.add_resource(["sensors"], Everything())
    await aiocoap.Context.create_server_context(site, bind=("127.0.0.1", port))
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()


async def bare(device_ids: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """What `measured` says of it."""
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--bare", str(port)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        await server.stdout.readline()
        found = await measured(port, device_ids, options, f"--bare {port}")
    finally:
        server.terminate()
        await server.wait()
    return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    device_ids = [f"bench-{n:05}" for n in range(DEVICES)]
    before = await bare(device_ids, options)
    async with platform_with(device_ids) as platform:
        result = await measured(platform.coap_port, device_ids, options, "AdapterService:coap")
        result["committed"] = await platform.committed()
    return {"machine": machine(), **result, "bare": [before, await bare(device_ids, options)]}


def show(result: dict[str, Any]) -> None:
    print(result["machine"])
    print(
        f"CoAP, {result['open_at_once']} requests open: {result['readings_per_s']:,} readings/s,"
        f" request → 2.04 p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms"
    )
    print(
        f"answers {result['answers']}, sent again {result['sent_again']}, committed {result['committed']:,}"
    )
    print(f"CPU time of the process that answers: {result['cpu_us']} µs a reading")
    for when, found in zip(("before", "after"), result["bare"], strict=True):
        print(
            f"a bare aiocoap server, {when}: {found['readings_per_s']:,} requests/s, {found['cpu_us']} µs"
            f" each, p50 {found['p50_ms']} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the measured run")
    parser.add_argument("--open", type=int, default=200, help="requests open at once")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        asyncio.run(serve_bare(options.bare))
    result = asyncio.run(run(options))
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()

"""Publishes telemetry at QoS 1 as cheaply as Python can, so that what it measures is somebody else.

`python bench/load.py --port 1883 --seconds 10 --rate 0` prints one JSON object: what was published and
acknowledged, in how many seconds, at how much CPU. Packets are built before the clock starts; while it
runs, only their time stamps are written into them and PUBACKs are counted by their bytes.
"""

import argparse
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from done_count import DoneCount

_PUBACK_TYPE = 0x40
_KEEPALIVE_S = 600
# A message without time stamp differs from its device's last one by nothing but these digits.
_STAMP_DIGITS = 13
# Fewer, larger writes cost less; at 40,000 messages a second a burst is 6 ms.
_BURST = 250
_TICK_S = 0.001


@dataclass(slots=True)
class Template:
    """A round of one message for each device of a connection, and where its stamps and packet ids stand."""

    data: bytearray
    stamps: list[int]
    ids: list[int]
    ends: list[int]


def publish(topic: str, payload: bytes, version: int) -> tuple[bytes, int]:
    """A QoS 1 PUBLISH with packet id 0, and the offset of the id."""
    name = topic.encode()
    variable = struct.pack("!H", len(name)) + name + b"\0\0" + (b"\0" if version == 5 else b"")
    length = len(variable) + len(payload)
    header = bytes([0x32]) + varint(length)
    return header + variable + payload, len(header) + 2 + len(name)


def varint(value: int) -> bytes:
    """A variable byte integer."""
    out = bytearray()
    while True:
        value, byte = divmod(value, 128)
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def connect_packet(client_id: str, version: int) -> bytes:
    """CONNECT with a clean start."""
    properties = b"\0" if version == 5 else b""
    name = client_id.encode()
    body = b"\0\4MQTT" + bytes([version, 2]) + struct.pack("!H", _KEEPALIVE_S) + properties
    body += struct.pack("!H", len(name)) + name
    return b"\x10" + varint(len(body)) + body


def template(devices: list[str], version: int) -> Template:
    """One message for each device, in one buffer."""
    made = Template(bytearray(), [], [], [])
    for index, device in enumerate(devices):
        payload = (
            f'{{"timestamp":{"0" * _STAMP_DIGITS},"temperature":{20 + index % 90 / 10:.1f},'
            f'"humidity":{40 + index % 170 / 10:.2f},"pressure":{990 + index % 300 / 10:.2f}}}'
        ).encode()
        packet, id_at = publish(f"devices/{device}/telemetry", payload, version)
        start = len(made.data)
        made.ids.append(start + id_at)
        made.stamps.append(start + packet.index(b"0" * _STAMP_DIGITS, id_at))
        made.data += packet
        made.ends.append(len(made.data))
    return made


@dataclass(slots=True, eq=False)
class Publisher:
    """One connection: sends slices of its template while the window has room."""

    connection: socket.socket
    template: Template
    window: int
    ack_bytes: int = 4
    sent: int = 0
    acked: int = 0
    at: int = 0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    rest: bytes = b""

    def receive(self) -> None:
        """Count PUBACKs. A version 5 broker may append a reason code, so lengths are looked at."""
        data = self.rest + self.connection.recv(1 << 18)
        if not data:
            raise ConnectionError("the broker closed the connection")
        position, end = 0, len(data)
        step = data[1] + 2 if end > 1 else 4
        whole = end // step
        # Nearly always all are alike; then counting is one division.
        if end % step == 0 and data[::step].count(_PUBACK_TYPE) == whole:
            self.acked += whole
            self.rest = b""
            return
        while end - position >= 2 and position + 2 + data[position + 1] <= end:
            self.acked += data[position] == _PUBACK_TYPE
            position += 2 + data[position + 1]
        self.rest = data[position:]

    def send(self, count: int, stamp_ms: int) -> int:
        """Send up to `count` messages stamped `stamp_ms`; returns how many were put on their way."""
        start = self.at
        stop = min(start + min(count, self.window - (self.sent - self.acked)), len(self.template.ends))
        if stop <= start:
            return 0
        data, ids = self.template.data, self.template.ids
        stamp = b"%d" % stamp_ms
        mid = self.sent % 65_535
        for index in range(start, stop):
            where = self.template.stamps[index]
            data[where : where + _STAMP_DIGITS] = stamp
            mid = mid % 65_535 + 1
            packet_id = ids[index]
            data[packet_id] = mid >> 8
            data[packet_id + 1] = mid & 0xFF
        first = self.template.ends[start - 1] if start else 0
        self.unsent = memoryview(bytes(data[first : self.template.ends[stop - 1]]))
        self.flush()
        self.sent += stop - start
        self.at = stop % len(self.template.ends)
        return stop - start

    def flush(self) -> None:
        """Write what the socket takes."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.connection.send(self.unsent) :]
        except BlockingIOError:
            pass


def open_publisher(
    host: str, port: int, index: int, devices: list[str], version: int, window: int
) -> Publisher:
    """Connect and wait for CONNACK."""
    connection = socket.create_connection((host, port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(connect_packet(f"load-{os.getpid()}-{index}", version))
    answer = connection.recv(1024)
    if len(answer) < 4 or answer[0] != 0x20 or answer[3]:
        raise ConnectionError(f"the broker refused the connection: {answer.hex()}")
    if version == 5:
        window = min(window, receive_maximum(answer))
    connection.setblocking(False)
    return Publisher(connection, template(devices, version), window)


def receive_maximum(connack: bytes) -> int:
    """The broker's window for us, from a version 5 CONNACK."""
    from sensorium.ingest.mqtt_wire import split_properties

    properties, _ = split_properties(connack[4:])
    return int(properties.get("receive_maximum", [65_535])[0])


def run(
    publishers: list[Publisher],
    seconds: float,
    rate: float,
    count: int,
    drain_s: float,
    room_left: Callable[[int], float] = lambda sent: 1e9,
) -> dict[str, float]:
    """Publish for `seconds` or until `count` messages (0: no bound) are sent.

    At `rate` messages a second in all, or as fast as they are taken (0); never more than `room_left`, which
    is told how many were sent.
    """
    poll = selectors.DefaultSelector()
    for publisher in publishers:
        poll.register(publisher.connection, selectors.EVENT_READ, publisher)
    started = time.perf_counter()
    cpu = time.process_time()
    # A device sends at most one message a millisecond: rounds without a rate get ever new stamps.
    stamps = {id(publisher): time.time_ns() // 1_000_000 for publisher in publishers}
    while (now := time.perf_counter() - started) < seconds:
        due = sum(p.sent for p in publishers)
        if count and due >= count:
            break
        share = min(rate * now - due if rate else 1e9, room_left(due)) / len(publishers)
        if count:
            share = min(share, -(-(count - due) // len(publishers)))
        for publisher in publishers:
            room = publisher.window - (publisher.sent - publisher.acked)
            if publisher.unsent:
                publisher.flush()
            elif share >= 1 and room >= min(_BURST, share, publisher.window):
                stamp = max(stamps[id(publisher)] + (publisher.at == 0), time.time_ns() // 1_000_000)
                stamps[id(publisher)] = stamp
                publisher.send(int(min(share, _BURST)), stamp)
        for key, _ in poll.select(_TICK_S):
            key.data.receive()
        if share < _BURST:
            time.sleep(_TICK_S)
    elapsed = time.perf_counter() - started
    acked = sum(p.acked for p in publishers)
    deadline = time.perf_counter() + drain_s
    while sum(p.sent - p.acked for p in publishers) and time.perf_counter() < deadline:
        for publisher in publishers:
            publisher.flush()
        for key, _ in poll.select(0.01):
            key.data.receive()
    return {
        "published": sum(p.sent for p in publishers),
        "acked": sum(p.acked for p in publishers),
        "seconds": round(elapsed, 3),
        "rate": round(acked / elapsed, 1),
        "cpu_s": round(time.process_time() - cpu, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--prefix", default="bench-")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0, help="messages a second in all; 0: no limit")
    parser.add_argument("--count", type=int, default=0, help="messages after which to stop; 0: no bound")
    parser.add_argument("--window", type=int, default=2000, help="unacknowledged messages a connection")
    parser.add_argument("--version", type=int, choices=(4, 5), default=4, help="4 is MQTT 3.1.1")
    parser.add_argument("--drain-seconds", type=float, default=10.0)
    parser.add_argument(
        "--done-file", type=Path, help="a DoneCount of messages that the measured one has done"
    )
    parser.add_argument("--backlog", type=int, default=20_000, help="with --done-file: messages not done yet")
    options = parser.parse_args()
    done = DoneCount(options.done_file) if options.done_file else None
    names = [f"{options.prefix}{index:05d}" for index in range(options.devices)]
    publishers = [
        open_publisher(
            options.host,
            options.port,
            index,
            names[index :: options.connections],
            options.version,
            options.window,
        )
        for index in range(options.connections)
    ]

    def room_left(sent: int) -> float:
        return 1e9 if done is None else options.backlog - (sent - done.get())

    result = run(publishers, options.seconds, options.rate, options.count, options.drain_seconds, room_left)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()

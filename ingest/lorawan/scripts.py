"""Vendors' JavaScript codecs (TS013) in a process of their own, which is made anew when it dies or hangs."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from sensorium.ingest.errors import Reason, Undecodable

ANSWER_TIMEOUT_S: Final = 5.0
"""Beyond the codec's own limit, for a process that has to start or is stuck."""
MAX_WAITING: Final = 1_000
"""Frames that wait for the process; beyond it they become dead letters, to be replayed."""
MAX_PORT: Final = 223
"""Of applications (LoRaWAN 1.0.4, section 4.3.2)."""
_CHILD: Final = Path(__file__).with_name("script_child.py")
_LINE_BYTES: Final = 1024 * 1024

T = TypeVar("T")


class ScriptCodecs:
    """Runs codecs by name, one frame at a time and in the order of asking. `async with` it.

    A codec that throws, loops or takes too much memory costs the frame it does it on.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = dict(sources)
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the process. A later frame would start it again."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def decode(self, codec: str, port: int, frame: bytes, received_ms: int) -> dict[str, Any]:
        """The codec's `data`. Raises `Undecodable` when it fails, or when it reports errors."""
        asked = {"bytes": list(frame), "fPort": port, "recvTime": received_ms, "variables": {}}
        return await self._run(codec, asked, _data)

    async def encode(self, codec: str, data: dict[str, Any], port: int) -> tuple[int, bytes]:
        """Port and frame of a downlink. `port` is for codecs that do not choose it. Raises as `decode`."""
        return await self._run(codec, {"data": data, "fPort": port, "variables": {}}, _frame)

    async def _run(self, codec: str, asked: dict[str, Any], read: "Callable[[str, dict[str, Any]], T]") -> T:
        if self._waiting >= MAX_WAITING:
            raise Undecodable(Reason.CODEC_BUSY, f"{MAX_WAITING} frames wait for the codecs")
        self._waiting += 1
        try:
            async with self._turn:
                reply = await self._asked(msgspec.json.encode({"codec": codec, "input": asked}))
        finally:
            self._waiting -= 1
        self._counts["frames"] += 1
        try:
            return read(codec, _result(codec, reply))
        except Undecodable:
            self._counts["failures"] += 1
            raise

    async def _asked(self, request: bytes) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                process = await self._running()
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(request + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
                reply: dict[str, Any] = msgspec.json.decode(line)
                return reply
        except (TimeoutError, OSError, ValueError) as error:
            self._counts["restarts"] += 1
            await self.close()
            said = str(error) or f"no answer within {ANSWER_TIMEOUT_S:g} s"
            return {"error": f"its process was lost ({said}) and is made anew"}
        except BaseException:
            # A frame that is given up would leave its answer to the next one.
            await self.close()
            raise

    async def _running(self) -> Process:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",  # nothing of the platform's is within its reach, not even as an import
                str(_CHILD),
                stdin=PIPE,
                stdout=PIPE,
                limit=_LINE_BYTES,
                env={},
            )
            assert self._process.stdin is not None
            self._process.stdin.write(msgspec.json.encode(self._sources) + b"\n")
        return self._process

    def statistics(self) -> dict[str, int]:
        """Counts since the start: frames, failures, restarts of the process; and frames that wait."""
        return {
            "frames": self._counts["frames"],
            "failures": self._counts["failures"],
            "restarts": self._counts["restarts"],
            "waiting": self._waiting,
        }


def _result(codec: str, reply: dict[str, Any]) -> dict[str, Any]:
    if "error" in reply:
        raise Undecodable(Reason.CODEC_FAILED, f"codec {codec}: {reply['error']}")
    result = reply["result"]
    if type(result) is not dict:
        raise Undecodable(Reason.CODEC_FAILED, f"codec {codec} gave no object")
    if result.get("errors"):
        raise Undecodable(Reason.CODEC_FAILED, f"codec {codec}: {str(result['errors'])[:200]}")
    return result


def _data(codec: str, result: dict[str, Any]) -> dict[str, Any]:
    data = result.get("data")
    if type(data) is not dict:
        raise Undecodable(Reason.CODEC_FAILED, f"codec {codec} gave no data")
    return data


def _frame(codec: str, result: dict[str, Any]) -> tuple[int, bytes]:
    numbers, port = result.get("bytes"), result.get("fPort")
    if type(numbers) is not list or not all(type(n) is int and 0 <= n < 256 for n in numbers):
        raise Undecodable(Reason.CODEC_FAILED, f"codec {codec} gave no bytes")
    if type(port) is not int or not 1 <= port <= MAX_PORT:
        raise Undecodable(Reason.CODEC_FAILED, f"codec {codec} gave the port {str(port)[:20]}")
    return port, bytes(numbers)

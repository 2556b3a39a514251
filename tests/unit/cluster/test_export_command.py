"""`sensorium export`: the file is whole or not there, and mistakes are one line."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from shell import sensorium

from sensorium.cluster.errors import ClusterError, PlatformUnreachable
from sensorium.cluster.export import ExportFailed, export, format_of, moment

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Breaks(httpx.AsyncByteStream):
    async def __aiter__(self):
        yield b"half"
        raise httpx.RemoteProtocolError("peer closed connection")


async def written(file: Path, answer: httpx.Response) -> httpx.Request:
    asked: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer

    parameters = {"format": "csv", "device_id": "a b", "start": None}
    assert await export("http://p", file, parameters, Console(), httpx.MockTransport(reply)) == 4
    return asked[0]


async def test_it_asks_for_what_was_named(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    request = await written(file, httpx.Response(200, content=b"rows"))
    assert dict(request.url.params) == {"format": "csv", "device_id": "a b"}
    assert file.read_bytes() == b"rows"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (httpx.Response(404, json={"detail": "no device a b"}), PlatformUnreachable, "404 no device a b"),
        (httpx.Response(200, stream=Breaks()), ExportFailed, "broke off after 4 bytes"),
    ],
)
async def test_what_is_not_whole_leaves_the_file_before(
    tmp_path: Path, answer: httpx.Response, error: type[ClusterError], said: str
) -> None:
    file = tmp_path / "out.csv"
    file.write_bytes(b"before")
    with pytest.raises(error, match=said):
        await written(file, answer)
    assert file.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_the_format_is_the_files_or_named() -> None:
    assert format_of(Path("a.CSV"), None) == "csv"
    assert format_of(Path("a.jsonl"), None) == "ndjson"
    assert format_of(Path("a.csv"), "parquet") == "parquet"


def test_times() -> None:
    assert moment("--since", "7d", NOW) == "2026-11-17T12:00:00+00:00"
    assert moment("--since", "2026-01-01", NOW) == "2026-01-01"
    assert moment("--since", None, NOW) is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("x.xlsx",), 2, "x.xlsx says no format that is known: name one (--format ndjson, csv, parquet)"),
        (("x.csv", "--since", "yesterday"), 2, "--since: 'yesterday' is neither a time such as"),
        (("x.csv", "--since", "999999w"), 2, "--since: 999999w is before the year 1"),
        (("x.csv", "--url", "http://127.0.0.1:9"), 1, "http://127.0.0.1:9 does not answer"),
        (("/nowhere/x.csv",), 1, "/nowhere/x.csv: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = sensorium("export", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"sensorium: {said}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

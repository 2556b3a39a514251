"""GraphQL of a whole platform: the examples of its page, through the proxy."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from platform_process import PlatformProcess

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

PAGE = Path(__file__).parents[2] / "docs" / "graphql.md"
DEADLINE_S = 30.0


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_the_examples_of_the_page(
    api: httpx.AsyncClient, platform: PlatformProcess, tmp_path: Path
) -> None:
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "sh", "python"]
    here = platform.state.http_url.removeprefix("http://")
    ask, change, program = (text.replace("127.0.0.1:8000", here) for _, text in blocks)

    async def shell(text: str) -> dict[str, Any]:
        said = msgspec.json.decode(await run("sh", "-c", text))
        assert "errors" not in said, said
        found: dict[str, Any] = said["data"]
        return found

    changed = await shell(change)
    assert changed["sendCommand"]["state"] in ("QUEUED", "SENT")
    asked = await shell(ask)
    # The first page only, and other tests have devices on this platform too.
    assert all(item["deviceId"] for item in asked["devices"]["items"])
    assert asked["devices"]["items"]
    (tmp_path / "follow.py").write_text(program)
    following = asyncio.create_task(run(sys.executable, str(tmp_path / "follow.py")))
    while not following.done():
        (await api.post("/api/devices/sensor-007/data", json={"temperature": 21.5})).raise_for_status()
        await asyncio.wait({following}, timeout=0.2)
    assert (await following).strip() == "{'temperature': 21.5}"
    page = await api.get("/graphql")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")

"""The explorer in a browser, as people use it: complete, run, lay out, look up, take from the history."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.unit.serve.feed_log import served
from tests.unit.serve.world import World, world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TIMEOUT_S = 60.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


def app_of(platform: World) -> Any:
    transport: Any = platform.http._transport
    return transport.app


class Browser:
    """A page, asked over the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._sent = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._sent += 1
        await self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params}))
        while (said := json.loads(await self._socket.recv())).get("id") != self._sent:
            pass
        result: dict[str, Any] = said["result"]
        return result

    async def js(self, text: str) -> Any:
        said = await self.call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, text: str) -> Any:
        while not (value := await self.js(text)):
            await asyncio.sleep(0.02)
        return value

    async def press(self, key: str, code: int, modifiers: int = 0, text: str | None = None) -> None:
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        more = {} if text is None else {"text": text}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **given, **more)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **given)


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with world() as platform, served(app_of(platform)) as address:
        await platform.registered("sensor-001")
        process = await asyncio.create_subprocess_exec(
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
            *(f"--user-data-dir={tmp_path}", "--remote-allow-origins=*", f"http://{address}/graphql"),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                port_file = tmp_path / "DevToolsActivePort"
                while not (port_file.exists() and port_file.read_text().count("\n") >= 1):
                    await asyncio.sleep(0.05)
                port = port_file.read_text().split("\n")[0]
                async with httpx.AsyncClient() as http:
                    while True:
                        pages = (await http.get(f"http://127.0.0.1:{port}/json")).json()
                        found = [p for p in pages if p["type"] == "page" and "/graphql" in p["url"]]
                        if found:
                            break
                        await asyncio.sleep(0.05)
                async with websockets.connect(found[0]["webSocketDebuggerUrl"], max_size=None) as socket:
                    page = Browser(socket)
                    await page.until("typeof schema !== 'undefined' && schema !== null")
                    yield page
        finally:
            process.kill()
            await process.wait()


async def test_it_is_used_as_people_use_it(browser: Browser) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await browser.js("at('query').value = '{ devices { items { '; at('query').focus();")
        await browser.js("at('query').setSelectionRange(99, 99)")
        for letter in "deviceI":
            await browser.press(letter, ord(letter.upper()), text=letter)
        assert await browser.js("[...at('offers').children].map((each) => each.firstChild.data)") == [
            "deviceId"
        ]
        assert await browser.js("getComputedStyle(at('offers')).display") == "block"
        await browser.press("Enter", 13, text="\r")
        assert await browser.js("at('query').value") == "{ devices { items { deviceId"
        assert await browser.js("getComputedStyle(at('offers')).display") == "none"
        typed = await browser.js("at('query').value += ' } } }'")
        await browser.press("Enter", 13, modifiers=2)
        answer = await browser.until("at('answer').textContent.includes('data') && at('answer').textContent")
        assert json.loads(answer) == {"data": {"devices": {"items": [{"deviceId": "sensor-001"}]}}}

        await browser.js("at('pretty').click()")
        laid_out = "{\n  devices {\n    items {\n      deviceId\n    }\n  }\n}\n"
        assert await browser.js("at('query').value") == laid_out

        await browser.js("at('docs').click(); at('search').value = 'sendcomm'; at('search').oninput()")
        assert "sendCommand(deviceId: String!" in await browser.js("at('pane').textContent")
        await browser.js("at('search').value = ''; [...at('pane').querySelectorAll('a')].length; draw()")
        await browser.js(
            "[...at('pane').querySelectorAll('a')].find((a) => a.textContent === 'Twin').click()"
        )
        assert "toldVersion: Int!" in await browser.js("at('pane').textContent")

        await browser.js("at('variables').value = '{'; run()")
        assert "SyntaxError" in await browser.js("at('answer').textContent")
        await browser.js("at('history').click(); at('query').value = ''; at('variables').value = '{}'")
        await browser.js("at('pane').querySelector('.entry').click()")
        assert "devices" in await browser.js("at('query').value")
        await browser.call("Page.reload")
        assert await browser.until("document.readyState === 'complete' && at('query').value") == typed

        await browser.js("at('query').value = 'subscription { live { cursor } }'; run()")
        await browser.until("at('answer').textContent.includes('no live feed')")

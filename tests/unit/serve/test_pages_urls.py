"""What the pages ask the API by `curl` exists: path, method and the names of the parameters."""

import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest

from sensorium.serve.services import ActionSide
from tests.unit.serve.world import world

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = re.compile(r"(?:http://)?(?:127\.0\.0\.1|localhost|10\.0\.0\.10):8000(/.*)?")
UNLISTED = ("/graphql",)
"""No part of the API's document."""
FREE = re.compile(r"metadata\..+")
"""Parameters of any name."""


class Call(NamedTuple):
    method: str
    path: str
    parameters: tuple[str, ...]


def calls_in(text: str) -> list[Call]:
    """Those of the shell blocks."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        joined = re.sub(r"\\\n\s*", " ", block)
        # Quoted texts, such as bodies of several lines, become one word; addresses stay.
        plain = re.sub(r"'([^']*)'", lambda quoted: _word(quoted[1]), joined)
        for command in re.split(r"\n|\||; |\$\(|\)", plain):
            if (call := _call(command.partition(" #")[0].replace('"', " "))) is not None:
                found.append(call)
    return found


def _word(quoted: str) -> str:
    return quoted if ADDRESS.fullmatch(quoted) else "BODY"


def _call(command: str) -> Call | None:
    words = command.split()
    url = next((match[1] or "/" for word in words if (match := ADDRESS.fullmatch(word)) is not None), None)
    if "curl" not in words or url is None:
        return None
    sends = {"-d", "--data", "--data-binary"} & set(words)
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if sends else "GET"
    parts = urlsplit(url)
    names = tuple(name for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    return Call(method.lower(), parts.path, names)


@pytest.mark.slow
async def test_every_call_of_the_pages_is_one_of_the_api() -> None:
    nobody: Any = None
    side = ActionSide(nobody, nobody, nobody, nobody, ())
    async with world(actions=side) as platform:
        document = (await platform.http.get("/openapi.json")).json()
    routes = [
        (re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path)) + "$"), operations)
        for path, operations in document["paths"].items()
    ]
    total, wrong = 0, []
    for page in PAGES:
        for call in calls_in(page.read_text()):
            total += 1
            if call.path in UNLISTED:
                continue
            # One that is exact stands before one with a parameter, as in the app.
            fitting = (ops for path, ops in routes if path.match(call.path) and call.method in ops)
            operation = next((ops[call.method] for ops in fitting), None)
            if operation is None:
                wrong.append(f"{page.name}: no {call.method.upper()} {call.path}")
                continue
            known = {p["name"] for p in operation.get("parameters", ())}
            wrong += [
                f"{page.name}: {call.path} takes no {name}"
                for name in call.parameters
                if name not in known and not FREE.fullmatch(name)
            ]
    assert not wrong, "\n".join(wrong)
    assert total > 80


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("curl -s http://127.0.0.1:8000/api/x", Call("get", "/api/x", ())),
        (
            "curl -s 'http://127.0.0.1:8000/api/x?a=1&b=' -H 'A: b' \\\n  -d '{\n  \"c\": 1}'",
            Call("post", "/api/x", ("a", "b")),
        ),
        ("curl -X DELETE localhost:8000/api/x/$id   # gone", Call("delete", "/api/x/$id", ())),
        (
            "until curl -s http://127.0.0.1:8000/api/x | grep -q true; do sleep 1; done",
            Call("get", "/api/x", ()),
        ),
    ],
    ids=["get", "post", "delete", "until"],
)
def test_calls_are_read(block: str, expected: Call) -> None:
    assert calls_in(f"```sh\n{block}\n```") == [expected]

"""The example notebooks, and a snippet of a page, executed as a reader would against the running platform."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from platform_process import PlatformProcess

from sensorium.actors.fleet import Fleet

pytestmark = pytest.mark.ray

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "fleet.ipynb"
FORK = EXAMPLES / "fork.ipynb"


@pytest.mark.parametrize("path", [NOTEBOOK, FORK], ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    assert [
        cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)
    ] == []


async def test_it_runs(platform: PlatformProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", platform.state.ray_address)
    monkeypatch.setenv("SENSORIUM_URL", platform.state.http_url)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    before = {child.pid for child in psutil.Process().children()}
    for run in ("first", "again"):
        notebook = nbformat.read(NOTEBOOK, 4)
        await NotebookClient(notebook, timeout=60, kernel_name="python3").async_execute()
        shown = {cell.id: outputs(cell) for cell in notebook.cells if cell.cell_type == "code"}
        text = "\n".join(shown.values())
        assert "1200" in text, run
        assert "{'greenhouse-07': ['Greenhouse too cold']}" in text, run
        assert len([line for line in text.splitlines() if line.startswith("greenhouse-")]) == 10, run
        assert "image/png" in text, run
    assert {child.pid for child in psutil.Process().children()} <= before


async def test_hosts_join_and_leave_as_their_page_says(fleet: Fleet, api: httpx.AsyncClient) -> None:
    """As many as there are, and on the only node: where others join, `test_three_nodes` looks."""
    [snippet] = re.findall(r"```python\n(.*?)```", (DOCS / "ownership.md").read_text(), re.DOTALL)
    [node] = (await api.get("/api/nodes")).json()["items"]
    wanted = (await api.get("/api/hosts")).json()["wanted"]
    for typed, here in {"scale(4)": f"scale({wanted})", "node-id": node["node_id"]}.items():
        assert typed in snippet
        snippet = snippet.replace(typed, here)
    await asyncio.to_thread(exec, compile(snippet, "ownership.md", "exec"), {})
    assert (await api.get("/api/nodes")).json()["items"] == [node]
    # Since the newest coordinator started, whose predecessors other tests have killed.
    assert set(fleet.statistics()["moves"]) <= {"claimed", "handed_over", "taken", "isolated", "shared"}


async def test_a_storm_in_a_fork(platform: PlatformProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", platform.state.ray_address)
    monkeypatch.setenv("SENSORIUM_URL", platform.state.http_url)
    notebook = nbformat.read(FORK, 4)
    await NotebookClient(notebook, timeout=60, kernel_name="python3").async_execute()
    text = "\n".join(outputs(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "Ingested(accepted=3000, late=0, duplicates=0, refused={})" in text
    in_fork = re.search(r"(\d+) alarms at (\d+) stations in the fork", text)
    assert in_fork is not None, text
    assert int(in_fork[1]) >= int(in_fork[2]) > 20
    assert "0 alarms in the real fleet" in text
    assert f"in both {in_fork[1]}, only in the fork 0, only real 0" in text
    fewer = re.search(r"(\d+) alarms instead of (\d+)", text)
    assert fewer is not None, text
    assert 0 < int(fewer[1]) < int(fewer[2])


def outputs(cell: Any) -> str:
    """What a cell shows: its texts, and the kinds of its pictures."""
    shown = []
    for output in cell.outputs:
        shown.append(output.get("text", ""))
        data = output.get("data", {})
        shown.append(data.get("text/plain", ""))
        shown += [kind for kind in data if kind.startswith("image/")]
    return "\n".join(shown)

"""The example notebook, executed as a reader would against the running platform."""

from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from platform_process import PlatformProcess

pytestmark = pytest.mark.ray

NOTEBOOK = Path(__file__).parents[2] / "examples" / "fleet.ipynb"


def test_it_is_committed_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
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


def outputs(cell: Any) -> str:
    """What a cell shows: its texts, and the kinds of its pictures."""
    shown = []
    for output in cell.outputs:
        shown.append(output.get("text", ""))
        data = output.get("data", {})
        shown.append(data.get("text/plain", ""))
        shown += [kind for kind in data if kind.startswith("image/")]
    return "\n".join(shown)

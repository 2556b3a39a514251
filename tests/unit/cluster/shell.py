"""The command line as a shell sees it, without the second that a new interpreter costs."""

import io
import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from sensorium.cluster.cli import main


class Done(NamedTuple):
    """What a shell keeps of a command that ended."""

    returncode: int
    stdout: str
    stderr: str


def sensorium(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Done:
    """Runs `sensorium ARGUMENTS` in `cwd` with no environment but a PATH and the one given."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["sensorium", *map(str, arguments)]),
        patch.dict(os.environ, {"PATH": "/usr/bin:/bin", **environment}, clear=True),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Done(code, out.getvalue(), err.getvalue())

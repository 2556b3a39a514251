"""Runs a command with the environment that every process of a deployed cluster needs.

`python -m sensorium.cluster.deploy.node --name NAME [--wait-for HOST:PORT] -- COMMAND [ARGUMENTS]` sets what
Ray Serve reads when Ray starts, and becomes the command. It imports no Ray, which would start too slowly.
With `--authority FOLDER --certificate FOLDER` it makes the node's certificate first.
"""

import argparse
import os
import socket
import sys
import time
from pathlib import Path
from typing import Final

from sensorium.cluster.errors import ConfigError
from sensorium.ingest.broker import free_port
from sensorium.serve.environment import ProxyPorts, serve_environment, short_run_dir

STARTED_TOGETHER: Final = 16
"""Processes that Ray starts side by side on a node. It prints a warning into our output at four times as
many, and it would take the node's number of CPUs for this bound, though our actors claim none: what a lost
node had would start one after the other."""

RAY_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A host that is replaced leaves a record in Ray's control store; the default keeps 100,000 of them.
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
    "RAY_worker_maximum_startup_concurrency": str(STARTED_TOGETHER),
    # Ray's default, 15, lets everything else on the machine go first: database, broker, whoever calls us.
    "RAY_worker_niceness": "0",
    # Counted for Ray's own debug log and state listings, in every process, a hundred times a second and more.
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
}
"""What Ray itself is told, on a deployed cluster and on a single machine."""

NO_FIGURES: Final = {"RAY_enable_metrics_collection": "0", "REPORTER_UPDATE_INTERVAL_MS": "60000"}
"""What Ray is told besides where it ends with the platform: nobody would look for its own figures there.
Collecting those of all processes takes an agent of its some 30 ms, every 5 s by default."""

WAIT_S: Final = 300.0
POLL_S: Final = 0.5


def node_environment(name: str) -> dict[str, str]:
    """The variables of a node of the cluster of this name. Ray's own programs are found first on the PATH."""
    here = str(Path(sys.executable).parent)
    return {
        **serve_environment(short_run_dir(name), ProxyPorts(free_port(), free_port(), free_port())),
        **RAY_ENVIRONMENT,
        "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def wait_for(address: str, timeout_s: float) -> None:
    """Return when something listens there. Raises `TimeoutError` when nothing does in time."""
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=POLL_S).close()
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"nothing listens on {address} after {timeout_s:g} s") from error
            time.sleep(POLL_S)
        else:
            return


def main(arguments: list[str]) -> None:
    """Become the command after `--`."""
    parser = argparse.ArgumentParser(prog="sensorium.cluster.deploy.node", description=__doc__)
    parser.add_argument("--name", required=True, help="of the cluster")
    parser.add_argument("--wait-for", metavar="HOST:PORT", help="before the command is run")
    parser.add_argument("--wait-s", type=float, default=WAIT_S, help="for so long at most")
    parser.add_argument("--authority", type=Path, help="folder with ca.crt and ca.key")
    parser.add_argument("--certificate", type=Path, help="folder to make the node's certificate in")
    parser.add_argument("--named", action="append", default=[], help="another name that the node has")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    try:
        if given.authority is not None and given.certificate is not None:
            # Only here: it takes most of a second to import.
            from sensorium.cluster.deploy import certificate

            certificate.make(given.authority, given.certificate, given.named)
        if given.wait_for is not None:
            wait_for(given.wait_for, given.wait_s)
        environment = {**os.environ, **node_environment(given.name)}
    except (ConfigError, TimeoutError, ValueError) as error:
        sys.exit(f"sensorium: {error}")
    os.execvpe(given.command[0], given.command, environment)


if __name__ == "__main__":
    main(sys.argv[1:])

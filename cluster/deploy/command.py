"""`sensorium deploy`: plans, writes and runs a deployment."""

import asyncio
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.deploy.output import write
from sensorium.cluster.deploy.plan import FILES, Plan
from sensorium.cluster.deploy.spec import Target
from sensorium.cluster.errors import DeployFailed, PlatformUnreachable

READY_TIMEOUT_S: Final = 900.0
POLL_S: Final = 2.0


def write_files(plan: Plan) -> None:
    """Write the plan's files. Raises `ClusterError` when the directory is not free for them."""
    write(plan.directory, plan.files, FILES)


def check_runnable(plan: Plan) -> str:
    """The program that the plan's command needs.

    Raises:
        DeployFailed: it is not here, or lacks what it needs; says what to install, or to only write.
    """
    program = plan.command[0]
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.is_file() else shutil.which(program)
    if found is None:
        raise DeployFailed(
            f"{program} is not on the PATH of this machine; --write-only writes {plan.directory} without it"
        )
    if plan.target is not Target.KUBERAY:
        for needed in ("ssh", "rsync"):
            if shutil.which(needed) is None:
                raise DeployFailed(
                    f"{needed} is not on the PATH of this machine, and `ray up` reaches the nodes with it;"
                    " --write-only writes the files without it"
                )
    if plan.target is Target.AWS and importlib.util.find_spec("boto3") is None:
        raise DeployFailed(
            "boto3 is not installed here, and `ray up` starts machines with it; install it into this"
            " environment, or use --write-only"
        )
    return found


def run(plan: Plan) -> None:
    """Run the plan's command in its directory, its output shown as it comes.

    Raises:
        DeployFailed: it cannot be run, or fails.
    """
    program = check_runnable(plan)
    done = subprocess.run([program, *plan.command[1:]], cwd=plan.directory, check=False)
    if done.returncode:
        raise DeployFailed(
            f"`{' '.join(plan.command)}` in {plan.directory} ended with code {done.returncode};"
            " its output above says why, and deploying again takes up where it stopped"
        )


async def wait_until_ready(url: str, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return when the platform there is ready.

    Raises:
        DeployFailed: it is not in time.
    """
    last = "it has not answered"
    try:
        async with asyncio.timeout(timeout_s), PlatformApi(url) as api:
            while True:
                try:
                    readiness = await api.readiness()
                except PlatformUnreachable as error:
                    last = str(error)
                else:
                    if readiness["ready"]:
                        return
                    last = f"its checks say {readiness.get('checks')}"
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise DeployFailed(
            f"{url} is not ready after {timeout_s:g} s: {last}; look into platform.log on the head"
        ) from None

"""The command `sensorium`. It parses and prints; what a command does stands in the module of its name."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

import sensorium
from sensorium.cluster import cli_models
from sensorium.cluster import config as configuration
from sensorium.cluster.errors import ClusterError, ConfigError, NotRunning
from sensorium.cluster.simulator.fleet import Simulation

app = typer.Typer(
    help="An IoT platform on the actor model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

projections = typer.Typer(
    help="What is fed from the log: how far each is, and steering it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(projections, name="projections")

commands = typer.Typer(
    help="Have many devices do something.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(commands, name="commands")

audit = typer.Typer(
    help="Who changed what, and whether the log of it is whole.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(audit, name="audit")

app.command("train")(cli_models.train)
app.add_typer(cli_models.models, name="models")

JobId = Annotated[str, typer.Argument(help="Of a bulk job, as `send` prints it.")]

ProjectionName = Annotated[str, typer.Argument(help="Such as kafka; see: sensorium projections list.")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Where the platform keeps everything.")]
HttpUrl = Annotated[str, typer.Option("--url", help="The platform's HTTP API.")]
MqttUrl = Annotated[str, typer.Option("--mqtt-url", help="mqtt[s]://[user:password@]host[:port]")]
CaFile = Annotated[Path | None, typer.Option(help="Whom to trust with mqtts:// (PEM).", exists=True)]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for it.")]
Qos = Annotated[int, typer.Option(min=0, max=2, help="MQTT quality of service.")]
Seed = Annotated[int, typer.Option(help="Of all chance: the same seed gives the same readings.")]
Interval = Annotated[float, typer.Option(min=0.01, help="Seconds between two readings of a device.")]
FaultRate = Annotated[float, typer.Option(min=0, max=4, help="Faults of one device in one hour.")]
Duration = Annotated[float, typer.Option(min=0, help="End after so many seconds; 0: not by itself.")]

_LOCAL_HTTP = "http://127.0.0.1:8000"
_LOCAL_MQTT = "mqtt://127.0.0.1:1883"


def main() -> NoReturn:
    """The console script: exit code 0, 1 for a failure, 2 for a mistake in what was asked."""
    try:
        app(standalone_mode=True)
    except ClusterError as error:
        print(f"sensorium: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if show_version:
        print(f"sensorium {version('sensorium')}")
        raise typer.Exit


@app.command()
def up(
    data_dir: Annotated[Path | None, typer.Option(help="Where to keep everything [.sensorium].")] = None,
    http_port: Annotated[int | None, typer.Option(help="Of the HTTP API [8000].")] = None,
    mqtt_port: Annotated[int | None, typer.Option(help="Of the embedded MQTT broker [1883].")] = None,
    coap_port: Annotated[int | None, typer.Option(help="Of the CoAP endpoint, on UDP [5683].")] = None,
    config: Annotated[Path | None, typer.Option(help="A configuration file (YAML).")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.")] = None,
    simulate: Annotated[int, typer.Option(min=0, help="Simulate so many devices as well.")] = 0,
    interval: Interval = 5.0,
    seed: Seed = 1,
    fault_rate: FaultRate = 1.0,
    live: Annotated[bool, typer.Option("--live", help="Show a live table; log to a file.")] = False,
    duration: Duration = 0.0,
) -> None:
    """Run the platform until Ctrl-C. Prints `ready URL` when all is serving."""
    settings = configuration.load(
        config,
        os.environ,
        {
            "--data-dir": ("storage.data_dir", data_dir),
            "--http-port": ("http.port", http_port),
            "--mqtt-port": ("mqtt.port", mqtt_port),
            "--coap-port": ("coap.port", coap_port),
            "--ray-address": ("cluster.ray_address", ray_address),
        },
    )
    # Ray takes seconds to import: a mistake in the configuration is told before.
    from sensorium.cluster.platform import Platform
    from sensorium.cluster.up import UpOptions
    from sensorium.cluster.up import up as run

    simulation = Simulation(simulate, interval, seed=seed, faults_per_h=fault_rate) if simulate else None
    options = UpOptions(simulation, live, duration or None)
    asyncio.run(run(settings, options, Platform, Console()))


@app.command()
def down(
    data_dir: DataDir = Path(".sensorium"),
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for it to end.")] = 60.0,
) -> None:
    """End the platform that runs on the data directory. It is no error when none does."""
    from sensorium.cluster.run_directory import stop

    try:
        print(f"stopped (pid {stop(data_dir, timeout)})")
    except NotRunning as absent:
        print(absent)


@app.command()
def status(
    data_dir: DataDir = Path(".sensorium"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """What the platform on the data directory does. Exit code 1 when it does not run or is not ready."""
    from sensorium.cluster import status as page

    shown = asyncio.run(page.status(data_dir))
    if as_json:
        print(msgspec.json.encode(shown).decode())
    else:
        console = Console()
        console.print(page.table(shown))
        if shown.hosting.items:
            console.print(page.hosts_table(shown))
    if not shown.ready:
        raise typer.Exit(1)


@app.command()
def scale(
    hosts: Annotated[int, typer.Argument(min=1, max=1024, help="How many.")],
    url: HttpUrl = _LOCAL_HTTP,
    timeout: Timeout = 120.0,
) -> None:
    """Have so many hosts from now on. Returns when each has its shards; those that go hand over first."""
    from sensorium.cluster import nodes

    now = asyncio.run(nodes.scale(url, hosts, timeout))
    print(f"{len(now.items)} hosts: {', '.join(host.name for host in now.items)}")


@app.command()
def drain(
    node: Annotated[str, typer.Argument(help="Its id, the beginning of it, or its address.")],
    url: HttpUrl = _LOCAL_HTTP,
    timeout: Timeout = 120.0,
    undo: Annotated[bool, typer.Option("--undo", help="Allow hosts there again.")] = False,
) -> None:
    """Empty a node: its hosts hand over to others. Returns when that is done."""
    from sensorium.cluster import nodes

    now = asyncio.run(nodes.drain(url, node, timeout, undo=undo))
    print(f"{now.address} ({now.node_id[:8]}): {', '.join(now.hosts) or 'no hosts'}")


@app.command()
def simulate(
    devices: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many.")] = 200,
    interval: Interval = 5.0,
    speed: Annotated[
        float, typer.Option(min=1, help="Simulated seconds in one real second; needs --duration above 1.")
    ] = 1.0,
    duration: Duration = 0.0,
    seed: Seed = 1,
    fault_rate: FaultRate = 1.0,
    qos: Qos = 1,
    url: HttpUrl = _LOCAL_HTTP,
    mqtt_url: MqttUrl = _LOCAL_MQTT,
    ca_file: CaFile = None,
) -> None:
    """Simulate a fleet against a running platform: four device types, their faults, and rules to see them."""
    from sensorium.cluster.publisher import parse_broker
    from sensorium.cluster.simulator.command import run

    if speed > 1 and not duration:
        raise ConfigError("--speed above 1 needs --duration: it simulates the past up to now")
    simulation = Simulation(devices, interval, speed, duration or None, seed, fault_rate, qos)
    broker = parse_broker(mqtt_url, str(ca_file) if ca_file else None)
    asyncio.run(run(simulation, url, broker, Console(stderr=True)))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A CSV file with a header.", exists=True, dir_okay=False)],
    device: Annotated[str, typer.Option(help="The device that sends it.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="NAME, or NAME=COLUMN; may be given again for more columns.")
    ] = None,
    all_columns: Annotated[bool, typer.Option("--all-columns", help="Every column is a metric.")] = False,
    speed: Annotated[float, typer.Option(min=0, help="Times real time; 0: as fast as it goes.")] = 0.0,
    time_column: Annotated[str, typer.Option()] = "timestamp",
    value_column: Annotated[str | None, typer.Option(help="Of the one --metric [value].")] = None,
    delimiter: Annotated[str, typer.Option(help="Between fields; auto looks at the header.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Rows at most.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over bad rows.")] = False,
    register: Annotated[str | None, typer.Option(help="Register the device as this type first.")] = None,
    qos: Qos = 1,
    url: HttpUrl = _LOCAL_HTTP,
    mqtt_url: MqttUrl = _LOCAL_MQTT,
    ca_file: CaFile = None,
) -> None:
    """Send a recording through MQTT as the device would have. Times without a zone are UTC."""
    from sensorium.cluster.publisher import parse_broker
    from sensorium.cluster.recording import columns
    from sensorium.cluster.replay import Replay, run

    if len(delimiter) != 1 and delimiter != "auto":
        raise ConfigError("--delimiter is one character, or auto")
    wanted = columns(
        time_column, metric or [], value_column, all_columns, None if delimiter == "auto" else delimiter
    )
    broker = parse_broker(mqtt_url, str(ca_file) if ca_file else None)
    how = Replay(device, speed, limit, qos)
    summary = asyncio.run(
        run(file, wanted, how, broker, url, register, skip_bad=skip_bad, console=Console(stderr=True))
    )
    print(summary.told())


@app.command()
def deploy(
    spec: Annotated[Path, typer.Argument(help="A cluster specification (YAML).")],
    target: Annotated[str | None, typer.Option(help="local, aws or kuberay, instead of its own.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write [deploy/NAME-TARGET].")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
    write_only: Annotated[bool, typer.Option("--write-only", help="Write the files, run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON, files included.")] = False,
) -> None:
    """Bring up a cluster: Ray on machines (ray up) or on Kubernetes (KubeRay), and the platform on it."""
    from sensorium.cluster.deploy.checks import read
    from sensorium.cluster.deploy.spec import Target

    if target is not None and target not in list(Target):
        raise ConfigError(f"--target: {target!r} is none of {', '.join(Target)}")
    if as_json and not dry_run:
        raise ConfigError("--json goes with --dry-run")
    if dry_run and write_only:
        raise ConfigError("--dry-run writes nothing; give it or --write-only")
    order = read(spec, Target(target) if target is not None else None)
    from sensorium.cluster.deploy import command
    from sensorium.cluster.deploy.plan import plan

    planned = plan(order, output or Path("deploy", f"{order.spec.name}-{order.target}"))
    if dry_run:
        print(msgspec.json.encode(planned.as_json()).decode() if as_json else planned.told())
        return
    if not write_only:
        command.check_runnable(planned)
    command.write_files(planned)
    print(f"wrote {planned.directory}")
    if write_only:
        return
    command.run(planned)
    if planned.url is not None:
        asyncio.run(command.wait_until_ready(planned.url))
        print(f"ready {planned.url}")


@app.command("broker-config")
def broker_config(
    directory: Annotated[Path, typer.Argument(help="Where to write it, and where the broker keeps things.")],
    ca: Annotated[Path, typer.Option(help="Who signs the devices' certificates (PEM).")],
    cert: Annotated[Path, typer.Option(help="The broker's own certificate.")],
    key: Annotated[Path, typer.Option(help="Its key.")],
    target: Annotated[str, typer.Option(help="The broker: mosquitto.")] = "mosquitto",
    platform_ca: Annotated[Path | None, typer.Option(help="Who signs the platform's, if another.")] = None,
    crl: Annotated[Path | None, typer.Option(help="Revoked certificates.")] = None,
    account: Annotated[str, typer.Option(help="The name in the platform's certificate.")] = "sensorium",
    port: Annotated[int, typer.Option(min=1, max=65535, help="For devices.")] = 8883,
    host: Annotated[str, typer.Option(help="The address to listen at for devices.")] = "0.0.0.0",
    platform_port: Annotated[int, typer.Option(min=1, max=65535, help="For the platform.")] = 8884,
    platform_host: Annotated[str, typer.Option(help="The address to listen at for it.")] = "127.0.0.1",
    network_server: Annotated[list[str] | None, typer.Option(help="The name of a ChirpStack server.")] = None,
    user: Annotated[str, typer.Option(help="Whom the broker becomes when root starts it.")] = "mosquitto",
    config: Annotated[Path | None, typer.Option(help="The platform's configuration, for Sparkplug.")] = None,
) -> None:
    """Write a broker's configuration: TLS, client certificates, rights for each device's own topics."""
    from sensorium.cluster import broker_config as broker

    if target not in broker.TARGETS:
        raise ConfigError(f"--target: {target!r} is none of {', '.join(broker.TARGETS)}")
    sparkplug = configuration.load(config, os.environ).sparkplug
    settings = broker.BrokerSettings(
        directory,
        broker.BrokerFiles(ca, cert, key, platform_ca, crl),
        account,
        port,
        host,
        platform_port,
        platform_host,
        network_server or (),
        sparkplug.groups if sparkplug.enabled else None,
        user,
    )
    for path in broker.written(settings):
        print(f"wrote {path}")
    print(broker.next_steps(settings))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Such as week.parquet, pump.csv, all.ndjson.", dir_okay=False)],
    device: Annotated[str | None, typer.Option(help="Of this device alone.")] = None,
    device_type: Annotated[str | None, typer.Option("--type", help="Of the devices of this type.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Names with commas; all by default.")] = None,
    since: Annotated[str | None, typer.Option(help="ISO 8601 (UTC), or so long ago: 7d.")] = None,
    until: Annotated[str | None, typer.Option(help="As --since.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="ndjson, csv, parquet [by the file's name].")
    ] = None,
    url: HttpUrl = _LOCAL_HTTP,
) -> None:
    """Write readings into a file."""
    from sensorium.cluster import export as exports

    now = datetime.now(UTC)
    parameters = {
        "format": exports.format_of(file, format_),
        "device_id": device,
        "type": device_type,
        "metrics": metrics,
        "start": exports.moment("--since", since, now),
        "end": exports.moment("--until", until, now),
    }
    size = asyncio.run(exports.export(url, file, parameters, Console(stderr=True)))
    print(f"{file}: {size:,} bytes")


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="New, or of an earlier backup: what is new is copied.")],
    data_dir: Annotated[Path | None, typer.Option(help="Where the platform keeps everything.")] = None,
    config: Annotated[Path | None, typer.Option(help="The platform's configuration file.")] = None,
) -> None:
    """Copy everything that a platform keeps into a folder, as it is at this moment. The platform may run."""
    settings = configuration.load(config, os.environ, {"--data-dir": ("storage.data_dir", data_dir)})
    from sensorium.cluster import backup as backups

    made = backups.make(settings, folder, Console(stderr=True))
    print(f"{folder}: {backups.told(made)}")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="With a backup.", exists=True, file_okay=False)],
    data_dir: Annotated[Path | None, typer.Option(help="Of the new platform: empty or not there.")] = None,
    config: Annotated[Path | None, typer.Option(help="The new platform's configuration file.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare the checksums.")] = False,
) -> None:
    """Fill an empty platform from a backup. One that was cut off goes on when it is run again."""
    settings = configuration.load(config, os.environ, {"--data-dir": ("storage.data_dir", data_dir)})
    from sensorium.cluster import backup as backups

    console = Console(stderr=True)
    done = backups.check(folder, console) if check else backups.put_back(settings, folder, console)
    print(f"{folder}: {backups.told(done)}, {'whole' if check else 'restored'}")


@commands.command("send")
def send_commands(
    command: Annotated[str, typer.Argument(help="What they shall do.")],
    select: Annotated[
        list[str],
        typer.Option(help="type=TYPE, metadata.KEY=VALUE or id=ID; several add up, of ids each counts."),
    ],
    parameter: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; a value is JSON or text.")] = None,
    per_second: Annotated[float, typer.Option(min=0.1, help="To so many devices a second at most.")] = 100.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds in which a device must answer.")] = 30.0,
    retries: Annotated[int, typer.Option(min=0, max=10, help="How often a silent device is told again.")] = 0,
    wait: Annotated[bool, typer.Option(help="Watch it to its end.")] = True,
    url: HttpUrl = _LOCAL_HTTP,
) -> None:
    """Send a command to the active devices of a selection. Exit code 1 unless all of them succeed."""
    from sensorium.cluster import commanding

    body = {
        "command": command,
        "parameters": commanding.parameters(parameter or []),
        "select": commanding.selection(select),
        "per_second": per_second,
        "timeout_s": timeout,
        "retries": retries,
    }
    print(asyncio.run(commanding.send(url, body, Console(stderr=True), wait=wait)))


@commands.command("follow")
def follow_commands(job: JobId, url: HttpUrl = _LOCAL_HTTP) -> None:
    """Watch what was sent to many devices to its end. Exit code 1 unless all of them succeed."""
    from sensorium.cluster import commanding

    asyncio.run(commanding.follow(url, job, Console(stderr=True)))


@commands.command("cancel")
def cancel_commands(job: JobId, url: HttpUrl = _LOCAL_HTTP) -> None:
    """Give it to nobody else, and cancel what is open of it."""
    from sensorium.cluster import commanding

    asyncio.run(commanding.cancel(url, job))


@projections.command("list")
def list_projections(
    url: HttpUrl = _LOCAL_HTTP,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """What is fed from the log, and how far each is."""
    from sensorium.cluster import projections as page

    items = asyncio.run(page.listed(url))
    if as_json:
        print(msgspec.json.encode(items).decode())
    else:
        Console().print(page.table(items))


@projections.command()
def pause(name: ProjectionName, url: HttpUrl = _LOCAL_HTTP) -> None:
    """Let it write what it has and stand still. The log keeps what comes."""
    from sensorium.cluster import projections as page

    asyncio.run(page.steered(url, name, "pause"))
    print(f"{name}: paused")


@projections.command()
def resume(name: ProjectionName, url: HttpUrl = _LOCAL_HTTP) -> None:
    """Let it go on from where it stands."""
    from sensorium.cluster import projections as page

    asyncio.run(page.steered(url, name, "resume"))
    print(f"{name}: running")


@projections.command()
def rewind(
    name: ProjectionName,
    to: Annotated[str, typer.Option(help="A commit time (ISO 8601, UTC), or: beginning.")],
    url: HttpUrl = _LOCAL_HTTP,
) -> None:
    """Let it write again what was committed since a time. Rollups count anew, from the beginning only."""
    from sensorium.cluster import projections as page

    asyncio.run(page.steered(url, name, "rewind", page.rewind_to_ms(to)))
    print(f"{name}: will be rewound to {to}")


@audit.command("list")
def list_audit(
    url: HttpUrl = _LOCAL_HTTP,
    who: Annotated[str, typer.Option(help="The name that was given, or the address without one.")] = "",
    what: Annotated[
        str, typer.Option(help="Such as rule.replace, or rule for all that is done to rules.")
    ] = "",
    thing: Annotated[str, typer.Option(help="The id of what was changed.")] = "",
    start: Annotated[str, typer.Option(help="ISO 8601, from then on.")] = "",
    end: Annotated[str, typer.Option(help="ISO 8601, until then.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most, the newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Who changed what, the newest first. Before and after stand in the JSON."""
    from sensorium.cluster import audit as page

    given = {"who": who, "what": what, "thing": thing, "start": start, "end": end, "limit": str(limit)}
    items = asyncio.run(page.listed(url, {name: value for name, value in given.items() if value}))
    if as_json:
        print(msgspec.json.encode(items).decode())
    else:
        Console().print(page.table(items))


@audit.command("verify")
def verify_audit(
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Of the platform.")] = None,
    config: Annotated[Path | None, typer.Option(help="Of the platform.", exists=True, dir_okay=False)] = None,
    since_hash: Annotated[
        str | None, typer.Option(help="A hash that was the newest once: check that it is there still.")
    ] = None,
) -> None:
    """Check at the database that no entry was edited, removed or put in. Exit status 1 when one was."""
    from sensorium.cluster import audit as page

    settings = configuration.load(config, os.environ, {"--data-dir": ("storage.data_dir", data_dir)})
    verdict = page.verified(settings, since_hash)
    print("\n".join(page.told(verdict)))
    raise typer.Exit(1 if verdict.faults else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context, name: Annotated[str, typer.Argument(help="Such as ingest.")]) -> None:
    """Run a benchmark of the checkout; everything after its name goes to it (try --help)."""
    folder = Path(sensorium.__file__).resolve().parents[2] / "bench"
    script = folder / f"{name}.py"
    if not name.isidentifier() or not script.is_file():
        known = sorted(p.stem for p in folder.glob("[a-z]*.py"))
        there = (
            f"there are {', '.join(known)}" if known else "they run from a checkout of the repository only"
        )
        raise ConfigError(f"no benchmark {name!r}; {there}")
    # A process of its own: what it measures must not carry the CLI's imports.
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)

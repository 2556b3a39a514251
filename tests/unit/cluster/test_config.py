"""What a configuration may say, who wins, and how a mistake is told."""

from pathlib import Path

import msgspec
import pytest

from sensorium.actors.profile import DetectorSpec, ProcessNeeds, RateLimit, RateLimits, WindowSpec
from sensorium.actors.schema import MetricSpec, MetricType, Outside, Schema
from sensorium.cluster.audit import noted
from sensorium.cluster.config import Config, load
from sensorium.cluster.errors import ConfigError
from sensorium.cluster.services import retention_settings
from sensorium.storage.compaction import CompactionSettings
from sensorium.storage.retention import AlarmRetention, RetentionSettings
from sensorium.storage.retention_classes import Days


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        file = tmp_path / "platform.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_nothing_given_means_embedded() -> None:
    config = load(environment={"HOME": "/root", "DEVICE_DB_URL": ""})
    assert config == Config()
    assert (config.storage.url, config.mqtt.url, config.cluster.ray_address) == (None, None, None)
    assert (config.http.port, config.mqtt.port, config.coap.port) == (8000, 1883, 5683)
    assert config.ingest.auto_register is False


def test_flag_over_environment_over_file_over_default(written) -> None:
    file = written("mqtt: {url: 'mqtt://file', share_group: a}\nhttp: {port: 8010}\nstorage:\n")
    environment = {"MQTT_BROKER_URL": "mqtt://environment", "DEVICE_DB_URL": "postgresql://db/x"}
    config = load(file, environment, {"--http-port": ("http.port", 8020), "--mqtt-port": ("mqtt.port", None)})
    assert config.http.port == 8020
    assert config.mqtt.url == "mqtt://environment"
    assert config.mqtt.share_group == "a"
    assert config.mqtt.port == 1883
    assert config.storage.url == "postgresql://db/x"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mqtt:\n  prot: 1", ":2: mqtt.prot: unknown key; did you mean mqtt.port?"),
        ("auto_register: true", ":1: auto_register: unknown key; did you mean ingest.auto_register?"),
        ("http:\n\n  port: '80'", ":3: http.port: must be a whole number"),
        ("http:\n  port: true", ":2: http.port: must be a whole number"),
        ("http:\n  port: 70000", ":2: http.port: must be less than or equal to 65535"),
        ("http: {host: 192.168.1.5}", ":1: http.host: must be '127.0.0.1', 'localhost' or '0.0.0.0'"),
        ("mqtt: [1]", ":1: mqtt: must be a mapping of settings"),
        ("profiles:\n  pump:\n    isolation: own", ":3: profiles.pump.isolation: "),
        (
            "profiles:\n  pump:\n    isolation_resources: {num_gpus: 1.5}",
            ":3: profiles.pump.isolation_resources: num_gpus: Ray takes whole numbers above 1, not 1.5",
        ),
        (
            "profiles:\n  pump:\n    isolation_resources: {resources: {GPU: 1}}",
            ":3: profiles.pump.isolation_resources: resources.GPU: is Ray's own; say num_cpus, ",
        ),
        (
            "profiles:\n  pump:\n    isolation_resources:\n      resources: {hall: 0}",
            ":4: profiles.pump.isolation_resources.resources.hall: ",
        ),
        (
            "profiles:\n  pump:\n    isolation_resources: {label_selector: {zone: 'a;b'}}",
            ":3: profiles.pump.isolation_resources.label_selector.zone: ",
        ),
        ("cluster:\n  max_isolated_devices: 257", ":2: cluster.max_isolated_devices: "),
        ("profiles:\n  pump:\n    latness_s: 3", ":3: profiles.pump.latness_s: unknown key; did you mean "),
        (
            "profiles:\n  pump:\n    windows:\n    - {length_s: 60, slide: 60}",
            ":4: profiles.pump.windows[0].slide: unknown key; did you mean profiles.pump.windows[0].slide_s?",
        ),
        (
            "profiles:\n  pump:\n    metrics: {t: {min: 3, max: 2}}",
            ":3: profiles.pump.metrics.t: min 3 is above max 2",
        ),
        (
            "profiles:\n  pump:\n    windows: [{length_s: 100, slide_s: 60}]",
            ":3: profiles.pump.windows[0]: window of 100.0 s by 60.0 s: the length must be ",
        ),
        ("http: {port: 1}\nhttp: {port: 2}", ":2: http: given twice"),
        ("a: [\n", ":2: expected the node content, but found '<stream end>'"),
        ("- 1", ":1: must be a mapping of sections"),
        ("1: 2", ":1: the file: keys must be text"),
        ("x: &a [*a]", ":1: nested deeper than 16 levels"),
        ("timeseries: {url: 'tsdb:8086'}", ":1: timeseries.url: must start with http:// or https://"),
        ("timeseries: {token: t, token_file: /dev/null}", ":1: timeseries.token_file: no such file"),
        ("streaming: {ca_file: /dev/null/x}", ":1: streaming.ca_file: no such file"),
        ("streaming: {password: hunter2}", ":1: streaming: username and password go together"),
        ("streaming: {alerts_topic: sensor-readings}", ":1: streaming: each topic has one purpose"),
        ("edge: {enabled: true}", ":1: edge.enabled: the edge gateway does not exist in this version"),
        ("http: {port: 1883}", "mqtt.port and http.port are both 1883"),
        ("mqtt: {ca_file: /nowhere/ca.pem, url: 'mqtts://h'}", ":1: mqtt.ca_file: no such file"),
        ("mqtt: {username: joe}", ":1: mqtt: username needs mqtt.url: the embedded broker takes none"),
        ("mqtt: {url: 'mqtt://h:99999'}", ":1: mqtt.url: not a valid address: the port must be a "),
        ("storage: {url: 'mysql://h/db'}", ":1: storage.url: must start with postgres:// or postgresql://"),
        (
            "storage: {url: 'postgresql://a/x', log_urls: ['postgresql://b/x']}",
            ":1: storage: log_urls begins with another database than url; the first one is both",
        ),
        (
            "storage: {url: 'postgresql://u:hunter2@a:5432,b:none/x'}",
            ":1: storage.url: not a valid address: the port must be a number from 1 to 65535",
        ),
        (
            "storage: {log_urls: ['postgresql://b/x', 'postgresql://b/x']}",
            ":1: storage: log_urls names a database twice",
        ),
        ("ingest: {max_future_s: .inf}", ":1: ingest.max_future_s: must be less than or equal to 86400"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(written, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(text))
    message = str(caught.value)
    assert "\n" not in message
    assert message == line if line.startswith("mqtt") else f"platform.yaml{line}" in message


def test_databases_of_the_log() -> None:
    environment = {"LOG_DB_URLS": "postgresql://joe:hunter2@a1,a2/x, postgres://b/x"}
    storage = load(environment=environment).storage
    assert storage.main_url == "postgresql://joe:hunter2@a1,a2/x"
    assert storage.further_urls == ("postgres://b/x",)
    assert "hunter2" not in str(load(environment=environment).describe())
    alone = load(environment={"DEVICE_DB_URL": "postgresql://a/x"}).storage
    assert (alone.main_url, alone.further_urls) == ("postgresql://a/x", ())


def test_several_mistakes_are_counted(written) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.prot.*\(and 2 more errors\)$"):
        load(written("mqtt: {prot: 1}\nhttp: {prt: 1}\nbroker: 1"))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MQTT_BROKER_URL", "http://h", "MQTT_BROKER_URL: mqtt.url: must start with mqtt:// or mqtts://"),
        ("KAFKA_BROKERS", "a:9092,b", "KAFKA_BROKERS: streaming.brokers[1]: is HOST:PORT"),
        ("TIMESERIES_DB_URL", "influx:8086", "TIMESERIES_DB_URL: timeseries.url: "),
        ("DEVICE_CA_CERT_PATH", "/nowhere.pem", "PATH: security.device_ca_cert_path: no such file"),
        ("ENCRYPTION_KEY", "k", "ENCRYPTION_KEY: security.encryption_key: needs 16 characters at least"),
        ("ML_MODEL_REGISTRY_URL", "ftp://m", "ML_MODEL_REGISTRY_URL: analytics.model_registry_url: "),
        ("ANOMALY_DETECTION_ENABLED", "maybe", "ANOMALY_DETECTION_ENABLED: must be true or false"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_names_the_variable(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environment={variable: value})
    assert said in str(caught.value)


def test_switching_a_missing_feature_off_is_fine() -> None:
    assert load(environment={"ANOMALY_DETECTION_ENABLED": "off"}) == Config()


def test_detectors_are_those_of_the_profile_or_the_default(written) -> None:
    text = (
        "profiles: {pump: {detectors: [{detector: zscore, metrics: [t], limit: 4}]}, valve: {detectors: []}}"
    )
    off = load(written(text), environment={}).device_profiles
    on = load(written(text), environment={"ANOMALY_DETECTION_ENABLED": "true"}).device_profiles
    assert off.of("any").detectors == off.of("valve").detectors == on.of("valve").detectors == ()
    assert on.of("any").detectors == (DetectorSpec(),)
    assert on.of("pump").detectors == off.of("pump").detectors == (DetectorSpec("zscore", ("t",), 0.5, 4.0),)
    for bad, said in (
        ("{detector: magic}", "detector"),
        ("{limit: 3}", "the ensemble has none"),
        ("{detector: zscore, period: week}", "seasonal"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(written(f"profiles: {{pump: {{detectors: [{bad}]}}}}"))


@pytest.mark.parametrize(
    "text",
    [
        "mqtt: {url: 'http://joe:hunter2@h'}",
        "mqtt: {url: 'mqtt://joe:hun/hunter2@h'}",
        "mqtt: {url: 'mqtt://joe:hunter2@h:port'}",
        "mqtt: {url: 'mqtt://joe:hunter2@h]'}",
        "mqtt: {password: hunter2}",
        "mqtt: {password: [hunter2]}",
        "storage: {url: 'postgresql://joe:hun#hunter2@h/db'}",
        "security: {encryption_key: hunter2}",
    ],
)
def test_no_message_shows_a_secret(written, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(text))
    assert "hunter2" not in str(caught.value)


def test_alarms_are_kept_by_type(written) -> None:
    config = load(
        written(
            "storage:\n  retention: {alarm_days: 90}\n"
            "profiles:\n  pump: {retention: {alarm_days: 365}}\n  valve: {lateness_s: 5}\n"
        )
    )
    assert retention_settings(config).alarms == AlarmRetention(90, (("pump", 365),))
    config = load(written("profiles:\n  default: {retention: {alarm_days: 7}}\n"))
    assert retention_settings(config).alarms == AlarmRetention(7)


def test_describe_hides_secrets_and_shows_the_rest(written) -> None:
    config = load(
        written("mqtt: {url: 'mqtts://h:8883', username: joe, password: hunter2}\nhttp: {port: 8010}"),
        {"DEVICE_DB_URL": "postgresql://joe:hunter2@db:5432/x?sslpassword=hunter2&sslmode=require"},
    )
    described = config.describe()
    assert "hunter2" not in str(described)
    assert "hunter2" not in repr(config.mqtt)
    assert described["mqtt.url"] == "mqtts://h:8883"
    assert described["storage.url"] == "postgresql://joe:***@db:5432/x?sslpassword=***&sslmode=require"
    assert described["http.port"] == "8010"


def test_a_profile_says_what_readings_must_look_like(written) -> None:
    config = load(
        written(
            "profiles:\n"
            "  default:\n"
            "    metrics: {t: {type: integer, unit: degC, min: -40, max: 85, required: true}}\n"
            "  strict: {unknown_metrics: reject}\n"
            "  own: {metrics: {mode: {values: [eco], outside: reject}}}\n"
        )
    )
    profiles = config.device_profiles
    spec = MetricSpec(kind=MetricType.INTEGER, unit="degC", minimum=-40.0, maximum=85.0, required=True)
    assert profiles.default.schema == Schema({"t": spec})
    assert profiles.of("strict").schema == Schema({"t": spec}, Outside.REJECT)
    own = MetricSpec(values=("eco",), outside=Outside.REJECT)
    assert profiles.of("own").schema == Schema({"mode": own})


def test_what_is_noted_of_profiles_is_json_and_another_with_another_range(written) -> None:
    """A platform that starts writes it into its audit log."""
    text = "profiles: {t: {metrics: {a: {type: number, min: 1, unit: degC}}, unknown_metrics: flag}}\n"
    as_json = [
        msgspec.json.encode(noted(load(written(text.replace("min: 1", bound)))))
        for bound in ("min: 1", "min: 1", "min: 2")
    ]
    assert as_json[0] == as_json[1] != as_json[2]
    assert msgspec.json.decode(as_json[0])["profiles"]["by_type"]["t"]["schema"]["unknown"] == "flag"


def test_how_much_devices_may_send_by_type_and_protocol(written) -> None:
    config = load(
        written(
            "ingest: {rate_per_s: 5, burst: 20, by_protocol: {kafka: {rate_per_s: 100}}}\n"
            "profiles:\n"
            "  camera: {ingest: {rate_per_s: 50}}\n"
            "  meter: {ingest: {by_protocol: {lorawan: {rate_per_s: 0.01, burst: 3}}}}\n"
        )
    )
    assert config.limits("mqtt") == RateLimits(RateLimit(5, 20), {"camera": RateLimit(50, 10)})
    assert config.limits("kafka") == RateLimits(RateLimit(100, 10), {"camera": RateLimit(50, 10)})
    assert config.limits("lorawan") == RateLimits(None, {"meter": RateLimit(0.01, 3)})
    assert load().limits("mqtt") is None


def test_profiles_isolate(written) -> None:
    config = load(
        written(
            "cluster: {max_isolated_devices: 3}\n"
            "profiles:\n"
            "  default: {isolation_resources: {memory_mb: 100}}\n"
            "  press:\n"
            "    isolation: process\n"
            "    isolation_resources:\n"
            "      num_cpus: 0.5\n"
            "      resources: {hall: 1}\n"
            "      label_selector: {zone: 'in(a, b)', arch: '!arm'}\n"
            "  heir: {isolation: process}\n"
        )
    )
    profiles = config.device_profiles
    assert (profiles.default.isolation, profiles.of("press").isolation) == ("shared", "process")
    labels = {"zone": "in(a, b)", "arch": "!arm"}
    assert profiles.of("press").isolation_resources == ProcessNeeds(0.5, 0, 0, {"hall": 1}, labels)
    assert profiles.of("heir").isolation_resources == ProcessNeeds(memory_bytes=100 << 20)
    assert config.cluster.max_isolated_devices == 3


def test_profiles_inherit_from_the_configured_default(written) -> None:
    config = load(
        written(
            "profiles:\n"
            "  default: {lateness_s: 60, windows: [{length_s: 600, slide_s: 60}]}\n"
            "  vibration: {offline_after_s: 30}\n"
            "  tank: {windows: [{length_s: 3600, slide_s: 300}, {length_s: 60, slide_s: 1}]}\n"
        )
    )
    profiles = config.device_profiles
    assert profiles.of("anything").lateness_s == 60
    assert profiles.of("vibration").windows == (WindowSpec(600, 60),)
    assert profiles.of("vibration").offline_after_s == 30
    assert profiles.of("tank").windows == (WindowSpec(3600, 300), WindowSpec(60, 1))
    assert profiles.of("tank").lateness_s == 60


def test_retention_comes_to_partitions_and_waits_for_the_rollups(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("storage:\n  retention: {raw_days: 30, rollup_1m_days: 90}\n")
    settings = retention_settings(load(file))
    assert settings == RetentionSettings(Days(30, 30, 90), ("rollups", "actions"))
    assert settings.compaction == CompactionSettings(enabled=True, after_days=0)
    file.write_text("storage:\n  compaction: {after_days: 7}\n")
    assert retention_settings(load(file)).compaction == CompactionSettings(after_days=7)
    file.write_text("storage:\n  rollups: false\n  retention: {raw_days: 1}\n")
    with pytest.raises(ConfigError, match=r"c.yaml:3: storage.retention.raw_days: "):
        load(file)


def test_two_topics_of_kafka_are_read_unless_left_out() -> None:
    config = load(None, {"KAFKA_BROKERS": "a:9092"})
    both = config.streaming.ingest(config.bounds)
    assert both is not None
    assert both.topics == ("sensor-readings-in", "device-commands-in")


def test_kafka_is_what_its_section_says_and_keeps_the_log(tmp_path: Path) -> None:
    assert not load().streaming.feeds_kafka
    assert load().streaming.ingest(load().bounds) is None
    file = tmp_path / "c.yaml"
    file.write_text(
        "streaming: {readings_in_topic: null, commands_in_topic: null, alerts_topic: alarms,"
        " idempotent: false, tls: true, username: us, password: hunter2}\n"
        "storage: {retention: {raw_days: 3}}\n"
    )
    config = load(file, {"KAFKA_BROKERS": "a:9092, b:9093"})
    sink = config.streaming.sink()
    assert sink.client.brokers == ("a:9092", "b:9093")
    assert (sink.topics, sink.idempotent) == (["sensor-readings", "alarms", "device-commands"], False)
    assert (sink.client.tls, sink.client.password) == (True, "hunter2")
    assert config.streaming.ingest(config.bounds) is None
    assert config.describe()["streaming.password"] == "***"
    assert retention_settings(config).wait_for == ("rollups", "actions", "kafka")


def test_the_influxdb_token_is_from_the_environment_or_a_file_and_hidden(tmp_path: Path) -> None:
    assert load().timeseries.settings() is None
    config = load(environment={"TIMESERIES_DB_URL": "http://influx:8086", "INFLUXDB_TOKEN": "hunter2"})
    settings = config.timeseries.settings()
    assert settings is not None
    assert settings.secret() == "hunter2"
    assert "hunter2" not in str(config.describe()) + repr(config) + repr(settings)
    assert retention_settings(config).wait_for == ("rollups", "actions", "influxdb")
    assert (retention_settings(config).hot_days, retention_settings(load()).hot_days) == (7, None)
    token = tmp_path / "token"
    token.write_text("from-file\n")
    file = tmp_path / "c.yaml"
    file.write_text(f"timeseries: {{url: 'http://influx:8086', token_file: '{token}'}}")
    from_file = load(file).timeseries.settings()
    assert from_file is not None
    assert from_file.secret() == "from-file"
    with pytest.raises(ConfigError, match="token and token_file say the same"):
        load(file, {"INFLUXDB_TOKEN": "hunter2"})


def test_retention_is_that_of_the_type_then_of_the_default_profile_then_of_storage(written) -> None:
    config = load(
        written(
            "storage: {retention: {raw_days: 30, rollup_1m_days: 90}}\n"
            "profiles:\n"
            "  default: {retention: {rollup_1m_days: 60}}\n"
            "  pump: {retention: {raw_days: 365}}\n"
            "  valve: {retention: {event_days: 1000, rollup_1h_days: 5}}\n"
            "  lamp: {lateness_s: 5}\n"
        )
    )
    assert config.kept == (
        Days(30, 30, 60),
        {"pump": Days(365, 365, 60), "valve": Days(30, 1000, 60, 5)},
    )


def test_more_retentions_than_there_may_be_are_refused_by_name(written) -> None:
    lines = [f"  t{n}: {{retention: {{raw_days: {n + 2}}}}}\n" for n in range(16)]
    alike = "  same: {retention: {raw_days: 2}}\n"
    assert len(load(written("profiles:\n" + alike + "".join(lines[:15]))).kept[1]) == 16
    with pytest.raises(ConfigError, match=r"platform.yaml:18: profiles.t15.retention: is the 17th retention"):
        load(written("profiles:\n" + alike + "".join(lines)))


def test_the_example_of_retention_is_a_configuration() -> None:
    default, own = load(Path(__file__).parents[3] / "examples" / "retention.yaml").kept
    assert (default, sorted(own)) == (Days(30, 90, 90, 730), ["lamp", "pump"])

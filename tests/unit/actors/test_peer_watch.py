"""Devices against their peers: who is compared with whom, and the life of what is found."""

import msgspec

from sensorium.actors.messages import Location, Refusal, ReportAnomaly
from sensorium.actors.peer_watch import FORGOTTEN_MS, HOUR_MS, HourMean, compared, place_of
from tests.unit.actors.driving import DEVICE_ID, Driver

H0 = 1_704_110_400_000
SITE = {"place": "hall 3"}


def hour(odd: float = 20.0, place: dict = SITE, count: int = 8) -> list[HourMean]:
    means = [HourMean(f"d{n}", "pump", None, place, "t", 20.0 + n / 10) for n in range(count - 1)]
    return [*means, HourMean("odd", "pump", None, place, "t", odd)]


def test_an_odd_device_is_told_goes_on_and_ends() -> None:
    assert compared(hour(20.4), [], H0) == []
    (began,) = compared(hour(40.0), [], H0)
    assert (began.device_id, began.detector, began.peers, began.readings) == ("odd", "peers", 7, 1)
    assert (began.start_ms, began.peak_ms, began.end_ms) == (H0, H0, None)
    assert began.value == 40.0
    assert 20.0 < began.expected < 21.0
    assert compared(hour(40.0), [], H0) == [began]
    (worse,) = compared(hour(90.0), [began], H0 + HOUR_MS)
    assert (worse.anomaly_id, worse.value, worse.readings) == (began.anomaly_id, 90.0, 2)
    assert worse.peak_ms == H0 + HOUR_MS
    (same,) = compared(hour(90.0), [worse], H0 + HOUR_MS)
    assert same == worse, "the same hour again changes nothing"
    (ended,) = compared(hour(20.3), [worse], H0 + 2 * HOUR_MS)
    assert (ended.end_ms, ended.end_reason, ended.value) == (H0 + 2 * HOUR_MS, "quiet", 90.0)


def test_small_groups_and_silent_devices_are_left_alone() -> None:
    assert compared(hour(90.0, count=3), [], H0) == []
    (began,) = compared(hour(90.0), [], H0)
    assert compared(hour()[:-1], [began], H0 + HOUR_MS) == []
    (ended,) = compared(hour()[:-1], [began], H0 + HOUR_MS + FORGOTTEN_MS)
    assert (ended.end_ms, ended.end_reason) == (H0 + HOUR_MS, "gap")


def test_places_keep_devices_apart() -> None:
    assert place_of(None, {"place": "x"}, "place") == "=x"
    assert place_of(Location(52.52, 13.41), {}, "place") == place_of(Location(52.59, 13.49), {}, "place")
    assert place_of(Location(52.52, 13.41), {}, "place") != place_of(Location(52.62, 13.41), {}, "place")
    assert place_of(Location(address="somewhere"), {"place": ["x"]}, "place") == ""
    elsewhere = [mean._replace(metadata={"place": "yard"}, mean=mean.mean + 50) for mean in hour(20.2)]
    here = [mean._replace(device_id=f"h{mean.device_id}") for mean in hour(20.2)]
    assert compared([*here, *elsewhere], [], H0) == []
    assert compared([*here, elsewhere[0]._replace(metadata=SITE)], [], H0)[0].device_id == "d0"


def test_equal_devices_forgive_small_differences() -> None:
    means = [mean._replace(mean=100.0) for mean in hour()]
    assert compared([*means[:-1], means[-1]._replace(mean=100.5)], [], H0) == []
    assert len(compared([*means[:-1], means[-1]._replace(mean=110.0)], [], H0)) == 1


def test_a_device_commits_what_it_is_told() -> None:
    driver = Driver()
    mine = [m._replace(device_id=DEVICE_ID) if m.device_id == "odd" else m for m in hour(90)]
    (found,) = compared(mine, [], H0)
    driver.send(ReportAnomaly(DEVICE_ID, found))
    driver.send(ReportAnomaly(DEVICE_ID, msgspec.structs.replace(found, readings=2)))
    ended = msgspec.structs.replace(found, end_ms=H0 + HOUR_MS, end_reason="quiet")
    driver.send(ReportAnomaly(DEVICE_ID, ended))
    assert driver.log.anomalies[-1] == ended
    kinds = [event.kind for event in driver.log.events]
    assert kinds[-3:] == ["anomaly", "anomaly_changed", "anomaly_ended"]
    other = msgspec.structs.replace(found, device_id="other")
    assert isinstance(driver.send(ReportAnomaly(DEVICE_ID, other)), Refusal)

"""Units of measurement: which names mean the same, and how values of one become values of another. Pure.

The names are those of SenML (RFC 8428, section 12.1; RFC 8798) and what people write for them besides. They
are case-sensitive: `C` is the coulomb, a degree Celsius is `Cel` or `degC`.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple

MAX_UNIT_CHARS: Final = 32


class Conversion(NamedTuple):
    """`value * scale + shift` is in the other unit."""

    scale: float
    shift: float


class _Unit(NamedTuple):
    """`value * factor + offset` is in the first unit of the quantity."""

    quantity: str
    factor: Fraction
    offset: Fraction = Fraction(0)


# Each quantity: units that are multiples of its first one, each with the other names that it goes by.
_MULTIPLES: Final = {
    "length": "m 1|km 1000|cm 1/100|mm 1/1000|um 1/1000000|in 127/5000|ft 381/1250 foot|mi 1609344/1000",
    "mass": "kg 1|g 1/1000|t 1000|lb 45359237/100000000",
    "time": "s 1 sec|ms 1/1000|us 1/1000000|min 60|h 3600 hr|d 86400",
    "frequency": "Hz 1|kHz 1000|MHz 1000000|GHz 1000000000|1/min 1/60 rpm r/min|beat/min 1/60 bpm",
    "angle": "rad 1",
    "speed": "m/s 1|km/h 5/18 kmh|kn 463/900 kt|mph 1397/3125",
    "acceleration": "m/s2 1 m/s²|g0 980665/100000 gn",
    "angular rate": "deg/s 1 °/s dps",
    "area": "m2 1 m²",
    "volume": "m3 1 m³|l 1/1000 L|ml 1/1000000 mL",
    "volume flow": "m3/s 1|m3/h 1/3600 m³/h|l/s 1/1000 L/s|l/min 1/60000 L/min|l/h 1/3600000 L/h",
    "rate of rain": "mm/h 1|m/h 1000|in/h 254/10",
    "density": "kg/m3 1 kg/m³|g/l 1|mg/l 1/1000|g/m3 1/1000 g/m³|mg/m3 1/1000000 mg/m³"
    "|ug/m3 1/1000000000 µg/m3 µg/m³ μg/m³",
    "pressure": "Pa 1|hPa 100 mbar|kPa 1000|MPa 1000000|bar 100000|psi 8896443230521/1290320000",
    "force": "N 1|kN 1000",
    "energy": "J 1|kJ 1000|Ws 1|Wh 3600|kWh 3600000|MWh 3600000000",
    "power": "W 1|mW 1/1000|kW 1000|MW 1000000",
    "reactive power": "var 1|kvar 1000",
    "apparent power": "VA 1|kVA 1000",
    "reactive energy": "varh 1|kvarh 1000",
    "apparent energy": "VAh 1|kVAh 1000",
    "voltage": "V 1|mV 1/1000|kV 1000|uV 1/1000000",
    "current": "A 1|mA 1/1000|uA 1/1000000",
    "charge": "C 1|Ah 3600|mAh 18/5",
    "resistance": "Ohm 1 Ω ohm|kOhm 1000 kΩ|MOhm 1000000 MΩ",
    "capacitance": "F 1|uF 1/1000000",
    "conductance": "S 1",
    "conductivity": "S/m 1|mS/cm 1/10|uS/cm 1/10000 µS/cm μS/cm",
    "magnetic flux density": "T 1|mT 1/1000|uT 1/1000000 µT μT",
    "illuminance": "lx 1 lux|klx 1000",
    "luminous flux": "lm 1",
    "irradiance": "W/m2 1 W/m²",
    # RFC 8428 gives a ratio the name "/"; relative humidity and battery levels are ratios, too.
    "ratio": "/ 1|% 1/100 /100 %RH %rH %EL|/1000 1/1000 ‰|ppm 1/1000000|ppb 1/1000000000",
    "battery lifetime": "EL 1",
    "count": "count 1 1",
    "acidity": "pH 1",
    "sound level": "dB 1",
    "signal power": "dBm 1",
    "data": "bit 1|B 8|kB 8000|KiB 8192|MB 8000000|GB 8000000000",
    "data rate": "bit/s 1|kbit/s 1000|Mbit/s 1000000|B/s 8|MB/s 8000000",
}


def _units() -> Iterator[tuple[str, _Unit]]:
    for quantity, units in _MULTIPLES.items():
        for unit in units.split("|"):
            name, factor, *others = unit.split()
            for each in (name, *others):
                yield each, _Unit(quantity, Fraction(factor))
    temperatures = (
        ("K", "1", "0"),
        ("Cel", "1", "273.15"),
        ("degC", "1", "273.15"),
        ("°C", "1", "273.15"),
        ("℃", "1", "273.15"),
        ("degF", "5/9", "45967/180"),
        ("°F", "5/9", "45967/180"),
        ("℉", "5/9", "45967/180"),
        ("Fah", "5/9", "45967/180"),
    )
    for name, factor, offset in temperatures:
        yield name, _Unit("temperature", Fraction(factor), Fraction(offset))


_UNITS: Final = dict(_units())
# The two levels of signal power differ by an offset: 0 dBW are 30 dBm.
_UNITS["dBW"] = _Unit("signal power", Fraction(1), Fraction(30))
# Degrees and radians have no exact ratio; the nearest float of it is what everybody uses.
_UNITS["deg"] = _UNITS["°"] = _Unit("angle", Fraction(0.017453292519943295))


def quantity_of(unit: str) -> str | None:
    """What a unit measures, such as "temperature"; None for a unit that is not known."""
    known = _UNITS.get(unit)
    return None if known is None else known.quantity


@lru_cache(maxsize=4096)
def conversion(told: str, wanted: str) -> Conversion | None:
    """How values in `told` become values in `wanted`; None when they cannot.

    A unit that is not known is only ever itself.
    """
    if told == wanted:
        return Conversion(1.0, 0.0)
    a, b = _UNITS.get(told), _UNITS.get(wanted)
    if a is None or b is None or a.quantity != b.quantity:
        return None
    return Conversion(float(a.factor / b.factor), float((a.offset - b.offset) / b.factor))

"""Conditions of alerting rules: what they say, and how a device tests them."""

from sensorium.actors.conditions import computed as computed
from sensorium.actors.conditions import hours as hours
from sensorium.actors.conditions import odd as odd
from sensorium.actors.conditions import places as places
from sensorium.actors.conditions import values as values
from sensorium.actors.conditions.odd import needed_detectors as needed_detectors
from sensorium.actors.conditions.registry import Memory as Memory
from sensorium.actors.conditions.registry import Test as Test
from sensorium.actors.conditions.registry import compile_condition as compile_condition
from sensorium.actors.conditions.validation import describe as describe
from sensorium.actors.conditions.validation import validate as validate
from sensorium.actors.conditions.windowed import needed_windows as needed_windows
from sensorium.actors.conditions.windowed import same_length as same_length

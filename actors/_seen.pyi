from sensorium.actors._seen_py import Seen as Seen

from sensorium.ingest._flat_py import Flat as Flat

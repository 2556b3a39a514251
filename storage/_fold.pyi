from sensorium.storage._fold_py import fold as fold

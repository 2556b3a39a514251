from sensorium.storage._rows_py import pack_readings as pack_readings

from sensorium.ingest._publish_py import cut_plain as cut_plain

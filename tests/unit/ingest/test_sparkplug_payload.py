"""Payloads of Sparkplug B: against Google's own implementation of the wire format, and against noise."""

import struct
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from sensorium.ingest.errors import Undecodable
from sensorium.ingest.sparkplug import payload as payloads
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.payload import DataSet, Metric, Payload, Template, decode, typed

_KINDS = {
    "u32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "u64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "f32": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    "f64": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "str": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
}
_SCALARS = "3:int_value:u32 4:long_value:u64 5:float_value:f32 6:double_value:f64 7:boolean_value:bool"
_SCHEMA = {
    "Element": "1:int_value:u32 2:long_value:u64 3:float_value:f32 4:double_value:f64 5:boolean_value:bool "
    "6:string_value:str",
    "Row": "1:elements:*Element",
    "DataSet": "1:num_of_columns:u64 2:columns:*str 3:types:*u32 4:rows:*Row",
    "Parameter": f"1:name:str 2:type:u32 {_SCALARS} 8:string_value:str",
    "Template": "1:version:str 2:metrics:*Metric 3:parameters:*Parameter 4:template_ref:str "
    "5:is_definition:bool",
    "PropertySet": "1:keys:*str 2:values:*PropertyValue",
    "PropertySetList": "1:propertyset:*PropertySet",
    "PropertyValue": f"1:type:u32 2:is_null:bool {_SCALARS} 8:string_value:str "
    "9:propertyset_value:PropertySet 10:propertysets_value:PropertySetList",
    "Metric": "1:name:str 2:alias:u64 3:timestamp:u64 4:datatype:u32 5:is_historical:bool "
    "6:is_transient:bool 7:is_null:bool 9:properties:PropertySet 10:int_value:u32 11:long_value:u64 "
    "12:float_value:f32 13:double_value:f64 14:boolean_value:bool 15:string_value:str 16:bytes_value:bytes "
    "17:dataset_value:DataSet 18:template_value:Template",
    "Payload": "1:timestamp:u64 2:metrics:*Metric 3:seq:u64 4:uuid:str 5:body:bytes",
}


def _google() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="spb.proto", package="spb", syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for said in fields.split():
            number, field, kind = said.split(":")
            added = message.field.add(name=field, number=int(number))
            added.label = added.LABEL_REPEATED if kind.startswith("*") else added.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind in _KINDS:
                added.type = _KINDS[kind]
            else:
                added.type, added.type_name = added.TYPE_MESSAGE, f".spb.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"spb.{name}")) for name in _SCHEMA
    }


GOOGLE = _google()


def metric_of(**said: Any) -> Metric:
    payload = GOOGLE["Payload"](metrics=[GOOGLE["Metric"](**said)])
    (metric,) = decode(payload.SerializeToString()).metrics
    return metric


@pytest.mark.parametrize(
    ("datatype", "said", "value"),
    [
        (DataType.INT8, {"int_value": 0xFFFF_FFFF}, -1),
        (DataType.INT8, {"int_value": 0xFF}, -1),
        (DataType.INT16, {"int_value": 0xFFFF_8000}, -32768),
        (DataType.INT32, {"int_value": 2**32 - 7}, -7),
        (DataType.INT64, {"long_value": 2**64 - 2}, -2),
        (DataType.UINT8, {"int_value": 255}, 255),
        (DataType.UINT16, {"int_value": 65535}, 65535),
        (DataType.UINT32, {"int_value": 2**32 - 1}, 2**32 - 1),
        (DataType.UINT32, {"long_value": 2**32 - 1}, 2**32 - 1),
        (DataType.UINT64, {"long_value": 2**64 - 1}, 2**64 - 1),
        (DataType.FLOAT, {"float_value": 1.5}, 1.5),
        (DataType.DOUBLE, {"double_value": 0.1}, 0.1),
        (DataType.BOOLEAN, {"boolean_value": True}, True),
        (DataType.STRING, {"string_value": "é"}, "é"),
        (DataType.TEXT, {"string_value": "t"}, "t"),
        (DataType.UUID, {"string_value": "7d444840-9dc0-11d1"}, "7d444840-9dc0-11d1"),
        (DataType.DATETIME, {"long_value": 1_704_110_400_123}, 1_704_110_400_123),
        (DataType.BYTES, {"bytes_value": b"\0\1"}, b"\0\1"),
        (DataType.FILE, {"bytes_value": b"PK"}, b"PK"),
        (DataType.INT8_ARRAY, {"bytes_value": b"\xef\x7b"}, [-17, 123]),
        (DataType.INT16_ARRAY, {"bytes_value": struct.pack("<2h", -30000, 1)}, [-30000, 1]),
        (DataType.INT32_ARRAY, {"bytes_value": struct.pack("<2i", -1, 5)}, [-1, 5]),
        (DataType.INT64_ARRAY, {"bytes_value": struct.pack("<q", -9)}, [-9]),
        (DataType.UINT8_ARRAY, {"bytes_value": b"\x17\xfa"}, [23, 250]),
        (DataType.UINT16_ARRAY, {"bytes_value": b"\x1e\x00\x88\x13"}, [30, 5000]),
        (DataType.UINT32_ARRAY, {"bytes_value": struct.pack("<I", 2**32 - 1)}, [2**32 - 1]),
        (DataType.UINT64_ARRAY, {"bytes_value": struct.pack("<Q", 2**64 - 1)}, [2**64 - 1]),
        (DataType.FLOAT_ARRAY, {"bytes_value": struct.pack("<2f", 0.5, -2)}, [0.5, -2.0]),
        (DataType.DOUBLE_ARRAY, {"bytes_value": struct.pack("<d", 0.1)}, [0.1]),
        (
            DataType.BOOLEAN_ARRAY,
            {"bytes_value": b"\x0c\0\0\0\x34\xd0"},
            [c == "1" for c in "001101001101"],
        ),
        (DataType.STRING_ARRAY, {"bytes_value": b"ABC\0hello\0"}, ["ABC", "hello"]),
        (DataType.DATETIME_ARRAY, {"bytes_value": struct.pack("<q", 1_256_102_875_335)}, [1_256_102_875_335]),
    ],
)
def test_every_type_of_value_is_read(datatype: DataType, said: dict[str, Any], value: Any) -> None:
    metric = metric_of(name="m", datatype=datatype, **said)
    assert metric.datatype is datatype
    assert typed(datatype, metric.raw) == value


def test_the_rest_of_a_metric_is_read() -> None:
    metric = metric_of(alias=7, timestamp=12, is_historical=True, is_transient=True, is_null=True)
    assert metric == Metric(None, 7, None, 12, None, True, True, True)


def test_data_sets_are_tables() -> None:
    element, row = GOOGLE["Element"], GOOGLE["Row"]
    said = GOOGLE["DataSet"](
        num_of_columns=2,
        columns=["n", "s"],
        types=[DataType.INT8, DataType.STRING],
        rows=[
            row(elements=[element(int_value=0xFFFF_FFFF), element(string_value="x")]),
            row(elements=[element(), element()]),
        ],
    )
    read = metric_of(name="t", datatype=DataType.DATASET, dataset_value=said).raw
    assert read == DataSet(("n", "s"), ((-1, "x"), (None, None)))


def test_templates_hold_metrics_and_parameters() -> None:
    said = GOOGLE["Template"](
        template_ref="motor",
        metrics=[GOOGLE["Metric"](name="rpm", datatype=DataType.INT16, int_value=900)],
        parameters=[GOOGLE["Parameter"](name="size", type=DataType.INT8, int_value=255)],
    )
    read = metric_of(name="m1", datatype=DataType.TEMPLATE, template_value=said).raw
    assert read == Template((Metric("rpm", None, DataType.INT16, None, 900),), {"size": -1})


def test_properties_are_read_with_their_types() -> None:
    value, inner = GOOGLE["PropertyValue"], GOOGLE["PropertySet"]
    said = inner(
        keys=["Quality", "engUnit", "limits", "list"],
        values=[
            value(type=DataType.INT32, int_value=192),
            value(type=DataType.STRING, string_value="Cel"),
            value(
                type=DataType.PROPERTY_SET,
                propertyset_value=inner(keys=["low"], values=[value(type=DataType.DOUBLE, double_value=-5)]),
            ),
            value(
                type=DataType.PROPERTY_SET_LIST,
                propertysets_value=GOOGLE["PropertySetList"](propertyset=[inner(), inner()]),
            ),
        ],
    )
    metric = metric_of(name="t", properties=said)
    assert metric.properties == {"Quality": 192, "engUnit": "Cel", "limits": {"low": -5.0}, "list": [{}, {}]}


def nested(kind: str, depth: int) -> bytes:
    inner = GOOGLE[kind]()
    for _ in range(depth):
        if kind == "Template":
            inner = GOOGLE[kind](metrics=[GOOGLE["Metric"](name="m", template_value=inner)])
        else:
            inner = GOOGLE[kind](keys=["k"], values=[GOOGLE["PropertyValue"](propertyset_value=inner)])
    field = "template_value" if kind == "Template" else "properties"
    payload = GOOGLE["Payload"](metrics=[GOOGLE["Metric"](**{field: inner})])
    return bytes(payload.SerializeToString())


@pytest.mark.parametrize("kind", ["Template", "PropertySet"])
def test_nesting_has_a_bound(kind: str) -> None:
    decode(nested(kind, payloads.MAX_DEPTH - 1))
    with pytest.raises(Undecodable, match="deep"):
        decode(nested(kind, payloads.MAX_DEPTH + 1))


def test_metrics_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "MAX_METRICS", 2)
    with pytest.raises(Undecodable, match="more than 2 metrics"):
        decode(encode(Payload(metrics=(Metric("a"),) * 3)))


scalars = st.one_of(
    st.tuples(st.just(DataType.INT8), st.integers(-128, 127)),
    st.tuples(st.just(DataType.INT64), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(DataType.UINT64), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(DataType.DOUBLE), st.floats(allow_nan=False)),
    st.tuples(st.just(DataType.FLOAT), st.floats(width=32, allow_nan=False)),
    st.tuples(st.just(DataType.BOOLEAN), st.booleans()),
    st.tuples(st.just(DataType.TEXT), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
)


@given(scalars, st.integers(0, 2**63))
def test_what_is_written_google_reads_and_we_read(said: tuple[DataType, Any], alias: int) -> None:
    datatype, value = said
    data = encode(Payload(5, (Metric("n", alias, datatype, 9, value, properties={"Quality": -1}),), 255))
    ours = decode(data)
    assert typed(datatype, ours.metrics[0].raw) == value
    assert ours.metrics[0].properties == {"Quality": -1}
    theirs = GOOGLE["Payload"].FromString(data)
    assert (theirs.timestamp, theirs.seq, theirs.metrics[0].alias) == (5, 255, alias)
    assert theirs.SerializeToString() == data


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        (DataType.INT8, 128),
        (DataType.UINT8, -1),
        (DataType.UINT16, 1.5),
        (DataType.BOOLEAN, 1),
        (DataType.STRING, 3),
        (DataType.DOUBLE, "1"),
        (DataType.FLOAT, 1e300),
        (DataType.DATASET, {}),
    ],
)
def test_what_does_not_fit_is_not_written(datatype: DataType, value: Any) -> None:
    with pytest.raises(Undecodable, match="m"):
        encode(Payload(metrics=(Metric("m", datatype=datatype, raw=value),)))


valid = encode(Payload(1, (Metric("a", 1, DataType.INT32, 2, -3, properties={"Quality": 192}),), 4))


@given(st.one_of(st.binary(max_size=64), st.tuples(st.integers(0, len(valid)), st.binary(max_size=6))))
def test_noise_is_a_payload_or_a_documented_error(noise: bytes | tuple[int, bytes]) -> None:
    if isinstance(noise, tuple):
        at, put = noise
        noise = valid[:at] + put + valid[at + len(put) :]
    try:
        for metric in decode(noise).metrics:
            if metric.datatype is not None:
                typed(metric.datatype, metric.raw)
    except Undecodable:
        return

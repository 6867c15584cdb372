"""Reads a profile in pprof's format of files with Google's protobuf, and prints what is in it as JSON.

The message is described here once more, field by field, by the numbers that pprof documents; what is not of that form, and
references that lead nowhere, are errors.
"""

import gzip
import json
import sys

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Field = descriptor_pb2.FieldDescriptorProto
INT64, UINT64, STRING, BOOL, MESSAGE = (
    Field.TYPE_INT64,
    Field.TYPE_UINT64,
    Field.TYPE_STRING,
    Field.TYPE_BOOL,
    Field.TYPE_MESSAGE,
)
MESSAGES = {
    "Profile": [
        ("sample_type", 1, "ValueType", True),
        ("sample", 2, "Sample", True),
        ("mapping", 3, "Mapping", True),
        ("location", 4, "Location", True),
        ("function", 5, "Function", True),
        ("string_table", 6, STRING, True),
        ("drop_frames", 7, INT64, False),
        ("keep_frames", 8, INT64, False),
        ("time_nanos", 9, INT64, False),
        ("duration_nanos", 10, INT64, False),
        ("period_type", 11, "ValueType", False),
        ("period", 12, INT64, False),
        ("comment", 13, INT64, True),
        ("default_sample_type", 14, INT64, False),
    ],
    "ValueType": [("type", 1, INT64, False), ("unit", 2, INT64, False)],
    "Sample": [
        ("location_id", 1, UINT64, True),
        ("value", 2, INT64, True),
        ("label", 3, "Label", True),
    ],
    "Label": [
        ("key", 1, INT64, False),
        ("str", 2, INT64, False),
        ("num", 3, INT64, False),
        ("num_unit", 4, INT64, False),
    ],
    "Mapping": [("id", 1, UINT64, False), ("filename", 5, INT64, False)],
    "Location": [
        ("id", 1, UINT64, False),
        ("mapping_id", 2, UINT64, False),
        ("address", 3, UINT64, False),
        ("line", 4, "Line", True),
        ("is_folded", 5, BOOL, False),
    ],
    "Line": [("function_id", 1, UINT64, False), ("line", 2, INT64, False)],
    "Function": [
        ("id", 1, UINT64, False),
        ("name", 2, INT64, False),
        ("system_name", 3, INT64, False),
        ("filename", 4, INT64, False),
        ("start_line", 5, INT64, False),
    ],
}


def profile_class():
    file = descriptor_pb2.FileDescriptorProto(
        name="profile.proto", package="perftools.profiles", syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            added = message.field.add(name=field, number=number)
            added.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.type = MESSAGE
                added.type_name = f".perftools.profiles.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("perftools.profiles.Profile")
    return message_factory.GetMessageClass(found)


def main():
    profile = profile_class()()
    with gzip.open(sys.argv[1], "rb") as file:
        profile.ParseFromString(file.read())
    text = profile.string_table
    assert text[0] == "", "the first text is not empty"
    functions = {one.id: text[one.name] for one in profile.function}
    locations = {
        one.id: [functions[line.function_id] for line in one.line] for one in profile.location
    }
    assert 0 not in functions and 0 not in locations, "0 is no id"
    samples = []
    for sample in profile.sample:
        assert len(sample.value) == len(profile.sample_type), "a sample without all values"
        labels = {text[label.key]: text[label.str] for label in sample.label}
        stack = [name for id in sample.location_id for name in locations[id]]
        samples.append(
            {"values": list(sample.value), "thread": labels.get("thread", ""), "stack": stack}
        )
    print(
        json.dumps(
            {
                "types": [text[one.type] + "/" + text[one.unit] for one in profile.sample_type],
                "period": profile.period,
                "seconds": profile.duration_nanos / 1e9,
                "samples": samples,
            }
        )
    )


main()

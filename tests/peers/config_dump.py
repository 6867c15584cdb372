"""Reads a `/config_dump` as strictly as Envoy's own protos do (PyPI's xds-protos), unknown fields and types being errors, and prints
one line of JSON with what is in it.

Usage: config_dump.py FILE
"""
import importlib
import json
import pkgutil
import sys

import envoy
import udpa
import xds
from envoy.admin.v3 import config_dump_pb2
from google.protobuf import json_format

# Whatever is packed into something has to be known.
for package in (envoy, udpa, xds):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("_pb2"):
            importlib.import_module(module.name)

with open(sys.argv[1]) as file:
    dump = json_format.ParseDict(json.load(file), config_dump_pb2.ConfigDump())


def unpacked(any_):
    name = any_.type_url.rsplit("/", 1)[-1]
    message = importlib.import_module("google.protobuf.message_factory").GetMessageClass(
        any_.DESCRIPTOR.file.pool.FindMessageTypeByName(name)
    )()
    assert any_.Unpack(message), name
    return message


told = {}
for config in dump.configs:
    message = unpacked(config)
    kind = config.type_url.rsplit(".", 1)[-1]
    match kind:
        case "BootstrapConfigDump":
            told[kind] = message.bootstrap.node.id
        case "ClustersConfigDump":
            told[kind] = [unpacked(one.cluster).name for one in message.dynamic_active_clusters]
        case "ListenersConfigDump":
            told[kind] = {}
            for one in message.dynamic_listeners:
                assert one.active_state.version_info and one.active_state.last_updated.seconds
                chains = unpacked(one.active_state.listener).filter_chains
                told[kind][one.name] = [chain.name for chain in chains]
                if one.error_state.details:
                    told[kind][one.name + " error"] = one.error_state.details
        case "RoutesConfigDump":
            told[kind] = [unpacked(one.route_config).name for one in message.dynamic_route_configs]
        case "EndpointsConfigDump":
            told[kind] = [
                unpacked(one.endpoint_config).cluster_name for one in message.dynamic_endpoint_configs
            ]
        case _:
            told.setdefault(kind, []).append(message.name)
print(json.dumps(told))

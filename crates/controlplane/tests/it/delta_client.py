"""A delta ADS client on grpcio and the Envoy protos of PyPI: the independent peer of interop.rs.

Arguments: port, root certificate, token. Reads one JSON command per line from stdin, writes one JSON event per line.
  {"open": id}                                  a stream of that name, with the token
  {"send": id, "type": url, ...}                a request; also node, nonce, error, known, subscribe, unsubscribe
  {"junk": id, "bytes": hex}                    a message of these bytes
  {"close": id}                                 cancels the stream
Events: {"stream": id, "type": url, "nonce": text, "resources": {name: version}, "removed": [names]} and
{"end": id, "code": name, "details": text}.
"""

import json
import queue
import sys
import threading

import grpc
from envoy.service.discovery.v3 import discovery_pb2

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
lock = threading.Lock()


def tell(**event):
    with lock:
        print(json.dumps(event), flush=True)


class Stream:
    def __init__(self, name, call, token):
        self.name = name
        self.requests = queue.Queue()
        self.call = call(iter(self.requests.get, None), metadata=[("authorization", f"Bearer {token}")])
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for response in self.call:
                for resource in response.resources:
                    assert resource.resource.type_url == response.type_url, resource.resource.type_url
                    assert resource.resource.value, resource.name
                tell(
                    stream=self.name,
                    type=response.type_url,
                    nonce=response.nonce,
                    resources={r.name: r.version for r in response.resources},
                    removed=sorted(response.removed_resources),
                )
            tell(end=self.name, code="OK", details="")
        except grpc.RpcError as error:
            tell(end=self.name, code=error.code().name, details=error.details())


def request(command):
    message = discovery_pb2.DeltaDiscoveryRequest(
        type_url=command["type"],
        response_nonce=command.get("nonce", ""),
        initial_resource_versions=command.get("known", {}),
        resource_names_subscribe=command.get("subscribe", []),
        resource_names_unsubscribe=command.get("unsubscribe", []),
    )
    if "node" in command:
        message.node.id = command["node"]
    if "error" in command:
        message.error_detail.code = 3
        message.error_detail.message = command["error"]
    return message.SerializeToString()


def main():
    port, root, token = sys.argv[1:]
    with open(root, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    channel = grpc.secure_channel(f"localhost:{port}", credentials)
    call = channel.stream_stream(
        METHOD,
        request_serializer=lambda raw: raw,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )
    streams = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "open" in command:
            streams[command["open"]] = Stream(command["open"], call, token)
        elif "send" in command:
            streams[command["send"]].requests.put(request(command))
        elif "junk" in command:
            streams[command["junk"]].requests.put(bytes.fromhex(command["bytes"]))
        elif "close" in command:
            streams[command["close"]].call.cancel()


main()

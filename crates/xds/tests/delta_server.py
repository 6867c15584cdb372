"""A delta ADS server on grpcio and the Envoy protos of PyPI: the independent peer of interop.rs.

Reads one JSON command per line from stdin, writes one JSON event per line to stdout. Commands:
  {"set": [type_url, name, version]}   {"delete": [type_url, name]}   change the world
  {"alias": [alias, name]}             another name by which a resource can be asked for
  {"push": true}                       tell every stream what changed since it was last told
  {"end": true}                        end every stream in order
Events: {"port": n}, {"stream": user agent, "authorization": text}, {"request": ...}.
"""

import concurrent.futures
import json
import queue
import sys
import threading

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

lock = threading.Lock()
world = {}
aliases = {}
streams = []


def tell(**event):
    with lock:
        print(json.dumps(event), flush=True)


class Stream:
    """What one client was told, and the responses that wait for it."""

    def __init__(self):
        self.sent = {}
        # What is asked for by name, by type; None is everything.
        self.names = {}
        self.responses = queue.Queue()
        self.nonce = 0

    def push(self, type_url, first=False, asked=()):
        truth, sent = world.get(type_url, {}), self.sent[type_url]
        names = self.names[type_url]
        if names is not None:
            wanted = {aliases.get(name, name) for name in names}
            truth = {name: version for name, version in truth.items() if name in wanted}
        response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url)
        for name, version in truth.items():
            if sent.get(name) != version:
                resource = response.resources.add(name=name, version=version)
                resource.resource.type_url = type_url
                resource.resource.value = f"{name}@{version}".encode()
                resource.aliases.extend(alias for alias, of in aliases.items() if of == name)
        response.removed_resources.extend(name for name in sent if name not in truth)
        # Told for each that was asked for and is not there, as the protocol says.
        absent = (name for name in asked if aliases.get(name, name) not in truth)
        response.removed_resources.extend(sorted(absent))
        self.sent[type_url] = dict(truth)
        if first or response.resources or response.removed_resources:
            self.nonce += 1
            response.nonce = f"python-{self.nonce}"
            self.responses.put(response)

    def asked(self, request):
        type_url = request.type_url
        added, dropped = set(request.resource_names_subscribe), set(request.resource_names_unsubscribe)
        if type_url not in self.sent:
            self.sent[type_url] = dict(request.initial_resource_versions)
            everything = not added or ("*" in added and "*" not in dropped)
            self.names[type_url] = None if everything else set()
        names = self.names[type_url]
        if names is not None:
            added.discard("*")
            names |= added
            names -= dropped
        self.push(type_url, first=True, asked=added)

    def read(self, requests):
        try:
            for request in requests:
                tell(
                    request=request.type_url,
                    node=request.node.id,
                    metadata=dict(request.node.metadata),
                    nonce=request.response_nonce,
                    added=sorted(request.resource_names_subscribe),
                    dropped=sorted(request.resource_names_unsubscribe),
                    held=dict(request.initial_resource_versions),
                    code=request.error_detail.code,
                    message=request.error_detail.message,
                )
                if not request.response_nonce:
                    self.asked(request)
        except grpc.RpcError:
            pass
        self.responses.put(None)


class Ads(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def DeltaAggregatedResources(self, requests, context):
        metadata = dict(context.invocation_metadata())
        tell(stream=metadata.get("user-agent"), authorization=metadata.get("authorization"))
        stream = Stream()
        streams.append(stream)
        threading.Thread(target=stream.read, args=(requests,), daemon=True).start()
        while (response := stream.responses.get()) is not None:
            yield response
        streams.remove(stream)


def obey(command):
    if "set" in command:
        type_url, name, version = command["set"]
        world.setdefault(type_url, {})[name] = version
    if "alias" in command:
        alias, name = command["alias"]
        aliases[alias] = name
    if "delete" in command:
        type_url, name = command["delete"]
        del world[type_url][name]
    for stream in list(streams):
        if "push" in command:
            for type_url in list(stream.sent):
                stream.push(type_url)
        if "end" in command:
            stream.responses.put(None)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Ads(), server)
tell(port=server.add_insecure_port("127.0.0.1:0"))
server.start()
for line in sys.stdin:
    obey(json.loads(line))
server.stop(0)

"""A delta ADS server on grpcio and Envoy's protos of PyPI, in the shape in which a stock istiod serves a waypoint: clusters
and listeners by wildcard, endpoints only to who asks for them by name, routes inline in the listener. What it serves is put
there by the script that imports it. Events on stdout: one JSON line with each request.
"""
import concurrent.futures
import json
import queue
import signal
import threading

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2 as routes
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as manager_pb2,
)
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, struct_pb2, wrappers_pb2
from xds.core.v3 import extension_pb2
from xds.type.matcher.v3 import ip_pb2, matcher_pb2

PREFIX = "type.googleapis.com/envoy.config."
CLUSTER = PREFIX + "cluster.v3.Cluster"
ENDPOINTS = PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER = PREFIX + "listener.v3.Listener"
lock = threading.Lock()
world = {CLUSTER: {}, ENDPOINTS: {}, LISTENER: {}}
streams = []
version = 0


def tell(**event):
    with lock:
        print(json.dumps(event), flush=True)


def packed(message):
    result = any_pb2.Any()
    result.Pack(message)
    return result


def extension(name, message):
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=packed(message))


def put(type_url, name, message):
    global version
    version += 1
    world[type_url][name] = (str(version), packed(message))


def service(name, at):
    """A cluster by EDS, and its one endpoint."""
    host, port = at.rsplit(":", 1)
    cluster = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS)
    cluster.eds_cluster_config.service_name = name
    cluster.eds_cluster_config.eds_config.ads.SetInParent()
    cluster.lb_policy = cluster_pb2.Cluster.LEAST_REQUEST
    put(CLUSTER, name, cluster)
    address = address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=host, port_value=int(port))
    )
    endpoint = endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=address))
    put(
        ENDPOINTS,
        name,
        endpoint_pb2.ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[endpoint])],
        ),
    )


def chain(name, clusters, filters=()):
    action = routes.RouteAction()
    for cluster in clusters:
        action.weighted_clusters.clusters.add(name=cluster, weight=wrappers_pb2.UInt32Value(value=1))
    action.timeout.SetInParent()
    route = routes.Route(name="default", match=routes.RouteMatch(prefix="/"), route=action)
    host = routes.VirtualHost(name="inbound|http|80", domains=["*"], routes=[route])
    manager = manager_pb2.HttpConnectionManager(stat_prefix=name)
    manager.route_config.name = name
    manager.route_config.virtual_hosts.append(host)
    for filter_name, message in filters:
        manager.http_filters.add(name=filter_name, typed_config=packed(message))
    router = router_pb2.Router()
    manager.http_filters.add(name="envoy.filters.http.router", typed_config=packed(router))
    result = listener_components_pb2.FilterChain(name=name)
    result.filters.add(
        name="envoy.filters.network.http_connection_manager", typed_config=packed(manager)
    )
    return result


def by_port(port, name):
    matcher = matcher_pb2.Matcher()
    matcher.matcher_tree.input.CopyFrom(
        extension("port", network_inputs_pb2.DestinationPortInput())
    )
    leaf = matcher.matcher_tree.exact_match_map.map[str(port)]
    leaf.action.CopyFrom(extension(name, wrappers_pb2.StringValue(value=name)))
    return matcher


def listener(services):
    """`services` by address: port, chain."""
    addresses = ip_pb2.IPMatcher()
    for vip, (port, made) in services.items():
        entry = addresses.range_matchers.add()
        entry.ranges.add(address_prefix=vip, prefix_len=wrappers_pb2.UInt32Value(value=32))
        entry.on_match.matcher.CopyFrom(by_port(port, made.name))
    result = listener_pb2.Listener(name="main_internal")
    result.internal_listener.SetInParent()
    tree = result.filter_chain_matcher.matcher_tree
    tree.input.CopyFrom(extension("ip", network_inputs_pb2.DestinationIPInput()))
    tree.custom_match.CopyFrom(extension("ip", addresses))
    result.filter_chains.extend(made for _, made in services.values())
    put(LISTENER, "main_internal", result)


class Stream:
    def __init__(self):
        self.responses = queue.Queue()
        self.names = {}
        self.sent = {}
        self.nonce = 0

    def push(self, type_url, first=False):
        truth, sent = world.get(type_url, {}), self.sent.setdefault(type_url, {})
        names = self.names[type_url]
        # Like istiod: endpoints never come unasked.
        wanted = names if type_url == ENDPOINTS else (names or truth)
        response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url)
        for name in wanted:
            if name not in truth:
                response.removed_resources.append(name)
                sent.pop(name, None)
            elif sent.get(name) != truth[name][0]:
                revision, body = truth[name]
                response.resources.add(name=name, version=revision, resource=body)
                sent[name] = revision
        gone = [name for name in sent if name not in truth]
        response.removed_resources.extend(gone)
        for name in gone:
            del sent[name]
        if first or response.resources or response.removed_resources:
            self.nonce += 1
            response.nonce = f"python-{self.nonce}"
            self.responses.put(response)

    def read(self, requests):
        try:
            for request in requests:
                added = sorted(request.resource_names_subscribe)
                dropped = sorted(request.resource_names_unsubscribe)
                tell(
                    request=request.type_url.rsplit(".", 1)[-1],
                    nonce=request.response_nonce,
                    added=added,
                    dropped=dropped,
                    message=request.error_detail.message,
                )
                if request.response_nonce:
                    # istiod takes a change of names in an answer for a mistake.
                    assert not added and not dropped
                    continue
                names = self.names.setdefault(request.type_url, set())
                names.update(added)
                names.difference_update(dropped)
                self.push(request.type_url, first=True)
        except grpc.RpcError:
            pass
        self.responses.put(None)


class Ads(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def DeltaAggregatedResources(self, requests, context):
        stream = Stream()
        streams.append(stream)
        threading.Thread(target=stream.read, args=(requests,), daemon=True).start()
        while (response := stream.responses.get()) is not None:
            yield response
        streams.remove(stream)


def start(port, certificate, key):
    """Serves until the process ends; the signal that scripts wait for is blocked in all threads."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Ads(), server)
    with open(key, "rb") as key_file, open(certificate, "rb") as certificate_file:
        shown = grpc.ssl_server_credentials([(key_file.read(), certificate_file.read())])
    server.add_secure_port(f"127.0.0.1:{port}", shown)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    server.start()
    tell(ready=True)
    return server


def push():
    for stream in list(streams):
        for type_url in list(stream.names):
            stream.push(type_url)


def next_step():
    signal.sigwait([signal.SIGUSR1])

"""A control plane (`ads`) that has endpoints ejected by rates, which Istio's own objects cannot ask for, and the five
endpoints: servers beside the waypoint, the first of which fails every second request.

Usage: ads_outlier.py PORT VIP ENDPOINT:PORT CERTIFICATE KEY (the endpoint is not used)
The first configuration ejects by success rate, the one after SIGUSR1 by failure percentage. Each answer has the number of
its endpoint in `x-endpoint`.
"""
import http.server
import itertools
import sys
import threading

import ads
from envoy.config.cluster.v3 import cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import address_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

PORT, VIP, _, CERTIFICATE, KEY = sys.argv[1:6]
ONE = "inbound-vip|80|http|canary.shop"


def origin(number):
    """A server on a port of its own, which is returned."""
    turns = itertools.count()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            fails = number == 0 and next(turns) % 2 == 0
            self.send_response(500 if fails else 200)
            self.send_header("x-endpoint", str(number))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def cluster(**rates):
    detection = outlier_detection_pb2.OutlierDetection()
    detection.interval.seconds = 1
    detection.base_ejection_time.seconds = 2
    detection.max_ejection_percent.value = 20
    # Endpoints are ejected for nothing else.
    for name, value in dict(
        enforcing_consecutive_5xx=0, enforcing_success_rate=0, enforcing_failure_percentage=0
    ).items():
        getattr(detection, name).value = value
    for name, value in rates.items():
        getattr(detection, name).value = value
    made = cluster_pb2.Cluster(name=ONE, type=cluster_pb2.Cluster.EDS)
    made.eds_cluster_config.service_name = ONE
    made.eds_cluster_config.eds_config.ads.SetInParent()
    made.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
    made.outlier_detection.CopyFrom(detection)
    ads.put(ads.CLUSTER, ONE, made)


def endpoint(port):
    address = address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address="127.0.0.1", port_value=port)
    )
    return endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=address))


places = endpoint_components_pb2.LocalityLbEndpoints(
    lb_endpoints=[endpoint(origin(number)) for number in range(5)]
)
ads.put(
    ads.ENDPOINTS,
    ONE,
    endpoint_pb2.ClusterLoadAssignment(cluster_name=ONE, endpoints=[places]),
)
cluster(enforcing_success_rate=100, success_rate_minimum_hosts=5, success_rate_request_volume=4)
ads.listener({VIP: (80, ads.chain(ONE, [ONE]))})
server = ads.start(PORT, CERTIFICATE, KEY)
ads.next_step()
cluster(
    enforcing_failure_percentage=100,
    failure_percentage_threshold=40,
    failure_percentage_minimum_hosts=5,
    failure_percentage_request_volume=4,
)
ads.push()
ads.next_step()

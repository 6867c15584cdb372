"""A control plane (`ads`) whose configuration grows.

Usage: ads_server.py PORT VIP ENDPOINT:PORT CERTIFICATE KEY
SIGUSR1 takes the next step: first the route leads to two clusters, then there is a service whose chain has a filter of no
known type and the first cluster is gone.
"""
import sys

import ads
from google.protobuf import struct_pb2

PORT, VIP, ENDPOINT, CERTIFICATE, KEY = sys.argv[1:6]
ONE, TWO = "inbound-vip|80|http|canary.shop", "inbound-vip|80|http/v2|canary.shop"
ads.service(ONE, ENDPOINT)
ads.listener({VIP: (80, ads.chain(ONE, [ONE]))})
server = ads.start(PORT, CERTIFICATE, KEY)

ads.next_step()
ads.service(TWO, ENDPOINT)
ads.listener({VIP: (80, ads.chain(ONE, [ONE, TWO]))})
ads.push()
ads.next_step()
bad = ("envoy.filters.http.strange", struct_pb2.Struct())
ads.listener(
    {VIP: (80, ads.chain(ONE, [TWO])), "10.99.0.9": (80, ads.chain("bad", [ONE], [bad]))}
)
del ads.world[ads.CLUSTER][ONE]
ads.push()
ads.next_step()

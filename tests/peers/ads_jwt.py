"""A control plane (`ads`) that leaves the fetching of a token issuer's keys to the waypoint, as istiod does with
PILOT_JWT_ENABLE_REMOTE_JWKS.

Usage: ads_jwt.py PORT VIP ENDPOINT:PORT CERTIFICATE KEY ISSUER:PORT
SIGUSR1 pushes the same chain with another route name: another configuration with the same issuer.
"""
import sys

import ads
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2

PORT, VIP, ENDPOINT, CERTIFICATE, KEY, ISSUER = sys.argv[1:7]
ONE, KEYS = "inbound-vip|80|http|canary.shop", "outbound|80||issuer.example"


def authn():
    provider = config_pb2.JwtProvider(issuer="https://issuer.example", payload_in_metadata="payload")
    provider.remote_jwks.http_uri.uri = "http://issuer.example/keys.json"
    provider.remote_jwks.http_uri.cluster = KEYS
    provider.remote_jwks.http_uri.timeout.seconds = 5
    provider.remote_jwks.cache_duration.seconds = 300
    provider.remote_jwks.retry_policy.num_retries.value = 1
    provider.remote_jwks.retry_policy.retry_back_off.base_interval.nanos = 100_000_000
    filter_ = config_pb2.JwtAuthentication(bypass_cors_preflight=True)
    filter_.providers["origins-0"].CopyFrom(provider)
    rule = filter_.rules.add()
    rule.match.prefix = "/"
    options = rule.requires.requires_any.requirements
    options.add(provider_name="origins-0")
    options.add().allow_missing.SetInParent()
    return ("envoy.filters.http.jwt_authn", filter_)


def put(clusters):
    ads.listener({VIP: (80, ads.chain(ONE, clusters, [authn()]))})


ads.service(ONE, ENDPOINT)
ads.service(KEYS, ISSUER)
put([ONE])
server = ads.start(PORT, CERTIFICATE, KEY)
ads.next_step()
put([ONE, ONE])
ads.push()
ads.next_step()

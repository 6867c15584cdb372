"""A rate limit service that shares no code with Leyline: envoy.service.ratelimit.v3 from PyPI's xds-protos, counted by PyPI's
limits in a Redis. What a descriptor says of its limit counts; a descriptor that says nothing has the one of --limit.
"""

import argparse
import math
import time
from concurrent import futures

import grpc
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from limits import RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits import parse, storage, strategies

UNITS = {
    "SECOND": RateLimitItemPerSecond,
    "MINUTE": RateLimitItemPerMinute,
    "HOUR": RateLimitItemPerHour,
    "DAY": RateLimitItemPerDay,
}
UNIT = rls_pb2.RateLimitResponse.RateLimit.Unit


class Service(rls_pb2_grpc.RateLimitServiceServicer):
    def __init__(self, limiter, limit):
        self.limiter = limiter
        self.limit = limit

    def ShouldRateLimit(self, request, context):
        answer = rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OK)
        for descriptor in request.descriptors:
            item = self.item(descriptor)
            key = [request.domain] + [f"{entry.key}={entry.value}" for entry in descriptor.entries]
            hit = self.limiter.hit(item, *key, cost=request.hits_addend or 1)
            window = self.limiter.get_window_stats(item, *key)
            code = rls_pb2.RateLimitResponse.OK if hit else rls_pb2.RateLimitResponse.OVER_LIMIT
            if not hit:
                answer.overall_code = code
            status = answer.statuses.add(code=code, limit_remaining=max(window.remaining, 0))
            status.current_limit.requests_per_unit = item.amount
            status.current_limit.unit = UNIT.Value(item.GRANULARITY.name.upper())
            status.duration_until_reset.seconds = max(math.ceil(window.reset_time - time.time()), 1)
        return answer

    def item(self, descriptor):
        if not descriptor.HasField("limit"):
            return self.limit
        # The unit of an override is envoy.type.v3.RateLimitUnit, by the same names.
        unit = type(descriptor.limit).DESCRIPTOR.fields_by_name["unit"].enum_type
        return UNITS[unit.values_by_number[descriptor.limit.unit].name](descriptor.limit.requests_per_unit)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--storage", required=True, help="redis://ADDRESS:PORT or memory://")
    parser.add_argument("--limit", required=True, help="such as 3/hour")
    args = parser.parse_args()
    limiter = strategies.FixedWindowRateLimiter(storage.storage_from_string(args.storage))
    server = grpc.server(futures.ThreadPoolExecutor(8))
    rls_pb2_grpc.add_RateLimitServiceServicer_to_server(Service(limiter, parse(args.limit)), server)
    server.add_insecure_port(args.listen)
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


main()

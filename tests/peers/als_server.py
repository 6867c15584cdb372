"""An access log service (`envoy.service.accesslog.v3.AccessLogService`) on grpcio and Envoy's protos of PyPI.

Usage: als_server.py PORT
Each entry that arrives is one JSON line on stdout.
"""
import concurrent.futures
import json
import sys
import threading

import grpc
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from google.protobuf import json_format

lock = threading.Lock()


def tell(kind, identifier, entries):
    for entry in entries:
        fields = json_format.MessageToDict(entry, preserving_proto_field_name=True)
        line = {"kind": kind, "log": identifier.log_name, "node": identifier.node.id, "entry": fields}
        with lock:
            print(json.dumps(line), flush=True)


class Logs(als_pb2_grpc.AccessLogServiceServicer):
    def StreamAccessLogs(self, messages, context):
        identifier = None
        for message in messages:
            # Only the first message of a stream says who tells.
            identifier = identifier or message.identifier
            tell("http", identifier, message.http_logs.log_entry)
            tell("tcp", identifier, message.tcp_logs.log_entry)
        return als_pb2.StreamAccessLogsResponse()


server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4))
als_pb2_grpc.add_AccessLogServiceServicer_to_server(Logs(), server)
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
print("listening", flush=True)
server.wait_for_termination()

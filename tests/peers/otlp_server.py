"""A collector of spans and of logs made of OpenTelemetry's own protos (PyPI's opentelemetry-proto): OTLP by gRPC, spans by HTTP, too.

Usage: otlp_server.py GRPC_PORT HTTP_PORT
Each span and each log record that arrives is one JSON line on stdout.
"""
import concurrent.futures
import http.server
import json
import sys
import threading

import grpc
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

GRPC_PORT, HTTP_PORT = sys.argv[1:3]
lock = threading.Lock()


def texts(attributes):
    return {one.key: one.value.string_value for one in attributes}


def tell(request, wire, key):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                line = {
                    "wire": wire,
                    "key": key,
                    "service": texts(resource.resource.attributes).get("service.name"),
                    "scope": scope.scope.name,
                    "name": span.name,
                    "kind": span.kind,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "state": span.trace_state,
                    "nanoseconds": span.end_time_unix_nano - span.start_time_unix_nano,
                    "status": span.status.code,
                    "attributes": texts(span.attributes),
                }
                with lock:
                    print(json.dumps(line), flush=True)


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    line = {
                        "resource": texts(resource.resource.attributes),
                        "body": record.body.string_value,
                        "nanoseconds": record.time_unix_nano,
                        "attributes": json_format.MessageToDict(record)["attributes"],
                    }
                    with lock:
                        print(json.dumps(line), flush=True)
        return logs_service_pb2.ExportLogsServiceResponse()


class Grpc(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        metadata = dict(context.invocation_metadata())
        tell(request, "grpc", metadata.get("x-api-key", ""))
        return service.ExportTraceServiceResponse()


class Http(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        good = (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        if good:
            request = service.ExportTraceServiceRequest.FromString(body)
            tell(request, "http", self.headers.get("x-api-key", ""))
        answer = service.ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if good else 400)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Grpc(), server)
logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
server.add_insecure_port(f"0.0.0.0:{GRPC_PORT}")
server.start()
plain = http.server.ThreadingHTTPServer(("0.0.0.0", int(HTTP_PORT)), Http)
print("listening", flush=True)
plain.serve_forever()

"""An external authorizer on grpcio and Envoy's protos of PyPI, and another one on Python's own HTTP server.

Usage: authz_server.py GRPC_PORT HTTP_PORT TCP
TCP is `allow` or `deny`: what is said of connections. Requests are decided by their path: /denied and /bare are refused, /slow is
answered too late, all others are allowed, and their upstream is told in `x-seen` what the authorizer saw.
"""
import concurrent.futures
import http.server
import json
import sys
import time

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2
from google.rpc import status_pb2

GRPC_PORT, HTTP_PORT, TCP = sys.argv[1:4]
# Certificate and key; gRPC is then served over TLS too, on port 7072.
TLS = sys.argv[4:6]
OK, PERMISSION_DENIED = 0, 7
LATE = 3


def option(key, value):
    return base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=key, value=value))


def answer(code, **response):
    return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code), **response)


class Authorizer(external_auth_pb2_grpc.AuthorizationServicer):
    def Check(self, request, context):
        source = request.attributes.source
        if not request.attributes.HasField("request"):
            print(json.dumps({"connection": source.principal}), flush=True)
            return answer(OK if TCP == "allow" else PERMISSION_DENIED)
        asked = request.attributes.request.http
        path = asked.path.split("?")[0]
        if path == "/slow":
            time.sleep(LATE)
        if path == "/bare":
            return answer(PERMISSION_DENIED)
        if path == "/denied":
            denied = external_auth_pb2.DeniedHttpResponse(
                status=http_status_pb2.HttpStatus(code=401),
                headers=[option("x-reason", "nobody knows you")],
                body="who are you?",
            )
            return answer(PERMISSION_DENIED, denied_response=denied)
        seen = {
            "principal": source.principal,
            "method": asked.method,
            "path": asked.path,
            "host": asked.host,
            "user": asked.headers.get("x-user", ""),
            "pseudo": asked.headers.get(":path", ""),
            "partial": asked.headers.get("x-envoy-auth-partial-body", ""),
            "body": asked.body,
        }
        allowed = external_auth_pb2.OkHttpResponse(
            headers=[option("x-seen", json.dumps(seen)), option("x-user", "alice")],
            headers_to_remove=["x-secret"],
            response_headers_to_add=[option("x-authorizer", "yes")],
        )
        return answer(OK, ok_response=allowed)


class Http(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/check/slow":
            time.sleep(LATE)
        body, status = b"", 200
        if path == "/check/denied":
            body, status = b"who are you?", 401
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-reason", "nobody knows you")
        self.send_header("x-authorizer", "yes")
        self.send_header("x-hidden", "1")
        self.send_header("x-seen", json.dumps({"path": self.path, "headers": headers}))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
external_auth_pb2_grpc.add_AuthorizationServicer_to_server(Authorizer(), server)
server.add_insecure_port(f"0.0.0.0:{GRPC_PORT}")
if TLS:
    certificate, key = (open(file, "rb").read() for file in TLS)
    server.add_secure_port("0.0.0.0:7072", grpc.ssl_server_credentials([(key, certificate)]))
server.start()
plain = http.server.ThreadingHTTPServer(("0.0.0.0", int(HTTP_PORT)), Http)
print("listening", flush=True)
plain.serve_forever()

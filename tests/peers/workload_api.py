"""A SPIFFE Workload API on a Unix socket, as a SPIRE agent has one; its messages are written by hand.

It serves what a JSON file says, {"svids": [{"id", "chain", "key", "bundle"}]} with PEM texts, and pushes it to every
stream whenever the file is another.
"""

import argparse
import base64
import json
import os
import re
import threading
from concurrent import futures

import grpc

METHOD = "FetchX509SVID"
PEM = re.compile(r"-----BEGIN [A-Z ]+-----(.*?)-----END [A-Z ]+-----", re.DOTALL)


def der(text):
    """All blocks of a PEM text, one after the other."""
    return b"".join(base64.b64decode(block) for block in PEM.findall(text))


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """A length-delimited field of a message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def response(document):
    message = b""
    for svid in document["svids"]:
        message += field(
            1,
            field(1, svid["id"].encode())
            + field(2, der(svid["chain"]))
            + field(3, der(svid["key"]))
            + field(4, der(svid["bundle"])),
        )
    return message


class Api:
    def __init__(self, path):
        self.path = path
        self.streams = 0

    def stamp(self):
        stat = os.stat(self.path)
        return stat.st_mtime_ns, stat.st_ino

    def fetch(self, _request, context):
        metadata = dict(context.invocation_metadata())
        if metadata.get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        gone = threading.Event()
        context.add_callback(gone.set)
        seen = None
        while not gone.is_set():
            stamp = self.stamp()
            if stamp != seen:
                seen = stamp
                with open(self.path, encoding="utf-8") as file:
                    document = json.load(file)
                if not document["svids"]:
                    context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
                yield response(document)
            gone.wait(0.05)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--svids", required=True)
    args = parser.parse_args()
    api = Api(args.svids)
    handler = grpc.unary_stream_rpc_method_handler(api.fetch)
    service = grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {METHOD: handler})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers((service,))
    if os.path.exists(args.socket):
        os.unlink(args.socket)
    server.add_insecure_port(f"unix:{args.socket}")
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()

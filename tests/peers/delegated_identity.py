"""SPIRE's Delegated Identity API on a Unix socket, as an agent's admin socket has it. Its messages are described here once
more, by the numbers of SPIRE's protos, so that nothing is shared with Leyline.

It serves what a JSON file says and pushes what has changed to every stream whenever the file is another:
{"authorized": BOOL, "bundles": {KEY: PEM}, "entries": [{"selectors": [TEXT], "id", "says", "expires_at", "chain", "key"}]}.
An entry is given to who names all of its selectors, as SPIRE matches them; `says` is what the message calls it. Each
subscription is told on standard output when it begins and when it ends.
"""

import argparse
import base64
import json
import os
import re
import threading
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TYPES = "spire.api.types"
API = "spire.api.agent.delegatedidentity.v1"
PEM = re.compile(r"-----BEGIN [A-Z ]+-----(.*?)-----END [A-Z ]+-----", re.DOTALL)
# Each stream keeps one busy.
STREAMS = 64
Field = descriptor_pb2.FieldDescriptorProto
STRING, BYTES, INT32, INT64 = Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_INT32, Field.TYPE_INT64
ONE, MANY = Field.LABEL_OPTIONAL, Field.LABEL_REPEATED


def messages():
    """By package and name: fields as name, number, label, and type or message."""
    return {
        TYPES: {
            "Selector": [("type", 1, ONE, STRING), ("value", 2, ONE, STRING)],
            "SPIFFEID": [("trust_domain", 1, ONE, STRING), ("path", 2, ONE, STRING)],
            "X509SVID": [
                ("cert_chain", 1, MANY, BYTES),
                ("id", 2, ONE, f".{TYPES}.SPIFFEID"),
                ("expires_at", 3, ONE, INT64),
                ("hint", 4, ONE, STRING),
            ],
        },
        API: {
            "X509SVIDWithKey": [
                ("x509_svid", 1, ONE, f".{TYPES}.X509SVID"),
                ("x509_svid_key", 2, ONE, BYTES),
            ],
            "SubscribeToX509SVIDsRequest": [
                ("selectors", 1, MANY, f".{TYPES}.Selector"),
                ("pid", 2, ONE, INT32),
            ],
            "SubscribeToX509SVIDsResponse": [
                ("x509_svids", 1, MANY, f".{API}.X509SVIDWithKey"),
                ("federates_with", 2, MANY, STRING),
            ],
            "SubscribeToX509BundlesRequest": [],
            # A map is a list of pairs on the wire.
            "Bundle": [("key", 1, ONE, STRING), ("value", 2, ONE, BYTES)],
            "SubscribeToX509BundlesResponse": [("ca_certificates", 1, MANY, f".{API}.Bundle")],
        },
    }


def classes():
    pool = descriptor_pool.DescriptorPool()
    names = []
    for package, described in messages().items():
        file = descriptor_pb2.FileDescriptorProto(name=package, package=package, syntax="proto3")
        file.dependency.extend([TYPES] if package == API else [])
        for name, fields in described.items():
            message = file.message_type.add(name=name)
            names.append(f"{package}.{name}")
            for field, number, label, kind in fields:
                added = message.field.add(name=field, number=number, label=label)
                if isinstance(kind, str):
                    added.type, added.type_name = Field.TYPE_MESSAGE, kind
                else:
                    added.type = kind
        pool.Add(file)
    found = {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}
    return {name.rsplit(".", 1)[1]: found[name] for name in names}


M = classes()


def ders(text):
    return [base64.b64decode(block) for block in PEM.findall(text)]


class Api:
    def __init__(self, path):
        self.path = path

    def document(self):
        with open(self.path, encoding="utf-8") as file:
            return json.load(file)

    def answers(self, context, compose):
        """What `compose` makes of the file, whenever it is another than before."""
        gone = threading.Event()
        context.add_callback(gone.set)
        before = None
        while not gone.is_set():
            document = self.document()
            if not document.get("authorized", True):
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "caller not configured as an authorized delegate")
            answer = compose(document)
            if answer != before:
                before = answer
                yield answer
            gone.wait(0.05)

    def svids(self, request, context):
        if request.pid or not request.selectors:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "could not parse provided selectors")
        given = {f"{selector.type}:{selector.value}" for selector in request.selectors}
        told = " ".join(sorted(given))
        context.add_callback(lambda: print(f"ended {told}", flush=True))
        print(f"subscribed {told}", flush=True)

        def compose(document):
            response = M["SubscribeToX509SVIDsResponse"]()
            for entry in document["entries"]:
                if not set(entry["selectors"]) <= given:
                    continue
                domain, _, path = entry.get("says", entry["id"]).removeprefix("spiffe://").partition("/")
                sent = response.x509_svids.add(x509_svid_key=ders(entry["key"])[0])
                sent.x509_svid.cert_chain.extend(ders(entry["chain"]))
                sent.x509_svid.id.trust_domain = domain
                sent.x509_svid.id.path = f"/{path}"
                sent.x509_svid.expires_at = entry["expires_at"]
            return response

        yield from self.answers(context, compose)

    def bundles(self, _request, context):
        def compose(document):
            response = M["SubscribeToX509BundlesResponse"]()
            for key, pem in sorted(document["bundles"].items()):
                response.ca_certificates.add(key=key, value=b"".join(ders(pem)))
            return response

        yield from self.answers(context, compose)


def handler(serve, request, response):
    return grpc.unary_stream_rpc_method_handler(
        serve, request_deserializer=M[request].FromString, response_serializer=M[response].SerializeToString
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--svids", required=True)
    args = parser.parse_args()
    api = Api(args.svids)
    methods = {
        "SubscribeToX509SVIDs": handler(api.svids, "SubscribeToX509SVIDsRequest", "SubscribeToX509SVIDsResponse"),
        "SubscribeToX509Bundles": handler(
            api.bundles, "SubscribeToX509BundlesRequest", "SubscribeToX509BundlesResponse"
        ),
    }
    service = grpc.method_handlers_generic_handler(f"{API}.DelegatedIdentity", methods)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=STREAMS))
    server.add_generic_rpc_handlers((service,))
    if os.path.exists(args.socket):
        os.unlink(args.socket)
    server.add_insecure_port(f"unix:{args.socket}")
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()

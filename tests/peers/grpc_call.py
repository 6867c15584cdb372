"""Calls methods of l7_server.py one after the other over one channel, and prints who answered each. An argument `name=value`
is metadata of the calls after it."""

import argparse

import grpc

parser = argparse.ArgumentParser()
parser.add_argument("--target", required=True)
parser.add_argument("methods", nargs="+")
args = parser.parse_args()
with grpc.insecure_channel(args.target) as channel:
    metadata = []
    for method in args.methods:
        if not method.startswith("/"):
            metadata.append(tuple(method.split("=", 1)))
            continue
        try:
            answer = channel.unary_unary(method)(b"hello", timeout=10, metadata=metadata, wait_for_ready=True)
            print(method, answer.decode().split(" heard ")[0])
        except grpc.RpcError as error:
            print(method, error.code().name)

"""Calls methods of l7_server.py one after the other over one channel, and prints who answered each."""

import argparse

import grpc

parser = argparse.ArgumentParser()
parser.add_argument("--target", required=True)
parser.add_argument("methods", nargs="+")
args = parser.parse_args()
with grpc.insecure_channel(args.target) as channel:
    for method in args.methods:
        try:
            answer = channel.unary_unary(method)(b"hello", timeout=10, wait_for_ready=True)
            print(method, answer.decode().split(" heard ")[0])
        except grpc.RpcError as error:
            print(method, error.code().name)

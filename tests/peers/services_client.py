"""Calls services as their clients do, in protocols that this repository's own client does not speak, and prints a JSON line for
each: `grpc ADDRESS` tells which server answered each of four calls, `websocket ADDRESS` what came back.

Usage: services_client.py PROTOCOL ADDRESS [PROTOCOL ADDRESS]...
"""

import asyncio
import json
import sys

import grpc
import websockets

DEADLINE = 10


async def call_grpc(address):
    async with grpc.aio.insecure_channel(address) as channel:
        seen = channel.unary_unary("/demo.Echo/Headers")
        return [json.loads(await seen(b"", timeout=DEADLINE)) for _ in range(4)]


async def call_websocket(address):
    async with websockets.connect(f"ws://{address}/", open_timeout=DEADLINE) as socket:
        await socket.send("hello")
        return await socket.recv()


async def main():
    calls = {"grpc": call_grpc, "websocket": call_websocket}
    for protocol, address in zip(sys.argv[1::2], sys.argv[2::2]):
        print(json.dumps(await calls[protocol](address)), flush=True)


asyncio.run(main())

"""Calls the servers of l7_server.py through the mesh and prints `ok: ` with what it saw, or fails."""

import argparse
import asyncio
import time

import grpc
import websockets

DEADLINE = 10
CALLS = 20
MESSAGES = 100


async def call_grpc(target):
    served = {}
    async with grpc.aio.insecure_channel(target) as channel:
        say = channel.unary_unary("/demo.Echo/Say")
        for number in range(CALLS):
            call = say(b"%d" % number, timeout=DEADLINE)
            answer = await call
            name, heard = answer.decode().split(" heard ")
            assert heard == str(number), answer
            trailers = dict(await call.trailing_metadata())
            assert trailers["x-server"] == name, trailers
            served[name] = served.get(name, 0) + 1
        try:
            await channel.unary_unary("/demo.Echo/Fail")(b"", timeout=DEADLINE)
            raise AssertionError("the failure did not arrive")
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
            assert error.details() == "as asked for", error
        chat = channel.stream_stream("/demo.Echo/Chat")(timeout=DEADLINE)
        # Each answer before the next question: nothing is held back.
        for number in range(MESSAGES):
            await chat.write(b"%d" % number)
            assert await chat.read() == b"%d" % number
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
    assert len(served) == 2, f"one connection reached only {served}"
    return served


async def call_websocket(url):
    async with websockets.connect(url, open_timeout=DEADLINE) as socket:
        for number in range(MESSAGES):
            await socket.send(f"message {number}")
            assert await socket.recv() == f"message {number}"
        large = bytes(range(256)) * 1024
        await socket.send(large)
        assert await socket.recv() == large
        await socket.ping()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("--websocket", type=int, required=True)
    args = parser.parse_args()
    start = time.monotonic()
    served = await call_grpc(f"{args.host}:{args.grpc}")
    middle = time.monotonic()
    await call_websocket(f"ws://{args.host}:{args.websocket}/")
    end = time.monotonic()
    spread = " and ".join(str(count) for count in sorted(served.values()))
    print(
        f"ok: gRPC: {CALLS} calls of one connection over two endpoints ({spread}), a status, "
        f"a stream of {MESSAGES} both ways, {middle - start:.2f} s; "
        f"WebSocket: {MESSAGES} messages and 256 KiB, {end - middle:.2f} s"
    )


asyncio.run(asyncio.wait_for(main(), 3 * DEADLINE))

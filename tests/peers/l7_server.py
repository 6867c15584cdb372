"""gRPC and WebSocket servers that share no code with Leyline, for a pod of the demo: PyPI's grpcio and websockets.

/demo.Echo/Say answers a message, /demo.Echo/Headers says what came with it, /demo.Echo/Fail ends with a status,
/demo.Echo/Chat answers each of a stream, /demo.Echo/Fail_NAME_STATUS fails with this status at the server of this name, and Greet
and Repeat answer in protobuf (echo.proto). Each call is a line of output. A WebSocket gets back what it sends.
"""

import argparse
import asyncio
import json

import grpc
import websockets


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()
        # Field 1, a string.
        self.message = b"\x0a" + bytes([len(self.name)]) + self.name

    def service(self, details):
        async def say(request, context):
            context.set_trailing_metadata((("x-server", self.name.decode()),))
            return self.name + b" heard " + request

        async def headers(request, context):
            seen = {"server": self.name.decode(), **dict(context.invocation_metadata())}
            return json.dumps(seen, default=str).encode()

        async def fail(request, context):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked for")

        async def fail_here(request, context):
            _, name, status = method.split("_", 2)
            if name == self.name.decode():
                await context.abort(grpc.StatusCode[status], "as asked for")
            return await say(request, context)

        async def chat(requests, context):
            async for request in requests:
                yield request

        async def greet(request, context):
            return self.message

        async def repeat(request, context):
            for _ in range(3):
                yield self.message

        method = details.method.rsplit("/", 1)[1]
        print("called", method, flush=True)
        match method:
            case "Say":
                return grpc.unary_unary_rpc_method_handler(say)
            case "Headers":
                return grpc.unary_unary_rpc_method_handler(headers)
            case "Fail":
                return grpc.unary_unary_rpc_method_handler(fail)
            case "Greet":
                return grpc.unary_unary_rpc_method_handler(greet)
            case "Repeat":
                return grpc.unary_stream_rpc_method_handler(repeat)
            case "Chat":
                return grpc.stream_stream_rpc_method_handler(chat)
            case _ if method.startswith("Fail_"):
                return grpc.unary_unary_rpc_method_handler(fail_here)
        return None


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("--websocket", type=int, required=True)
    args = parser.parse_args()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(args.name),))
    server.add_insecure_port(f"0.0.0.0:{args.grpc}")
    await server.start()
    async with websockets.serve(echo, "0.0.0.0", args.websocket):
        print("listening", flush=True)
        await asyncio.Future()


asyncio.run(main())

"""gRPC and WebSocket servers that share no code with Leyline, for a pod of the demo: PyPI's grpcio and websockets.

/demo.Echo/Say answers a message, /demo.Echo/Fail ends with a status, /demo.Echo/Chat answers each of a stream. A WebSocket
gets back what it sends.
"""

import argparse
import asyncio

import grpc
import websockets


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()

    def service(self, details):
        async def say(request, context):
            context.set_trailing_metadata((("x-server", self.name.decode()),))
            return self.name + b" heard " + request

        async def fail(request, context):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked for")

        async def chat(requests, context):
            async for request in requests:
                yield request

        match details.method.rsplit("/", 1)[1]:
            case "Say":
                return grpc.unary_unary_rpc_method_handler(say)
            case "Fail":
                return grpc.unary_unary_rpc_method_handler(fail)
            case "Chat":
                return grpc.stream_stream_rpc_method_handler(chat)
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

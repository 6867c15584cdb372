"""An HBONE server that shares no code with Leyline, for where Envoy cannot be installed: Python's ssl module and h2.

Accepts tunnels on port 15008 of one address, and connects each CONNECT to one application, whatever its authority says.
Prints one line per tunnel: `HBONE CONNECT <authority> peer=<spiffe id> code=200`, as the Envoy of these tests does.
"""

import argparse
import asyncio
import ssl

import h2.config
import h2.connection
import h2.events


class Tunnel(asyncio.Protocol):
    def __init__(self, app):
        self.app = app
        self.writers = {}
        self.early = {}
        self.tasks = set()

    def connection_made(self, transport):
        self.transport = transport
        names = transport.get_extra_info("peercert").get("subjectAltName", ())
        self.peer = next((value for kind, value in names if kind == "URI"), None)
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.http2 = h2.connection.H2Connection(config)
        self.http2.initiate_connection()
        self.flush()

    def flush(self):
        self.transport.write(self.http2.data_to_send())

    def data_received(self, data):
        for event in self.http2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.early[event.stream_id] = []
                task = asyncio.ensure_future(self.serve(event.stream_id, dict(event.headers)))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            elif isinstance(event, h2.events.DataReceived):
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.deliver(event.stream_id, event.data)
            elif isinstance(event, h2.events.StreamEnded):
                self.deliver(event.stream_id, None)
        self.flush()

    def deliver(self, stream_id, data):
        writer = self.writers.get(stream_id)
        if writer is None:
            self.early[stream_id].append(data)
        elif data is None:
            writer.write_eof()
        else:
            writer.write(data)

    async def serve(self, stream_id, headers):
        if headers[":method"] != "CONNECT":
            self.http2.send_headers(stream_id, [(":status", "400")], end_stream=True)
            return self.flush()
        reader, writer = await asyncio.open_connection(*self.app)
        print(f"HBONE CONNECT {headers[':authority']} peer={self.peer} code=200", flush=True)
        self.http2.send_headers(stream_id, [(":status", "200")])
        self.writers[stream_id] = writer
        for data in self.early.pop(stream_id):
            self.deliver(stream_id, data)
        while data := await reader.read(16384):
            self.http2.send_data(stream_id, data)
            self.flush()
        self.http2.end_stream(stream_id)
        self.flush()
        writer.close()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--app-port", required=True, type=int)
    parser.add_argument("--root", required=True)
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    args = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(args.root)
    context.load_cert_chain(args.cert, args.key)
    context.set_alpn_protocols(["h2"])
    app = ("127.0.0.1", args.app_port)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Tunnel(app), args.listen, 15008, ssl=context)
    print("listening", flush=True)
    await server.serve_forever()


asyncio.run(main())

"""A waypoint behind a node proxy, that shares no code with Leyline: takes connections with a PROXY header of version 2 on
loopback, prints what the header says, and connects to the destination that it names.

The header is read as haproxy's proxy-protocol.txt says, with struct; nothing of it is guessed.
"""

import argparse
import asyncio
import ipaddress
import json
import struct

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
ADDRESSES = {0x11: ("!4s4sHH", 12), 0x21: ("!16s16sHH", 36)}
FIELDS = {0xD0: "identity", 0xD1: "service"}


def address(raw):
    ip = ipaddress.ip_address(raw)
    return getattr(ip, "ipv4_mapped", None) or ip


def parse(family, body):
    layout, length = ADDRESSES[family]
    source, destination, source_port, port = struct.unpack(layout, body[:length])
    told = {
        "source": f"{address(source)} {source_port}",
        "destination": f"{address(destination)} {port}",
    }
    fields = body[length:]
    while fields:
        kind, size = struct.unpack("!BH", fields[:3])
        told[FIELDS.get(kind, hex(kind))] = fields[3 : 3 + size].decode()
        fields = fields[3 + size :]
    return told


async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def serve(reader, writer):
    head = await reader.readexactly(16)
    signature, command, family, length = struct.unpack("!12sBBH", head)
    assert signature == SIGNATURE and command == 0x21, head
    told = parse(family, await reader.readexactly(length))
    print(json.dumps(told), flush=True)
    upstream_reader, upstream = await asyncio.open_connection(*told["destination"].split())
    await asyncio.gather(pipe(reader, upstream), pipe(upstream_reader, writer))
    upstream.close()
    writer.close()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True, type=int)
    args = parser.parse_args()
    server = await asyncio.start_server(serve, "127.0.0.1", args.port)
    print("listening", flush=True)
    await server.serve_forever()


asyncio.run(main())

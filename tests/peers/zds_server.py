#!/usr/bin/env python3
"""istio-cni's part of a node, as far as ztunnel sees it: the server of its socket (SOCK_SEQPACKET, netns by SCM_RIGHTS).

Shares nothing with Leyline; the few protobuf messages are written by hand. The test gives one command per line over the
control socket (a Unix stream socket): `add UID NAMESPACE NAME SERVICE_ACCOUNT NETNS_PATH`, `del UID`, `connections`,
`raw HEX`. The answer is one line: `ok`, or `error TEXT`. Adds go to the newest ztunnel only, deletes to all; each new
ztunnel gets all pods and then the end of the snapshot, as istio-cni does. Pods named with --keep have no namespace: an
istio-cni that was started again and does not find it asks ztunnel to keep what it has.
"""

import argparse
import array
import os
import select
import socket
import sys
import threading

DEADLINE = 5.0


def field(number, payload):
    if isinstance(payload, str):
        payload = payload.encode()
    assert len(payload) < 128
    return bytes([number << 3 | 2, len(payload)]) + payload


def add_message(pod):
    info = field(1, pod["name"]) + field(2, pod["namespace"]) + field(3, pod["account"])
    return field(1, field(1, pod["uid"]) + field(2, info))


def keep_message(uid):
    return field(5, field(1, uid))


def del_message(uid):
    return field(2, field(2, uid))


SNAPSHOT_SENT = field(3, b"")


class Ztunnel:
    """One connected ztunnel; requests in lock step."""

    def __init__(self, conn):
        self.conn = conn
        self.lock = threading.Lock()
        conn.settimeout(DEADLINE)

    def ask(self, message, netns=None):
        with self.lock:
            ancillary = []
            if netns is not None:
                fd = os.open(netns, os.O_RDONLY)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                self.conn.sendmsg([message], ancillary)
            finally:
                if netns is not None:
                    os.close(fd)
            answer = self.conn.recv(1024)
        if not answer:
            raise OSError("ztunnel closed the connection")
        # WorkloadResponse{ack: Ack{error}}: 0a LEN [0a LEN TEXT]
        if answer[0] != 0x0A:
            raise OSError(f"not an ack: {answer.hex()}")
        body = answer[2:]
        return body[2:].decode() if body else ""


class Server:
    def __init__(self, path, kept):
        self.pods = {}
        self.kept = kept
        self.ztunnels = []
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(8)

    def accept(self):
        while True:
            conn, _ = self.listener.accept()
            hello = conn.recv(1024)
            if hello != b"\x08\x01":
                print(f"not a hello: {hello.hex()}", flush=True)
                conn.close()
                continue
            ztunnel = Ztunnel(conn)
            with self.lock:
                try:
                    self.tell_all(ztunnel)
                except OSError as error:
                    print(f"ztunnel left during its snapshot: {error!r}", flush=True)
                    continue
                self.ztunnels.append(ztunnel)

    def tell_all(self, ztunnel):
        for uid in self.kept:
            error = ztunnel.ask(keep_message(uid))
            print(f"keep {uid}: {error or 'ok'}", flush=True)
        for pod in self.pods.values():
            error = ztunnel.ask(add_message(pod), pod["netns"])
            print(f"snapshot {pod['uid']}: {error or 'ok'}", flush=True)
        error = ztunnel.ask(SNAPSHOT_SENT)
        print(f"snapshot sent: {error or 'ok'}", flush=True)

    def living(self):
        """Those whose connection has not ended; ztunnel sends nothing unasked, so readable means closed."""
        ended = select.select([z.conn for z in self.ztunnels], [], [], 0)[0] if self.ztunnels else []
        self.ztunnels = [z for z in self.ztunnels if z.conn not in ended]
        return self.ztunnels

    def carry_out(self, words):
        with self.lock:
            living = self.living()
            if words[0] == "connections":
                return f"ok {len(living)}"
            if words[0] == "add":
                keys = ("uid", "namespace", "name", "account", "netns")
                pod = dict(zip(keys, words[1:], strict=True))
                self.pods[pod["uid"]] = pod
                error = living[-1].ask(add_message(pod), pod["netns"]) if living else ""
                return f"error {error}" if error else "ok"
            if words[0] == "del":
                self.pods.pop(words[1], None)
                errors = [z.ask(del_message(words[1])) for z in living]
                return next((f"error {e}" for e in errors if e), "ok")
            if words[0] == "raw":
                error = living[-1].ask(bytes.fromhex(words[1]))
                return f"error {error}" if error else "ok"
        return f"error unknown command {words[0]}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("--keep", action="append", default=[])
    args = parser.parse_args()
    server = Server(args.socket, args.keep)
    threading.Thread(target=server.accept, daemon=True).start()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind(args.control)
    control.listen(8)
    print("listening", flush=True)
    while True:
        conn, _ = control.accept()
        with conn, conn.makefile("rw") as stream:
            for line in stream:
                try:
                    answer = server.carry_out(line.split())
                except (OSError, ValueError, IndexError) as error:
                    answer = f"error {error!r}"
                stream.write(answer + "\n")
                stream.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Enough of a WebSocket client (RFC 6455) to give a relay something to do."""

import asyncio
import os
import random
import socket
import struct
import threading

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Peer:
    @classmethod
    async def connect(cls, addr, path, headers):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(*addr)
        lines = [f"GET {path} HTTP/1.1", "Host: relay.test", "Connection: Upgrade",
                 "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines + ["", ""]).encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.accepted = b" 101 " in head.split(b"\r\n", 1)[0]
        return self

    def send(self, opcode, payload):
        mask = os.urandom(4)
        size = struct.pack("!B", 0x80 | len(payload)) if len(payload) < 126 \
            else struct.pack("!BH", 0xFE, len(payload))
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.writer.write(bytes([0x80 | opcode]) + size + mask + masked)

    async def receive(self):
        """The next text; none once the connection is closed."""
        try:
            while True:
                first, size = await self.reader.readexactly(2)
                if size == 126:
                    size, = struct.unpack("!H", await self.reader.readexactly(2))
                elif size == 127:
                    size, = struct.unpack("!Q", await self.reader.readexactly(8))
                payload = await self.reader.readexactly(size)
                if first & 15 == TEXT:
                    return payload
                if first & 15 == PING:
                    self.send(PONG, payload)
                if first & 15 == CLOSE:
                    return None
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def leave(self, politely):
        if politely:
            self.send(CLOSE, struct.pack("!H", 1000))
            self.writer.close()
        else:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()


async def binary(addr, id):
    peer = await Peer.connect(addr, "/v1/server", {
        "X-Pyrycode-Server": id, "X-Pyrycode-Version": "1.2.3", "User-Agent": "test"})
    while (envelope := await peer.receive()) is not None:
        # An envelope goes back to the phone that it names.
        if b"close_code" not in envelope:
            peer.send(TEXT, envelope)


async def phone(addr, id, stays):
    while True:
        peer = await Peer.connect(addr, "/v1/client", {
            "X-Pyrycode-Server": id, "X-Pyrycode-Token": "token", "User-Agent": "test"})
        end = asyncio.get_running_loop().time() + (1e9 if stays else random.uniform(0.5, 4))
        number = 0
        while peer.accepted and asyncio.get_running_loop().time() < end:
            number += 1
            peer.send(TEXT, b'{"number":%d,"text":"%s"}' % (number, b"x" * random.randrange(90)))
            if await peer.receive() is None:
                break
            await asyncio.sleep(random.uniform(0.02, 0.2))
        if not peer.writer.is_closing():
            peer.leave(politely=random.random() < 0.7)
        await asyncio.sleep(random.uniform(0.1, 2))


async def everyone(addr):
    ids = [f"house-{number}" for number in range(8)]
    binaries = [asyncio.create_task(binary(addr, id)) for id in ids]
    await asyncio.sleep(0.5)
    phones = [phone(addr, id, number % 3 > 0) for id in ids for number in range(6)]
    # One asks for an id that nobody holds, again and again.
    phones.append(phone(addr, "nobody-has-this", False))
    await asyncio.gather(*binaries, *map(asyncio.create_task, phones), return_exceptions=True)


def start(addr):
    """Traffic in a thread of its own, until the process ends."""
    threading.Thread(target=lambda: asyncio.run(everyone(addr)), daemon=True).start()

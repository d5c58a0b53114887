"""A binary that pings and leaves, by Python's ssl (OpenSSL). PORT CA 1.2|1.3"""

import socket
import ssl
import sys

port, ca, version = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.set_alpn_protocols(["http/1.1"])
wanted = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
context.minimum_version = context.maximum_version = wanted
tcp = socket.create_connection(("127.0.0.1", int(port)), timeout=20)
tls = context.wrap_socket(tcp, server_hostname="relay.test", suppress_ragged_eofs=False)
assert tls.version() == "TLSv" + version, tls.version()

tls.sendall(
    b"GET /v1/server HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"X-Pyrycode-Server: python-" + version.encode() + b"\r\nX-Pyrycode-Version: 1\r\n"
    b"User-Agent: python/1\r\n\r\n"
)
head = b""
while not head.endswith(b"\r\n\r\n"):
    head += tls.recv(1)
assert head.startswith(b"HTTP/1.1 101 "), head


def read(count):
    data = b""
    while len(data) < count:
        more = tls.recv(count - len(data))
        assert more, "the end"
        data += more
    return data


for size in range(126):
    payload = bytes([size]) * size
    tls.sendall(bytes([0x89, 0x80 | size, 0, 0, 0, 0]) + payload)
    assert read(2 + size) == bytes([0x8A, size]) + payload, size
tls.sendall(bytes([0x88, 0x82, 0, 0, 0, 0, 3, 232]))
assert read(4) == bytes([0x88, 2, 3, 232])
# An end without close_notify would raise here.
assert tls.recv(1) == b""
print("served")

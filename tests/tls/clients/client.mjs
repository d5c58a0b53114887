// A binary that pings and leaves, by Node's tls (OpenSSL). PORT CA 1.2|1.3
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { connect } from "node:tls";

const [port, ca, version] = process.argv.slice(2);
const wanted = `TLSv${version}`;
const tls = connect({
  host: "127.0.0.1",
  port: Number(port),
  servername: "relay.test",
  ca: readFileSync(ca),
  ALPNProtocols: ["http/1.1"],
  minVersion: wanted,
  maxVersion: wanted,
});
let held = Buffer.alloc(0);
let wake = () => {};
let ended = false;
tls.on("data", (data) => {
  held = Buffer.concat([held, data]);
  wake();
});
tls.on("end", () => {
  ended = true;
  wake();
});
const until = async (done) => {
  while (!done()) {
    assert(!ended, "the end");
    await new Promise((resolve) => (wake = resolve));
  }
};
const read = async (count) => {
  await until(() => held.length >= count);
  const data = held.subarray(0, count);
  held = held.subarray(count);
  return data;
};
await new Promise((resolve) => tls.once("secureConnect", resolve));
assert.equal(tls.getProtocol(), wanted);
tls.write(
  "GET /v1/server HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
    `X-Pyrycode-Server: node-${version}\r\nX-Pyrycode-Version: 1\r\nUser-Agent: node/1\r\n\r\n`,
);
await until(() => held.includes("\r\n\r\n"));
const head = await read(held.indexOf("\r\n\r\n") + 4);
assert(head.toString().startsWith("HTTP/1.1 101 "), head.toString());
for (let size = 0; size < 126; size++) {
  const payload = Buffer.alloc(size, size);
  tls.write(Buffer.concat([Buffer.from([0x89, 0x80 | size, 0, 0, 0, 0]), payload]));
  assert.deepEqual(await read(2 + size), Buffer.concat([Buffer.from([0x8a, size]), payload]));
}
tls.write(Buffer.from([0x88, 0x82, 0, 0, 0, 0, 3, 232]));
assert.deepEqual(await read(4), Buffer.from([0x88, 2, 3, 232]));
while (!ended) await new Promise((resolve) => (wake = resolve));
tls.end();
console.log("served");

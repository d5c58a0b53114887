// A binary that pings and leaves, by Go's crypto/tls. PORT CA 1.2|1.3
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	port, ca, version := os.Args[1], os.Args[2], os.Args[3]
	pem, err := os.ReadFile(ca)
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	wanted := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[version]
	conn, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{
		ServerName: "relay.test", RootCAs: roots, NextProtos: []string{"http/1.1"},
		MinVersion: wanted, MaxVersion: wanted,
	})
	check(err)
	if group := conn.ConnectionState().CurveID; version == "1.3" && group != tls.X25519MLKEM768 {
		log.Fatalf("Go asks for X25519MLKEM768 first, and got %v", group)
	}
	_, err = fmt.Fprintf(conn, "GET /v1/server HTTP/1.1\r\nHost: relay.test\r\n"+
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Pyrycode-Server: go-%s\r\n"+
		"X-Pyrycode-Version: 1\r\nUser-Agent: go/1\r\n\r\n", version)
	check(err)
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	check(err)
	if response.StatusCode != 101 {
		log.Fatal(response.Status)
	}
	expect := func(expected []byte) {
		got := make([]byte, len(expected))
		_, err := io.ReadFull(reader, got)
		check(err)
		if !bytes.Equal(got, expected) {
			log.Fatalf("%v, not %v", got, expected)
		}
	}
	for size := 0; size < 126; size++ {
		payload := bytes.Repeat([]byte{byte(size)}, size)
		_, err = conn.Write(append([]byte{0x89, byte(0x80 | size), 0, 0, 0, 0}, payload...))
		check(err)
		expect(append([]byte{0x8a, byte(size)}, payload...))
	}
	_, err = conn.Write([]byte{0x88, 0x82, 0, 0, 0, 0, 3, 232})
	check(err)
	expect([]byte{0x88, 2, 3, 232})
	// An end without close_notify would be io.ErrUnexpectedEOF.
	if _, err := reader.ReadByte(); err != io.EOF {
		log.Fatal(err)
	}
	check(conn.Close())
	fmt.Println("served")
}

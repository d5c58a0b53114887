// A binary that pings and leaves, by the JDK's own TLS. PORT CA 1.2|1.3
import java.io.DataInputStream;
import java.io.FileInputStream;
import java.io.OutputStream;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Arrays;
import java.util.List;
import javax.net.ssl.SNIHostName;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    public static void main(String[] args) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null);
        try (FileInputStream file = new FileInputStream(args[1])) {
            var factory = CertificateFactory.getInstance("X.509");
            trusted.setCertificateEntry("authority", factory.generateCertificate(file));
        }
        var managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        SSLSocket tls = (SSLSocket) context.getSocketFactory()
            .createSocket("127.0.0.1", Integer.parseInt(args[0]));
        var parameters = tls.getSSLParameters();
        parameters.setServerNames(List.of(new SNIHostName("relay.test")));
        parameters.setProtocols(new String[] {"TLSv" + args[2]});
        parameters.setApplicationProtocols(new String[] {"http/1.1"});
        tls.setSSLParameters(parameters);
        tls.startHandshake();
        OutputStream out = tls.getOutputStream();
        DataInputStream in = new DataInputStream(tls.getInputStream());
        out.write(("GET /v1/server HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\n"
            + "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Pyrycode-Server: java-" + args[2]
            + "\r\nX-Pyrycode-Version: 1\r\nUser-Agent: java/1\r\n\r\n").getBytes());
        StringBuilder head = new StringBuilder();
        while (!head.toString().endsWith("\r\n\r\n")) {
            head.append((char) in.readUnsignedByte());
        }
        expect(head.toString().startsWith("HTTP/1.1 101 "), head.toString());
        for (int size = 0; size < 126; size++) {
            byte[] ping = new byte[6 + size];
            byte[] pong = new byte[2 + size];
            ping[0] = (byte) 0x89;
            ping[1] = (byte) (0x80 | size);
            pong[0] = (byte) 0x8a;
            pong[1] = (byte) size;
            out.write(ping);
            byte[] got = in.readNBytes(pong.length);
            expect(Arrays.equals(got, pong), Arrays.toString(got));
        }
        out.write(new byte[] {(byte) 0x88, (byte) 0x82, 0, 0, 0, 0, 3, (byte) 232});
        expect(Arrays.equals(in.readNBytes(4), new byte[] {(byte) 0x88, 2, 3, (byte) 232}), "close");
        // An end without close_notify would throw here.
        expect(in.read() == -1, "the end");
        tls.close();
        System.out.println("served");
    }

    static void expect(boolean is, String what) {
        if (!is) {
            throw new AssertionError(what);
        }
    }
}

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** `Web server|client PORT`: an HTTP server with a thread pool, and a client that checks what it gets. */
public final class Web {
    private static final int ROUNDS = 20;
    private static final int AT_ONCE = 50;

    public static void main(String[] words) throws Exception {
        int port = Integer.parseInt(words[1]);
        if (words[0].equals("server")) {
            serve(port);
        } else {
            new Web(port).check();
        }
    }

    private static void serve(int port) throws Exception {
        var done = new CountDownLatch(1);
        var pool = Executors.newFixedThreadPool(8);
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 1024);
        server.createContext("/", exchange -> {
            answer(exchange);
            if (exchange.getRequestURI().getPath().equals("/quit")) {
                done.countDown();
            }
        });
        server.setExecutor(pool);
        server.start();
        done.await();
        server.stop(0);
        pool.shutdown();
    }

    private static void answer(HttpExchange exchange) throws IOException {
        byte[] in = exchange.getRequestBody().readAllBytes();
        String text = in.length > 0 ? digest(in) : "hello " + exchange.getRequestURI();
        exchange.sendResponseHeaders(200, text.length());
        exchange.getResponseBody().write(text.getBytes());
        exchange.close();
    }

    private static String digest(byte[] bytes) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
        } catch (java.security.NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    private final int port;
    private final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    private Web(int port) {
        this.port = port;
    }

    private HttpRequest.Builder to(String path) {
        return HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + path));
    }

    private static void expect(String got, String wanted) {
        if (!got.equals(wanted)) {
            throw new IllegalStateException("got " + got + " instead of " + wanted);
        }
    }

    private void check() throws Exception {
        long start = System.nanoTime();
        for (int round = 0; round < ROUNDS; round++) {
            List<CompletableFuture<HttpResponse<String>>> answers = new ArrayList<>();
            for (int i = 0; i < AT_ONCE; i++) {
                answers.add(client.sendAsync(to("/" + i).build(), BodyHandlers.ofString()));
            }
            for (int i = 0; i < AT_ONCE; i++) {
                expect(answers.get(i).get(20, TimeUnit.SECONDS).body(), "hello /" + i);
            }
        }
        System.out.println("requests/s " + ROUNDS * AT_ONCE / ((System.nanoTime() - start) / 1e9));
        var body = new byte[5_000_011];
        new Random(1).nextBytes(body);
        for (int i = 0; i < 5; i++) {
            var request = to("/upload").POST(BodyPublishers.ofByteArray(body)).build();
            expect(client.send(request, BodyHandlers.ofString()).body(), digest(body));
        }
        for (int i = 0; i < 50; i++) {
            try (var socket = new Socket("127.0.0.1", port)) {
                socket.setSoTimeout(20_000);
                socket.getOutputStream().write("GET /socket HTTP/1.0\r\n\r\n".getBytes());
                var answer = new String(socket.getInputStream().readAllBytes());
                expect(answer.substring(answer.indexOf("hello")), "hello /socket");
            }
        }
        expect(client.send(to("/quit").build(), BodyHandlers.ofString()).body(), "hello /quit");
        System.exit(0);
    }
}

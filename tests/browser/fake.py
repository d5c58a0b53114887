"""The status page as the relay serves it, with whatever state a test likes."""

import copy
import http.server
import json
import threading


class Fake:
    def __init__(self, page, policy, status):
        fake = self
        self.status = status
        self.answers = True

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if not fake.answers:
                    self.close_connection = True
                    return
                is_page = self.path == "/"
                body = page if is_page else json.dumps(fake.status).encode()
                self.send_response(200 if is_page or self.path == "/status.json" else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8" if is_page
                                 else "application/json; charset=utf-8")
                self.send_header("Content-Security-Policy", policy)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def change(self, alter):
        """Puts an altered copy in the place of the state."""
        status = copy.deepcopy(self.status)
        alter(status)
        self.status = status

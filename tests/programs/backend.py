"""A backend as applications are written with Python: threads, and a backlog for many clients at once."""

import http.server
import sys


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024


class Files(http.server.SimpleHTTPRequestHandler):
    def log_request(self, *_):
        pass


Server(("127.0.0.1", int(sys.argv[1])), Files).serve_forever()

"""A backend as applications are written with Python: threads, and a backlog for many clients at once."""

import http.server
import sys


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024

    def handle_error(self, *_):
        # A load generator that has had its time leaves in the middle of answers.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)


class Files(http.server.SimpleHTTPRequestHandler):
    def log_request(self, *_):
        pass


Server(("127.0.0.1", int(sys.argv[1])), Files).serve_forever()

"""An application for gunicorn: who answers, or what came in."""

import hashlib
import os


def app(request, start):
    if request["REQUEST_METHOD"] == "POST":
        body = hashlib.sha256(request["wsgi.input"].read()).hexdigest()
    else:
        body = str(os.getpid())
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]

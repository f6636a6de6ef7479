"""A server that forks a child for each connection, and a client that says what it hears of them.

The child does as the client's first message says, and never waits before: nothing of its own makes it attach.
"""
import os
import signal
import socket
import subprocess
import sys
import time


def child(conn, what):
    if what == b"computes":
        # Longer than the coordinator waits for a child that nobody has told it of.
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            pass
        conn.sendall(b"computed")
    elif what == b"executes":
        os.execvp("sleep", ["sleep", "60"])
    elif what == b"runs cat":
        subprocess.run(["cat"], stdin=conn, stdout=conn, check=True)
    elif what == b"waits":
        conn.sendall(conn.recv(16))
    else:
        while True:
            pass


def server():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        conn, _ = listener.accept()
        what = conn.recv(16)
        pid = os.fork()
        if pid == 0:
            listener.close()
            child(conn, what)
            os._exit(0)
        conn.sendall(str(pid).encode())
        conn.close()


def client(port, what):
    conn = socket.create_connection(("127.0.0.1", port))
    conn.sendall(what.encode())
    pid = int(conn.recv(16))
    print(pid, flush=True)
    sys.stdin.readline()
    if what == "is killed":
        os.kill(pid, signal.SIGKILL)
    if what in ("waits", "runs cat"):
        conn.sendall(b"echo")
    if what in ("computes", "waits", "runs cat"):
        print(conn.recv(16).decode())
    if what == "runs cat":
        conn.shutdown(socket.SHUT_WR)
    try:
        print("the end" if conn.recv(16) == b"" else "more")
    except ConnectionResetError:
        print("a reset")
    if what == "executes":
        os.kill(pid, signal.SIGKILL)


if sys.argv[1] == "server":
    server()
else:
    client(int(sys.argv[2]), sys.argv[3])

"""Connections and listeners that other programs inherit or are sent: `inherit.py WAY [STATIC]`.

Says what happened, line by line; the same on the kernel and in user space. STATIC: a program without the shim."""

import os
import signal
import socket
import subprocess
import sys
import time

signal.alarm(40)
WAY, STATIC = sys.argv[1], sys.argv[2]
CHUNK = bytes(range(256)) * 64

# What the other program does with connection number N: two answers, then its end.
ANSWER = """
import socket
s = socket.socket(fileno=%d)
for word in (b"one:", b"two:"):
    got = b""
    while not got.endswith(b"."):
        got += s.recv(65536)
    s.sendall(word + got)
"""

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(8)
PORT = listener.getsockname()[1]


def connected():
    client = socket.socket()
    client.connect(("127.0.0.1", PORT))
    server, _ = listener.accept()
    # Data that waits when the connection changes hands.
    client.sendall(b"before ")
    return client, server


def read_until(client, end):
    got = b""
    while not got.endswith(end):
        piece = client.recv(65536)
        if not piece:
            break
        got += piece
    return got


def talk(client):
    client.sendall(b"first.")
    print(read_until(client, b"."))
    client.sendall(CHUNK * 32 + b".")
    print(len(read_until(client, b".")))
    print("end", client.recv(10))


def python(fd):
    return [sys.executable, "-c", ANSWER % fd]


if WAY == "fork_exec":
    client, server = connected()
    server.set_inheritable(True)
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, python(server.fileno()))
    server.close()
    talk(client)
    print(os.waitpid(pid, 0)[1])
elif WAY == "spawn":
    client, server = connected()
    actions = [(os.POSIX_SPAWN_DUP2, server.fileno(), 0)]
    pid = os.posix_spawn(sys.executable, python(0), os.environ, file_actions=actions)
    server.close()
    talk(client)
    print(os.waitpid(pid, 0)[1])
elif WAY == "vfork":
    client, server = connected()
    with subprocess.Popen(python(0), stdin=server) as process:
        server.close()
        talk(client)
    print(process.returncode)
elif WAY == "exec_both_ends":
    client, server = connected()
    for end in (client, server):
        end.set_inheritable(True)
    numbers = client.fileno(), server.fileno()
    code = """
import socket
client, server = socket.socket(fileno=%d), socket.socket(fileno=%d)
print(server.recv(100))
client.sendall(b"after")
print(server.recv(100))
client.close()
print(server.recv(100))
""" % numbers
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", code])
elif WAY == "close_on_exec":
    client, server = connected()
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["/bin/sleep", "5"])
    server.recv(100)
    server.close()
    print("end", client.recv(10))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
elif WAY == "system":
    client, server = connected()
    server.recv(100)
    server.set_inheritable(True)
    os.dup2(server.fileno(), 7)
    print(os.system("echo from a shell >&7"))
    server.close()
    os.close(7)
    print(read_until(client, b"\n"), client.recv(10))
elif WAY == "static":
    client, server = connected()
    with subprocess.Popen([STATIC], stdin=server, stdout=server) as process:
        server.close()
        talk(client)
    print(process.returncode)
elif WAY == "static_is_killed":
    client, server = connected()
    process = subprocess.Popen([STATIC], stdin=server, stdout=server)
    server.close()
    client.sendall(b"first.")
    print(read_until(client, b"."))
    process.kill()
    process.wait()
    print("end", client.recv(10))
elif WAY == "listener":
    listener.set_inheritable(True)
    code = "import socket\ns, _ = socket.socket(fileno=%d).accept()\ns.sendall(s.recv(100))"
    with subprocess.Popen([sys.executable, "-c", code % listener.fileno()], close_fds=False):
        client = socket.socket()
        client.connect(("127.0.0.1", PORT))
        listener.close()
        client.sendall(b"to a child")
        print(client.recv(100), client.recv(100))
elif WAY == "static_listener":
    with subprocess.Popen([STATIC, "accept"], stdin=listener):
        client = socket.socket()
        client.connect(("127.0.0.1", PORT))
        listener.close()
        talk(client)
elif WAY == "rights":
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _, numbers, _, _ = socket.recv_fds(theirs, 10, 4)
        os.set_blocking(numbers[0], True)
        exec(ANSWER % numbers[0])
        os._exit(0)
    client, server = connected()
    # As event-driven masters do: the mode belongs to the connection, not to who has it.
    server.setblocking(False)
    socket.send_fds(ours, [b"here"], [server.fileno()])
    server.close()
    talk(client)
    print(os.waitpid(pid, 0)[1])
elif WAY == "rights_of_a_listener":
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        listener.close()
        _, numbers, _, _ = socket.recv_fds(theirs, 10, 4)
        server, _ = socket.socket(fileno=numbers[0]).accept()
        exec(ANSWER % server.detach())
        os._exit(0)
    socket.send_fds(ours, [b"here"], [listener.fileno()])
    client = socket.socket()
    client.connect(("127.0.0.1", PORT))
    talk(client)
    print(os.waitpid(pid, 0)[1])
elif WAY == "fork_before_connect":
    client = socket.socket()
    pid = os.fork()
    if pid == 0:
        time.sleep(0.2)
        client.sendall(b"from the child")
        os._exit(0)
    client.connect(("127.0.0.1", PORT))
    server, _ = listener.accept()
    print(server.recv(100))
    os.waitpid(pid, 0)
print("done")

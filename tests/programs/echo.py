"""An echo server, and a client that sends and receives by every form that Python's socket module has.

echo.py server          prints its port, serves until a connection says "stop"
echo.py client PORT     exits with an assertion if an echo differs
"""

import asyncio
import os
import selectors
import socket
import sys
import tempfile
import threading

MESSAGE = bytes(range(256)) * 64


def serve_one(conn):
    """Echoes until the end of the stream; true if the client asked the server to stop."""
    with conn:
        while data := conn.recv(65536):
            if data == b"stop":
                return True
            conn.sendall(data)
    return False


def server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threads = []
        stop = threading.Event()
        listener.settimeout(0.2)

        def handle(conn):
            if serve_one(conn):
                stop.set()

        while not stop.is_set():
            try:
                conn, _ = listener.accept()
            except TimeoutError:
                continue
            conn.settimeout(None)
            threads.append(threading.Thread(target=handle, args=(conn,)))
            threads[-1].start()
        for thread in threads:
            thread.join()


def send_in_parts(conn, send):
    left = memoryview(MESSAGE)
    while left:
        left = left[send(left):]


def senders(conn):
    """Name and function of every way to send MESSAGE."""
    def by_file():
        with conn.makefile("wb") as f:
            f.write(MESSAGE)

    def by_sendfile():
        with tempfile.TemporaryFile() as f:
            f.write(MESSAGE)
            f.seek(0)
            assert conn.sendfile(f) == len(MESSAGE)

    half = len(MESSAGE) // 2
    return {
        "send": lambda: send_in_parts(conn, conn.send),
        "sendall": lambda: conn.sendall(MESSAGE),
        "sendto": lambda: send_in_parts(conn, lambda left: conn.sendto(left, conn.getpeername())),
        "sendmsg": lambda: send_in_parts(conn, lambda left: conn.sendmsg([left[:100], left[100:]])),
        "os.write": lambda: send_in_parts(conn, lambda left: os.write(conn.fileno(), left)),
        "os.writev": lambda: send_in_parts(conn, lambda left: os.writev(conn.fileno(), [left[:half], left[half:]])),
        "makefile": by_file,
        "sendfile": by_sendfile,
    }


def receivers(conn):
    """Name and function of every way to receive up to n bytes."""
    def into(call):
        def receive(n):
            room = bytearray(n)
            return bytes(room[:call(room)])
        return receive

    def by_vectors(call):
        def receive(n):
            rooms = [bytearray(min(n, 1000)), bytearray(max(n - 1000, 1))]
            got = min(call(rooms), n)
            return b"".join(rooms)[:got] if len(rooms[0]) == 1000 else bytes(rooms[0])[:got]
        return receive

    return {
        "recv": conn.recv,
        "recvfrom": lambda n: conn.recvfrom(n)[0],
        "recvmsg": lambda n: conn.recvmsg(n)[0],
        "recv_into": into(conn.recv_into),
        "recvfrom_into": into(lambda room: conn.recvfrom_into(room)[0]),
        "recvmsg_into": into(lambda room: conn.recvmsg_into([room])[0]),
        "recv peek": lambda n: conn.recv(len(conn.recv(n, socket.MSG_PEEK))),
        "recv waitall": lambda n: conn.recv(n, socket.MSG_WAITALL),
        "os.read": lambda n: os.read(conn.fileno(), n),
        "os.readv": by_vectors(lambda rooms: os.readv(conn.fileno(), rooms[:1])),
    }


def receive_all(receive):
    got = b""
    while len(got) < len(MESSAGE):
        part = receive(len(MESSAGE) - len(got))
        assert part, "the stream ended early"
        got += part
    return got


def check_forms(port):
    with socket.create_connection(("127.0.0.1", port)) as conn:
        for send_name, send in senders(conn).items():
            for receive_name, receive in receivers(conn).items():
                send()
                assert receive_all(receive) == MESSAGE, f"{send_name} to {receive_name}"


def check_text_file(port):
    with socket.create_connection(("127.0.0.1", port)) as conn:
        with conn.makefile("rw", newline="\n") as f:
            for i in range(100):
                f.write(f"line {i}\n")
                f.flush()
                assert f.readline() == f"line {i}\n"


def check_timeout(port):
    with socket.create_connection(("127.0.0.1", port)) as conn:
        conn.settimeout(0.05)
        try:
            conn.recv(1)
            raise AssertionError("nothing was sent, something came")
        except TimeoutError:
            pass
        conn.sendall(b"in time")
        assert conn.recv(7, socket.MSG_WAITALL) == b"in time"


def check_nonblocking_with_selectors(port):
    for kind in (selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector):
        with kind() as selector, socket.socket() as conn:
            conn.setblocking(False)
            conn.connect_ex(("127.0.0.1", port))
            selector.register(conn, selectors.EVENT_WRITE)
            assert selector.select(5), "connecting took too long"
            assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            try:
                conn.recv(1)
                raise AssertionError("nothing was sent, something came")
            except BlockingIOError:
                pass
            left, got = memoryview(MESSAGE * 20), b""
            while len(got) < len(MESSAGE) * 20:
                selector.modify(conn, selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0))
                for _, events in selector.select(5):
                    if events & selectors.EVENT_WRITE and left:
                        left = left[conn.send(left):]
                    if events & selectors.EVENT_READ:
                        got += conn.recv(65536)
            assert got == MESSAGE * 20, kind.__name__


def check_ends(port):
    conn = socket.create_connection(("127.0.0.1", port))
    copy = conn.dup()
    conn.close()
    copy.sendall(b"through the copy")
    assert copy.recv(16, socket.MSG_WAITALL) == b"through the copy"
    copy.shutdown(socket.SHUT_WR)
    assert copy.recv(1) == b""
    raw = copy.detach()
    os.close(raw)


def check_asyncio(port):
    async def one(i):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20):
            writer.write(MESSAGE)
            await writer.drain()
            assert await reader.readexactly(len(MESSAGE)) == MESSAGE
        writer.close()
        await writer.wait_closed()

    async def all_of_them():
        await asyncio.gather(*(one(i) for i in range(10)))

    asyncio.run(all_of_them())


def client(port):
    for check in (check_forms, check_text_file, check_timeout, check_nonblocking_with_selectors, check_ends, check_asyncio):
        print(check.__name__, flush=True)
        check(port)
    with socket.create_connection(("127.0.0.1", port)) as conn:
        conn.sendall(b"stop")
        assert conn.recv(1) == b""
    print("all forms agree")


if __name__ == "__main__":
    if sys.argv[1:] == ["server"]:
        server()
    elif len(sys.argv) == 3 and sys.argv[1] == "client":
        client(int(sys.argv[2]))
    else:
        sys.exit(__doc__)

"""One connection between the bench and a node's agent: frames, who is at the other end, and what a stranger may do.

A frame is four bytes of length, then one message of `record.wire` as JSON. Both ends prove that they know the run's
secret (HMAC-SHA256 over both sides' nonces, node, version and code); from then on each frame begins with a code
over its place in the stream and its content, so that nobody in between can add, change or repeat one. Nothing is
encrypted: what passes is suites, figures and logs.
"""

from __future__ import annotations

import array
import contextlib
import hmac
import os
import select
import socket
import struct
import time
from hashlib import sha256

from selectbench.errors import UserError
from selectbench.record.wire import MESSAGES, AnyMessage, Proof
from selectbench.text import quoted

FIRST_BYTES = 4096
"""The most of a message from somebody who has not proved that they know the secret."""
MOST_BYTES = 16 << 20
"""The most of any other message."""
CODE_BYTES = 32
SEND_SECONDS = 10.0
"""Time for the other end to take what is sent: a process that is stopped never does."""
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
"""A machine that is gone without a word is noticed after some 30 s: by the kernel, whatever the processes do."""
SECRET = "SELECTBENCH_SECRET"
SHORTEST_SECRET = 16


class GoneError(Exception):
    """The other end has closed the connection, or can't be reached any more."""


class ProtocolError(Exception):
    """What came over the connection is no message that the other end would send now."""


def take_secret() -> bytes:
    """The run's secret, taken out of the environment, so that trials don't see it. Raises UserError without one."""
    secret = os.environ.pop(SECRET, "")
    if len(secret) < SHORTEST_SECRET:
        raise UserError(
            f"several nodes need a secret, so that no stranger has trials run: set {SECRET} to the same on all of "
            f"them, {SHORTEST_SECRET} characters or more (`openssl rand -hex 16` prints some)"
        )
    return secret.encode()


def address_of(rdzv: str) -> tuple[str, int]:
    """Host and port of `--rdzv`. Raises UserError."""
    host, colon, port = rdzv.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--rdzv {quoted(rdzv)}: expected the first node's HOST:PORT, such as n1:29500")
    return host, int(port)


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address first; None: none has, or it is another kind of address."""
    import fcntl  # systems that only plan have none

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            with contextlib.suppress(OSError):  # the interface has no IPv4 address
                fcntl.ioctl(any_socket, 0x8915, request)  # SIOCGIFADDR: netdevice(7)
                if socket.inet_ntoa(request.tobytes()[20:24]) == address:
                    return name
    return None


def proof(secret: bytes, side: str, challenge: str, claim: Proof, version: str, code: str) -> str:
    """What `side`, bench or agent, can say of this connection only if it knows the secret.

    `claim`: the agent's message, whatever its own proof; `version`, `code`: of the side that proves itself.
    """
    parts = (side, challenge, claim.nonce, str(claim.node), str(claim.nodes), version, code)
    return hmac.new(secret, "\0".join(parts).encode(), sha256).hexdigest()


class Channel:
    """Frames over a socket; not trusted until both ends have proved themselves."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in KEEP_ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.socket = connection
        self.interface = interface_of(connection.getsockname()[0])
        self._key: bytes | None = None
        self._sides = (b"", b"")
        self._counts = [0, 0]
        self._unread = bytearray()
        self._waiting: list[AnyMessage] = []

    def fileno(self) -> int:
        """The socket, for selectors."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the connection; what has not been read is lost."""
        self.socket.close()

    def trust(self, secret: bytes, challenge: str, claim: Proof, *, as_bench: bool) -> None:
        """From now on every frame has a code, by a key that is made for this connection alone."""
        self._key = hmac.new(secret, f"frames\0{challenge}\0{claim.nonce}".encode(), sha256).digest()
        self._sides = (b"bench", b"agent") if as_bench else (b"agent", b"bench")

    def send(self, message: AnyMessage) -> None:
        """Send one message. Raises GoneError."""
        content = MESSAGES.write(message)
        frame = (self._code(0, content) if self._key else b"") + content
        try:
            self.socket.sendall(struct.pack(">I", len(frame)) + frame)
        except OSError as error:
            raise GoneError(str(error)) from None

    def receive(self) -> list[AnyMessage]:
        """The messages that have come, after one read of the socket, which must be readable.

        Raises GoneError, or ProtocolError, after which messages that came together with the wrong one are lost.
        """
        try:
            chunk = self.socket.recv(1 << 16)
        except OSError as error:
            raise GoneError(str(error)) from None
        if not chunk:
            raise GoneError("it closed the connection")
        self._unread += chunk
        messages = []
        while (message := self._next_message()) is not None:
            messages.append(message)
        return messages

    def next(self, seconds: float, wake: int | None = None) -> AnyMessage | None:
        """The next message; None: none came in time, or `wake` is readable. Raises GoneError or ProtocolError."""
        until, sources = time.monotonic() + seconds, [self.fileno(), *([] if wake is None else [wake])]
        while not self._waiting:
            ready = select.select(sources, [], [], max(0.0, until - time.monotonic()))[0]
            if self.fileno() not in ready:
                return None
            self._waiting += self.receive()
        return self._waiting.pop(0)

    def waiting(self) -> list[AnyMessage]:
        """The messages that came together with one that `next` returned, and were not taken yet."""
        messages, self._waiting = self._waiting, []
        return messages

    def _next_message(self) -> AnyMessage | None:
        """The first message of what was read; None: its frame is not complete yet. Raises ProtocolError."""
        if len(self._unread) < 4:
            return None
        (length,) = struct.unpack(">I", self._unread[:4])
        if length > (MOST_BYTES if self._key else FIRST_BYTES):
            raise ProtocolError(f"a message of {length} bytes")
        if len(self._unread) < 4 + length:
            return None
        frame = bytes(self._unread[4 : 4 + length])
        del self._unread[: 4 + length]
        if self._key:
            code, frame = frame[:CODE_BYTES], frame[CODE_BYTES:]
            if not hmac.compare_digest(code, self._code(1, frame)):
                raise ProtocolError("a message with a wrong code")
        try:
            return MESSAGES.read(frame)
        except ValueError as error:
            raise ProtocolError(f"a message that does not fit: {error}") from None

    def _code(self, direction: int, content: bytes) -> bytes:
        """The code of the next frame in a direction: 0 of what is sent, 1 of what is received."""
        assert self._key is not None
        place = self._sides[direction] + struct.pack(">Q", self._counts[direction])
        self._counts[direction] += 1
        return hmac.new(self._key, place + content, sha256).digest()

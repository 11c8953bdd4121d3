"""Runs the server of a gallery: its socket, its address, and its timeouts for stalled clients."""

import contextlib
import ctypes
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from component.gallery.reader import Gallery
from component.ground.files import new_file
from component.ground.optional import import_optional
from component.search.client import PORT_FILE
from component.search.guard import LOOPBACK, Access, new_token

HEADER_SECONDS = 10  # for the headers of a request
SHUTDOWN_SECONDS = 2  # for responses in progress after Ctrl-C
MAX_CONNECTIONS = 200  # beyond that, the oldest idle one is closed
_M_MMAP_THRESHOLD = -3  # from malloc.h
_WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Address:
    """Where the server listens.

    Attributes:
        url: for people; of a server for all networks with the address that this machine has in its own.
        local_url: for programs of this machine, with {} in place of the path.
    """

    sock: socket.socket
    access: Access
    url: str
    local_url: str


def listen(host: str, port: int, names: list[str]) -> Address:
    """Take the port, before anything that costs time.

    Args:
        names: further names of this machine in URLs.

    Raises:
        OSError: the port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be used ({error.strerror}). Give another --port or --host.") from None
    is_local = host in LOOPBACK
    name = socket.gethostname()
    own_names = () if is_local else (host, name, f"{name}.local")
    access = Access((*LOOPBACK, *names, *own_names), not is_local, None if is_local else new_token())
    token = f"?token={access.token}" if access.token else ""
    shown, local = (_own_address(), "127.0.0.1") if host in _WILDCARDS else (host, host)
    return Address(sock, access, f"{_url(shown, port)}{token}", f"{_url(local, port)}{{}}{token}")


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _own_address() -> str:
    """The address of this machine in its network. (On Debian, its host name resolves to 127.0.1.1.)"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only makes the system choose an address
        return probe.getsockname()[0]
    return socket.gethostname()


def serve_app(app, address: Address) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises ImportError if uvicorn is not installed."""
    _give_memory_back()
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app).run([address.sock])


def _give_memory_back() -> None:
    """Let glibc return freed blocks from 1 MB on to the system.

    By default it raises that limit to 32 MB and keeps the blocks of 16 MB in which Pillow decodes, once per thread:
    twelve images of 9,400 x 9,400 pixels took 3.2 GB rather than 1.1 GB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def make_server(app):
    """A uvicorn.Server that does not wait for clients that stall."""
    uvicorn = import_optional("uvicorn", "The web page", "search")
    config = uvicorn.Config(
        app,
        http=_impatient_protocol(),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def _impatient_protocol():
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        """Closes connections that ask nothing: after HEADER_SECONDS, or when too many are open."""

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self.since = self.loop.time()
            self.start_timer()
            if len(self.connections) > MAX_CONNECTIONS:
                idle = [connection for connection in self.connections if connection.asks_nothing()]
                if idle:
                    min(idle, key=lambda connection: connection.since).transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # Received bytes do not restart the timer: a client could send one every second.
            if not self.asks_nothing():
                self.stop_timer()
            elif self.timer is None:
                self.start_timer()

        def connection_lost(self, exc) -> None:
            super().connection_lost(exc)
            self.stop_timer()

        def asks_nothing(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def start_timer(self) -> None:
            self.timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

        def stop_timer(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
            self.timer = None

    return ImpatientProtocol


@contextlib.contextmanager
def announced(gallery: Gallery, address: Address) -> Iterator[None]:
    """Write the server's address into the gallery, for `ask_running`; skipped on a read-only disk."""
    path = os.path.join(gallery.folder, PORT_FILE)
    content = json.dumps({"gallery": gallery.about.get("id"), "url": address.local_url, "pid": os.getpid()})
    with contextlib.suppress(OSError), new_file(path, sync=False) as file:
        if hasattr(os, "fchmod"):  # not on Windows
            os.fchmod(file.fileno(), 0o600)  # it contains the token
        file.write(content)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            with open(path, encoding="utf-8") as file:
                is_ours = file.read() == content
            if is_ours:
                os.unlink(path)

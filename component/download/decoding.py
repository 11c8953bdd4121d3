"""Images are decoded in processes of their own, one per core: a thread of the download borrows one for an image.

So the speed is that of all cores, and an image that brings its decoder down takes no thread with it.
"""

import errno
import io
import multiprocessing
import os
import queue
import signal
from multiprocessing.connection import Connection
from typing import BinaryIO

from component.download.failure import FetchError
from component.image.check import check_image, shrink_image
from component.image.load import BadImageError, read_bytes


class DecodersClosed(BaseException):
    """The download has ended meanwhile: no verdict on the image, nor a fault of anybody."""


class Decoders:
    """A process per core that this one may use, each started when it is first needed. All threads share one object.

    The processes see nothing but the bytes of one image at a time, and end with this process, however it ends.
    """

    def __init__(self):
        self._count, self._is_closed = _usable_cores(), False
        self._free: queue.LifoQueue[_Decoder] = queue.LifoQueue()  # the last used is started, and warm
        for _ in range(self._count):
            self._free.put(_Decoder())

    def check(self, file: BinaryIO) -> None:
        """Raise as `check_image` does, and as `_decoded`."""
        self._decoded(file, None)

    def shrink(self, file: BinaryIO, shorter_side: int) -> bytes:
        """The JPEG that `shrink_image` writes. Raises as it does, and as `_decoded`."""
        return self._decoded(file, shorter_side)

    def close(self) -> None:
        """End the processes, after the image that each may have in hand; other threads hear DecodersClosed."""
        self._is_closed = True
        decoders = [self._free.get() for _ in range(self._count)]
        for decoder in decoders:
            decoder.stop()
            self._free.put(decoder)

    def _decoded(self, file: BinaryIO, shorter_side: int | None) -> bytes:
        """
        Raises:
            FetchError: `decoder_killed`, where it was for this image twice.
            OSError: this machine has no room for a further process.
        """
        decoder = self._free.get()
        try:
            if self._is_closed:
                raise DecodersClosed
            # Not before there is a decoder for it: as many are in memory as there are cores, not as there are threads.
            body = read_bytes(file)
            for _ in range(2):  # whoever killed it may have meant another
                try:
                    answer = decoder.ask(body, shorter_side)
                    break
                except (EOFError, ConnectionError):
                    pass
            else:
                if not decoder.is_ready:
                    raise OSError(errno.ENOMEM, "a process that decodes images ends as it starts; too little memory?")
                raise FetchError("decoder_killed", "twice, perhaps for lack of memory", 200)
        finally:
            self._free.put(decoder)
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Decoder:
    """One process and the pipe to it; for one thread at a time.

    Attributes:
        is_ready: the process got so far as to say so.
    """

    def __init__(self):
        self._process, self.is_ready = None, False

    def ask(self, body: bytes, shorter_side: int | None) -> bytes | Exception:
        """Raise EOFError or ConnectionError where the process ended meanwhile."""
        try:
            if self._process is None:
                self._start()
            self._pipe.send((body, shorter_side))
            return self._pipe.recv()
        except BaseException:  # half a message may be on its way
            self.stop()
            raise

    def stop(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        self.is_ready = False
        # spawn: a forked child would inherit the locks of the other threads, and their sockets.
        context = multiprocessing.get_context("spawn")
        try:
            self._pipe, far_end = context.Pipe()
            with far_end:
                process = context.Process(target=_serve, args=(far_end,), daemon=True, name="decoder")
                process.start()
        except OSError as error:
            raise OSError(errno.ENOMEM, f"a process that decodes images cannot start: {error.strerror}") from None
        self._process = process
        self._pipe.recv()
        self.is_ready = True


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; the end of the pipe is for us
    pipe.send(None)  # ready
    while True:
        try:
            body, shorter_side = pipe.recv()
            pipe.send(_decode(io.BytesIO(body), shorter_side))
        except (EOFError, ConnectionError):
            return


def _decode(file: BinaryIO, shorter_side: int | None) -> bytes | Exception:
    try:
        if shorter_side is None:
            check_image(file)
            return b""
        shrink_image(file, out := io.BytesIO(), shorter_side)
        return out.getvalue()
    except (BadImageError, MemoryError) as error:
        return error
    except Exception as error:  # not every exception can be sent
        return RuntimeError(f"{type(error).__name__}: {error}")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

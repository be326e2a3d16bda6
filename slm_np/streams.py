"""Standard streams that never end the work: what they cannot show is escaped, what they cannot take is dropped."""

import contextlib
import errno
import io
import os
import select
import sys

WAIT_S = 10.0  # until a full pipe that does not block counts as one without a reader


class Output(io.RawIOBase):
    """The bytes of a standard stream, on their way to `file`. After an error all that follows is dropped.

    file      the file object without a buffer
    required  whether an error is raised, once. Otherwise the output is dropped from the start.
    error     the OSError that was raised, or None
    """

    def __init__(self, file, required=False):
        self.file, self.required, self.error, self.lost = file, required, None, False

    def write(self, data):
        data = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(data) and not self.lost:
                n = self.file.write(data[done:])
                done += self._wait() if n is None else n
        except (OSError, ValueError) as error:  # ValueError: the file was closed
            self.lost = True
            if self.required and isinstance(error, OSError):
                self.error = error
                raise
        return len(data)

    def _wait(self):
        """Wait until a pipe that does not block has room again. Returns 0, the bytes written meanwhile."""
        if not select.select([], [self.file], [], None if self.required else WAIT_S)[1]:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return 0

    def writable(self):
        return True

    def isatty(self):
        return self.file.isatty()

    def fileno(self):
        return self.file.fileno()


@contextlib.contextmanager
def guarded(required):
    """Within, sys.stdin, sys.stdout and sys.stderr are open, and printing to them raises no error.

    required: whether stdout raises its first error, since the output is the result. Yields the `Output` behind stdout.
    Descriptors 0 to 2 that are closed are opened onto the null device, and stay so: a file that is opened later must
    not become standard output. Streams that are not files, as in a notebook, are left as they are.
    """
    _open_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        if closed(sys.stdin):
            sys.stdin = opened.enter_context(open(os.devnull, encoding="utf-8"))
        sys.stdout, sys.stderr = _guarded(sys.stdout, opened), _guarded(sys.stderr, opened)
        output = _raw(sys.stdout)
        output = output if isinstance(output, Output) else Output(None)  # which nothing is written to
        outer, output.required = output.required, required  # a command may call another one
        try:
            yield output
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            output.required = outer
            sys.stdin, sys.stdout, sys.stderr = before


def reader_has_gone(error):
    """Whether an error of writing means that the other end of a pipe was closed."""
    return isinstance(error, ConnectionError) or os.name == "nt" and error.errno == errno.EINVAL


def closed(stream):
    """Whether a standard stream is missing, as if its descriptor was closed when Python started, or was closed."""
    return stream is None or getattr(stream, "closed", False)


def _open_descriptors():
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            else:
                os.set_inheritable(number, True)


def _raw(stream):
    """The file object below a text stream that has no buffer; None if there is none."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _guarded(stream, opened):
    """A text stream onto the same file that raises no error, or the stream itself if it is not a file."""
    if closed(stream):
        stream = opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
    raw = _raw(stream)
    if not (isinstance(stream, io.TextIOWrapper) and isinstance(raw, io.RawIOBase)) or isinstance(raw, Output):
        return stream
    output = Output(raw)
    try:
        stream.flush()
    except (OSError, ValueError):
        output.lost = True
    return io.TextIOWrapper(
        output,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )

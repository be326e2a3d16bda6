"""The exception for bad input, and what raises or reports it: optional packages, errors of a command in one line."""

import contextlib
import errno
import functools
import importlib
import re
import sys

from slm_np.streams import guarded, reader_has_gone

LONGEST = 600  # characters of a message
# What helps against the cause of a write that failed.
REMEDIES = {
    errno.ENOSPC: "free some space",
    getattr(errno, "EDQUOT", errno.ENOSPC): "free some space",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "make the disk writable",
    errno.ENOENT: "check whether its directory was removed",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
CONTROLS = re.compile("[\0-\x1f\x7f-\x9f]")


class UserError(Exception):
    """Bad input (file, setting, prompt, checkpoint). Its message is one sentence: what is wrong, and how to fix it."""


def command(main=None, *, prints_result=False):
    """Decorate `main(argv)` as a command: an error that is not a bug prints one line on stderr instead of a traceback.

    prints_result: whether the result is what it prints. Otherwise the result is in files, and output that cannot be
    written is dropped. Messages on stderr are dropped in any case (see streams.py).
    Exit status: 2 for bad input (`UserError`), a missing package, too little memory and errors of the operating system,
    printing a result included; 130 after Ctrl-C; 141, without a message, if the reader has closed the pipe.
    """
    if main is None:
        return functools.partial(command, prints_result=prints_result)

    @functools.wraps(main)
    def run(argv=None):
        with guarded(prints_result) as output:
            end = _call(main, argv, output)
            if end is not None:
                raise end

    return run


def _call(main, argv, output):
    """Call `main`, and print the line about an error. Returns the SystemExit to raise, or None."""
    end, message, status = None, "", 0
    try:
        main(argv)
    except SystemExit as error:
        end = error
    except (UserError, MemoryError, KeyboardInterrupt) as error:
        message, status = explained(error)
    except ModuleNotFoundError as error:  # of a required package, as in a clone without installation
        if not error.name or error.name.partition(".")[0] == "slm_np":
            raise
        message = f"the package {error.name} is not installed; install slm_np: pip install -e . in its checkout"
        status = 2
    except OSError as error:
        if error is not output.error:
            message, status = explained(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # an error of the last write is raised here, where it can still be reported
    if output.error and not status and (end is None or not end.code):
        end, status = None, 141 if reader_has_gone(output.error) else 2
        message = (
            f"cannot write standard output ({_reason(output.error)}); redirect it elsewhere" if status == 2 else ""
        )
    message = CONTROLS.sub(lambda control: repr(control[0])[1:-1], message)  # a file name may contain a line end
    if len(message) > LONGEST:  # a value in a damaged file may be longer than a screen
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    if message:
        print(f"slm_np: {message}", file=sys.stderr)
    return SystemExit(status) if status else end


def explained(error):
    """(message, exit status) of an error that is not a bug, or None."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, MemoryError):
        return f"out of memory ({error}); free some, or choose a smaller model or smaller batches", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    return (os_error_message(error), 2) if isinstance(error, OSError) else None


def imported(module, what, install):
    """The optional module of that name. UserError, which says how to install it, if it is missing or does not load.

    what: what needs the module.   install: the argument of pip install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise UserError(
                f'{what} needs the package {module}, which is not installed; run pip install "{install}"'
            ) from None
        reason = str(error)
    except ImportError as error:
        reason = str(error)
    raise UserError(
        f"{what} needs the package {module}, which does not load ({reason.strip().partition(chr(10))[0]}); "
        f"run pip install --force-reinstall {module}"
    )


def os_error_message(error):
    """One sentence about an OSError that no code closer to its cause has explained."""
    if error.filename:
        return f"cannot access {error.filename}: {_reason(error)}"
    return f"cannot read or write: {_reason(error)}"


def remedy(error, otherwise=""):
    """The end of a message about an OSError of a write: what helps against its cause, or `otherwise`."""
    helps = REMEDIES.get(error.errno, "" if otherwise else "choose another disk")
    return ", or ".join(filter(None, (helps, otherwise)))


def fault_in(error):
    """What a parser's error says about a file, without advice for programmers ("use sys.set_int_max_str_digits()")."""
    return str(error).partition("; use ")[0]


def _reason(error):
    return (error.strerror or str(error)).lower()


def near(word, known, prefix=""):
    """A hint at the closest of `known`, "did you mean X?", or at all of them if none is close. Each gets the prefix."""
    import difflib

    found = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    shown = [prefix + name for name in found or known]
    return f"did you mean {' or '.join(shown)}?" if found else f"known are {', '.join(shown)}"

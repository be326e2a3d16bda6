"""The exception for bad input, and what raises or reports it: optional packages, errors of a command in one line."""

import errno
import functools
import importlib
import os
import sys


class UserError(Exception):
    """Bad input (file, setting, prompt, checkpoint). Its message is one sentence: what is wrong, and how to fix it."""


def command(main):
    """Decorate `main(argv)` as a command: an error that is not a bug prints one line on stderr instead of a traceback.

    Exit status: 2 for bad input (`UserError`), a missing package, too little memory and errors of the operating system;
    130 after Ctrl-C; 141, without a message, if the reader of a pipe has closed it.
    """

    @functools.wraps(main)
    def run(argv=None):
        try:
            main(argv)
            sys.stdout.flush()  # an error of the last write is raised here, where it can still be reported
            return
        except UserError as error:
            message, status = str(error), 2
        except MemoryError as error:
            message = f"out of memory ({error}); choose a smaller --batch-size, --block-size, --n-layer or --n-embd"
            status = 2
        except ModuleNotFoundError as error:  # of a required package, as in a clone without installation
            if not error.name or error.name.partition(".")[0] == "slm_np":
                raise
            message = f"the package {error.name} is not installed; install slm_np: pip install -e . in its checkout"
            status = 2
        except KeyboardInterrupt:
            message, status = "interrupted", 130
        except BrokenPipeError:
            message, status = "", 141
        except OSError as error:
            message, status = os_error_message(error), 2
        if message:
            print("slm_np: " + message.replace("\n", "\\n"), file=sys.stderr)  # a file name may contain a line end
        discard_output()
        raise SystemExit(status)

    return run


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
    reason = (error.strerror or str(error)).lower()
    return f"cannot access {error.filename}: {reason}" if error.filename else f"cannot read or write: {reason}"


def remedy(error, otherwise):
    """What to do about an OSError of a write, for the end of a message: what its cause asks for, "or `otherwise`"."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"free some space, or {otherwise}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"check its permissions, or {otherwise}"
    return f"check the disk, or {otherwise}"


def discard_output():
    """If stdout cannot be flushed, redirect it to nowhere, so that the interpreter's last flush does not fail too."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def near(word, known, prefix=""):
    """A hint at the closest of `known`, "did you mean X?", or at all of them if none is close. Each gets the prefix."""
    import difflib

    found = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    shown = [prefix + name for name in found or known]
    return f"did you mean {' or '.join(shown)}?" if found else f"known are {', '.join(shown)}"

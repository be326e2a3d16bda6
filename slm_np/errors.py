"""The one exception a user may see: a sentence that names the bad value and the mend."""

import functools
import os
import sys


class UserError(Exception):
    """Bad input (file, setting, prompt, checkpoint). Its message is one sentence: what is wrong, and how to mend it."""


def exit_with_sentence(main):
    """Make `main(argv)` a command: what goes wrong outside of the program is one sentence on stderr, not a traceback.

    Exit status: 2 for bad input (`UserError`), too little memory and what the system refuses; 130 after Ctrl-C; 141, quietly, where
    whoever read the output has closed it.
    """

    @functools.wraps(main)
    def run(argv=None):
        try:
            main(argv)
            sys.stdout.flush()  # here, where a closed pipe or a full disk can still be told
            return
        except UserError as error:
            sentence, status = str(error), 2
        except MemoryError as error:
            sentence, status = (
                f"out of memory ({error}); choose a smaller --batch-size, --block-size, --n-layer or --n-embd",
                2,
            )
        except KeyboardInterrupt:
            sentence, status = "interrupted", 130
        except BrokenPipeError:
            sentence, status = "", 141
        except OSError as error:
            sentence, status = f"the system refuses: {error}; mend that and start again", 2
        if sentence:
            print("slm_np: " + sentence.replace("\n", "\\n"), file=sys.stderr)  # a file's name may hold one
        drop_output()
        raise SystemExit(status)

    return run


def drop_output():
    """Where stdout cannot take what is left for it, give the interpreter's last flush another place."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def near(word, known, prefix=""):
    """'did you mean X?' for the closest of `known`, or the whole list when none is close; `prefix` is put before each."""
    import difflib

    found = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    shown = [prefix + name for name in found or known]
    return f"did you mean {' or '.join(shown)}?" if found else f"known are {', '.join(shown)}"

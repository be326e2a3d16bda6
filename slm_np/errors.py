"""The one exception a user may see: a sentence that names the bad value and the mend."""
import functools
import os
import sys


class UserError(Exception):
    """Bad input (file, setting, prompt, checkpoint). Its message is one sentence: what is wrong, and how to mend it."""


def exit_with_sentence(main):
    """Make `main(argv)` a command: a `UserError` is its sentence on stderr and exit status 2; Ctrl-C and a closed pipe end it quietly."""
    @functools.wraps(main)
    def run(argv=None):
        try:
            return main(argv)
        except UserError as error:
            print(f"slm_np: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except MemoryError as error:
            print(f"slm_np: out of memory ({error}); choose a smaller --batch-size, --block-size, --n-layer or --n-embd", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("slm_np: interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's last flush has somewhere to go
            raise SystemExit(141) from None
    return run


def near(word, known):
    """'did you mean X?' for the closest of `known`, or the whole list when none is close."""
    import difflib
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(found)}?" if found else f"known are {', '.join(known)}"

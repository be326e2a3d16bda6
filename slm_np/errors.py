"""The one exception a user may see: a sentence that names the bad value and the mend."""
import sys


class UserError(Exception):
    """Bad input (file, setting, prompt, checkpoint). Its message is one sentence: what is wrong, and how to mend it."""


def exit_with_sentence(main):
    """Run a command's `main(argv)`; a `UserError` becomes its sentence on stderr and exit status 2, without a traceback."""
    def run(argv=None):
        try:
            return main(argv)
        except UserError as error:
            print(f"slm_np: {error}", file=sys.stderr)
            raise SystemExit(2) from None
    run.__doc__, run.__name__ = main.__doc__, main.__name__
    return run


def near(word, known):
    """'; did you mean X?' for the closest of `known`, or the whole list when none is close."""
    import difflib
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(found)}?" if found else f"known are {', '.join(known)}"

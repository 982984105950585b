"""The one exception for bad input."""


class InputError(ValueError):
    """Input that a user can mend.

    Its message is all that the user sees: it names the values that disagree, the rule they break
    and the way out. The command line prints it without a traceback and exits with status 2.
    Mistakes of the programmer are ``assert`` statements instead.
    """

"""The exceptions that fewstep raises on purpose.

Every message says what happened, what was got, what was expected and what to type instead. The command line
prints the message alone; a traceback appears only with ``--debug``.
"""


class FewstepError(Exception):
    """Base class of everything that fewstep raises on purpose."""


class ConfigError(FewstepError, ValueError):
    """A value that cannot work: a number out of range, an unknown name, two options that contradict."""


class IncompatibleError(FewstepError, TypeError):
    """Two things that do not fit together: a pipeline of an unknown layout, a table of another schedule."""


class NumericsError(FewstepError, ArithmeticError):
    """A number that is not finite, or a quantity that does not exist at a noise level; names tick and level."""


class MissingDependencyError(FewstepError, ImportError):
    """An optional package is missing; the message holds the line that installs it."""

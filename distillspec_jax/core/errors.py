"""The errors that users are meant to read.

Everything that can be wrong with arguments, configuration, files or data is
checked before work starts and raised as `UserError`. The command line prints it
as one line and exits with code 2; any other exception is a bug and keeps its
traceback.
"""


class UserError(ValueError):
  """Bad input; the message names the thing, value, limit and remedy."""


class Terminated(KeyboardInterrupt):
  """SIGTERM, the notice of preemption; a checkpoint was written: code 143."""


class Failed(RuntimeError):
  """The work was done, but its outcome is bad: exit code 1."""

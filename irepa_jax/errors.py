"""Errors of a user's input, each with the exit status of a command line.

They are raised at the border (configuration, files, weights, mesh) with one
clear line that names the value seen and what would be right.
"""

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: asked to stop, or a host is lost


class UsageError(ValueError):
  """A flag, configuration field, mesh or encoder name that cannot work."""

  exit_status = 2


class DataError(ValueError):
  """A data set, record, image or weight file that cannot be used."""

  exit_status = 3


class CheckpointError(ValueError):
  """A run directory or checkpoint that cannot be used."""

  exit_status = 4


class DivergedError(ValueError):
  """A run whose loss is no longer a number."""

  exit_status = 1

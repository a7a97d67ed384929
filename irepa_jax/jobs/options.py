"""Options of a job as a frozen dataclass, from which a command makes its flags."""

import dataclasses


def option(default, text, **limits):
  """A field with its default and its meaning.

  limits: lower_bound of a number, enum_values of a text.
  """
  return dataclasses.field(
      default=default, metadata={'help': text, 'limits': limits}
  )

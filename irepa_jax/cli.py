"""The frame of every command line: flags in, one clear line out on bad input.

A command is `main(args)` over absl flags; `run(main)` parses them and turns
what a user got wrong into one line on standard error and an exit status:
2 usage, 3 data or weights, 4 checkpoint, 75 preempted (start again). `--debug`
shows the traceback instead. Anything else is a defect and keeps its traceback.
"""

import dataclasses
import difflib
import re
import sys
import traceback

from absl import app
from absl import flags
from ml_collections import config_flags

from irepa_jax import errors
from irepa_jax.distributed import peers
from irepa_jax.distributed import signals
from irepa_jax.distributed import streams
from irepa_jax.names import experiments
from irepa_jax.names import file_names
from irepa_jax.names.experiments import base

flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')
# Flags that the functions below define belong to the command that calls them,
# which is where --help lists them.
flags.disclaim_key_flags()

DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}

BORDER = (
    errors.UsageError,
    errors.DataError,
    errors.CheckpointError,
    errors.DivergedError,
)
CONFIG_FLAG = re.compile(r'--?config(=|\.|$)')


def define_config(default=None):
  """Defines --config=FILE[:PRESET] with --config.KEY=VALUE overrides."""
  return config_flags.DEFINE_config_file(
      'config',
      default,
      'Experiment: a shipped one such as sit_xl:irepa, or a file; any field is'
      ' set by --config.field=value.',
      lock_config=True,
  )


def define_options(options, values=flags.FLAGS):
  """Defines a flag for each field of a dataclass of jobs.options."""
  for field in dataclasses.fields(options):
    limits = field.metadata['limits']
    define = DEFINE[field.type]
    if 'enum_values' in limits:
      define = flags.DEFINE_enum
    many = field.type is tuple
    define(
        field.name,
        list(field.default) if many else field.default,
        help=field.metadata['help'],
        flag_values=values,
        **limits,
    )


def options(cls, values=flags.FLAGS):
  """Returns the values of the flags of `define_options` as a dict."""
  found = {f.name: values[f.name].value for f in dataclasses.fields(cls)}
  return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def run(main):
  """Parses sys.argv, calls main(arguments) and exits with its status."""
  signals.end_at_once()
  streams.outlast()
  # A name that is not UTF-8 is shown escaped, wherever it is told.
  sys.stdout.reconfigure(errors='backslashreplace')
  app.run(lambda args: sys.exit(_guarded(main, args)), flags_parser=_parse)


def _guarded(main, args):
  try:
    return main(args)
  except BORDER as error:
    return _report(error, error.exit_status)
  except KeyboardInterrupt:
    return 130
  except RuntimeError as error:
    peers.settle()
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return _report(_out_of_memory(error), 1)
  except OSError as error:  # no space, no permission, a stale mount
    peers.settle()
    return _report(error, 1)
  except Exception:
    peers.settle()
    raise


def _parse(argv):
  app.define_help_flags()
  argv = [argv[0], *map(file_names.expand, argv[1:])]  # as a shell would
  try:
    args = flags.FLAGS(_with_config_file(argv))
    _expand_config()
    return args
  except errors.UsageError as error:
    problem = str(error)
  except SystemExit:  # --help has printed the flags
    sys.exit(0)
  except flags.Error as error:
    problem = _flag_problem(str(error))
  except (AttributeError, KeyError) as error:
    problem = _unknown_key(error, argv)
  except Exception as error:  # whatever the code of a config file raises
    if _config_name(argv) is None:
      raise
    problem = _bad_config(error, argv)
  sys.exit(_report(errors.UsageError(problem), 2, debug='--debug' in argv))


def _expand_config():
  """Replaces `~` in the texts of a configuration file as well."""
  config = flags.FLAGS['config'].value if 'config' in flags.FLAGS else None
  for name, value in config.items() if config else ():
    if isinstance(value, str):
      config[name] = file_names.expand(value)


def _report(error, status, debug=None):
  debug = flags.FLAGS.debug if debug is None else debug
  if debug:
    traceback.print_exc()
  line = ' '.join(str(error).split())
  print(f'ERROR: {line}', file=sys.stderr, flush=True)
  peers.end(status, line)
  return status


def _with_config_file(argv):
  """Returns argv with the file that --config names in place of its name."""
  name = _config_name(argv)
  if not name:
    return argv
  file, colon, preset = name.partition(':')
  found = f'{experiments.path(file)}{colon}{preset}'
  changed = {name: found, f'--config={name}': f'--config={found}'}
  changed[f'-config={name}'] = f'--config={found}'
  return [changed.get(arg, arg) for arg in argv]


def _flag_problem(text):
  text = text.replace('FATAL Flags parsing error:', '').strip()
  if 'Traceback' in text:  # of a config file; its last line says what is wrong
    text = text.rpartition('Error: ')[2]
  key = re.search(r'--?config\.(\w+)', text)
  return f'{text}{_default(key.group(1))}' if key else text


def _default(key):
  """Says what a field of the config is, and its default."""
  if key not in base.FIELDS:
    return ''
  field = base.FIELDS[key]
  return f'; its default is {field.default!r} ({field.meaning})'


def _unknown_key(error, argv):
  """Names the mistyped override and the nearest field of the config."""
  known = sorted(base.FIELDS) if _config_name(argv) else []
  given = re.findall(r'--?config\.([\w.]+)', ' '.join(argv))
  wrong = [name for name in given if name not in known]
  name = wrong[0] if wrong else str(error).strip('"\'')
  near = difflib.get_close_matches(name, known, n=1)
  hint = f' (did you mean {near[0]!r}?)' if near else f'; fields: {known}'
  return f'unknown config key {name!r}{hint}'


def _config_name(argv):
  for i, arg in enumerate(argv):
    if re.match(r'--?config=', arg):
      return arg.split('=', 1)[1]
    if re.fullmatch(r'--?config', arg) and i + 1 < len(argv):
      return argv[i + 1]
  return None


def _bad_config(error, argv):
  name = _config_name(argv)
  if name is None:
    return str(error)
  path = name.split(':', 1)[0]
  if 'get_config' in str(error):
    return f'config file {path!r} has no function get_config'
  kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
  return f'config {name!r}: {kind}{error}'


def _out_of_memory(error):
  line = next(s for s in str(error).splitlines() if 'RESOURCE_EXHAUSTED' in s)
  return (
      f'out of device memory: {line.strip()[:300]} Less memory: --config.remat='
      'full, --config.fsdp=true, --config.accumulate=2'
  )

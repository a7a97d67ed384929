"""The command `irepa`: every program of this package under one name.

  irepa train --config=sit_xl:irepa --workdir=runs/xl
  irepa sample --workdir=runs/xl --count=50000
  irepa launch local.sh -- --config=sit_xl --workdir=runs/xl

`irepa NAME ...` is `python -m irepa_jax.tools.NAME ...`, and `train` is
irepa_jax.main. `irepa launch` runs the scripts that start it on every host;
without a name it prints their folder.
"""

import ast
import difflib
import os
import pathlib
import runpy
import sys

import irepa_jax

FOLDER = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = (FOLDER / 'launch').resolve()
COMMANDS = {'train': 'irepa_jax.main'} | {
    path.stem: f'irepa_jax.tools.{path.stem}'
    for path in sorted((FOLDER / 'tools').glob('[a-z]*.py'))
}


def main():
  """Runs the command that the first argument names."""
  name, *rest = sys.argv[1:] or ['--help']
  if name == 'launch':
    return launch(*rest)
  if name in COMMANDS:
    sys.argv[1:] = rest
    runpy.run_module(COMMANDS[name], run_name='__main__', alter_sys=True)
    return 0
  if name == '--version':
    print(irepa_jax.__version__)
    return 0
  if name in ('--help', '-h', 'help'):
    print(overview())
    return 0
  near = difflib.get_close_matches(name, [*COMMANDS, 'launch'], n=1)
  hint = f'did you mean {near[0]!r}?' if near else 'see irepa --help'
  print(f'ERROR: unknown command {name!r}; {hint}', file=sys.stderr)
  return 2


def launch(script='', *arguments):
  """Becomes a script of launch/; without one, prints where they are."""
  if not script:
    print(LAUNCH)
    return 0
  scripts = {path.name: path for path in sorted(LAUNCH.glob('*.sh'))}
  path = scripts.get(script) or scripts.get(f'{script}.sh')
  if path is None:
    print(
        f'ERROR: no launch script {script!r}: one of {" ".join(scripts)}',
        file=sys.stderr,
    )
    return 2
  os.environ.setdefault('PYTHON', sys.executable)
  os.execvp('bash', ['bash', str(path), *arguments])


def overview():
  """Returns the commands with the first line of their help."""
  lines = [f'  {name:10} {_first_line(name)}' for name in COMMANDS]
  lines.append(f'  {"launch":10} Runs a script of {LAUNCH}.')
  return '\n'.join(['irepa COMMAND ...; irepa COMMAND --help', '', *lines])


def _first_line(name):
  """Reads it from the source: importing all of them takes seconds."""
  path = FOLDER.joinpath(*COMMANDS[name].split('.')[1:]).with_suffix('.py')
  return ast.get_docstring(ast.parse(path.read_text())).split('\n')[0]


if __name__ == '__main__':
  sys.exit(main())

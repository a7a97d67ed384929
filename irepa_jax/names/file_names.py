"""Names of files and folders as users give them, whatever letters they hold.

A path is a name, never a pattern, a shell word or a home directory by mistake:

  expand   `~` and `~user` after = : , @ become the home directory
  check    a path that still begins with `~` is refused, not made
  shown    a name as one line of text in any encoding
  plain    another path to a folder, for libraries that read [ ] * ? \\ in it
"""

import hashlib
import os
import pathlib
import re
import stat
import tempfile

from irepa_jax import errors

HOME = re.compile(r'(?:^|(?<=[=:,@]))~[\w.-]*(?=/|$)')
# glob's letters; the backslash, which TensorStore takes for a slash.
PATTERN = re.compile(r'[\[\]*?\\]')


def expand(text):
  """Replaces `~` at the start of a path, also in `--out=~/x` and `folder:~/x`.

  A user that does not exist leaves it as it is, for `check` to refuse.
  """
  return HOME.sub(lambda found: os.path.expanduser(found[0]), text)


def check(path):
  """Raises UsageError for a path that begins with `~`; returns it otherwise."""
  if HOME.match(str(path)):
    raise errors.UsageError(
        f'{path} begins with ~, which stands for no home directory here: write'
        ' the path out (a folder of that name is ./~)'
    )
  return path


def shown(name):
  """Returns a name as one line: control letters, tabs and what is not UTF-8 escaped."""
  escaped = ''.join(c if c.isprintable() else _escape(c) for c in str(name))
  return escaped.encode(errors='backslashreplace').decode()


def is_plain(path):
  """Whether every library takes a path as the name that it is."""
  try:
    str(path).encode()
  except UnicodeEncodeError:
    return False
  return not PATTERN.search(str(path))


def plain(folder):
  """Returns a path to a folder that every library takes as a name.

  Orbax merges the arrays of a step by glob(folder/...), and TensorStore knows
  neither the backslash nor names that are not UTF-8. Where the path holds such
  letters this is a link below the temporary folder, the same for every process
  of a host; otherwise the folder itself, as an address is (runs.directory has
  checked it). UsageError where no link can be made.
  """
  if '://' in str(folder):
    return folder
  target = os.path.abspath(folder)
  if is_plain(target):
    return pathlib.Path(target)
  name = hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
  link = pathlib.Path(tempfile.gettempdir(), f'irepa_jax-{os.getuid()}', name)
  try:
    _require_own(link.parent)
    _link(link, target)
  except OSError as error:
    raise errors.UsageError(
        f'{shown(target)} holds letters that orbax takes for a pattern, and no'
        f' link to it can be made ({error}): choose another name'
    ) from error
  if not is_plain(link):
    raise errors.UsageError(
        f'neither {shown(target)} nor the temporary folder {shown(link.parent)}'
        ' is without [ ] * ? \\: set TMPDIR, or choose another name'
    )
  return link


def _escape(letter):
  """Writes a letter as \\n, \\x1b or, if it stands for a raw byte, \\xe9."""
  code = ord(letter)
  if 0xDC80 <= code <= 0xDCFF:  # surrogateescape
    return f'\\x{code - 0xDC00:02x}'
  return letter.encode('unicode_escape').decode()


def _require_own(folder):
  """Makes a folder of this user alone; OSError if it is somebody else's."""
  folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
  if folder.lstat().st_uid != os.getuid():
    raise PermissionError(f'{folder} belongs to another user')


def _link(link, target):
  """Makes a link, or another one where it has another target."""
  if link.is_symlink() and os.readlink(link) == target:
    return
  new = link.with_name(f'{link.name}.{os.getpid()}')
  new.unlink(missing_ok=True)
  new.symlink_to(target, target_is_directory=True)
  os.replace(new, link)

"""What there is to know about encoders before choosing one, as rows."""

import math

from irepa_jax.encoders import unpack
from irepa_jax.encoders import zoo


def table(names=None, resolution=256):
  """Returns one dict of plain values per encoder, all of them by default.

  Tokens, width, millions of parameters, GFLOPs per image (None where they were
  not counted or the resolution is not allowed), and where weights come from.
  """
  return [_row(zoo.find(name), resolution) for name in names or zoo.names()]


def table_text(names=None):
  """Returns the rows as lines of aligned columns, with a header."""
  rows = table(names)
  columns = [k for k in rows[0] if any(r[k] not in (None, '') for r in rows)]
  lines = [columns] + [
      ['' if row[k] is None else str(row[k]) for k in columns] for row in rows
  ]
  wide = [max(len(line[i]) for line in lines) for i in range(len(columns))]
  return [
      '  '.join(f'{v:{w}}' for v, w in zip(line, wide, strict=True)).rstrip()
      for line in lines
  ]


def table_markdown(names=None):
  """Returns the rows as lines of a Markdown table, of docs/encoders.md."""
  large = {r['name']: r for r in table(names, resolution=512)}
  heads = 'name|tokens|width|GFLOP|at 512|M parameters|licence|source|input'
  lines = [heads.split('|'), ['---'] * (heads.count('|') + 1)]
  for row in table(names):
    at_512 = large[row['name']]
    licence = row['licence'] + (', gated' if row['gated'] else '')
    size = at_512['gflops'] if at_512['tokens'] else 'refused'
    values = [row[k] for k in ('name', 'tokens', 'width', 'gflops')]
    values += [size, row['megaparams'] or None, licence, row['source']]
    lines.append(['' if v is None else str(v) for v in [*values, row['note']]])
  return [f'| {" | ".join(line)} |' for line in lines]


def parameters(name):
  """Counts the parameters of an encoder, its table as in the published file."""
  spec = zoo.find(name)
  shapes = unpack.official_shapes(spec.module)
  count = sum(math.prod(shape) for shape in shapes.values())
  if unpack.TABLE in shapes and spec.table_grid:
    rows = spec.module.table_prefix + spec.table_grid**2
    count += math.prod((rows, spec.module.width)) - math.prod(
        shapes[unpack.TABLE]
    )
  return count


def _row(spec, resolution):
  allowed = not spec.resolutions or resolution in spec.resolutions
  module = spec.module.at(resolution) if allowed else None
  sizes = dict(zip((256, 512), spec.gflops, strict=False))
  return {
      'name': spec.name,
      'tokens': math.prod(module.grid) if allowed else None,
      'width': spec.module.width,
      'megaparams': spec.megaparams,
      'gflops': sizes.get(resolution),
      'resolutions': spec.resolutions or None,
      'licence': spec.licence,
      'gated': spec.gated,
      'source': _source(spec),
      'note': spec.note,
  }


def _source(spec):
  """Returns hub id and file, or an address."""
  hub_id = spec.source and '://' not in spec.source
  return f'{spec.source}:{spec.file}' if hub_id else spec.source

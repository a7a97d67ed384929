"""Which encoder should a model be aligned to? The analysis of the iREPA paper.

  # metrics, ranking, similarity maps and components of encoders on images
  python -m irepa_jax.tools.analyze --data=sklearn:photos --out=analysis \\
      --encoders=hog-vit-g16_d128,dinov2-vit-b,dinov2-vit-s@random

  # correlation of metrics with FID, here the points that the paper prints
  python -m irepa_jax.tools.analyze correlate --results=published --out=analysis

  # a run's own tokens over its checkpoints, against its encoder
  python -m irepa_jax.tools.analyze monitor --runs=runs/repa,runs/irepa

  # CKNNA and CKA of every two sets of tokens, on the same images
  python -m irepa_jax.tools.analyze similarity --data=data/imagenet256 \\
      --limit=10000 --encoders=dinov2-vit-b,clip-vit-L --runs=runs/repa

--data is a folder of images, a prepared data set, sklearn:photos, or a source
of irepa_jax.tools.prepare such as digits. docs/analysis.md explains the output.
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.jobs import analyze
from irepa_jax.jobs import analyze_options


def main(args, values=flags.FLAGS):
  """Runs one of the commands; returns the exit status."""
  command = args[1] if len(args) > 1 else 'measure'
  if command not in analyze.COMMANDS or args[2:]:
    raise errors.UsageError(
        f'unexpected argument {args[-1]!r}: one of {", ".join(analyze.COMMANDS)}'
    )
  chosen = analyze_options.Options(
      **cli.options(analyze_options.Options, values)
  )
  analyze.COMMANDS[command](chosen)
  return 0


if __name__ == '__main__':
  cli.define_options(analyze_options.Options)
  cli.run(main)

"""Finds the best way to sample a run: average, guidance, interval, steps.

  python -m irepa_jax.tools.sweep --workdir=runs/xl \\
      --reference=VIRTUAL_imagenet256_labeled.npz --ema=0,1 \\
      --guidance=1,1.5,2,2.5 --interval=0:1,0:0.75 --sample_steps=250

evaluates every combination with few images (--coarse_count) and the best ones
(--finalists) with --count. Scores of other counts do not compare: FID falls with
the number of images. Every evaluation is a JSON in RUN/evaluations; those that
are there are not made again, so a killed sweep continues. Writes OUT.csv, OUT.md
and OUT.png, and prints the table.
"""

from absl import flags

from irepa_jax import cli
from irepa_jax import errors
from irepa_jax.distributed import start
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import sweep
from irepa_jax.tools import evaluate
from irepa_jax.tools import sample

SWEPT = ('guidance', 'guidance_low', 'guidance_high', 'sample_steps')
FIXED = {k: v for k, v in sample.SETTINGS.items() if k not in SWEPT}


def define_flags():
  """Defines the flags of the command line."""
  evaluate.define_judging()
  flags.DEFINE_string('workdir', '', 'Run directory.')
  flags.DEFINE_string('reference', '', 'npz, folder or prepared data.')
  flags.DEFINE_list('ema', ['0'], 'Moving averages, from 0.')
  flags.DEFINE_list('guidance', ['1', '1.5', '2'], 'Scales; 1 is none.')
  flags.DEFINE_list('interval', ['0:1'], 'LOW:HIGH of t that is guided.')
  flags.DEFINE_list('sample_steps', [], 'Steps; default those of the run.')
  flags.DEFINE_integer('coarse_count', 5_000, 'Images for all.')
  flags.DEFINE_integer('count', 50_000, 'Images for the best.')
  flags.DEFINE_integer('finalists', 1, 'How many are the best.')
  flags.DEFINE_enum('metric', 'fid', sorted(sweep.RISES), 'That chooses them.')
  flags.DEFINE_integer('step', None, 'Checkpoint; default the newest.')
  flags.DEFINE_string('out', '', 'OUT.csv, OUT.md, OUT.png.')
  for name, (define, text) in FIXED.items():
    define(name, None, text + ' Default: that of the run.')


def numbers(name, texts, kind):
  """Parses the items of a list flag; UsageError names what is no number."""
  try:
    return [kind(text) for text in texts]
  except ValueError:
    raise errors.UsageError(
        f'--{name}={",".join(texts)}: {kind.__name__} numbers, comma separated'
    ) from None


def interval(text):
  """Parses LOW:HIGH."""
  parts = text.split(':')
  try:
    low, high = map(float, parts)
  except ValueError:
    raise errors.UsageError(
        f'--interval={text}: LOW:HIGH of t, as 0:0.75'
    ) from None
  return low, high


def main(args):
  """Runs the command; returns its exit status."""
  v = flags.FLAGS
  if args[1:] or not v.workdir or not v.reference:
    raise errors.UsageError(
        '--workdir=RUN and --reference=FILE are required; see --help'
    )
  if min(v.coarse_count, v.count) < 2 or v.finalists < 0:
    raise errors.UsageError(
        f'coarse_count {v.coarse_count} and count {v.count} are 2 or more,'
        f' finalists {v.finalists} 0 or more'
    )
  start.join()
  fixed = {k: v[k].value for k in FIXED if v[k].value is not None}
  steps = numbers('sample_steps', v.sample_steps, int)
  return sweep.sweep(
      v.workdir,
      sweep.choices(
          numbers('ema', v.ema, int),
          numbers('guidance', v.guidance, float),
          [interval(text) for text in v.interval],
          steps or [saved_run.open_(v.workdir, **fixed).config.sample_steps],
      ),
      v.reference,
      out=v.out,
      metric=v.metric,
      settings=fixed,
      judging={name: v[name].value for name in evaluate.JUDGING},
      coarse_count=v.coarse_count,
      count=v.count,
      finalists=v.finalists,
      step=v.step,
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main)

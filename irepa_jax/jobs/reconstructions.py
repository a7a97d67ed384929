"""What the autoencoder of a run makes of real images, and of its latents.

`of_run` scores a whole set of images against itself after a round trip: PSNR,
LPIPS and FID (rFID). `Reconstructions` shows a few while a run trains. Where the autoencoder learns with the model, its own losses keep it faithful to
the images (PSNR) while alignment gives its latents structure in space (LDS,
CDS and RMSC of analysis.spatial, of the mean of the posterior, normalised as
the model sees it).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax.analysis import spatial
from irepa_jax.data import latents
from irepa_jax.distributed import processes
from irepa_jax.evals import generate
from irepa_jax.evals import image_sets
from irepa_jax.evals import judge as judges
from irepa_jax.evals import spaces
from irepa_jax.evals import statistics
from irepa_jax.jobs import saved_run
from irepa_jax.jobs import setup
from irepa_jax.models import lpips

COUNT = 64  # images, spread evenly over the data set
SHOWN = 24
METRICS = {'lds': spatial.lds, 'cds': spatial.cds, 'rmsc': spatial.rmsc}


OWN = 'reconstruction/'  # features that are figures of single images
# A distance to the images themselves has another name than one of samples.
NAMES = {'fid': 'rfid', 'sfid': 'rsfid'}


def of_run(judge, run, *, step=None, ema=0, lpips_weights='', out=''):
  """Scores the images of the reference after a round trip; returns a record.

  Every process gets the figures, the first one writes OUT, or in the run
  evaluations/STEP-reconstructions.json.

  Args:
    judge: of jobs.evaluate.open_judge, with a reference that has images.
    run: of saved_run.open_.
    step, ema: of the checkpoint; None is the newest.
    lpips_weights: VGG-16 and heads, comma separated; '' is the published ones.
      A run whose losses leave LPIPS out is not measured by it.
  """
  images = image_sets.open_(judge.reference.path)
  _, meta = saved_run.load(run, judge.mesh, ema=ema, step=step)
  vae = saved_run.load_decoder(run, judge.mesh, meta)
  trip = jax.jit(functools.partial(_trip, run.built.autoencoder, run.config))
  made = tuple(
      space._replace(
          extract=lambda x, extract=space.extract: extract(trip(vae, x))
      )
      for space in judge.spaces
  )
  figures = _figures(run.config, judge.mesh, lpips_weights)
  own = spaces.Space(
      OWN.rstrip('/'), '', None, lambda x: figures(x, trip(vae, x))
  )
  kept, found = [], {}
  judge.open_reference()
  blocks = statistics.extract(
      (*made, own), images, judge.mesh, batch_size=judge.batch_size
  )
  summary = statistics.summarise(_kept(blocks, kept), images.count)
  told = {'run': run.workdir, 'step': meta['step'], 'images': images.origin}
  told |= {'count': images.count, 'quantise': run.config.quantise}
  path = out or f'{run.workdir}/evaluations/{meta["step"]:07d}-reconstructions.json'

  def write():
    record = judge.record(summary, told)
    found.update({NAMES.get(k, k): v for k, v in record.items()})
    for name in kept[0]:
      rows = np.concatenate([block[name] for block in kept])
      found[name.removeprefix(OWN)] = float(np.mean(rows))
    judges.write(path, found)
    print(judges.table(found), f'-> {path}', sep='\n')

  processes.on_first(write)
  return found


def _kept(blocks, kept):
  """Yields blocks of features; figures of single images go to `kept`."""
  for block in blocks:
    kept.append({k: v for k, v in block.items() if k.startswith(OWN)})
    yield {k: v for k, v in block.items() if not k.startswith(OWN)}


def _figures(config, mesh, weights):
  """Returns figures(images, made) -> {name: [b 1]} of uint8 images."""
  module, params = lpips.LPIPS(), None
  if config.perceptual_weight:
    network, heads = (weights or config.lpips_weights or ',').split(',')
    params = spaces.place(lpips.load(module, network, heads), mesh)

  @jax.jit
  def figures(params, images, made):
    images, made = (x.astype(jnp.float32) / 127.5 - 1 for x in (images, made))
    found = {'psnr': psnr(images, made)}
    if params is not None:
      found['lpips'] = module.apply({'params': params}, images, made)
    return {name: values[:, None] for name, values in found.items()}

  return functools.partial(figures, params)


def _trip(codec, config, vae, images):
  """Returns images uint8 after the autoencoder, at the mean of the posterior."""
  mean, _ = jnp.split(codec.encode(vae, images), 2, axis=-1)
  return generate.QUANTISE[config.quantise](codec.decode(vae, mean))


class Reconstructions:
  """Shows and measures some images of a data set after a round trip."""

  def __init__(self, built, data):
    """Reads the images."""
    places = np.linspace(0, len(data) - 1, min(COUNT, len(data)), dtype=int)
    examples = [data.example(int(i), features=False) for i in places]
    self._images = np.stack([example['image'] for example in examples])
    self._measure = jax.jit(lambda *given: measure(built.autoencoder, *given))

  def __call__(self, vae, state):
    """Returns (pairs uint8 [n 2 h w 3], figures); the first process alone.

    vae: the weights, whole on every device.
    """
    if not processes.is_first():
      return np.zeros((0,)), {}
    bn = setup.local(state.model_state['bn'])
    made, figures = self._measure(setup.local(vae), bn, self._images)
    pairs = np.stack([self._images, np.asarray(made)], axis=1)
    return pairs[:SHOWN], {name: float(v) for name, v in figures.items()}


def measure(codec, vae, bn, images):
  """Returns (reconstructions uint8, figures) of images uint8 [n h w 3].

  bn: running statistics of the latents.
  """
  mean, _ = jnp.split(codec.encode(vae, images), 2, axis=-1)
  made = codec.decode(vae, mean)
  x = latents.normalise(mean, bn['mean'], jax.lax.rsqrt(bn['var']))
  n, h, w, c = x.shape
  tokens = x.reshape(n, h * w, c)
  figures = {
      f'latents/{name}': jnp.mean(metric(tokens, h, w))
      for name, metric in METRICS.items()
  }
  real = images.astype(jnp.float32) / 127.5 - 1
  figures['reconstruction/psnr'] = jnp.mean(psnr(real, made))
  return generate.nearest(made), figures


def psnr(real, made):
  """Returns the peak signal-to-noise ratio of images in [-1, 1], dB [n].

  At most 100, of images that are equal.
  """
  error = jnp.mean(jnp.square((real - made) / 2), axis=(1, 2, 3))
  return -10 * jnp.log10(jnp.maximum(error, 1e-10))

"""What the autoencoder of a run makes of real images, and of its latents.

Where the autoencoder learns with the model, its own losses keep it faithful to
the images (PSNR) while alignment gives its latents structure in space (LDS,
CDS and RMSC of analysis.spatial, of the mean of the posterior, normalised as
the model sees it).
"""

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax.analysis import spatial
from irepa_jax.data import latents
from irepa_jax.distributed import processes
from irepa_jax.evals import generate
from irepa_jax.jobs import setup

COUNT = 64  # images, spread evenly over the data set
SHOWN = 24
METRICS = {'lds': spatial.lds, 'cds': spatial.cds, 'rmsc': spatial.rmsc}


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
  """Returns the peak signal-to-noise ratio of images in [-1, 1], dB [n]."""
  error = jnp.mean(jnp.square((real - made) / 2), axis=(1, 2, 3))
  return -10 * jnp.log10(error)

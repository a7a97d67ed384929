"""Sources of tokens: encoders, files of saved tokens, blocks of a model.

Each is made in two steps, so that what is wrong with any of many is known
before the first is run, and the weights of only one are in memory at a time:
a function here checks its arguments and returns (name, load); load() returns
the measure.Representation.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax.analysis import measure
from irepa_jax.analysis import spatial
from irepa_jax.diffusion import paths
from irepa_jax.distributed import sharding
from irepa_jax.names import file_names
from irepa_jax.weights import files

RANDOM = 'random'
TORCH = ('.pt', '.pth')


def encoder(spec, resolution, mesh, *, dtype=jnp.float32):
  """Returns (name, load) of an encoder NAME[@WEIGHTS].

  spec: WEIGHTS is a path, a hub id or `random`; without it, the published
    source. The weights are split over the devices of the mesh, and so are the
    images.
  """
  name, _, source = spec.partition('@')
  network = encoders.create(name, resolution=resolution, dtype=dtype)
  if network.grid == (1, 1):
    raise errors.UsageError(
        f'{name} gives a single token for images of {resolution} pixels; a'
        ' larger --image_size gives more'
    )
  encode = jax.jit(network.encode)
  shown = file_names.shown(spec)

  def load():
    if source == RANDOM:
      params = network.init(jax.random.key(0))
    else:
      params = network.load(source or None)
    params = jax.device_put(params, sharding.tree_shardings(params, mesh))
    rows = sharding.batch_sharding(mesh)
    run = lambda batch: encode(params, jax.device_put(batch.image, rows))
    return measure.Representation(shown, network.grid, run)

  return shown, load


def saved_tokens(path, grid=None):
  """Returns (name, load, count) of a file of tokens [N n d].

  A .npy file or a tensor of torch.save (.pt); neither is read whole. Row i is
  image i of the analysis. grid: (h, w), square when not given.
  """
  tokens = _open_tokens(path)
  if tokens.ndim != 3 or not _is_float(tokens):
    raise errors.DataError(
        f'{path} holds {tokens.dtype} {tuple(tokens.shape)}; tokens are'
        ' floating-point [images tokens channels]'
    )
  grid = grid or spatial.square_grid(tokens.shape[1])
  spatial.check_grid(tokens.shape[1], *grid)
  name = file_names.shown(pathlib.Path(path).stem)
  read = lambda batch: jnp.asarray(np.float32(tokens[batch.index]))
  load = lambda: measure.Representation(name, grid, read)
  return name, load, len(tokens)


def shuffled(candidate, seed=0):
  """Returns (name, load) with the tokens of every image in one random order.

  A control: RMSC stays, LDS, CDS and SRSS fall to about zero.
  """
  name, load = candidate
  name = f'{name} shuffled'

  def load_shuffled():
    found = load()
    count = found.grid[0] * found.grid[1]
    order = np.random.default_rng(seed).permutation(count)
    encode = lambda batch: found.encode(batch)[:, order]
    return measure.Representation(name, found.grid, encode)

  return name, load_shuffled


def hidden(
    name,
    model,
    params,
    latents,
    *,
    t,
    path=paths.linear,
    seed=0,
    noise_scale=1.0,
):
  """Returns the Representation of a diffusion model's tokens at time t.

  The tokens are those after block `model.align_depth`. Image i always has the
  same noise, and the null label where the data has no labels.

  latents: inputs.Batch -> x [b h w c], clean and normalised.
  t: 0 is data, 1 is noise, of standard deviation noise_scale.
  """
  side = model.size // model.patch
  key = jax.random.key(seed)

  @jax.jit
  def tokens(params, x, index, label):
    draw = lambda i: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:])
    time = jnp.full(len(x), t, jnp.float32)
    noise = noise_scale * jax.vmap(draw)(index)
    noisy = paths.interpolate(x, noise, time, path)
    label = jnp.where(label < 0, model.num_classes, label)
    return model.apply({'params': params}, noisy, time, label)[1]

  run = lambda batch: tokens(params, latents(batch), batch.index, batch.label)
  return measure.Representation(name, (side, side), run)


def _open_tokens(path):
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.DataError(f'tokens {path} not found')
  if path.suffix == '.npy':
    try:
      return np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError) as error:
      raise errors.DataError(
          f'tokens {path} cannot be read: {error}'
      ) from error
  if path.suffix not in TORCH:
    raise errors.UsageError(
        f'tokens {path}: a .npy file, or a tensor saved by torch as .pt'
    )
  tokens = files.read(path)
  if not isinstance(tokens, np.ndarray):
    raise errors.DataError(f'{path} holds {type(tokens).__name__}, no tensor')
  return tokens


def _is_float(tokens):
  return jnp.issubdtype(tokens.dtype, jnp.floating)

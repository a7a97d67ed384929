"""SAM, SAM 2 and VGG against their official code."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from irepa_jax import encoders
from irepa_jax import errors
from irepa_jax import resize
from irepa_jax.encoders import hiera
from irepa_jax.encoders import sam
from irepa_jax.encoders import unpack
from irepa_jax.encoders import zoo
from irepa_jax.models import vgg

TINY_SAM = sam.SAM(
    inner=32,
    depth=3,
    heads=2,
    global_blocks=(1,),
    width=20,
    window=5,
    mlp_ratio=2.0,
    side=512,
)
TINY_HIERA = hiera.Hiera(
    inner=16, depths=(1, 2, 3, 1), global_blocks=(4,), grid=(8, 8)
)
CASES = {
    'sam-vit-b': ('hf_sam', TINY_SAM, 8),
    'sam2-vit-s': ('hf_sam2', TINY_HIERA, 4),
}


def loaded(name):
  file, module, enlarge = CASES[name]
  oracle = golden_files.load(file)
  state_dict = golden_files.subset(oracle, 'sd')
  params = unpack.parameters(zoo.find(name), module, state_dict)
  x = oracle['x'].transpose(0, 2, 3, 1)
  x = x.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
  return module, params, x, oracle['patchtokens'], state_dict


@pytest.mark.parametrize('name', CASES)
def test_tokens_are_those_of_transformers(name):
  module, params, x, wanted, _ = loaded(name)
  tokens = jax.jit(module.apply)({'params': params}, x)
  np.testing.assert_allclose(tokens, wanted, atol=2e-5)
  half = module.clone(dtype=jnp.bfloat16)
  rounded = jax.jit(half.apply)({'params': params}, x)
  norm = lambda z: jnp.linalg.norm(z, axis=-1)
  cosine = (tokens * rounded).sum(-1) / norm(tokens) / norm(rounded)
  assert cosine.min() > 0.999


def test_long_attention_in_chunks_changes_nothing(monkeypatch):
  module, params, x, wanted, _ = loaded('sam2-vit-s')
  monkeypatch.setattr(hiera, 'CHUNK', 64)
  tokens = jax.jit(module.apply)({'params': params}, x)
  np.testing.assert_allclose(tokens, wanted, atol=2e-5)


@pytest.mark.parametrize('name', CASES)
def test_other_names_of_the_same_weights(name):
  module, params, _, _, state_dict = loaded(name)
  renames = {
      'sam-vit-b': (
          ('vision_encoder.', 'image_encoder.'),
          ('.layers.', '.blocks.'),
          ('patch_embed.projection', 'patch_embed.proj'),
          ('layer_norm1', 'norm1'),
          ('layer_norm2', 'norm2'),
          ('neck.conv1', 'neck.0'),
          ('neck.norm1', 'neck.1'),
          ('neck.conv2', 'neck.2'),
          ('neck.norm2', 'neck.3'),
      ),
      'sam2-vit-s': (
          ('backbone.', 'image_encoder.trunk.'),
          ('patch_embed.projection', 'patch_embed.proj'),
          ('layer_norm', 'norm'),
          ('mlp.proj_in', 'mlp.layers.0'),
          ('mlp.proj_out', 'mlp.layers.1'),
      ),
  }[name]
  official = {}
  for key, value in state_dict.items():
    for old, new in renames:
      key = key.replace(old, new)
    official[key] = value
  file = {'model': official} if 'sam2' in name else official
  again = unpack.parameters(zoo.find(name), module, file)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  first = next(k for k in official if k.endswith('blocks.1.norm1.weight'))
  official.pop(first)
  with pytest.raises(errors.DataError, match=first):
    unpack.parameters(zoo.find(name), module, file)


@pytest.fixture(scope='module')
def vgg_weights():
  meta = golden_files.load('vgg')['meta']
  random = np.random.RandomState(13001)
  state_dict = {}
  for layer, (width, inputs) in zip(
      (0, 2, 5, 7, 10, 12, 14, 17, 19, 21), widths(), strict=True
  ):
    shape = (width, inputs, 3, 3)
    weight = random.standard_normal(shape) * np.sqrt(2 / (inputs * 9))
    bias = random.standard_normal(width) * 0.05
    state_dict[f'features.{layer}.weight'] = weight.astype(np.float32)
    state_dict[f'features.{layer}.bias'] = bias.astype(np.float32)
  for key, (total, first, last) in meta['checksums_sum_first_last'].items():
    if key in state_dict:
      array = state_dict[key].astype(np.float64)
      np.testing.assert_allclose(
          (array.sum(), array.flat[0], array.flat[-1]),
          (total, first, last),
          rtol=1e-5,
      )
  return state_dict


def widths():
  outputs = [width for width in vgg.LAYERS if width]
  return list(zip(outputs, [3, *outputs], strict=False))


def test_vgg_tokens_are_those_of_torchvision(golden, vgg_weights):
  photo = golden('photos_uint8')['photos'][1:2].transpose(0, 2, 3, 1)
  encoder = encoders.create('vgg-vit-16', resolution=256)
  unused = {
      'features.24.weight': np.zeros(1),
      'classifier.0.weight': np.full(1, np.nan),
  }
  params = encoder.from_torch(vgg_weights | unused)
  tokens = jax.jit(encoder.encode)(params, photo)
  wanted = golden('vgg')['tokens']
  tolerance = 1e-5 * np.abs(wanted).max()
  np.testing.assert_allclose(tokens, wanted, atol=tolerance)


@pytest.mark.parametrize('resolution', [256, 512])
def test_vgg_tokens_are_those_of_torch(vgg_weights, resolution):
  torch = pytest.importorskip('torch')
  photo = oracles.large_images()[:1, :resolution, :resolution]
  encoder = encoders.create('vgg-vit-16', resolution=resolution)
  tokens = jax.jit(encoder.encode)(encoder.from_torch(vgg_weights), photo)
  x = torch.tensor(photo).permute(0, 3, 1, 2) / 255
  column = lambda v: torch.tensor(v)[:, None, None]
  x = (x - column((0.485, 0.456, 0.406))) / column((0.229, 0.224, 0.225))
  index = 0  # torchvision's features[:24], written out
  for width in vgg.LAYERS:
    if width:
      weight, bias = (
          torch.tensor(vgg_weights[f'features.{index}.{kind}'])
          for kind in ('weight', 'bias')
      )
      x = torch.conv2d(x, weight, bias, padding=1).relu()
      index += 2
    else:
      x = torch.max_pool2d(x, 2)
      index += 1
  wanted = x.flatten(2).swapaxes(1, 2).numpy()
  tolerance = 1e-5 * np.abs(wanted).max()
  np.testing.assert_allclose(tokens, wanted, atol=tolerance)


def test_windows_are_put_back():
  x = jax.random.normal(jax.random.key(0), (2, 10, 13, 3))
  parts = sam.windows(x, 4)
  assert parts.shape == (2 * 3 * 4, 4, 4, 3)
  np.testing.assert_array_equal(sam.unwindows(parts, x.shape), x)


def test_sam_samples_the_two_middle_tokens_of_four():
  x = jax.random.normal(jax.random.key(0), (1, 64, 64, 1))
  middle = x.reshape(1, 16, 4, 16, 4, 1)[:, :, 1:3, :, 1:3].mean((2, 4))
  found = resize.resize(x, (16, 16), 'bilinear')
  np.testing.assert_allclose(found, middle, atol=1e-6)

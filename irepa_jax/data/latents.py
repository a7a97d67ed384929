"""From stored moments to what the model is trained on, and back.

A record holds the posterior of the autoencoder as mean | standard deviation
along the channels (not mean | log variance). Every step draws a latent z from
it and normalises each channel,

  x = (z - bias) * scale        z = x / scale + bias

(REPA's own code has z * scale + bias instead.) All of it is float32.
"""

import jax
import jax.numpy as jnp


def of_moments(batch, frozen, key, *, bias, scale) -> jax.Array:
  """Returns the latents of a batch of stored moments, drawn with the key."""
  del frozen
  moments = batch['moments'].astype(jnp.float32)
  shape = (*moments.shape[:-1], moments.shape[-1] // 2)
  z = sample(moments, jax.random.normal(key, shape))
  return normalise(z, bias, scale)


def of_pixels(batch, frozen, key, *, bias, scale) -> jax.Array:
  """Returns the images of a batch, uint8, as floats in [-1, 1]."""
  del frozen, key
  x = batch['image'].astype(jnp.float32) / 127.5 - 1
  return normalise(x, bias, scale)


def sample(moments, noise) -> jax.Array:
  """Draws z [b h w c] = mean + std * noise from moments [b h w 2c]."""
  mean, std = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
  return mean + std * noise


def normalise(z, bias, scale) -> jax.Array:
  """Brings latents [b h w c] to about unit scale; bias and scale are [c]."""
  return (z - _float32(bias)) * _float32(scale)


def denormalise(x, bias, scale) -> jax.Array:
  """Inverts normalise, for the decoder."""
  return x / _float32(scale) + _float32(bias)


def _float32(values):
  return jnp.asarray(values, jnp.float32)

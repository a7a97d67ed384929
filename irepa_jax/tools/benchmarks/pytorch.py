"""The same training step and sampler in PyTorch, as yardsticks.

Written for this benchmark from the method alone: SiT with adaLN-Zero, a 3x3
convolutional projector on spatially normalised targets, clipping, AdamW and
one moving average, under torch.compile. It is as fast as plain PyTorch gets:
fused attention, the fused optimiser and list-wise averages.
"""

import math
import multiprocessing
import time

import torch
from torch import nn
import torch.nn.functional as F

LR, CLIP, DECAY, GAMMA = 1e-4, 1.0, 0.9999, 0.6


class Process:
  """A step or sampler in a process of its own, which ends with the context.

  In one process the threads of the two runtimes and their memory would get
  into each other's way.
  """

  def __init__(self, *args, make=None, **settings):
    """Takes the arguments of `make`: make_step or make_sampler."""
    context = multiprocessing.get_context('spawn')
    self._pipe, other_end = context.Pipe()
    self._process = context.Process(
        target=_serve,
        args=(other_end, make or make_step, args, settings),
        daemon=True,
    )
    self._process.start()
    other_end.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.terminate()
    self._process.join()

  def once(self):
    """Returns the seconds of one call."""
    self._pipe.send(True)
    return self._pipe.recv()


def _serve(pipe, make, args, settings):
  step = make(*args, **settings)
  while pipe.recv():
    start = time.perf_counter()
    step()
    pipe.send(time.perf_counter() - start)


class Block(nn.Module):
  """Attention and MLP, each modulated by the condition."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)
    self.fc1 = nn.Linear(width, 4 * width)
    self.fc2 = nn.Linear(4 * width, width)
    self.modulation = nn.Linear(width, 6 * width)

  def forward(self, x, c):
    b, n, d = x.shape
    parts = self.modulation(F.silu(c))[:, None].chunk(6, -1)
    qkv = self.qkv(modulated(x, parts[0], parts[1]))
    q, k, v = qkv.view(b, n, 3, self.heads, d // self.heads).permute(
        2, 0, 3, 1, 4
    )
    mixed = F.scaled_dot_product_attention(q, k, v)
    x = x + parts[2] * self.proj(mixed.transpose(1, 2).reshape(b, n, d))
    hidden = self.fc1(modulated(x, parts[3], parts[4]))
    return x + parts[5] * self.fc2(F.gelu(hidden, approximate='tanh'))


class SiT(nn.Module):
  """Velocity and projected tokens of a latent, a time and a label."""

  def __init__(
      self,
      patch,
      width,
      depth,
      heads,
      size,
      channels,
      num_classes,
      align_depth,
      target,
  ):
    super().__init__()
    self.patch, self.side, self.align_depth = patch, size // patch, align_depth
    self.embed = nn.Conv2d(channels, width, patch, patch)
    self.position = nn.Parameter(torch.zeros(1, self.side**2, width))
    self.time = nn.Sequential(
        nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
    )
    self.label = nn.Embedding(num_classes + 1, width)
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    self.modulation = nn.Linear(width, 2 * width)
    self.linear = nn.Linear(width, patch**2 * channels)
    self.project = nn.Conv2d(width, target, 3, padding=1)

  def forward(self, x, t, y):
    b = len(x)
    c = self.time(frequencies(t).to(self.label.weight.dtype)) + self.label(y)
    x = self.embed(x).flatten(2).transpose(1, 2) + self.position
    for i, block in enumerate(self.blocks):
      x = block(x, c)
      if i + 1 == self.align_depth:
        grid = x.transpose(1, 2).reshape(b, -1, self.side, self.side)
        tokens = self.project(grid).flatten(2).transpose(1, 2)
    shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, -1)
    x = self.linear(modulated(x, shift, scale))
    x = x.view(b, self.side, self.side, self.patch, self.patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3), tokens


def modulated(x, shift, scale):
  """LayerNorm without weights, then scale and shift."""
  return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def frequencies(t):
  """Sinusoids of t with 256 channels."""
  rates = torch.exp(-math.log(1e4) / 128 * torch.arange(128, device=t.device))
  angles = t[:, None] * rates
  return torch.cat([angles.cos(), angles.sin()], -1)


def make_step(settings, batch, *, dtype, device='cpu', threads=None):
  """Returns step() -> loss over random latents and targets.

  settings: fields of SiT; batch: rows; dtype: 'float32' or 'bfloat16' (under
  autocast, parameters in float32).
  """
  if threads:
    torch.set_num_threads(threads)
  torch.manual_seed(0)
  model = SiT(**settings).to(device)
  average = [p.detach().clone() for p in model.parameters()]
  optimizer = torch.optim.AdamW(
      model.parameters(), lr=LR, weight_decay=0.0, fused=True
  )
  x = torch.randn(
      batch, model.embed.in_channels, *[settings['size']] * 2, device=device
  )
  y = torch.randint(settings['num_classes'], (batch,), device=device)
  tokens = torch.randn(batch, model.side**2, settings['target'], device=device)

  @torch.compile
  def loss_of(x, noise, t, y, tokens):
    s = t[:, None, None, None]
    with torch.autocast(x.device.type, torch.bfloat16, dtype == 'bfloat16'):
      v, projected = model((1 - s) * x + s * noise, t, y)
    target = tokens - GAMMA * tokens.mean(1, keepdim=True)
    target = target / (tokens.std(1, keepdim=True) + 1e-6)
    align = -F.cosine_similarity(projected.float(), target, dim=-1).mean()
    return ((v.float() - (noise - x)) ** 2).mean() + align

  def step():
    optimizer.zero_grad(set_to_none=True)
    t = torch.rand(batch, device=device)
    drop = torch.rand(batch, device=device) < 0.1
    labels = torch.where(drop, settings['num_classes'], y)
    loss = loss_of(x, torch.randn_like(x), t, labels, tokens)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, list(model.parameters()), 1 - DECAY)
    return float(loss.detach())

  return step


def make_sampler(settings, batch, *, dtype, steps, scale, interval):
  """Returns sample() -> latents, by Euler's method with guidance.

  settings: fields of SiT; batch: images; dtype: of the weights and of the
  network, the state is float32; scale, interval: guided where low <= t <= high.
  """
  torch.manual_seed(0)
  dtype = getattr(torch, dtype)
  model = SiT(**settings).to(dtype).eval()
  x = torch.randn(batch, model.embed.in_channels, *[settings['size']] * 2)
  y = torch.randint(settings['num_classes'], (batch,))
  null = torch.full_like(y, settings['num_classes'])

  @torch.compile(dynamic=False)
  def velocity(x, t, y):
    return model(x.to(dtype), t.expand(len(y)), y)[0].float()

  def guided(x, t):
    if scale == 1 or not interval[0] <= t <= interval[1]:
      return velocity(x, t, y)
    v = velocity(torch.cat([x, x]), t, torch.cat([y, null]))
    v, v_null = v.chunk(2)
    return v_null + scale * (v - v_null)

  @torch.no_grad()
  def sample():
    state, times = x, torch.linspace(1, 0, steps + 1)
    for t, t_next in zip(times[:-1], times[1:], strict=True):
      state = state + (t_next - t) * guided(state, t)
    return state

  return sample

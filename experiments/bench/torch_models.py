"""The benchmark's networks in plain PyTorch, as PyTorch users write them.

3-D networks take [B, C, T, H, W] and use Conv3d; 2-D networks fold time into
the batch and use Conv2d. Modules and parameters are called as in mgjax's trees
('res2.block0.a.conv'), so that `load` can copy any variables. Transformers are
Hugging Face's, and `VideoMAE` knows what those call them.

Imports PyTorch and no JAX: it runs in an interpreter of its own
(experiments/bench/torch_worker.py).
"""

import re
import types
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

_BLOCKS = (3, 4, 6, 3)  # ResNet-50.
_DIMENSIONS = {
  2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
  3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
}

# Temporal kernels of each block's first convolution, per stage; a pattern
# repeats over the blocks. Source: as mgjax/models/resnet3d.py.
_TEMPORAL_KERNELS = {
  'i3d': ((3,), (3, 1), (3, 1), (1, 3)),
  'slow': ((1,), (1,), (3,), (3,)),
  'fast': ((3,), (3,), (3,), (3,)),
}
_STEM_KERNELS = {'i3d': 5, 'slow': 1, 'fast': 5}


class Layer(nn.Module):
  """Convolution, batch norm and, where asked, ReLU.

  The length of the kernel, 2 or 3, says whether they are of images or video.
  """

  def __init__(
    self,
    inputs: int,
    features: int,
    kernel: Sequence[int],
    strides: Sequence[int] | None = None,
    relu: bool = True,
  ):
    super().__init__()
    conv, norm, _ = _DIMENSIONS[len(kernel)]
    self.conv = conv(
      inputs,
      features,
      tuple(kernel),
      tuple(strides or (1,) * len(kernel)),
      tuple(k // 2 for k in kernel),
      bias=False,
    )
    self.norm = norm(features)
    self.relu = relu

  def forward(self, x):
    x = self.norm(self.conv(x))
    return F.relu(x, inplace=True) if self.relu else x


class Aggregation(nn.Module):
  """TAM: ReLU of a depthwise sum over three frames of [B * T, C, H, W].

  Products with frames shifted by concatenation stand for the reference's three
  depthwise convolutions.
  """

  def __init__(self, channels: int, frames: int):
    super().__init__()
    self.kernel = nn.Parameter(torch.empty(3, channels))
    self.frames = frames

  def forward(self, x):
    kernel = self.kernel[:, :, None, None]
    clips = x.unflatten(0, (-1, self.frames))
    border = torch.zeros_like(clips[:, :1])
    before = torch.cat([border, clips[:, :-1]], 1)
    after = torch.cat([clips[:, 1:], border], 1)
    y = before * kernel[0] + clips * kernel[1] + after * kernel[2]
    return F.relu(y, inplace=True).flatten(0, 1)


class Bottleneck(nn.Module):
  """kt x 1 x 1, (1 x) 3 x 3 with the stride, 1 x 1 (x 1), plus shortcut.

  Args:
    inputs: Channels.
    features: Output channels, four times those inside.
    stride: Of H and W.
    temporal_kernel: kt of video layers; None: layers of images.
    frames: Of a clip, for an aggregation in front of the branch; 0: none.
  """

  def __init__(
    self,
    inputs: int,
    features: int,
    stride: int,
    temporal_kernel: int | None = None,
    frames: int = 0,
  ):
    super().__init__()
    inner = features // 4
    # Kernel and stride in time, where there is time.
    kt, one = (), ()
    if temporal_kernel is not None:
      kt, one = (temporal_kernel,), (1,)
    strides = (*one, stride, stride)
    if frames:
      self.temporal = Aggregation(inputs, frames)
    self.a = Layer(inputs, inner, (*kt, 1, 1))
    self.b = Layer(inner, inner, (*one, 3, 3), strides)
    self.c = Layer(inner, features, (*one, 1, 1), relu=False)
    if inputs != features or stride != 1:
      self.shortcut = Layer(inputs, features, (*one, 1, 1), strides, relu=False)

  def forward(self, x):
    shortcut = self.shortcut(x) if hasattr(self, 'shortcut') else x
    if hasattr(self, 'temporal'):
      x = self.temporal(x)
    return F.relu(self.c(self.b(self.a(x))) + shortcut, inplace=True)


def _named(**modules: nn.Module) -> nn.Sequential:
  sequence = nn.Sequential()
  for name, module in modules.items():
    sequence.add_module(name, module)
  return sequence


def _stage(blocks: Sequence[nn.Module]) -> nn.Sequential:
  return _named(**{f'block{i}': block for i, block in enumerate(blocks)})


def _stage3d(inputs, features, arch, index):
  kernels = _TEMPORAL_KERNELS[arch][index]
  return _stage(
    [
      Bottleneck(
        features if i else inputs,
        features,
        1 if i or index == 0 else 2,
        temporal_kernel=kernels[i % len(kernels)],
      )
      for i in range(_BLOCKS[index])
    ]
  )


def _stem(features, *temporal_kernel):
  """Stem of images, or of video where a temporal kernel is given."""
  one, zero = (1,) * len(temporal_kernel), (0,) * len(temporal_kernel)
  pool = _DIMENSIONS[2 + len(one)][-1]
  return _named(
    layer=Layer(3, features, (*temporal_kernel, 7, 7), (*one, 2, 2)),
    pool=pool((*one, 3, 3), (*one, 2, 2), (*zero, 1, 1)),
  )


class Head(nn.Module):
  """Joins the pathways' averages over all positions; linear classifier."""

  def __init__(self, inputs: int, num_classes: int):
    super().__init__()
    self.classifier = nn.Linear(inputs, num_classes)

  def forward(self, pathways):
    axes = tuple(range(2, pathways[0].ndim))
    return self.classifier(torch.cat([x.mean(axes) for x in pathways], 1))


class ResNet3D(nn.Module):
  """Slow or I3D, ResNet-50. Takes [B, 3, T, H, W]."""

  def __init__(self, arch: str, num_classes: int):
    super().__init__()
    self.pools_time = arch == 'i3d'
    self.stem = _stem(64, _STEM_KERNELS[arch])
    self.res2 = _stage3d(64, 256, arch, 0)
    self.res3 = _stage3d(256, 512, arch, 1)
    self.res4 = _stage3d(512, 1024, arch, 2)
    self.res5 = _stage3d(1024, 2048, arch, 3)
    self.head = Head(2048, num_classes)

  def forward(self, video):
    x = self.res2(self.stem(video))
    if self.pools_time:
      x = F.max_pool3d(x, (2, 1, 1))
    return self.head([self.res5(self.res4(self.res3(x)))])


class SlowFast(nn.Module):
  """SlowFast, ResNet-50, alpha 4, beta 1/8. Takes [B, 3, T, H, W]."""

  alpha = 4

  def __init__(self, num_classes: int):
    super().__init__()
    self.slow_stem = _stem(64, _STEM_KERNELS['slow'])
    self.fast_stem = _stem(8, _STEM_KERNELS['fast'])
    self.fuse_stem = self._lateral(8)
    slow, fast = 64, 8
    for i in range(4):
      name, features = f'res{i + 2}', 256 * 2**i
      # The slow pathway has the lateral channels besides its own.
      inputs = slow + 2 * fast
      self.add_module(f'slow_{name}', _stage3d(inputs, features, 'slow', i))
      self.add_module(f'fast_{name}', _stage3d(fast, features // 8, 'fast', i))
      slow, fast = features, features // 8
      if i < 3:
        self.add_module(f'fuse_{name}', self._lateral(fast))
    self.head = Head(slow + fast, num_classes)

  def _lateral(self, channels):
    return Layer(channels, 2 * channels, (7, 1, 1), (self.alpha, 1, 1))

  def forward(self, video):
    t = video.shape[2]
    num_slow = t // self.alpha
    chosen = torch.arange(num_slow, device=video.device) * (t - 1)
    chosen = chosen // max(num_slow - 1, 1)
    slow, fast = video[:, :, chosen], video
    for stage in ('stem', 'res2', 'res3', 'res4', 'res5'):
      slow = getattr(self, f'slow_{stage}')(slow)
      fast = getattr(self, f'fast_{stage}')(fast)
      if stage != 'res5':
        slow = torch.cat([slow, getattr(self, f'fuse_{stage}')(fast)], 1)
    return self.head([slow, fast])


def _frames_of(video):
  """[B, 3, T, H, W] -> [B * T, 3, H, W]."""
  return video.transpose(1, 2).flatten(0, 1)


class ResNet2D(nn.Module):
  """TSN or TAM, ResNet-50. Takes [B, 3, T, H, W]."""

  def __init__(self, num_classes: int, frames: int, aggregates: bool):
    super().__init__()
    self.frames = frames
    self.stem = _stem(64)
    inputs = 64
    for i, num_blocks in enumerate(_BLOCKS):
      features = 256 * 2**i
      blocks = [
        Bottleneck(
          features if j else inputs,
          features,
          1 if j or i == 0 else 2,
          frames=frames if aggregates else 0,
        )
        for j in range(num_blocks)
      ]
      self.add_module(f'res{i + 2}', _stage(blocks))
      inputs = features
    self.head = Head(inputs, num_classes)

  def forward(self, video):
    x = self.stem(_frames_of(video))
    x = self.res5(self.res4(self.res3(self.res2(x))))
    return self.head([x]).unflatten(0, (-1, self.frames)).mean(1)


class BigLittleBlock(nn.Module):
  """Bottleneck of images whose shortcut strides by average pooling."""

  def __init__(
    self,
    inputs: int,
    features: int,
    stride: int = 1,
    relu: bool = True,
    frames: int = 0,
  ):
    super().__init__()
    inner = features // 4
    if frames:
      self.temporal = Aggregation(inputs, frames)
    self.a = Layer(inputs, inner, (1, 1))
    self.b = Layer(inner, inner, (3, 3), (stride, stride))
    self.c = Layer(inner, features, (1, 1), relu=False)
    if inputs != features:
      self.shortcut = Layer(inputs, features, (1, 1), relu=False)
    self.stride, self.relu = stride, relu

  def forward(self, x):
    shortcut = x
    if hasattr(self, 'temporal'):
      x = self.temporal(x)
    if self.stride == 2 or hasattr(self, 'shortcut'):
      shortcut = F.avg_pool2d(x, 3, 2, 1) if self.stride == 2 else x
    if hasattr(self, 'shortcut'):
      shortcut = self.shortcut(shortcut)
    x = self.c(self.b(self.a(x))) + shortcut
    return F.relu(x, inplace=True) if self.relu else x


def _split(x, frames):
  """Frames of the big (odd) and of the little branch (even ones)."""
  pairs = x.unflatten(0, (-1, frames // 2, 2))
  return pairs[:, :, 1].flatten(0, 1), pairs[:, :, 0].flatten(0, 1)


class BigLittleStem(nn.Module):
  """7 x 7 layer on every frame, then a first pair of branches."""

  def __init__(self, frames: int):
    super().__init__()
    self.frames = frames
    self.layer = Layer(3, 64, (7, 7), (2, 2))
    self.temporal = Aggregation(64, frames)
    self.big = Layer(64, 64, (3, 3), (2, 2), relu=False)
    self.little0 = Layer(64, 32, (3, 3))
    self.little1 = Layer(32, 32, (3, 3), (2, 2))
    self.little2 = Layer(32, 64, (1, 1), relu=False)
    self.merge = Layer(64, 64, (1, 1))

  def forward(self, x):
    big, little = _split(self.temporal(self.layer(x)), self.frames)
    little = self.little2(self.little1(self.little0(little)))
    x = self.merge(F.relu(self.big(big) + little, inplace=True))
    return x.repeat_interleave(2, 0)


class BigLittleStage(nn.Module):
  """Big branch at half the resolution, little one, sum, fusion block."""

  def __init__(
    self, inputs: int, features: int, num_blocks: int, stride: int, frames: int
  ):
    super().__init__()
    self.frames = frames
    self.temporal = Aggregation(inputs, frames)
    narrow, last = features // 2, num_blocks - 2
    self.big = _stage(
      [
        BigLittleBlock(
          features if i else inputs,
          features,
          1 if i else 2,
          relu=i == 0 or i < last,
        )
        for i in range(num_blocks - 1)
      ]
    )
    self.little = _stage([BigLittleBlock(inputs, narrow)])
    self.expand = Layer(narrow, features, (1, 1), relu=False)
    self.fusion = BigLittleBlock(features, features, stride)

  def forward(self, x):
    big, little = _split(self.temporal(x), self.frames)
    little = self.expand(self.little(little))
    big = F.interpolate(self.big(big), little.shape[2:], mode='nearest')
    x = self.fusion(F.relu(big + little, inplace=True))
    return x.repeat_interleave(2, 0)


class BLVNetTAM(nn.Module):
  """bLVNet-TAM-50, alpha 2, beta 4. Takes [B, 3, T, H, W], T even."""

  def __init__(self, num_classes: int, frames: int):
    super().__init__()
    self.frames = frames
    self.stem = BigLittleStem(frames)
    self.res2 = BigLittleStage(64, 256, 3, 2, frames)
    self.res3 = BigLittleStage(256, 512, 4, 2, frames)
    self.res4 = BigLittleStage(512, 1024, 6, 1, frames)
    self.res5 = _stage(
      [
        BigLittleBlock(
          2048 if i else 1024, 2048, 1 if i else 2, frames=frames // 2
        )
        for i in range(3)
      ]
    )
    self.head = Head(2048, num_classes)

  def forward(self, video):
    x = self.res4(self.res3(self.res2(self.stem(_frames_of(video)))))
    x, _ = _split(x, self.frames)  # The frames of a pair are equal by now.
    x = self.head([self.res5(x)])
    return x.unflatten(0, (-1, self.frames // 2)).mean(1)


class VideoMAE(nn.Module):
  """Hugging Face's, as it comes (attention: PyTorch's own, 'sdpa').

  Takes [B, 3, T, H, W] of one size.
  """

  # Width and heads, of 12 blocks.
  SIZES = types.MappingProxyType(
    {'videomae_s': (384, 6), 'videomae_b': (768, 12)}
  )

  def __init__(self, name: str, num_classes: int, frames: int, crop_px: int):
    super().__init__()
    import transformers  # The other networks need none.

    width, heads = self.SIZES[name]
    config = transformers.VideoMAEConfig(
      image_size=crop_px,
      num_frames=frames,
      hidden_size=width,
      num_attention_heads=heads,
      intermediate_size=4 * width,
      layer_norm_eps=1e-6,
      num_labels=num_classes,
    )
    self.network = transformers.VideoMAEForVideoClassification(config)

  def forward(self, video):
    return self.network(video.transpose(1, 2)).logits

  def renamed(
    self, variables: Mapping[str, np.ndarray]
  ) -> dict[str, torch.Tensor]:
    """The state that mgjax's variables of the network 'vit' are."""
    state = {}
    for name, array in variables.items():
      array = torch.from_numpy(array)
      if array.ndim > 1:
        # Outputs and inputs come first.
        axes = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
        array = array.permute(axes).contiguous()
      for pattern, theirs in self._NAMES:
        name = re.sub(pattern, theirs, name)
      if '.qkv.' not in name:
        state[f'network.{name}'] = array
        continue
      for part, kernel in zip(
        ('query', 'key', 'value'), array.chunk(3), strict=True
      ):
        state[f'network.{name.replace("qkv", part)}'] = kernel
    return state

  _NAMES = (
    (r'(kernel|scale)$', 'weight'),
    (r'^embed', 'videomae.embeddings.patch_embeddings.projection'),
    (r'^block(\d+)', r'videomae.encoder.layer.\1'),
    (r'attention\.q_bias', 'attention.attention.query.bias'),
    (r'attention\.v_bias', 'attention.attention.value.bias'),
    (r'attention\.qkv', 'attention.attention.qkv'),
    (r'attention\.proj', 'attention.output.dense'),
    (r'mlp\.fc1', 'intermediate.dense'),
    (r'mlp\.fc2', 'output.dense'),
    (r'norm1', 'layernorm_before'),
    (r'norm2', 'layernorm_after'),
    (r'^pool_norm', 'fc_norm'),
    (r'^head\.', ''),
  )


def build(
  name: str, *, num_classes: int, frames: int, crop_px: int
) -> nn.Module:
  """Makes a network: those of convolutions have a depth of 50.

  Args:
    name: 'slowfast', 'slow', 'i3d', 'tsn', 'tam', 'blvnet_tam' or one of
      VideoMAE.SIZES.
    num_classes: K.
    frames: T of the clips; the 3-D networks do not depend on it.
    crop_px: Height and width of the clips; VideoMAE alone depends on it.
  """
  if name in VideoMAE.SIZES:
    return VideoMAE(name, num_classes, frames, crop_px)
  if name == 'slowfast':
    return SlowFast(num_classes)
  if name == 'blvnet_tam':
    return BLVNetTAM(num_classes, frames)
  if name in ('tsn', 'tam'):
    return ResNet2D(num_classes, frames, aggregates=name == 'tam')
  return ResNet3D(name, num_classes)


_LEAVES = {
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def load(model: nn.Module, variables: Mapping[str, np.ndarray]) -> None:
  """Copies mgjax's variables into a model, all of them into all of its own.

  Args:
    model: Of `build`.
    variables: float32, called as in mgjax's trees, joined by dots and without
      the collection: 'res2.block0.a.conv.kernel' [kt, kh, kw, C, D],
      'res2.block0.a.norm.mean' [C].

  Raises:
    RuntimeError: A tensor is missing, left over or of another shape.
  """
  if isinstance(model, VideoMAE):
    model.load_state_dict(model.renamed(variables))
    return
  expected = model.state_dict()
  state = {}
  for name, array in variables.items():
    module, leaf = name.rsplit('.', 1)
    if leaf != 'kernel':
      state[f'{module}.{_LEAVES[leaf]}'] = torch.from_numpy(array)
    elif module.endswith('temporal'):
      state[name] = torch.from_numpy(array)
    else:
      # Output and input channels come first; images have no kt.
      axes = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
      array = np.ascontiguousarray(array.transpose(axes))
      name = f'{module}.weight'
      if array.ndim == 5 and expected[name].ndim == 4:
        array = array[:, :, 0]
      state[name] = torch.from_numpy(array)
  counters = {k: v for k, v in expected.items() if k.endswith('_tracked')}
  model.load_state_dict(state | counters)

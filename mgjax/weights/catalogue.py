"""Where published weights are, by the names of the networks that take them.

Sizes and hashes stand here only where their publisher says them in a text that
was read: MODEL_ZOO.md of facebookresearch/SlowFast 02a85e9, README.md of
facebookresearch/vjepa2 0d7ec65 and of google-deepmind/videoprism 2785100,
models.py of the latter (names of files), torchvision's models/video/mvit.py,
pytorchvideo's models/hub/resnet.py.
No file was downloaded to write this.
"""

from typing import NamedTuple

from mgjax.weights import convolutional_formats, transformer_formats

_FORMATS = convolutional_formats.FORMATS | transformer_formats.FORMATS
_HUB = 'https://huggingface.co/'
_ZOO = 'https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/kinetics400/'


class Published(NamedTuple):
  """Weights of a publisher.

  Attributes:
    what: Network and training, in words.
    address: Page or file.
    format: Key of the formats, whose licence is that of the weights.
    file: The file to get; '': all .json files and model.safetensors.
    size: As the publisher gives it; '': not read anywhere.
    sha256: Hexadecimal digits that it begins with, as the publisher gives them;
      '': not read anywhere.
    flags: Of mgjax.import_weights.
  """

  what: str
  address: str
  format: str
  file: str = ''
  size: str = ''
  sha256: str = ''
  flags: tuple[str, ...] = ()

  @property
  def licence(self) -> str:
    """Licence of the weights; '': it is not known."""
    return _FORMATS[self.format].licence

  @property
  def local(self) -> str:
    """Name of the file, or of the folder of a repository, when it is here."""
    return self.file or self.address.rpartition('/')[2]


def _hub(what: str, name: str, form: str, **more) -> Published:
  return Published(what, f'{_HUB}{name}', form, **more)


def _zoo(what: str, file: str, model: str) -> Published:
  return Published(
    f'{what}, Kinetics-400',
    f'{_ZOO}{file}',
    'caffe2',
    file=file,
    flags=(f'--model={model}',),
  )


_NEW_HEAD = ('--new_head',)
WEIGHTS = {
  **{
    f'videomae_{size[0]}': _hub(
      f'VideoMAE, {size}, fine-tuned on Kinetics-400',
      f'MCG-NJU/videomae-{size}-finetuned-kinetics',
      'huggingface_videomae',
    )
    for size in ('small', 'base', 'large', 'huge')
  },
  'vjepa2_l': _hub(
    'V-JEPA 2, ViT-L, probe of Something-Something V2',
    'facebook/vjepa2-vitl-fpc16-256-ssv2',
    'huggingface_vjepa2',
  ),
  'vjepa2_h': _hub(
    'V-JEPA 2, ViT-H, without a probe',
    'facebook/vjepa2-vith-fpc64-256',
    'huggingface_vjepa2',
    flags=_NEW_HEAD,
  ),
  'vjepa2_g': _hub(
    'V-JEPA 2, ViT-g at 384 pixels, without a probe',
    'facebook/vjepa2-vitg-fpc64-384',
    'huggingface_vjepa2',
    flags=_NEW_HEAD,
  ),
  'videoprism_b': _hub(
    'VideoPrism, base, without a classifier',
    'google/videoprism-base-f16r288',
    'videoprism',
    file='flax_base_f16r288_repeated.npz',
    size='458 MB',
    flags=('--model=videoprism_b', *_NEW_HEAD),
  ),
  'videoprism_l': _hub(
    'VideoPrism, large, without a classifier',
    'google/videoprism-large-f8r288',
    'videoprism',
    file='flax_large_f8r288_repeated.npz',
    size='1.42 GB',
    flags=('--model=videoprism_l', *_NEW_HEAD),
  ),
  'vivit_b': _hub(
    'ViViT, base, Kinetics-400',
    'google/vivit-b-16x2-kinetics400',
    'huggingface_vivit',
  ),
  'timesformer_b': _hub(
    'TimeSformer, base, Kinetics-400',
    'facebook/timesformer-base-finetuned-k400',
    'huggingface_timesformer',
  ),
  'mvitv2_s': Published(
    'MViTv2, small, Kinetics-400',
    'https://download.pytorch.org/models/mvit_v2_s-ae3be167.pth',
    'torchvision_mvit',
    file='mvit_v2_s-ae3be167.pth',
    size='131.884 MB',
    # Of torch.hub's files the name has the first digits.
    sha256='ae3be167',
    flags=('--model=mvitv2_s',),
  ),
  'slowfast': _zoo('SlowFast-R50 8x8', 'SLOWFAST_8x8_R50.pkl', 'slowfast'),
  'slow': _zoo('Slow-R50 8x8', 'SLOWONLY_8x8_R50.pkl', 'slow'),
  'i3d': _zoo('I3D-R50 8x8', 'I3D_8x8_R50.pkl', 'i3d'),
  'i3d_nln': _zoo('I3D-R50-NL 8x8', 'I3D_NLN_8x8_R50.pkl', 'i3d_nln'),
  # Not PySlowFast's C2D_NOPOOL_8x8_R50.pkl: that network does not pool in time,
  # and nothing in the file would tell.
  'c2d': Published(
    'C2D-R50 8x8, Kinetics-400',
    'https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/'
    'C2D_8x8_R50.pyth',
    'pytorchvideo',
    file='C2D_8x8_R50.pyth',
    flags=('--model=c2d',),
  ),
}

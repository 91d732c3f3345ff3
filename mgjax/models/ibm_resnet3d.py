"""3-D residual networks of IBM's benchmark: I3D-ResNet and S3D-ResNet.

A ResNet each of whose 3 x 3 layers is 3-D: dense 3 x 3 x 3 in I3D-ResNet,
1 x 3 x 3 followed by 3 x 1 x 1 in S3D-ResNet. (The I3D of PySlowFast has 3 x 1
x 1 kernels in some blocks instead: resnet3d.py.)

Source: Chen et al. 2021 (arXiv:2010.11757); IBM/action-recognition-pytorch
  67cc96f, models/threed_models.
"""

from mgjax.config import network_options
from mgjax.models.resnet2d import LayerShape, ResNet


class I3DResNet(ResNet):
  """ResNet with 3 x 3 x 3 layers and a 3 x 7 x 7 stem."""

  stem_kernel = 3

  def spatial_layers(
    self, name: str, features: int, strides: tuple[int, int, int]
  ) -> tuple[LayerShape, ...]:
    return (LayerShape(name, features, (3, 3, 3), strides),)


class S3DResNet(ResNet, network_options.S3DResNet):
  """ResNet with 1 x 3 x 3, 3 x 1 x 1 layers and a 3 x 7 x 7 stem.

  The temporal layer of the first block of a stage has its temporal stride.
  """

  stem_kernel = 3

  def spatial_layers(
    self, name: str, features: int, strides: tuple[int, int, int]
  ) -> tuple[LayerShape, ...]:
    st, sh, sw = strides
    return (
      LayerShape(name, features, (1, 3, 3), (1, sh, sw)),
      LayerShape(
        f'{name}_t', features, (3, 1, 1), (st, 1, 1), self.depthwise_temporal
      ),
    )

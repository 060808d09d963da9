"""The convolutional pyramid: VGG19 with batch norm (Simonyan and Zisserman, 2015) up to its fourth pooling."""

from __future__ import annotations

from torch import Tensor, nn

# 3x3 convolutions per stage; stage i works at stride 2**i.
CONVOLUTIONS = (2, 2, 4, 4)


class VggPyramid(nn.Module):
    """Features at strides 1, 2, 4 and 8, each taken where the network would pool next.

    `layers` has torchvision's indices (`vgg19_bn().features[:40]`), so that a checkpoint's keys fit as they are.
    """

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, count in zip(widths, CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """`(B, 3, H, W)` to `{1: (B, C1, H, W), 2: ..., 4: ..., 8: (B, C8, H/8, W/8)}`; odd sides are floored."""
        maps: dict[int, Tensor] = {}
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if isinstance(layer, nn.MaxPool2d):
                maps[2 ** len(maps)] = image
                if index == last:  # upstream computes and discards this pooling
                    break
            image = layer(image)
        return maps

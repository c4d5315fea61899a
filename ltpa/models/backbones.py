"""The convolutional networks that local features and the global feature `g` come from.

Channel counts, pools and dropout are those of the authors' code for 32x32 images. Layers are named as in the paper
(conv1 ... conv15), for hooks and explanation methods.
"""

from collections import OrderedDict

from torch import Tensor, nn

VGG_LEVELS = ("conv7", "conv10", "conv13")
BN_EPS = 1e-3

# name, channels, dropout rate after the layer
_TRUNK = [
    ("conv1", 64, 0.3), ("conv2", 64, 0.0),
    ("conv3", 128, 0.4), ("conv4", 128, 0.0),
    ("conv5", 256, 0.4), ("conv6", 256, 0.4), ("conv7", 256, 0.0),
    ("conv8", 512, 0.4), ("conv9", 512, 0.4), ("conv10", 512, 0.0),
    ("conv11", 512, 0.4), ("conv12", 512, 0.4), ("conv13", 512, 0.0),
]  # fmt: skip
LATE_POOLS = ("conv8", "conv11")  # a max-pool comes before these: conv7 keeps the full resolution
VGG16_POOLS = ("conv3", "conv5", "conv8", "conv11")


def scaled(channels: int, width: float) -> int:
    """Return a channel count times `width`, at least 1."""
    return max(1, round(channels * width))


def max_pool(x: Tensor, size: int) -> Tensor:
    """Pool, except maps that are too small for it: those of the small images with which training begins."""
    return nn.functional.max_pool2d(x, min(size, *x.shape[-2:]))


def conv_block(in_channels: int, out_channels: int, dropout: float, bn_eps: float = BN_EPS) -> nn.Sequential:
    """Return 3x3 convolution (He-normal with fan-out, bias 0), batch norm, ReLU and, if its rate is not 0, dropout."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers = [conv, nn.BatchNorm2d(out_channels, eps=bn_eps), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


class Trunk(nn.Module):
    """Base of the trunks: normalized images (N, 3, H, W) -> {layer: local features (N, C, h, w)}."""

    channels: dict[str, int]  # layer -> its channels, in the network's order, at least for the layers that it returns


class VGGTrunk(Trunk):
    """conv1 to conv13 of VGG-16.

    Args:
        width: factor on every channel count.
        dropout: whether to use the authors' dropout rates.
        pools: layers with a max-pool before them; `LATE_POOLS` makes the trunk of the attention models.
        bn_eps: epsilon of every batch norm.
    """

    def __init__(
        self, width: float, dropout: bool, pools: tuple[str, ...] = LATE_POOLS, bn_eps: float = BN_EPS
    ) -> None:
        super().__init__()
        self.pools = pools
        self.channels = {}
        channels = 3
        for name, out, rate in _TRUNK:
            self.add_module(name, conv_block(channels, scaled(out, width), rate if dropout else 0.0, bn_eps))
            self.channels[name] = channels = scaled(out, width)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the local features of the three levels, {"conv7": (N, 256, H, W), "conv10": ..., "conv13": ...}."""
        local = OrderedDict()
        for name in self.channels:
            x = self.layer(name, x)
            if name in VGG_LEVELS:
                local[name] = x
        return local

    def layer(self, name: str, x: Tensor) -> Tensor:
        """Apply one layer, with the max-pool before it where there is one."""
        if name in self.pools:
            x = max_pool(x, 2)
        return getattr(self, name)(x)  # torch 2.5 cannot export get_submodule


class GlobalBranch(nn.Module):
    """From local features of a VGG trunk to the global feature `g`: pool, (conv, pool) twice, mean, dropout, linear.

    With 32x32 images the mean is over one position; it lets larger images work.

    Args:
        width, dropout, bn_eps: as in `VGGTrunk`.
        first_pool: size of the first max-pool, 2 after conv13 and 4 after conv10.
        kernel: above 1, the last layer is a convolution of this size and the mean comes after it.
    """

    def __init__(
        self, width: float, dropout: bool, first_pool: int = 2, kernel: int = 1, bn_eps: float = BN_EPS
    ) -> None:
        super().__init__()
        channels = scaled(512, width)
        rate = 0.4 if dropout else 0.0
        self.first_pool, self.kernel = first_pool, kernel
        self.conv14 = conv_block(channels, channels, rate, bn_eps)
        self.conv15 = conv_block(channels, channels, rate, bn_eps)
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.fc = nn.Linear(channels, channels) if kernel == 1 else nn.Conv2d(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> g, (N, C); h and w are at least 8 after conv13 and 16 after conv10."""
        x = self.conv14(max_pool(x, self.first_pool))
        x = self.conv15(max_pool(x, 2))
        x = max_pool(x, 2)
        if self.kernel > 1:
            if min(x.shape[-2:]) < self.kernel:
                least = 32 * self.kernel
                raise ValueError(f"images must be at least {least}x{least} pixels for these weights; scale them up")
            return self.fc(self.dropout(x)).mean((2, 3))
        return self.fc(self.dropout(x.mean((2, 3))))


class Bottleneck(nn.Module):
    """Pre-activation bottleneck (He et al. 2016b): three times batch norm, ReLU, convolution; 1x1, 3x3, 1x1."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _plain_conv(in_channels, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = _plain_conv(inner, inner, 3, stride)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = _plain_conv(inner, out_channels, 1)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = _plain_conv(in_channels, out_channels, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h / stride, w / stride)."""
        active = self.bn1(x).relu()
        out = self.conv1(active)
        out = self.conv2(self.bn2(out).relu())
        out = self.conv3(self.bn3(out).relu())
        return out + (x if self.shortcut is None else self.shortcut(active))


def _plain_conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class ResNet164(Trunk):
    """The three stages of the pre-activation ResNet-164 for CIFAR (He et al. 2016b): 9n + 2 layers with n = 18."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv1 = _plain_conv(3, channels, 3)
        self.channels = {}
        for stage, inner in ((1, 16), (2, 32), (3, 64)):
            out = scaled(4 * inner, width)
            blocks = []
            for number in range(18):
                stride = 2 if number == 0 and stage > 1 else 1
                blocks.append(Bottleneck(channels, scaled(inner, width), out, stride))
                channels = out
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
            if stage > 1:
                self.channels[f"stage{stage}"] = out

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the ends of the stages: {"stage2": (N, 128, H/2, W/2), "stage3": (N, 256, H/4, W/4)}."""
        local: OrderedDict[str, Tensor] = OrderedDict()
        x = self.conv1(x)
        for name in ("stage1", "stage2", "stage3"):
            x = getattr(self, name)(x)
            if name in self.channels:
                local[name] = x
        return local


class ResNetGlobalBranch(nn.Module):
    """From the end of stage 3 to `g`: batch norm, ReLU, pool 2, conv, pool 4, mean, dropout, linear."""

    def __init__(self, width: float, dropout: bool) -> None:
        super().__init__()
        channels = scaled(256, width)
        self.norm = nn.BatchNorm2d(channels)
        self.conv = conv_block(channels, channels, 0.0)
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) with h, w >= 8 -> g, (N, C)."""
        x = self.conv(max_pool(self.norm(x).relu(), 2))
        return self.fc(self.dropout(max_pool(x, 4).mean((2, 3))))

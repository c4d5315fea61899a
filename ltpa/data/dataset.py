"""Data sets as tensors: `load_data(name)` for the embedded shapes, CIFAR, SVHN and folders of one's own images."""

import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import closest
from .cifar import fetch_cifar, fetch_svhn
from .files import ImageFiles, count_levels, read_images
from .folder import Listing, list_folder
from .memory import memory_for_images
from .shapes import CLASSES as SHAPES
from .shapes import draw_shapes

DATASETS = ("shapes", "cifar10", "cifar100", "svhn", "folder")
SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000
TEST_FRACTION = 0.2  # of a folder without train/ and test/


@dataclass(frozen=True)
class Split:
    """Images with labels.

    Attributes:
        images: uint8 (N, 3, H, W); in memory, or where they do not fit there, `ImageFiles` in their place.
        labels: int64 (N,), indices into the classes; (N, k) for scenes of k objects.
        masks: bool (N, H, W), True on the object ((N, k, H, W) for k objects); None where the data set has none.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        """The images that a slice or an index tensor selects, in memory."""
        return Split(self.images[index], self.labels[index], None if self.masks is None else self.masks[index])

    def part(self, index: Tensor | slice) -> "Split":
        """The same, but images that are in files stay there."""
        if isinstance(self.images, ImageFiles):
            return Split(self.images.part(index), self.labels[index])
        return self[index]


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: what `load_data` was called with.
        classes: class names, in the order of the labels.
        train, test: the two splits.
        mean, std: per channel over the training images, in [0, 1].
        notes: what a user should know about how it was read (a split that was made, copies that were found).
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    notes: tuple[str, ...] = ()


def load_data(
    name: str,
    root: str | Path = "data",
    *,
    image_size: int = 32,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    download: bool = True,
    objects: int = 1,
    memory_gb: float | None = None,
) -> Dataset:
    """Loads a data set into memory; images of a folder that do not fit there stay in their files, and a note says so.

    Args:
        name: "shapes" (made by code, no download), "cifar10", "cifar100", "svhn" (needs scipy), or "folder":
            `root/train/<class>/*` and `root/test/<class>/*`, or only `root/<class>/*`, of which a seeded fifth of
            every class becomes the test split.
        root: folder for downloads, or of one's own images.
        image_size: side of the square images in pixels, from 32 to 1024; of others the middle square is scaled.
        train_limit, test_limit: use at most so many images, balanced over the classes and chosen by the seed; of
            "shapes" the first ones, which are balanced in every 500.
        seed: for the split and the limits, and for what "shapes" draws.
        download: whether CIFAR and SVHN may be downloaded.
        objects: only "shapes": 2 draws scenes of two objects, masks (N, 2, H, W) and labels (N, 2).
        memory_gb: what the images may take, in gigabytes (10^9 bytes); None is half of the free memory.

    Raises:
        ValueError: an unknown name, a number out of range, a folder that cannot be used, or images that are not in
            files and do not fit.
        TypeError: a number that is not whole, or a root that is no path.
        FileNotFoundError: a folder that is missing, or data that may not be downloaded.
        DownloadError: see `ltpa.data.cifar.fetch`.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: {closest(name, DATASETS)}")
    for label, value, least, most in (
        ("image_size", image_size, 32, 1024),
        ("train_limit", train_limit, 1, 10**9),
        ("test_limit", test_limit, 1, 10**9),
        ("seed", seed, 0, 2**31 - 1),
        ("objects", objects, 1, 2),
    ):
        if value is None and label.endswith("_limit"):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{label} must be a whole number, not {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{label} must be at least {least} and at most {most}, not {value}")
    if objects == 2 and name != "shapes":
        raise ValueError("objects=2: only 'shapes' draws scenes of two objects")
    if not isinstance(root, str | Path):
        raise TypeError(f"data_dir must be a path, not {root!r}")
    if not str(root).strip():
        raise ValueError("data_dir must not be empty; '.' is the current folder")
    try:
        root = Path(root).expanduser()
    except RuntimeError as error:
        raise ValueError(f"data_dir {str(root)!r}: there is no such user; a folder of that name is './~...'") from error

    notes, limit = [], memory_for_images(memory_gb)
    if name == "shapes":
        classes = SHAPES
        sizes = (SHAPES_TRAIN, SHAPES_TEST)
        wanted = [n if most is None else min(most, n) for n, most in zip(sizes, (train_limit, test_limit), strict=True)]
        _check_fits(sum(wanted), image_size, limit)
        train, test = (
            Split(*draw_shapes(count, image_size, 2 * seed + part, objects)) for part, count in enumerate(wanted)
        )
    else:
        if name == "folder":
            classes, train, test, notes = _read_folder(root, image_size, train_limit, test_limit, seed, limit)
        else:
            classes, train, test = _read_torchvision(name, root, download)
            train, test = (
                part if most is None or most >= len(part) else part[stratified(part.labels, most, seed)]
                for part, most in ((train, train_limit), (test, test_limit))
            )
            if train.images.shape[-1] != image_size:
                _check_fits(len(train) + len(test), image_size, limit)
                train, test = (replace(part, images=_scale(part.images, image_size)) for part in (train, test))
    return Dataset(name, tuple(classes), train, test, *channel_statistics(train.images), tuple(notes))


def hold_out(data: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Replaces the test split by a seeded part of every class of the training split: for choosing settings.

    Args:
        data: a data set; its test split is dropped, so that nothing can be chosen on it.
        fraction: part of the training images to hold out, in (0, 1).
        seed: of the choice.

    Raises:
        ValueError: a fraction that leaves one of the two parts empty.
        TypeError: a fraction that is no number.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise TypeError(f"validation must be a number, not {fraction!r}")
    if not 0 < fraction < 1 or not 0 < round(len(data.train) * fraction) < len(data.train):
        raise ValueError(f"validation={fraction} of {len(data.train)} images leaves one part empty: choose e.g. 0.1")
    kept, held = _parted(data.train.labels, round(len(data.train) * fraction), seed)
    train = data.train.part(kept)
    mean, std = channel_statistics(train.images)
    return replace(data, train=train, test=data.train.part(held), mean=mean, std=std)


def _parted(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the samples that are kept and of the `count` that are taken from them, the same part of each class."""
    taken = stratified(labels, count, seed, proportional=True)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[taken] = False
    return kept.nonzero().squeeze(1), taken


def stratified(labels: Tensor, count: int, seed: int, proportional: bool = False) -> Tensor:
    """Indices of `count` samples, chosen by the seed, in ascending order.

    As many of each class as possible, or in proportion to the classes.
    """
    labels = labels.flatten(1)[:, 0] if labels.ndim > 1 else labels
    shuffled = torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable"))
    rank = torch.empty(len(labels), dtype=torch.float64)  # of a sample among those of its class
    for label in labels.unique():
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = torch.arange(0.5, len(of_class), dtype=torch.float64) / (len(of_class) if proportional else 1)
    order = shuffled[torch.argsort(rank[shuffled], stable=True)]
    return order[:count].sort().values


def channel_statistics(images: Tensor | ImageFiles) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel of uint8 images (N, 3, H, W), as for values in [0, 1].

    A channel without any variation gets the standard deviation 1/255, so that dividing by it stays harmless.
    """
    counts = (images.levels() if isinstance(images, ImageFiles) else count_levels(images)).double()
    counts /= counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values
    std = (counts @ values**2 - mean**2).clamp_min(0).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _scale(images: Tensor, size: int) -> Tensor:
    """Square uint8 images (N, 3, S, S) to another size, in portions that bound the memory."""

    def scaled(part: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(part, size=(size, size), mode="bilinear")

    found = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for part, out in zip(images.split(1000), found.split(1000), strict=True):
        out.copy_(scaled(part.float()).round().clamp(0, 255))
    return found


def _read_torchvision(name: str, root: Path, download: bool) -> tuple[Sequence[str], Split, Split]:
    """CIFAR and SVHN: our own download, torchvision's reader (which checks the files again before unpickling)."""
    from torchvision import datasets

    if name == "svhn":
        try:
            import scipy.io  # noqa: F401
        except ImportError as error:
            raise ValueError("dataset 'svhn' needs scipy to be read: pip install 'ltpa[notebooks]'") from error
    if download:
        fetch_svhn(root) if name == "svhn" else fetch_cifar(name, root)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "svhn": datasets.SVHN}[name]
    with warnings.catch_warnings():
        # torchvision hands numpy a dtype in a way that numpy 2.4 warns about; nothing a user could change.
        warnings.simplefilter("ignore")
        try:
            if name == "svhn":
                parts = [kind(str(root), split=split, download=False) for split in ("train", "test")]
            else:
                parts = [kind(str(root), train=train, download=False) for train in (True, False)]
        except RuntimeError as error:
            raise FileNotFoundError(
                f"{name} is not in {root} or not complete; allow the download (download=True) or put it there"
            ) from error
    if name == "svhn":
        splits = [
            Split(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels).long()) for part in parts
        ]
        return [str(digit) for digit in range(10)], *splits
    splits = [
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    ]
    return parts[0].classes, *splits


def _read_folder(
    root: Path, size: int, train_limit: int | None, test_limit: int | None, seed: int, limit: int
) -> tuple[tuple[str, ...], Split, Split, list[str]]:
    """Reads the images of a folder, or leaves them in their files if they take more than `limit` bytes."""
    folder = list_folder(root)
    notes, train, test = list(folder.notes), folder.train, folder.test
    if test is None:
        count = len(train.files)
        kept, chosen = _parted(train.labels, max(1, round(count * TEST_FRACTION)), seed)
        train, test = train[kept], train[chosen]
        notes.append(
            f"{root} has no train/ and test/: {len(test.files)} of {count} images were set aside for the test, "
            f"stratified, seed {seed}"
        )
        if len(train.labels.unique()) < len(folder.classes):
            raise ValueError(f"{root} has too few images to set some aside for the test; give each class at least two")
    if absent := [name for label, name in enumerate(folder.classes) if not (test.labels == label).any()]:
        notes.append(f"no test images of: {', '.join(absent)}")
    train, test = (
        part if most is None or most >= len(part.files) else part[stratified(part.labels, most, seed)]
        for part, most in ((train, train_limit), (test, test_limit))
    )
    bytes_of = {name: len(part.files) * 3 * size**2 for name, part in (("training", train), ("test", test))}
    streamed = [] if sum(bytes_of.values()) <= limit else ["training"]
    if streamed and bytes_of["test"] > limit / 2:
        streamed.append("test")
    for name in streamed:
        notes.append(
            f"the {name} images take {bytes_of[name] / 1e9:.2g} GB as tensors, and images may take "
            f"{limit / 1e9:.2g} GB here (memory_gb changes it): they stay in their files and are read when they "
            "are used"
        )
    train, train_digests = _read(train, size, "training" in streamed, 0)
    # The checksum that `ltpa.training.run.fingerprint` will ask for goes on where that of the training images ends.
    start = zlib.crc32(train.labels.numpy(), train.images.checksum()) if streamed else 0
    test, test_digests = _read(test, size, "test" in streamed, start)
    copies = sum(Counter(test_digests)[digest] for digest in set(train_digests) & set(test_digests))
    if copies:
        notes.append(f"{copies} test images are exact copies of training images: the test accuracy flatters")
    return folder.classes, train, test, notes


def _read(listing: Listing, size: int, streamed: bool, start: int) -> tuple[Split, list[bytes]]:
    """Images in memory or, streamed, in their files, each read once to see whether it can be; digests of the files."""
    if streamed:
        images = ImageFiles(listing.files, size)
        return Split(images, listing.labels), images.scan(start)
    images, digests = read_images(listing.files, size)
    return Split(images, listing.labels), digests


def _check_fits(count: int, size: int, limit: int) -> None:
    """Of pictures that are not in files."""
    if count * 3 * size**2 > limit:
        raise ValueError(
            f"{count} images of {size}x{size} pixels take {count * 3 * size**2 / 1e9:.2g} GB, and images may take "
            f"{limit / 1e9:.2g} GB here; choose a smaller image_size or train_limit, or set memory_gb. (Images of a "
            "folder would be read from their files.)"
        )

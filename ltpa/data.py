"""Data sets as tensors: `load_data(name)` for the embedded shapes, CIFAR, SVHN and folders of one's own images."""

import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .download import fetch_cifar, fetch_svhn
from .errors import closest
from .shapes import CLASSES as SHAPES
from .shapes import draw_shapes

DATASETS = ("shapes", "cifar10", "cifar100", "svhn", "folder")
SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000
TEST_FRACTION = 0.2  # of a folder without train/ and test/
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 50_000_000  # of one image file; a few kilobytes can unpack to gigabytes


@dataclass(frozen=True)
class Split:
    """Images with labels, all in memory.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,), indices into the classes; (N, k) for scenes of k objects.
        masks: bool (N, H, W), True on the object ((N, k, H, W) for k objects); None where the data set has none.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        """The images that a slice or an index tensor selects."""
        return Split(self.images[index], self.labels[index], None if self.masks is None else self.masks[index])


@dataclass(frozen=True)
class Data:
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
) -> Data:
    """Loads a data set into memory.

    Args:
        name: "shapes" (made by code, no download), "cifar10", "cifar100", "svhn" (needs scipy), or "folder":
            `root/train/<class>/*` and `root/test/<class>/*`, or only `root/<class>/*`, of which a seeded, stratified
            fifth becomes the test split.
        root: folder for downloads, or of one's own images.
        image_size: side of the square images in pixels, from 32 up; others are scaled (shorter side) and cropped.
        train_limit, test_limit: use at most so many images, balanced over the classes and chosen by the seed.
        seed: for the split and the limits, and for what "shapes" draws.
        download: whether CIFAR and SVHN may be downloaded.
        objects: only "shapes": 2 draws scenes of two objects, masks (N, 2, H, W) and labels (N, 2).

    Raises:
        ValueError: an unknown name, a number out of range, or a folder that cannot be used.
        TypeError: a number that is not whole.
        FileNotFoundError: a folder that is missing, or data that may not be downloaded.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: {closest(name, DATASETS)}")
    for label, value, least in (
        ("image_size", image_size, 32),
        ("train_limit", train_limit, 1),
        ("test_limit", test_limit, 1),
        ("objects", objects, 1),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{label} must be a whole number, not {value!r}")
        if value is not None and value < least:
            raise ValueError(f"{label} must be at least {least}, not {value}")
    if objects > 2 or (objects == 2 and name != "shapes"):
        raise ValueError(f"objects={objects}: only 'shapes' draws scenes of two objects, and no more than two")

    root, notes = Path(root).expanduser(), []
    if name == "shapes":
        classes = SHAPES
        train, test = (
            Split(*draw_shapes(size if limit is None else min(limit, size), image_size, 2 * seed + part, objects))
            for part, (size, limit) in enumerate(((SHAPES_TRAIN, train_limit), (SHAPES_TEST, test_limit)))
        )
    else:
        if name == "folder":
            classes, train, test, notes = _read_folder(root, image_size, seed)
        else:
            classes, train, test = _read_torchvision(name, root, download)
        train, test = (
            part if limit is None else part[stratified(part.labels, limit, seed)]
            for part, limit in ((train, train_limit), (test, test_limit))
        )
        if train.images.shape[-1] != image_size:
            train, test = (replace(part, images=_scale(part.images, image_size)) for part in (train, test))
    return Data(name, tuple(classes), train, test, *channel_statistics(train.images), tuple(notes))


def hold_out(data: Data, fraction: float, seed: int = 0) -> Data:
    """Replaces the test split by a seeded, stratified part of the training split: for choosing settings.

    Args:
        data: a data set; its test split is dropped, so that nothing can be chosen on it.
        fraction: part of the training images to hold out, in (0, 1).
        seed: of the choice.

    Raises:
        ValueError: a fraction that leaves one of the two parts empty.
    """
    count = round(len(data.train) * fraction)
    if not 0 < count < len(data.train):
        raise ValueError(f"validation={fraction} of {len(data.train)} images leaves one part empty: choose e.g. 0.1")
    held = stratified(data.train.labels, count, seed)
    kept = torch.ones(len(data.train), dtype=torch.bool)
    kept[held] = False
    train = data.train[kept.nonzero().squeeze(1)]
    mean, std = channel_statistics(train.images)
    return replace(data, train=train, test=data.train[held], mean=mean, std=std)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` samples, as equally over the classes as possible, chosen by the seed, in ascending order."""
    labels = labels.flatten(1)[:, 0] if labels.ndim > 1 else labels
    shuffled = torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable"))
    rank = torch.empty_like(shuffled)  # of a sample among those of its class
    for label in labels.unique():
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = torch.arange(len(of_class))
    order = shuffled[torch.argsort(rank[shuffled], stable=True)]
    return order[:count].sort().values


def channel_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel of uint8 images (N, 3, H, W), as for values in [0, 1].

    A channel without any variation gets the standard deviation 1/255, so that dividing by it stays harmless.
    """
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]).double()
    counts /= counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values
    std = (counts @ values**2 - mean**2).clamp_min(0).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _scale(images: Tensor, size: int) -> Tensor:
    """Square uint8 images (N, 3, S, S) to another size, in portions that bound the memory."""
    parts = [
        torch.nn.functional.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in images.split(1000)
    ]
    return torch.cat([part.round().clamp(0, 255).byte() for part in parts])


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
        splits = [Split(torch.from_numpy(part.data), torch.from_numpy(part.labels).long()) for part in parts]
        return [str(digit) for digit in range(10)], *splits
    splits = [
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    ]
    return parts[0].classes, *splits


def _read_folder(root: Path, size: int, seed: int) -> tuple[Sequence[str], Split, Split, list[str]]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_dir {str(root)!r} is not a folder (looked in {Path.cwd()}); "
            "it should hold train/<class>/* and test/<class>/*, or <class>/*"
        )
    notes = []
    parts = {part.name for part in _subfolders(root)} & {"train", "test"}
    if len(parts) == 1:
        missing = ({"train", "test"} - parts).pop()
        raise ValueError(f"{root} holds {parts.pop()}/ but no {missing}/; give both, or only one folder per class")
    if parts:
        classes = _class_names(root / "train")
        strangers = sorted(set(_class_names(root / "test")) - set(classes))
        if strangers:
            raise ValueError(f"{root / 'test'} has classes that train/ lacks: {', '.join(strangers)}")
        absent = sorted(set(classes) - set(_class_names(root / "test")))
        if absent:
            notes.append(f"no test images of: {', '.join(absent)}")
        train, train_digests = _read_classes(root / "train", classes, size)
        test, test_digests = _read_classes(root / "test", classes, size)
    else:
        classes = _class_names(root)
        everything, digests = _read_classes(root, classes, size)
        count = max(1, round(len(everything) * TEST_FRACTION))
        chosen = stratified(everything.labels, count, seed)
        kept = torch.ones(len(everything), dtype=torch.bool)
        kept[chosen] = False
        train, test = everything[kept.nonzero().squeeze(1)], everything[chosen]
        train_digests = [digest for digest, keep in zip(digests, kept.tolist(), strict=True) if keep]
        test_digests = [digests[i] for i in chosen.tolist()]
        notes.append(
            f"{root} has no train/ and test/: {len(test)} of {len(everything)} images were set aside for the test, "
            f"stratified, seed {seed}"
        )
    copies = sum(Counter(test_digests)[digest] for digest in set(train_digests) & set(test_digests))
    if copies:
        notes.append(f"{copies} test images are exact copies of training images: the test accuracy flatters")
    return classes, train, test, notes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith((".", "__")))


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _class_names(folder: Path) -> list[str]:
    names = [part.name for part in _subfolders(folder)]
    if not names:
        raise ValueError(f"{folder} has no sub-folders; put the images of each class into a folder with its name")
    if len(names) == 1 and folder.name != "test":
        raise ValueError(f"{folder} has one class only, {names[0]!r}; a classifier needs at least two")
    return names


def _read_classes(folder: Path, classes: Sequence[str], size: int) -> tuple[Split, list[bytes]]:
    files, labels = [], []
    for label, name in enumerate(classes):
        of_class = _image_files(folder / name) if (folder / name).is_dir() else []
        if not of_class and (folder / name).is_dir():
            raise ValueError(f"{folder / name} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        files += of_class
        labels += [label] * len(of_class)
    with ThreadPoolExecutor(max_workers=8) as pool:
        read = list(pool.map(lambda file: _read_image_file(file, size), files, chunksize=64))
    images = torch.from_numpy(np.stack([pixels for pixels, _ in read])).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(labels)), [digest for _, digest in read]


def _read_image_file(file: Path, size: int) -> tuple[np.ndarray, bytes]:
    content = file.read_bytes()
    try:
        image = open_image(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return np.asarray(crop_square(image, size)), blake2b(content, digest_size=16).digest()


def open_image(content: bytes) -> Image.Image:
    """Decodes an image file and brings it to RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits, of an animation the
    first frame is taken; grey, palette and CMYK images are converted.

    Raises:
        ValueError: not an image that Pillow can read, or one of more than 50 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are too many; at most {MAX_PIXELS:,} are read")
            image.load()
            image = ImageOps.exif_transpose(image)
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise what they like on broken files
        raise ValueError(f"not a readable image ({type(error).__name__}: {error})") from error
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if values.max(initial=0) > 255:
            values = values / 257
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def crop_square(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to `size` pixels and cuts out the middle square."""
    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))

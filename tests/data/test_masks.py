"""Pictures with masks of one's own: drawn objects pasted into photographs, written as files and measured."""

import numpy as np
import pytest
import torch
from PIL import Image

import ltpa
from ltpa.data.masks import load_masked_images
from ltpa.data.samples import photographs


def pasted(folder, size=64):
    """Write four photographs with a drawn object in each; return the pictures and the masks."""
    drawn, photos = ltpa.load_data("shapes", train_limit=1, test_limit=4, image_size=size).test, photographs(size)[0]
    images = torch.where(drawn.masks[:, None], drawn.images, photos.images)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(images, drawn.masks, strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "images" / f"photo{i}.png")
        Image.fromarray((255 * mask.numpy()).astype("uint8")).save(folder / "masks" / f"photo{i}.png")
    return images, drawn.masks


def test_pictures_and_masks_come_back_and_can_be_measured(tmp_path):
    images, masks = pasted(tmp_path)
    found = load_masked_images(tmp_path, size=64)
    assert torch.equal(found.images, images)
    assert torch.equal(found.masks, masks)
    assert found.names == ["photo0", "photo1", "photo2", "photo3"]
    scores = ltpa.metrics.localization(found.masks.float(), found.masks)
    assert (scores["average_precision"] == 1).all()
    center = ltpa.metrics.controls(4, (64, 64))["center"]
    assert ltpa.metrics.localization(center, found.masks)["average_precision"].mean() < 0.5


def test_masks_are_scaled_and_cropped_with_their_pictures(tmp_path):
    """An object that is a square of one color: after cropping and scaling, the mask lies where the color is."""
    for part in ("images", "masks"):
        (tmp_path / part / "sub").mkdir(parents=True)
    picture, mask = np.zeros((120, 200, 3), "uint8"), np.zeros((120, 200), "uint8")
    picture[30:90, 70:160, 0] = 255
    mask[30:90, 70:160] = 1
    Image.fromarray(picture).save(tmp_path / "images" / "sub" / "a.bmp")
    palette = Image.fromarray(mask, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(tmp_path / "masks" / "sub" / "a.png")
    Image.fromarray(picture).save(tmp_path / "images" / "b.jpg", quality=90)
    Image.fromarray(255 * mask).resize((100, 60), Image.Resampling.NEAREST).save(tmp_path / "masks" / "b.jpg")
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    found = load_masked_images(tmp_path, size=32)
    assert found.names == ["b", "sub/a"]
    for image, object_mask in zip(found.images, found.masks, strict=True):
        assert torch.equal(object_mask, image[0] > 127)
        assert object_mask.float().mean() == pytest.approx(60 * 90 / 120**2, abs=0.04)


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images does not exist; put pictures into images/"):
        load_masked_images(tmp_path)
    pasted(tmp_path)
    with pytest.raises(ValueError, match="size must be from 32 to 1024"):
        load_masked_images(tmp_path, size=8)
    mask = tmp_path / "masks" / "photo1.png"
    mask.rename(tmp_path / "masks" / "other.png")
    with pytest.raises(ValueError, match="without a counterpart: images/photo1, masks/other"):
        load_masked_images(tmp_path)
    Image.new("L", (64, 40)).save(mask)
    (tmp_path / "masks" / "other.png").unlink()
    with pytest.raises(ValueError, match=r"photo1.png has 64 x 40 pixels, and its picture 64 x 64"):
        load_masked_images(tmp_path)
    Image.new("L", (64, 64)).save(mask)
    with pytest.warns(UserWarning, match="1 mask of 4 without an object"):
        assert not load_masked_images(tmp_path).masks[1].any()
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"photo1.png: not a readable image"):
        load_masked_images(tmp_path)
    Image.new("L", (64, 64)).save(mask.with_suffix(".bmp"))
    with pytest.raises(ValueError, match="have the same name"):
        load_masked_images(tmp_path)

"""datasets_video.py: where the lists, frames and videos of a data set are found."""

import pytest
from synthetic import CATEGORIES, make_dataset

from datasets_video import check_template, return_dataset
from utils.cli import UserError


@pytest.mark.parametrize(
    ("dataset", "convention"), [("somethingv1", "trn"), ("somethingv2", "authors"), ("diving48", "trn")]
)
def test_both_list_conventions(tmp_path, dataset, convention):
    make_dataset(tmp_path, dataset, convention, train=2, val=1, frames=3)
    paths = return_dataset(dataset, str(tmp_path))
    home = tmp_path / dataset
    names = {"trn": ("train_videofolder.txt", "val_videofolder.txt"), "authors": ("train.txt", "valid.txt")}
    assert (paths.train_list, paths.val_list) == tuple(home / name for name in names[convention])
    assert paths.categories == list(CATEGORIES)
    assert (paths.root_data / "1" / paths.prefix.format(1)).is_file()
    # In the order of TRN-pytorch's tuple.
    assert tuple(paths)[3:5] == (paths.root_data, paths.prefix)


def test_lists_and_template_from_options(tmp_path):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    paths = return_dataset("somethingv1", tmp_path, "a.txt", "b.txt", "img_{:04d}.png")
    assert (str(paths.train_list), str(paths.val_list)) == ("a.txt", "b.txt")
    assert paths.prefix == "img_{:04d}.png"


def test_evaluation_needs_no_training_list(tmp_path):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    (tmp_path / "somethingv1" / "train_videofolder.txt").unlink()
    assert return_dataset("somethingv1", tmp_path, for_training=False).train_list is None
    with pytest.raises(UserError, match="--train_list"):
        return_dataset("somethingv1", tmp_path)


def test_two_validation_lists_are_ambiguous(tmp_path):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    (tmp_path / "somethingv1" / "valid.txt").write_text("1\t1\t0\n")
    with pytest.raises(UserError, match="val_videofolder.txt and valid.txt.*--val_list"):
        return_dataset("somethingv1", tmp_path)
    path = tmp_path / "somethingv1" / "valid.txt"
    assert return_dataset("somethingv1", tmp_path, val_list=str(path)).val_list == path


def test_missing_folders(tmp_path):
    with pytest.raises(UserError, match="somethingv1: no such folder; --root_path"):
        return_dataset("somethingv1", tmp_path)
    (tmp_path / "somethingv1").mkdir()
    with pytest.raises(
        UserError, match="somethingv1/20bn-something-something-v1 or .*/videos: no such folder"
    ):
        return_dataset("somethingv1", tmp_path)
    (tmp_path / "somethingv1" / "20bn-something-something-v1").mkdir()
    with pytest.raises(UserError, match=r"category\.txt: no such file"):
        return_dataset("somethingv1", tmp_path)


def test_templates():
    for template in ("{:05d}.jpg", "img_{:04d}.png", "{}.jpg", "a b{:03d}", "{:010d}.jpg"):
        assert check_template(template) == template


@pytest.mark.parametrize(
    "template", ["frame.jpg", "{:05d}{:05d}.jpg", "{name}.jpg", "{:05d.jpg", "{:.1g}.jpg", "../{:05d}.jpg"]
)
def test_wrong_templates(template):
    with pytest.raises(UserError, match="--image_tmpl"):
        check_template(template)

"""Folders of single slices: patients from the table, HU from the window, one clear line for each fault."""

import csv
import re
import zlib

import numpy as np
import pytest
from PIL import Image
from support.slices import WINDOW, make_slices, slice_of_tests, write_table

from kitsseg.data.formats.slices import (
    mirrored_masks,
    read_mask,
    read_masks,
    read_slice,
    read_slices,
    write_mask,
)
from kitsseg.data.layouts.find import Layout, find_cases
from kitsseg.data.layouts.slices import find_slices
from kitsseg.errors import InputError


@pytest.fixture
def folder(tmp_path):
    make_slices(tmp_path / "slices", patients=3)
    return tmp_path / "slices"


def table_of(folder):
    with (folder / "slices.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def change(folder, row=0, without=(), **values):
    """Write the table again with other values in a row, or without columns."""
    rows = table_of(folder)
    rows[row] |= values
    write_table(folder, [{key: value for key, value in each.items() if key not in without} for each in rows])


def items_of(folder, **layout):
    return find_slices(folder, Layout(**layout), need_labels=True)


def test_a_case_is_a_patient_with_all_slices(folder):
    cases = find_cases(folder, slices=True)
    assert [case.name for case in cases] == ["patient_0", "patient_1", "patient_2"]
    assert [[item.name for item in case.slices] for case in cases] == [
        [f"p{i}_0", f"p{i}_1"] for i in range(3)
    ]
    assert {item.patient for item in cases[1].slices} == {"patient_1"}


def test_commands_that_need_scans_refuse_slices(folder):
    with pytest.raises(InputError, match="whole scans, .*single slices"):
        find_cases(folder)


def test_gray_values_become_the_hu_of_the_window_and_masks_labels(tmp_path):
    made = make_slices(tmp_path / "slices", patients=1)
    for item in items_of(tmp_path / "slices"):
        gray, labels = made[item.name]
        np.testing.assert_array_equal(read_slice(item), -100 + 2 * gray.astype(int))
        np.testing.assert_array_equal(read_mask(item), labels)


def test_16_bits_span_the_window_too(folder):
    gray = np.array([[0, 13107], [39321, 65535]], np.uint16)
    Image.fromarray(gray).save(folder / "images" / "p0_0.png")
    # 65,535 / 510 HU = 128.5: 13,107 is a fifth, 39,321 three fifths of the window
    np.testing.assert_array_equal(read_slice(items_of(folder)[0]), [[-100, 2], [206, 410]])


def test_jpeg_is_read_and_gray_saved_as_rgb_is_gray(folder):
    gray, _ = slice_of_tests(0)
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(folder / "images" / "p0_0.png")
    np.testing.assert_array_equal(read_slice(items_of(folder)[0]), -100 + 2 * gray.astype(int))
    (folder / "images" / "p0_1.png").unlink()
    Image.fromarray(np.full((40, 48), 90, np.uint8)).save(folder / "images" / "p0_1.jpg")
    change(folder, 1, file="p0_1.jpg")
    np.testing.assert_array_equal(read_slice(items_of(folder)[1]), np.full((40, 48), 80))


def test_a_stack_has_the_pixel_spacing_of_its_images(folder):
    items = items_of(folder)[:2]
    image, labels = read_slices(items), read_masks(items)
    assert image.array.shape == labels.array.shape == (2, 40, 48)
    assert image.grid.spacing_mm[1:] == (0.8, 0.8)
    np.testing.assert_array_equal(image.array[1], read_slice(items[1]))


def test_other_mask_values_are_named_and_written_back(folder, tmp_path):
    _, labels = slice_of_tests(0)
    values = np.array([0, 128, 255], np.uint8)[labels]
    Image.fromarray(values).save(folder / "labels" / "p0_0.png")
    with pytest.raises(InputError, match=r"p0_0.png: .*found 0, 128, 255.*--mask-values 0,128,255"):
        read_mask(items_of(folder)[0])
    [item] = items_of(folder, mask_values=(0, 128, 255))[:1]
    np.testing.assert_array_equal(read_mask(item), labels)
    write_mask(tmp_path / "again.png", labels, (0, 128, 255))
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "again.png")), values)


def test_a_mask_saved_as_jpeg_names_the_reason(folder):
    (folder / "labels" / "p0_0.png").unlink()
    gray = np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8)
    Image.fromarray(gray).save(folder / "labels" / "p0_0.jpg")
    with pytest.raises(InputError, match=r"p0_0\.jpg: .* more\. JPEG.* PNG"):
        read_mask(items_of(folder)[0])


def test_a_mask_of_another_size_names_both(folder):
    Image.fromarray(np.zeros((40, 47), np.uint8)).save(folder / "labels" / "p1_0.png")
    with pytest.raises(InputError, match=r"p1_0.png: expected 40 x 48 pixels .* p1_0.png has, found 40 x 47"):
        read_masks(find_cases(folder, slices=True)[1].slices)


def test_colors_are_refused(folder):
    color = np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)
    Image.fromarray(color).save(folder / "images" / "p0_0.png")
    with pytest.raises(InputError, match=r"images.p0_0.png: expected a gray image .* color image \(RGB\)"):
        read_slice(items_of(folder)[0])
    Image.fromarray(color).save(folder / "labels" / "p0_1.png")
    with pytest.raises(InputError, match=r"labels.p0_1.png: .*color image \(RGB\)"):
        read_mask(items_of(folder)[1])


@pytest.mark.parametrize("bits", [8, 16])
def test_no_window_is_no_hu(folder, bits):
    Image.fromarray(np.ones((40, 48), f"u{bits // 8}")).save(folder / "images" / "p0_0.png")
    change(folder, without=("hu_low", "hu_high"))
    with pytest.raises(InputError, match=rf"p0_0.png: .*{bits} bits.*--hu-window LOW,HIGH.*slices.csv"):
        read_slice(items_of(folder)[0])
    assert read_slice(items_of(folder, hu_window=(0.0, 255.0))[0]).max() == (1 if bits == 8 else 0)


def test_a_window_that_contradicts_the_table_is_refused(folder):
    with pytest.raises(InputError, match=r"--hu-window 0,255: .*slices.csv says -100 to 410 for p0_0.png"):
        items_of(folder, hu_window=(0.0, 255.0))
    assert items_of(folder, hu_window=WINDOW)[0].hu_window == WINDOW


def test_no_patient_no_split(folder):
    change(folder, 3, patient="")
    with pytest.raises(InputError, match=r"slices.csv: expected a patient of p1_1.png"):
        find_cases(folder, slices=True)
    assert (
        find_slices(folder, Layout(), need_labels=False)[3].patient is None
    )  # to predict, nobody has to know


def test_without_a_table_the_message_says_which_columns_it_needs(folder):
    (folder / "slices.csv").unlink()
    for where in (folder, folder / "images"):
        with pytest.raises(InputError, match=r"slices.csv: missing; .*columns file and patient"):
            find_cases(where, slices=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"file": ""}, r"PNG or JPEG.* column file, found ''"),
        ({"file": "../p0_0.png"}, r"found '../p0_0.png'"),
        ({"file": "p9.png"}, r"images.p9.png: missing, but slices.csv names it"),
        ({"file": "p0_1.png"}, r"one row.* name, found p0_1\.png and p0_1\.png"),
        ({"patient": "../a"}, r"name a folder, found '\.\./a'"),
        (
            {"spacing_mm_rows": "x"},
            r"two numbers in spacing_mm_rows and spacing_mm_columns for p0_0.png, found 'x'",
        ),
        (
            {"spacing_mm_rows": "0"},
            r"p0_0.png: expected pixels of 0.1 to 30 mm .* found pixels of 0 x 0.8 mm",
        ),
        ({"patient": "a\0b"}, r"slices.csv: .*line 2 holds a NUL character"),
        ({"hu_high": ""}, r"two numbers in hu_low and hu_high for p0_0.png"),
        ({"hu_high": "nan"}, r"two numbers in hu_low and hu_high for p0_0.png"),
        ({"hu_high": "-100"}, r"p0_0.png: hu_low and hu_high: .* found -100 and -100"),
    ],
)
def test_a_bad_row_is_named(folder, values, words):
    change(folder, **values)
    with pytest.raises(InputError, match=words):
        find_cases(folder, slices=True)


def test_an_image_without_row_or_mask_is_named(folder):
    write_table(folder, table_of(folder)[1:])
    with pytest.raises(InputError, match=r"a row.* images, found none for p0_0\.png"):
        find_cases(folder, slices=True)
    (folder / "images" / "p0_0.png").unlink()
    (folder / "labels" / "p2_1.png").unlink()
    with pytest.raises(InputError, match=r"labels.p2_1.png: missing, the mask of .*p2_1.png"):
        find_cases(folder, slices=True)


def test_masks_may_lie_in_a_folder_called_masks_and_the_patient_be_called_case(folder):
    (folder / "labels").rename(folder / "masks")
    rows = [
        {("case" if key == "patient" else key): value for key, value in row.items()}
        for row in table_of(folder)
    ]
    write_table(folder, rows)
    assert find_cases(folder, slices=True)[0].slices[0].labels == folder / "masks" / "p0_0.png"


def test_a_damaged_file_and_one_of_another_kind_are_named(folder):
    whole = (folder / "images" / "p0_0.png").read_bytes()
    (folder / "images" / "p0_0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"images.p0_0.png: damaged"):
        read_slice(items_of(folder)[0])
    (folder / "labels" / "p0_0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"labels.p0_0\.png: damaged, .*PNG nor JPEG"):
        read_mask(items_of(folder)[0])


def test_slices_of_one_patient_are_of_one_size_and_different(folder):
    gray, _ = slice_of_tests(7, (40, 50))
    Image.fromarray(gray).save(folder / "images" / "p0_1.png")
    with pytest.raises(
        InputError, match=r"p0_1.png: expected 40 x 48 pixels of 0.8 x 0.8 mm .*found 40 x 50"
    ):
        read_slices(find_cases(folder, slices=True)[0].slices)
    Image.fromarray(slice_of_tests(0)[0]).save(folder / "images" / "p0_1.png", optimize=True)
    with pytest.raises(
        InputError, match=r"p0_1.png: the same image as p0_0.png, of the same patient patient_0"
    ):
        read_slices(find_cases(folder, slices=True)[0].slices)


def test_mirrored_masks_are_noticed_over_several_images():
    pairs = [slice_of_tests(seed) for seed in range(6)]
    images = [gray.astype(np.int16) for gray, _ in pairs]
    masks = [labels for _, labels in pairs]
    assert mirrored_masks(images, masks) is None
    for name, axes in (("left and right", 1), ("top and bottom", 0), ("both", (0, 1))):
        assert mirrored_masks(images, [np.flip(mask, axes) for mask in masks]) == name
    # nobody can tell: image and mask mirrored together, few images, masks without foreground
    assert mirrored_masks([image[:, ::-1] for image in images], [mask[:, ::-1] for mask in masks]) is None
    assert mirrored_masks(images[:3], [mask[:, ::-1] for mask in masks[:3]]) is None
    assert mirrored_masks(images, [np.zeros_like(mask) for mask in masks]) is None


def test_the_real_slices_are_read_and_fit_their_masks(real_data):
    folder = real_data / "kits19_slices"
    cases = find_cases(folder, slices=True, layout=Layout(hu_window=(0.0, 255.0)))
    items = [item for case in cases for item in case.slices]
    assert (len(cases), len(items)) == (28, 79)
    with (folder / "slices.csv").open(newline="") as file:
        pixels = {
            row["file"]: (int(row["kidney_pixels"]), int(row["tumor_pixels"])) for row in csv.DictReader(file)
        }
    some = items[::8]
    masks = [read_mask(item) for item in some]
    for item, mask in zip(some, masks, strict=True):
        assert ((mask == 1).sum(), (mask == 2).sum()) == pixels[item.image.name]
    images = [read_slice(item) for item in some]
    assert all(image.min() >= 0 and image.max() <= 255 for image in images)
    assert mirrored_masks(images, masks) is None
    assert mirrored_masks(images, [mask[:, ::-1] for mask in masks]) == "left and right"
    assert mirrored_masks(images, [mask[::-1] for mask in masks]) == "top and bottom"


@pytest.mark.parametrize(("rows", "columns"), [(20000, 20000), (9500, 9500), (1, 90_000_000)])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_an_image_that_unpacks_to_a_billion_pixels_is_refused(folder, kind, rows, columns):
    """A PNG of a kilobyte whose header promises more than any slice has."""
    path = folder / kind / "p0_0.png"
    whole = path.read_bytes()
    head = b"IHDR" + columns.to_bytes(4, "big") + rows.to_bytes(4, "big") + whole[24:29]
    path.write_bytes(whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:])
    read = read_slice if kind == "images" else read_mask
    with pytest.raises(InputError, match=rf"{kind}.p0_0\.png: damaged, .*PNG nor JPEG .*pixels"):
        read(items_of(folder)[0])


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (0.0008, 0.0008, r"found pixels of 0\.0008 x 0\.0008 mm\. .*meters: multiply them by 1000"),
        (0.08, 0.08, r"found pixels of 0\.08 x 0\.08 mm\. .*centimeters: multiply them by 10"),
        (800, 800, r"micrometers: multiply them by 0\.001"),
        (5000, 5000, r"found pixels of 5000 x 5000 mm\. .*micrometers"),
        (1e9, 1e9, r"found pixels of 1e\+09 x 1e\+09 mm\. Correct them"),
        (-0.8, 0.8, r"found pixels of -0\.8 x 0\.8 mm\. Correct them"),
        (5, 50, r"found pixels of 5 x 50 mm\. Correct them"),
        (0.8, 5, r"nearly square pixels, .*found pixels of 0\.8 x 5 mm"),
        (2.1, 1, "nearly square pixels"),
    ],
)
def test_pixels_that_no_patient_has_are_refused_as_voxels_are(folder, rows, columns, words):
    change(folder, 2, spacing_mm_rows=rows, spacing_mm_columns=columns)
    for need_labels in (True, False):
        with pytest.raises(InputError) as caught:
            find_slices(folder, Layout(), need_labels)
        assert str(caught.value).startswith(f"{folder / 'slices.csv'}, p1_0.png: expected ")
        assert re.search(words, str(caught.value))


@pytest.mark.parametrize(("rows", "columns"), [(0.1, 0.1), (0.44, 0.44), (30, 30), (0.8, 1.2), (2.0, 1.0)])
def test_pixels_of_a_ct_are_read(folder, rows, columns):
    for row in range(2):
        change(folder, row, spacing_mm_rows=rows, spacing_mm_columns=columns)
    assert read_slices(items_of(folder)[:2]).grid.spacing_mm[1:] == (rows, columns)


def test_an_image_longer_than_a_patient_is_named(folder):
    for row in range(2):
        Image.fromarray(np.zeros((40, 200), np.uint8)).save(folder / "images" / f"p0_{row}.png")
        change(folder, row, spacing_mm_rows=20, spacing_mm_columns=20)
    with pytest.raises(InputError, match=r"p0_0.png: .* at most 3000 mm long, .* an image of 800 x 4000 mm"):
        read_slices(items_of(folder)[:2])


@pytest.mark.parametrize(
    ("low", "high"), [(-1e9, 1e9), (-40000, 240), (0, 70000), (240, -160), (0, 0), (-1e300, 1e300)]
)
def test_a_window_beyond_all_hu_is_refused(folder, low, high):
    with pytest.raises(InputError, match=r"--hu-window: .*HU from -32768 to 65535, the lower"):
        Layout(hu_window=(low, high))
    change(folder, hu_low=low, hu_high=high)
    with pytest.raises(InputError, match=r"slices.csv, p0_0.png: hu_low and hu_high: expected two HU"):
        items_of(folder)


@pytest.mark.parametrize(("low", "high"), [(-32768, 65535), (-1024, 3071), (-160, 240), (0, 1)])
def test_a_window_of_hu_is_taken(folder, low, high):
    change(folder, hu_low=low, hu_high=high)
    assert items_of(folder)[0].hu_window == (low, high)


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF"])
def test_several_pictures_in_one_file_are_refused(folder, kind, form):
    path = folder / kind / "p0_0.png"
    first = Image.open(path)
    first.load()
    first.save(path, form, save_all=True, append_images=[first.rotate(90)])
    read = read_slice if kind == "images" else read_mask
    with pytest.raises(InputError, match=rf"{kind}.p0_0.png: expected one image, found 2 in one file"):
        read(items_of(folder)[0])


def test_an_animation_of_one_picture_is_an_image(folder):
    path = folder / "images" / "p0_0.png"
    before = read_slice(items_of(folder)[0])
    Image.open(path).save(path, save_all=True)
    np.testing.assert_array_equal(read_slice(items_of(folder)[0]), before)

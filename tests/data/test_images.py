"""Reading, cropping and writing pictures, against Pillow called directly, closed forms and pixels by hand."""

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from adm.data import center_crop, decode, grid, open_dataset, png_bytes, random_crop, save_png, to_model_range, to_uint8
from adm.data._image_file import MAX_ASPECT
from adm.data._images import Unreadable, open_image, scaled_for_random_crop
from adm.runtime.errors import DataError, ResourceError, UsageError


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def scaled_as_released(image, shorter):
    """The released scaling for squares, in terms of the shorter side."""
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * shorter:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    factor = shorter / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return np.array(picture.resize(size, Image.Resampling.BICUBIC))


# --- crops --------------------


def test_halvings_are_means_of_pairs():
    """64 -> 16 needs only BOX: rounded means of neighbours, first along rows, then along columns."""
    image = noise(64, 64)
    expected = image.astype(int)
    for _ in range(2):
        expected = (expected[:, ::2] + expected[:, 1::2] + 1) // 2
        expected = (expected[::2] + expected[1::2] + 1) // 2
    assert np.array_equal(center_crop(image, 16), expected)


def test_center_crop_is_the_documented_sequence():
    """100 x 75 to 16: halved to 50 x 37 and 25 x 18, then BICUBIC to 22 x 16, then 3 columns off the left."""
    image = noise(75, 100)
    picture = Image.fromarray(image)
    picture = picture.resize((50, 37), Image.Resampling.BOX).resize((25, 18), Image.Resampling.BOX)
    picture = picture.resize((22, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(center_crop(image, 16), np.array(picture)[:, 3:19])


@pytest.mark.parametrize("shape", [(7, 9), (16, 16), (31, 33), (32, 90), (65, 64), (200, 129)])
@pytest.mark.parametrize("size", [8, 16, 31])
def test_square_center_crops_are_the_released_ones(shape, size):
    image = noise(*shape)
    scaled = scaled_as_released(image, size)
    top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
    assert np.array_equal(center_crop(image, size), scaled[top : top + size, left : left + size])


@pytest.mark.parametrize("size", [(8, 8), (13, 29)])
def test_an_image_of_the_wanted_size_is_not_touched(size):
    image = noise(*size)
    assert center_crop(image, size) is image


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(16, 48), (48, 16), (20, 20), (1, 1)])
def test_crops_have_the_wanted_size_and_treat_channels_alike(size, channels):
    """Each channel is cropped as a grey image would be."""
    image = noise(50, 70, channels)
    crops = center_crop(image, size), random_crop(image, size, (0.7, 0.9, 0.9))
    alone = [
        np.concatenate(planes, axis=2)
        for planes in zip(
            *(
                (center_crop(image[:, :, [c]], size), random_crop(image[:, :, [c]], size, (0.7, 0.9, 0.9)))
                for c in range(channels)
            ),
            strict=True,
        )
    ]
    for crop, expected in zip(crops, alone, strict=True):
        assert crop.shape == (*size, channels)
        assert np.array_equal(crop, expected)


def test_non_square_crops_keep_the_aspect_of_things():
    """A vertical grey ramp stays one: 120 x 40 to 32 x 48 scales by 1.2 and keeps rows 56..88 of 144."""
    ramp = np.broadcast_to(np.arange(120, dtype=np.uint8)[:, None, None] * 2, (120, 40, 1))
    rows = center_crop(ramp, (32, 48))[:, :, 0]
    expected = ((56 + np.arange(32) + 0.5) / 1.2 - 0.5) * 2
    assert np.abs(rows - expected[:, None]).max() <= 1


@pytest.mark.parametrize(("u", "shorter"), [(0.0, 16), (0.19, 16), (0.21, 17), (0.5, 18), (0.79, 19), (0.999, 20)])
def test_random_crop_scales_the_shorter_side_to_16_up_to_20(u, shorter):
    """Sides ceil(16 / 1) .. ceil(16 / 0.8), each with probability 1/5; then any window."""
    image = noise(90, 75)
    scaled = scaled_as_released(image, shorter)
    assert np.array_equal(random_crop(image, 16, (u, 0, 0)), scaled[:16, :16])
    last_top, last_left = scaled.shape[0] - 16, scaled.shape[1] - 16
    end = random_crop(image, 16, (u, 1 - 1e-12, 1 - 1e-12))
    assert np.array_equal(end, scaled[last_top:, last_left:])


def test_every_window_of_a_random_crop_is_equally_likely():
    """On a ramp of columns that is not scaled the crop's first column says where it was taken."""
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[None, :, None], (16, 24, 1))
    left = [int(random_crop(ramp, 16, (0, 0.5, (k + 0.5) / 900))[0, 0, 0]) for k in range(900)]
    assert np.bincount(left).tolist() == [100] * 9


@pytest.mark.parametrize("size", [16, (16, 24), (24, 16)])
@pytest.mark.parametrize("shape", [(20, 20), (17, 90), (30, 45), (200, 150)])
def test_scaling_ahead_of_random_crops_leaves_their_places_and_scales(size, shape):
    """Never enlarged; what was not scaled gives the same crops; the largest that can be drawn is the same, too."""
    image = noise(*shape)
    scaled = scaled_for_random_crop(image, size)
    assert scaled.shape[0] <= shape[0] and scaled.shape[1] <= shape[1]
    largest = 0.999, 0.5, 0.5
    assert np.array_equal(random_crop(scaled, size, largest), random_crop(image, size, largest))
    if scaled.shape == image.shape:
        assert np.array_equal(random_crop(scaled, size, (0.1, 0.3, 0.7)), random_crop(image, size, (0.1, 0.3, 0.7)))
    else:  # a side is the longest that is drawn: ceil(16 / 0.8) = 20, for 24 of 16 x 24 then 30
        sides = {16: (20, 20), (16, 24): (20, 30), (24, 16): (30, 20)}[size]
        assert scaled.shape[0] == sides[0] or scaled.shape[1] == sides[1]


@pytest.mark.parametrize("size", [0, (8, 0)])
def test_sizes_below_one_pixel_are_refused(size):
    with pytest.raises(UsageError, match="at least 1 pixel"):
        center_crop(noise(8, 8), size)


# --- the model's range --------------------


def test_model_range_is_float32_nchw():
    images = noise(2, 3, 4)[None]
    x = to_model_range(images)
    assert x.dtype == torch.float32 and x.shape == (1, 4, 2, 3) and x.is_contiguous()
    assert np.array_equal(x.numpy(), (images.astype(np.float32) / np.float32(127.5) - 1).transpose(0, 3, 1, 2))


def test_uint8_truncates_as_released():
    x = torch.tensor([-2, -1, -0.9961, 0, 0.5, 0.999, 1, 3.0]).reshape(1, 1, 1, -1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 0, 127, 191, 254, 255, 255]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_truncation_takes_some_values_one_down_and_none_further():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    back = to_uint8(to_model_range(values)).numpy().astype(int)
    assert set((values - back).flatten()) == {0, 1}
    exact = to_uint8(to_model_range(values).double() + 1e-6).numpy()
    assert np.array_equal(exact, values)


# --- decoding --------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("from_file", [True, False])
def test_lossless_files_come_back(format, from_file, tmp_path):
    image = noise(5, 7)
    data = encoded(Image.fromarray(image), format, **({"lossless": True} if format == "WEBP" else {}))
    (tmp_path / "image.txt").write_bytes(data)
    assert np.array_equal(decode(tmp_path / "image.txt" if from_file else data), image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_exif_orientation_is_applied(orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = {
        "RGB": noise(2, 3),
        "L": noise(2, 3, 1)[..., 0],
        "I;16": noise(2, 3, 1)[..., 0].astype(np.uint16) * 257,
    }
    data = encoded(Image.fromarray(pixels[mode]), exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data).squeeze(), upright // 257 if mode == "I;16" else upright)


def test_a_picture_taken_upright_with_the_camera_turned_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    image = noise(2, 3)
    assert np.array_equal(decode(encoded(Image.fromarray(image), exif=exif)), np.rot90(image, -1))


def test_damaged_exif_does_not_cost_the_image():
    image = noise(2, 3)
    assert np.array_equal(decode(encoded(Image.fromarray(image), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), image)


def test_16_bit_grey_is_scaled_and_rounded():
    """All 65,536 values: the nearest of 0..255 times 257, not the clip at 255 of convert("L")."""
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = decode(encoded(Image.fromarray(wide)))
    assert grey.shape == (256, 256, 1)
    assert np.array_equal(grey[..., 0], np.round(wide / 257))
    assert np.array_equal(decode(encoded(Image.fromarray(wide)), 3), np.repeat(grey, 3, axis=2))


def test_transparency_is_laid_on_white():
    """c a + 255 (1 - a), rounded; the colour hidden under alpha 0 does not show."""
    rgba = np.array([[[255, 0, 0, 0], [0, 0, 0, 128], [10, 200, 30, 255], [100, 50, 0, 51]]], np.uint8)
    expected = [[[255, 255, 255], [127, 127, 127], [10, 200, 30], [224, 214, 204]]]
    assert decode(encoded(Image.fromarray(rgba))).tolist() == expected
    grey = np.array([[[0, 0], [0, 128], [77, 255]]], np.uint8)
    assert decode(encoded(Image.fromarray(grey, "LA"))).tolist() == [[[255], [127], [77]]]


def test_every_grey_and_alpha_is_laid_on_white_to_the_nearest_level():
    grey, alpha = np.meshgrid(np.arange(256), np.arange(256))
    data = encoded(Image.fromarray(np.stack([grey, alpha], axis=2).astype(np.uint8), "LA"))
    assert np.abs(decode(data)[..., 0] - (grey * alpha / 255 + 255 - alpha)).max() < 0.5


def test_a_transparent_colour_is_white():
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert decode(encoded(Image.fromarray(rgb), transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]
    grey = np.array([[7, 8]], np.uint8)
    assert decode(encoded(Image.fromarray(grey), transparency=7)).tolist() == [[[255], [8]]]
    wide = np.array([[0, 257, 514]], np.uint16)
    assert decode(encoded(Image.fromarray(wide), transparency=257)).tolist() == [[[0], [255], [2]]]


def test_palettes_become_colours_and_their_transparent_entries_white():
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    assert decode(encoded(palette)).tolist() == [[[10, 20, 30], [200, 0, 0], [0, 0, 250]]]
    assert decode(encoded(palette, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255], [0, 0, 250]]]
    some = encoded(palette, transparency=bytes([255, 0, 128]))
    assert decode(some).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 252]]]
    palette.putpalette([5, 5, 5, 9, 9, 9, 0, 0, 0])
    assert decode(encoded(palette)).tolist() == [[[5], [9], [0]]]


def test_cmyk_becomes_rgb():
    """No ink is white, full cyan has no red, full black is black (a JPEG is exact to a level or two)."""
    inks = np.zeros((8, 24, 4), np.uint8)
    inks[:, 8:16, 0] = inks[:, 16:, 3] = 255
    rgb = decode(encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)).astype(int)
    expected = np.repeat(np.array([[[255] * 3, [0, 255, 255], [0] * 3]]), 8, axis=1)
    assert rgb.shape == (8, 24, 3) and np.abs(rgb - expected).max() <= 3


def flat_jpeg(stored, transform):
    """A JPEG of one 8 x 8 block whose four components have these values, with Adobe's marker of that transform.

    At quality 100 a flat block is exact: its only coefficient is 8 (v - 128), and quantised by 1.
    """
    data = encoded(Image.new("CMYK", (8, 8), tuple(255 - v for v in stored)), "JPEG", quality=100, subsampling=0)
    at = data.index(b"Adobe") + 11
    assert data[at] in (0, 2)
    return data[:at] + bytes([transform]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("stored", "rgb"),
    [
        ((255, 255, 255, 255), (255, 255, 255)),  # no ink
        ((0, 255, 255, 255), (0, 255, 255)),  # cyan
        ((255, 255, 255, 0), (0, 0, 0)),  # black
        ((155, 205, 255, 255), (155, 205, 255)),
        ((155, 205, 255, 204), (124, 164, 204)),  # 204 / 255 = 0.8 of the light
    ],
)
def test_adobe_stores_inks_inverted(stored, rgb):
    """What is stored is 255 - ink, so R = stored C x stored K / 255."""
    assert decode(flat_jpeg(stored, 0)).tolist() == [[list(rgb)] * 8] * 8


def test_ycck_is_inks_in_other_coordinates():
    """Y = 200, Cb = Cr = 128 says that C = M = Y = 255 - 200; inverted as Adobe does, R = (255 - 200) K / 255."""
    assert decode(flat_jpeg((200, 128, 128, 255), 2)).tolist() == [[[55, 55, 55]] * 8] * 8
    assert decode(flat_jpeg((200, 128, 128, 51), 2)).tolist() == [[[11, 11, 11]] * 8] * 8


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width, height, depth, colour, rows, *more):
    """A PNG by its definition: each row begins with filter 0; samples of 16 bits are big-endian."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + chunk(b"IEND", b"")


def test_pngs_by_their_definition():
    """Every kind of PNG, from its bytes: (depth, colour type, row, other chunks) and the pixels that they mean."""
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 0, 0]))
    greys = chunk(b"PLTE", bytes([7, 7, 7, 9, 9, 9]))
    transparent = chunk(b"tRNS", bytes([3, 3, 4, 4, 5, 5]))
    table = [
        (1, 0, b"\x40", (), [[0], [255]]),
        (2, 0, b"\x60", (), [[85], [170]]),
        (4, 0, b"\x1e", (), [[17], [238]]),
        (8, 0, b"\x07\x08", (), [[7], [8]]),
        (8, 0, b"\x07\x08", (chunk(b"tRNS", b"\0\x07"),), [[255], [8]]),
        (8, 0, b"\x07\x08", (chunk(b"tRNS", b"\1\x07"),), [[255], [8]]),  # the lower bits count
        (2, 0, b"\x60", (chunk(b"tRNS", b"\0\2"),), [[85], [255]]),
        (2, 0, b"\x60", (chunk(b"tRNS", b"\0\x55"),), [[255], [170]]),
        (4, 0, b"\x1e", (chunk(b"tRNS", b"\0\x0e"),), [[17], [255]]),
        (16, 0, struct.pack(">HH", 128, 129), (), [[0], [1]]),
        (16, 0, struct.pack(">HH", 385, 65535), (), [[1], [255]]),
        (16, 0, struct.pack(">HH", 386, 0), (chunk(b"tRNS", struct.pack(">H", 386)),), [[255], [0]]),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), (), [[1, 2, 3], [4, 5, 6]]),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), (chunk(b"tRNS", b"\0\4\0\5\0\6"),), [[1, 2, 3], [255] * 3]),
        (16, 2, struct.pack(">6H", 0, 255, 256, 511, 512, 65535), (), [[0, 0, 1], [1, 2, 255]]),
        (16, 2, struct.pack(">6H", *(v * 257 for v in range(6))), (transparent,), [[0, 1, 2], [255] * 3]),
        (1, 3, b"\x40", (palette,), [[10, 20, 30], [200, 0, 0]]),
        (8, 3, b"\x01\x00", (palette, chunk(b"tRNS", b"\xff\0")), [[255] * 3, [10, 20, 30]]),
        (8, 3, b"\x01\x00", (greys,), [[9], [7]]),
        (8, 4, bytes([0, 51, 9, 255]), (), [[204], [9]]),
        (16, 4, struct.pack(">4H", 0, 51 * 256 + 7, 9 * 256, 65535), (), [[204], [9]]),
        (8, 6, bytes([0, 100, 255, 51, 1, 2, 3, 0]), (), [[204, 224, 255], [255] * 3]),
        (16, 6, struct.pack(">8H", 0, 25600, 65535, 51 << 8, 256, 512, 768, 65535), (), [[204, 224, 255], [1, 2, 3]]),
    ]
    for depth, colour, row, more, pixels in table:
        assert decode(png_of(2, 1, depth, colour, [row], *more)).tolist() == [pixels], (depth, colour, row)


UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("place", ["before the pixels", "behind the pixels", "as XMP"])
def test_orientations_are_those_of_exif(orientation, place):
    """2: mirrored left to right; 3: by 180 degrees; 4: top to bottom; 5 to 8 exchange rows and columns (EXIF 2.32)."""
    exif = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1" + struct.pack(">HH", orientation, 0) + bytes(4)
    description = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    told = chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + description) if place == "as XMP" else chunk(b"eXIf", exif)
    rows = [bytes([1, 2, 3]), bytes([4, 5, 6])]
    data = png_of(3, 2, 8, 0, rows, told)
    if place == "behind the pixels":
        data = png_of(3, 2, 8, 0, rows).replace(chunk(b"IEND", b""), told + chunk(b"IEND", b""))
    assert decode(data)[:, :, 0].tolist() == UPRIGHT[orientation]


def test_large_images_are_converted_as_small_ones():
    """What is converted in bands of rows is what is converted at once."""
    rgba = noise(1500, 1300, 4)
    opaque, alpha = rgba[:, :, :3].astype(int), rgba[:, :, 3:].astype(int)
    expected = np.floor((opaque * alpha + 255 * (255 - alpha)) / 255 + 0.5)
    assert np.array_equal(decode(encoded(Image.fromarray(rgba), compress_level=1)), expected)
    wide = np.random.default_rng(1).integers(0, 65536, (1500, 1300), np.uint16)
    assert np.array_equal(decode(encoded(Image.fromarray(wide), compress_level=1))[:, :, 0], np.round(wide / 257))
    rgb = np.ascontiguousarray(rgba[:, :, :3])
    assert np.array_equal(decode(encoded(Image.fromarray(rgb), compress_level=1)), rgb)


def test_texts_and_profiles_of_any_size_are_left_alone():
    image = noise(4, 5)
    data = encoded(Image.fromarray(image))
    bomb = zlib.compress(bytes(10**8))
    for kind, begin in (b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"name\0\0"):
        assert np.array_equal(decode(data[:33] + chunk(kind, begin + bomb) + data[33:]), image)


def test_one_bit_is_black_and_white():
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    assert decode(encoded(bits)).tolist() == [[[0], [255], [255]]]


def test_channels_can_be_asked_for():
    """To grey by luma .299 R + .587 G + .114 B; to RGB by repeating."""
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    assert decode(encoded(Image.fromarray(rgb)), 1).tolist() == [[[76], [150], [29], [9]]]
    assert decode(encoded(Image.fromarray(rgb[..., 0])), 3).tolist() == [[[255] * 3, [0] * 3, [0] * 3, [9] * 3]]
    with pytest.raises(UsageError, match="channels 4"):
        decode(encoded(Image.fromarray(rgb)), 4)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def webp_of(width, height):
    """A WEBP whose header claims a canvas of this size, for one small frame."""
    lossy = encoded(Image.fromarray(noise(4, 4)), "WEBP")[12:]
    extended = struct.pack("<4sIB3x", b"VP8X", 10, 2) + b"".join((n - 1).to_bytes(3, "little") for n in (width, height))
    frame = struct.pack("<4sI6x", b"ANMF", 16 + len(lossy)) + bytes([3, 0, 0, 3, 0, 0, 0, 0, 0, 0]) + lossy
    body = b"WEBP" + extended + struct.pack("<4sI6x", b"ANIM", 6) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def of_12_bits():
    """The header of a JPEG of 12 bits, as of medical images."""
    data = encoded(Image.fromarray(noise(8, 8)), "JPEG")
    at = data.index(b"\xff\xc0") + 4
    return data[:at] + b"\x0c" + data[at + 1 :]


ANIMATION = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
HOSTILE = {
    "text": (b"hello", "not a PNG, JPEG, WEBP or BMP"),
    "nothing": (b"", "empty file"),
    "gif": (encoded(ANIMATION[0], "GIF"), "not a PNG"),
    "truncated png": (encoded(Image.fromarray(noise(40, 40)))[:2000], "truncated"),
    "truncated jpeg": (encoded(Image.fromarray(noise(40, 40)), "JPEG")[:900], "truncated"),
    "many pixels": (png_header(9000, 8000), "9000x8000 is more than 67108864 pixels"),
    "more pixels": (png_header(12000, 12000), "more than 67108864 pixels"),
    "most pixels": (png_header(60000, 60000), "more than 67108864 pixels"),
    "a webp's pixels": (webp_of(8192, 4097), "8192x4097 is more than 33554432 pixels"),
    "12 bits": (of_12_bits(), "a JPEG that is damaged, or of a kind that is not read"),
    "long": (png_header(1, 20000), f"1x20000 is longer than {MAX_ASPECT}:1"),
    "animated webp": (
        encoded(ANIMATION[0], "WEBP", save_all=True, append_images=ANIMATION[1:]),
        "animated, 2 frames",
    ),
    "animated png": (
        encoded(ANIMATION[0], "PNG", save_all=True, append_images=ANIMATION[1:]),
        "animated, 2 frames",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_used_is_refused_with_its_reason(case):
    data, reason = HOSTILE[case]
    with pytest.raises(Unreadable, match=reason):
        open_image(data)
    with pytest.raises(DataError, match=r"image data cannot be read \(.*\): replace or remove it") as error:
        decode(data)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_opened_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    for name, reason in [
        ("gone.png", "no such file"),
        ("empty.png", "empty file"),
        (".", "not a regular file"),
    ]:
        with pytest.raises(DataError, match=reason) as error:
            decode(tmp_path / name)
        assert name.strip(".") in str(error.value)


# --- writing --------------------


def test_a_grid_holds_each_image_at_its_place():
    images = noise(5 * 4, 3, 3).reshape(5, 4, 3, 3)
    picture = grid(torch.from_numpy(images), columns=3, pad=2)
    assert picture.shape == (2 * (4 + 2) + 2, 3 * (3 + 2) + 2, 3)
    covered = np.zeros(picture.shape[:2], bool)
    for k, image in enumerate(images):
        row, column = 2 + k // 3 * 6, 2 + k % 3 * 5
        at = np.s_[row : row + 4, column : column + 3]
        assert np.array_equal(picture[at], image)
        covered[at] = True
    assert (picture[~covered] == 255).all()


def test_a_grid_can_enlarge_by_repeating_pixels():
    image = noise(2, 2, 1)[None]
    picture = grid(image, pad=0, scale=3)
    assert np.array_equal(picture, np.kron(image[0, :, :, 0], np.ones((3, 3), np.uint8))[:, :, None])


@pytest.mark.parametrize("channels", [1, 3])
def test_pngs_are_exact_and_repeat(channels, tmp_path):
    image = noise(6, 5, channels)
    save_png(tmp_path / "a.png", image)
    assert (tmp_path / "a.png").read_bytes() == png_bytes(torch.from_numpy(image)) == png_bytes(image.copy())
    assert np.array_equal(decode(tmp_path / "a.png"), image)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 1)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)])
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(UsageError, match="a PNG of"):
        png_bytes(wrong)
    with pytest.raises(UsageError, match="a grid of"):
        grid(wrong)


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.EMFILE, ResourceError), (errno.ENFILE, ResourceError), (errno.ENOMEM, MemoryError)]
)
def test_what_the_machine_lacks_is_no_fault_of_the_image(number, raised, tmp_path, monkeypatch):
    """Or it would be left out in silence by data.skip_bad."""
    save_png(tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8))

    real = type(tmp_path).open

    def lacking(path, *words, **more):
        if path.suffix == ".png":
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *words, **more)

    monkeypatch.setattr(type(tmp_path), "open", lacking)
    with pytest.raises(raised):
        decode(tmp_path / "a.png")
    with pytest.raises(raised):
        open_dataset(str(tmp_path), skip_bad=True)

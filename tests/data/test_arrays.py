"""Files that know their checksum: what went in comes out, anything else is refused with the file's name."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprolib.data.arrays import array_text, checksum, pack_arrays, text_array, unpack_arrays
from reprolib.data.files import DataCorrupted

ARRAYS = {"images": np.arange(48, dtype=np.uint8).reshape(2, 3, 4, 2), "names": text_array("Änne\nBo\n")}
SHAPES = {"images": (None, 3, 4, 2), "names": (None,)}
RAW = pack_arrays(ARRAYS)


def test_arrays_come_back_without_a_copy():
    found, digest = unpack_arrays(RAW, "F", SHAPES)
    assert list(found) == ["images", "names"] and digest == checksum(ARRAYS)
    assert all(np.array_equal(found[key], ARRAYS[key]) for key in ARRAYS)
    assert not found["images"].flags.writeable and not found["images"].flags.owndata
    assert array_text(found["names"], "F") == "Änne\nBo\n"
    assert pack_arrays(ARRAYS) == RAW


def test_numpy_reads_the_file_too(tmp_path):
    (tmp_path / "a.npz").write_bytes(RAW)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert sorted(stored) == ["images", "names", "sha256"]
        assert np.array_equal(stored["images"], ARRAYS["images"])
        assert stored["sha256"].tobytes().hex() == checksum(ARRAYS)


def test_the_checksum_heeds_names_shapes_types_and_bytes_but_not_the_order():
    array = np.arange(6, dtype=np.uint8)
    variants = [
        {"a": array, "b": array},
        {"a": array, "c": array},
        {"a": array.reshape(2, 3), "b": array},
        {"a": array.view(np.int8), "b": array},
        {"a": array[::-1], "b": array},
        {"a": array},
    ]
    assert len({checksum(variant) for variant in variants}) == len(variants)
    assert checksum({"b": array, "a": array}) == checksum(variants[0])


def saved(save=np.savez, **arrays) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


DIGEST = np.frombuffer(bytes.fromhex(checksum(ARRAYS)), np.uint8)
OTHER = {
    "a bomb": saved(np.savez_compressed, images=np.zeros((2**21, 3, 4, 2), np.uint8), names=DIGEST, sha256=DIGEST),
    "an array less": saved(images=ARRAYS["images"], sha256=DIGEST),
    "no checksum": saved(**ARRAYS),
    "wrong checksum": saved(**ARRAYS, sha256=DIGEST[::-1]),
    "short checksum": saved(**ARRAYS, sha256=DIGEST[:31]),
    "floats": saved(images=ARRAYS["images"].astype(np.float32), names=ARRAYS["names"], sha256=DIGEST),
    "objects": saved(images=np.array([print], dtype=object), names=ARRAYS["names"], sha256=DIGEST),
    "another shape": saved(images=ARRAYS["images"][:, :, :2], names=ARRAYS["names"], sha256=DIGEST),
    "fewer dimensions": saved(images=ARRAYS["images"][0], names=ARRAYS["names"], sha256=DIGEST),
    "fortran order": saved(images=np.asfortranarray(ARRAYS["images"]), names=ARRAYS["names"], sha256=DIGEST),
    "text": b"no archive",
    "empty": b"",
}


@pytest.mark.parametrize("kind", OTHER)
def test_other_files_are_refused(kind):
    with pytest.raises(DataCorrupted, match=r"the a\.npz"):
        unpack_arrays(OTHER[kind], "the a.npz", SHAPES)


def test_compressed_and_further_arrays_do_no_harm():
    found, digest = unpack_arrays(saved(np.savez_compressed, **ARRAYS, sha256=DIGEST, more=DIGEST), "F", SHAPES)
    assert digest == checksum(ARRAYS) and all(np.array_equal(found[key], ARRAYS[key]) for key in ARRAYS)


def test_a_header_with_absurd_sizes_is_refused():
    huge = RAW.replace(b"'shape': (2, 3, 4, 2), ", b"'shape': (2, 3, 4, -2),")
    with pytest.raises(DataCorrupted, match="images"):
        unpack_arrays(huge, "F", SHAPES)
    huge = RAW.replace(b"(2, 3, 4, 2), }      ", b"(2000000, 3, 4, 2), }")
    assert huge != RAW and len(huge) == len(RAW)
    with pytest.raises(DataCorrupted, match="images"):
        unpack_arrays(huge, "F", SHAPES)


@given(position=st.integers(0, len(RAW) - 1), change=st.integers(0, 255))
def test_a_truncated_or_altered_file_is_never_used(position, change):
    altered = bytearray(RAW)
    altered[position] ^= change
    try:
        found, digest = unpack_arrays(bytes(altered) if change else RAW[:position], "a.npz", SHAPES)
    except DataCorrupted as error:
        assert "a.npz" in str(error)
        return
    # what the format does not heed, such as a file's date
    assert digest == checksum(ARRAYS) and all(np.array_equal(found[key], ARRAYS[key]) for key in ARRAYS)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(DataCorrupted, match="F holds a text that is not UTF-8"):
        array_text(np.array([255, 254], dtype=np.uint8), "F")


def test_a_member_that_points_outside_is_refused():
    directory = zipfile.ZipFile(io.BytesIO(RAW))
    assert directory.getinfo("names.npy").file_size < 200
    # the sizes of the last member in the central directory, stretched beyond the file
    place = RAW.rindex(b"PK\x01\x02")
    stretched = bytearray(RAW)
    stretched[place + 20 : place + 28] = (10**6).to_bytes(4, "little") * 2
    with pytest.raises(DataCorrupted, match="sha256"):
        unpack_arrays(bytes(stretched), "F", SHAPES)

"""Files of tensors: odd arrays come back, and every changed byte is detected."""

import json

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slm_np.errors import UserError
from slm_np.formats.tensors import load_tensors, save_tensors


def tensors_of(step, size=3):
    return {"w": np.full((size, 2), step, np.float32), "b": np.arange(size, dtype=np.float32) + step}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def odd_arrays():
    a = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    return {
        "plain": a,
        "transposed": a.T,
        "strided": a[::2, 1::2],
        "reversed": a[::-1],
        "fortran": np.asfortranarray(a),
        "repeated": np.broadcast_to(a[0], (3, 5)),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
        "one byte": np.array([7], np.uint8),
        "double": a.astype(np.float64).T,
        "half": a.astype(np.float16),
        "big-endian": a.astype(">f4"),
        "ints": np.arange(-3, 4),
        "bools": a > 0,
        'größe "x"\n': a[:1],
    }


def test_round_trip_of_odd_arrays(tmp_path):
    arrays = odd_arrays()
    save_tensors(tmp_path / "t.safetensors", arrays, {"step": 12, "val_loss": 1.25})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"step": "12", "val_loss": "1.25"} and loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape and loaded[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert names(tmp_path) == ["t.safetensors"]


def test_the_safetensors_library_reads_the_file(tmp_path):
    arrays = odd_arrays()
    save_tensors(tmp_path / "t.safetensors", arrays, {"step": 12})
    with safe_open(tmp_path / "t.safetensors", framework="np") as file:
        assert file.metadata()["format"] == "pt" and file.metadata()["step"] == "12"
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            assert file.get_tensor(name).shape == array.shape
            np.testing.assert_array_equal(file.get_tensor(name), array, err_msg=name)


def test_same_tensors_give_the_same_bytes_and_data_are_aligned(tmp_path):
    arrays = {"odd": np.ones(3, np.uint8), "wide": np.ones(3)}
    for name in "ab":
        save_tensors(tmp_path / name, arrays, {"step": 1})
    raw = (tmp_path / "a").read_bytes()
    assert raw == (tmp_path / "b").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0 and json.loads(raw[8 : 8 + length])["wide"]["data_offsets"] == [0, 24]


def test_a_file_without_tensors(tmp_path):
    save_tensors(tmp_path / "t", {}, {})
    assert load_tensors(tmp_path / "t", into={}) == ({}, {})


def test_a_dtype_without_a_safetensors_name_is_refused_before_writing(tmp_path):
    with pytest.raises(SafetensorError, match="dtype"):
        save_tensors(tmp_path / "t", {"x": np.array(["text"])}, {})
    assert names(tmp_path) == []


def test_loading_into_views_of_a_flat_buffer(tmp_path):
    save_tensors(tmp_path / "t", tensors_of(5), {})
    flat = np.zeros(9, np.float32)
    views = {"w": flat[:6].reshape(3, 2), "b": flat[6:]}
    loaded, _ = load_tensors(tmp_path / "t", into=views)
    assert loaded["w"] is views["w"]
    np.testing.assert_array_equal(flat, [5, 5, 5, 5, 5, 5, 5, 6, 7])
    with pytest.raises(UserError, match=r"'w' with shape \(3, 2\) of float32, not \(3, 2\) of float64"):
        load_tensors(tmp_path / "t", into={"w": np.zeros((3, 2)), "b": flat[6:]})
    columns = np.zeros((2, 3), np.float32)
    load_tensors(tmp_path / "t", into={"w": columns.T, "b": flat[6:]})
    np.testing.assert_array_equal(columns, 5)


@pytest.mark.parametrize(
    "shapes, dtype, message",
    [
        ({"w": (3, 2)}, "float32", "holds the unexpected tensor 'b'"),
        ({"w": (3, 2), "b": (3,), "c": (1,)}, "float32", "lacks tensor 'c'"),
        ({"w": (2, 3), "b": (3,)}, "float32", r"tensor 'w' with shape \(3, 2\) of float32, not \(2, 3\)"),
        ({"w": (3, 2), "b": (3,)}, "float64", "tensor 'w' .* of float32, not .* of float64"),
    ],
)
def test_tensors_that_do_not_match_are_named(tmp_path, shapes, dtype, message):
    save_tensors(tmp_path / "t", tensors_of(5), {})
    with pytest.raises(UserError, match=message):
        load_tensors(tmp_path / "t", into={name: np.zeros(shape, dtype) for name, shape in shapes.items()})


def test_every_flipped_byte_of_a_tensor_file_is_detected(tmp_path):
    path = tmp_path / "t"
    save_tensors(path, tensors_of(5), {"step": 5, "note": "a b"})
    raw = path.read_bytes()
    for i, byte in enumerate(raw):
        for flipped in {byte ^ 1, byte ^ 0x80, byte ^ 0xFF, 0x20, 0x0A} - {byte}:  # 0x20, 0x0A: JSON skips white space
            path.write_bytes(raw[:i] + bytes([flipped]) + raw[i + 1 :])
            with pytest.raises(UserError, match=path.name):
                load_tensors(path)


def test_the_damaged_tensor_is_named(tmp_path):
    save_tensors(tmp_path / "t", tensors_of(5), {})
    raw = bytearray((tmp_path / "t").read_bytes())
    raw[-1] ^= 4
    (tmp_path / "t").write_bytes(raw)
    into = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match="damaged in tensor 'w'"):
        load_tensors(tmp_path / "t", into=into)
    assert not into["w"].any() and not into["b"].any()


def test_truncated_and_longer_files_are_detected(tmp_path):
    path = tmp_path / "t"
    save_tensors(path, tensors_of(5), {"step": 5})
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(UserError, match=path.name):
            load_tensors(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(UserError, match="damaged"):
        load_tensors(path)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "5",
        "null",
        '{"__metadata__":{"format":"pt"}}',
        '{"__metadata__":"crc32"}',
        '{"__metadata__":null}',
        "[" * 100_000,
        '{"x":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}',
    ],
)
def test_files_of_other_programs_are_refused(tmp_path, text):
    (tmp_path / "t").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(UserError, match="not written by slm_np|not a safetensors file"):
        load_tensors(tmp_path / "t")


def test_a_file_without_checksums_is_refused(tmp_path):
    save_file(tensors_of(1), tmp_path / "t", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no checksums, so it was not written by slm_np"):
        load_tensors(tmp_path / "t")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="t is missing"):
        load_tensors(tmp_path / "t")
    with pytest.raises(UserError, match="cannot read"):
        load_tensors(tmp_path)

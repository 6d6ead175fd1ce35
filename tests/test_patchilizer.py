"""Symbolic text <-> patches, against what the original computes."""

import numpy as np
import pytest

from clamp3.inputs.patchilizer import BOS_ID, EOS_ID, M3Patchilizer, crop, has_music, remove_instrument_info
from golden_model import golden_json

pytestmark = pytest.mark.golden
PATCHILIZER = M3Patchilizer()


@pytest.mark.parametrize("entry", golden_json("patchilizer.json"), ids=lambda entry: entry["name"])
def test_patches_are_the_originals(entry):
    if entry["patches"] is None:
        with pytest.raises(ValueError, match="empty"):
            PATCHILIZER.encode(entry["text"], entry["add_special_patches"])
        return
    patches = PATCHILIZER.encode(entry["text"], entry["add_special_patches"])
    assert patches.shape == (len(entry["patches"]), 64) and patches.dtype == np.uint8
    assert [bytes(patch).decode("ascii").rstrip("\0") for patch in patches] == entry["patches"]


@pytest.mark.parametrize("entry", golden_json("instrument.json"), ids=lambda entry: entry["text"][:12])
def test_instruments_are_removed_as_by_the_original(entry):
    assert remove_instrument_info(entry["text"]) == entry["cleaned"]


def test_decode_is_the_inverse_of_the_encoding(texts):
    text = texts["score_1"]
    assert PATCHILIZER.decode(PATCHILIZER.encode(text, add_special_patches=True)) == "".join(
        patch[:63] for patch in PATCHILIZER.split(text)
    )


def test_long_pieces_are_cropped_to_the_head_or_at_random():
    pieces = list(range(100))
    assert crop(pieces, 100) is pieces
    assert crop(pieces, 40) == pieces[:40]
    rng = np.random.default_rng(0)
    windows = [crop(pieces, 40, rng) for _ in range(600)]
    assert all(window == pieces[window[0] : window[0] + 40] for window in windows)
    starts = [window[0] for window in windows]
    assert 150 < starts.count(0) < 250 and 150 < starts.count(60) < 270 and len(set(starts)) > 40


def test_cropping_counts_the_special_patches(texts):
    patches = PATCHILIZER.encode(texts["score_0"], add_special_patches=True, max_patches=5)
    assert len(patches) == 5 and (patches[0] == BOS_ID).all() and not (patches[-1][1:] == EOS_ID).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("score_0", True), ("midi_0", True), ("tune_0", True), ("header_only", False), ("newline", False)],
)
def test_music_is_told_from_headers(texts, name, expected):
    assert has_music(PATCHILIZER.split(texts[name])) is expected


def test_mtf_without_messages_has_no_music():
    assert not has_music(PATCHILIZER.split("ticks_per_beat 480\n"))

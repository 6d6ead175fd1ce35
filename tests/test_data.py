"""Training data: what an item becomes, which process gets it, and what is refused before training starts."""

import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from clamp3.errors import UserError
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.patchilizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID, remove_instrument_info
from clamp3.training.batches import Batch, Collate, GlobalBatchSampler, Loader
from clamp3.training.checks import check_examples, check_pairs, find_pieces, refuse
from clamp3.training.data import Examples, Pairs, Pieces, split
from clamp3.training.texts import JsonLines, evaluation_file, evaluation_text, lines_of, training_text

ITEM = {
    "id": "7",
    "filepaths": ["a.abc", "a.mtf"],
    "title": "The Lark",
    "artists": ["Ann", "Bob", "Ann"],
    "region": None,
    "language": "en",
    "tags": [],
    "genres": ["folk", None, " "],
    "analysis": "A reel.\n\nIn D major.",
    "year": 1850,
    "translations": {"language": "de", "background": "", "analysis": "Ein Tanz.\nIn D-Dur.", "scene": None},
}
OWN = ["The Lark", "Ann", "Bob", "folk", "A reel.", "In D major."]
TRANSLATED = ["Ein Tanz.", "In D-Dur."]


@pytest.fixture(scope="session")
def encoder(small_model) -> InputEncoder:
    return InputEncoder(small_model.sizes)


@pytest.fixture
def write_items(tmp_path):
    """Writes items as JSONL, and returns them as read back."""

    def write(*items) -> JsonLines:
        path = tmp_path / "items.jsonl"
        lines = (json.dumps(item) if isinstance(item, dict) else item for item in items)
        path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
        return JsonLines(path)

    return write


def pairs(lines: JsonLines, encoder: InputEncoder, modality: str, training: bool, **options) -> Pairs:
    return Pairs(lines, np.arange(len(lines)), encoder, modality, 0, training, **options)


# ---------- texts ----------


def test_texts_are_the_distinct_lines_of_strings_and_lists():
    assert lines_of(ITEM, translated=False) == OWN
    assert lines_of(ITEM, translated=True) == TRANSLATED
    for nothing in (None, {}, {"language": "de"}, {"language": "de", "analysis": None, "scene": ""}):
        assert lines_of({**ITEM, "translations": nothing}, translated=True) == OWN


def test_training_texts_keep_half_of_the_lines_in_any_order_every_second_time_translated():
    rng = np.random.default_rng(0)
    drawn = [tuple(training_text(ITEM, rng, "|").split("|")) for _ in range(8000)]
    translated = [lines for lines in drawn if lines[0] in TRANSLATED]
    own = [lines for lines in drawn if lines[0] not in TRANSLATED]
    assert len(translated) / len(drawn) == pytest.approx(0.5, abs=0.02)
    assert all(set(lines) <= set(TRANSLATED) for lines in translated)
    assert all(set(lines) <= set(OWN) and len(set(lines)) == len(lines) for lines in own)
    # Of two lines, with 1/4 each: one, the other, both; and where neither is kept, both again.
    shares = {lines: count / len(translated) for lines, count in Counter(translated).items()}
    first, second = TRANSLATED
    expected = {(first,): 0.25, (second,): 0.25, (first, second): 0.25, (second, first): 0.25}
    assert shares == pytest.approx(expected, abs=0.03)
    # Of six lines, each is kept with 1/2, and always where none is.
    kept = Counter(line for lines in own for line in lines)
    assert {line: count / len(own) for line, count in kept.items()} == pytest.approx(
        dict.fromkeys(OWN, 0.5 + 0.5**6), abs=0.03
    )
    full = Counter(lines[0] for lines in own if len(lines) == len(OWN))  # shuffled: any line comes first
    assert len(full) == len(OWN) and min(full.values()) > 0.3 * max(full.values())


def test_evaluation_texts_are_the_analysis():
    assert evaluation_text(ITEM, "|") == ITEM["analysis"]
    for nothing in (None, "", " \n"):
        assert evaluation_text({**ITEM, "analysis": nothing}, "|") == "The Lark|Ann|Bob|folk"
    assert evaluation_text({**ITEM, "analysis": ["A reel."]}, "|") == "The Lark|Ann|Bob|folk|A reel."


def test_training_without_text_dropout_reads_what_evaluation_reads(training_data, encoder):
    lines = JsonLines(training_data.symbolic)
    fixed = pairs(lines, encoder, "symbolic", True, text_dropout=False)
    varied = pairs(lines, encoder, "symbolic", True)
    evaluation = pairs(lines, encoder, "symbolic", False)
    texts = [examples[3, 1].sequences["text"].tolist() for examples in (fixed, evaluation, varied)]
    assert texts[0] == texts[1] != texts[2]
    separator = encoder.tokenizer.sep_token_id
    assert separator in texts[2][1:-1] or len({tuple(varied[e, 1].sequences["text"]) for e in range(9)}) > 3


@pytest.mark.parametrize(
    ("filepaths", "chosen"),
    [
        (["a.abc", "a.mtf"], "a.abc"),
        (["a.mtf", "a.abc"], "a.abc"),
        (["a.MTF", "b.ABC", "c.abc"], "b.ABC"),
        (["a.ABC", "a.mtf"], "a.ABC"),
        (["a.mtf"], "a.mtf"),
        (["a.npy", "b.npy"], "a.npy"),
    ],
)
def test_evaluation_takes_the_first_file_or_the_second_where_the_first_is_midi(filepaths, chosen):
    assert evaluation_file(filepaths) == chosen


# ---------- music ----------


def test_midi_alone_will_do_and_training_takes_any_file(write_items, encoder, texts, tmp_path):
    tmp_path.joinpath("a.mtf").write_text(texts["midi_1"], encoding="utf-8")
    tmp_path.joinpath("a.abc").write_text(texts["tune_1"], encoding="utf-8")
    item = {"id": 1, "analysis": "A tune."}
    lines = write_items({**item, "filepaths": ["a.mtf"]}, {**item, "filepaths": ["a.mtf", "a.abc"]})
    check_pairs(lines, "symbolic", 128)
    evaluation, training = (pairs(lines, encoder, "symbolic", training) for training in (False, True))
    midi, abc = (evaluation[0, index].sequences["music"] for index in (0, 1))
    np.testing.assert_array_equal(midi, encoder.encode_symbolic(texts["midi_1"])[:32])
    np.testing.assert_array_equal(abc, encoder.encode_symbolic(texts["tune_1"])[:32])
    kinds = Counter("abc" if len(training[e, 1].sequences["music"]) == len(abc) else "mtf" for e in range(200))
    assert len(abc) < len(midi) and kinds["abc"] == pytest.approx(100, abs=30)


def test_nine_of_ten_training_items_lose_their_instruments(write_items, encoder, tmp_path):
    text = 'V:1 treble nm="Violin" snm="Vln."\nK:D\n[V:1]DEFA|\n'
    tmp_path.joinpath("a.abc").write_text(text, encoding="utf-8")
    lines = write_items({"id": 1, "title": "A tune", "filepaths": ["a.abc"]})
    with_names, without = (encoder.encode_symbolic(t) for t in (text, remove_instrument_info(text)))
    training = pairs(lines, encoder, "symbolic", True)
    found = [training[epoch, 0].sequences["music"] for epoch in range(500)]
    assert np.mean([np.array_equal(patches, without) for patches in found]) == pytest.approx(0.9, abs=0.04)
    assert all(np.array_equal(patches, without) or np.array_equal(patches, with_names) for patches in found)
    assert np.array_equal(pairs(lines, encoder, "symbolic", False)[0, 0].sequences["music"], with_names)


def test_long_audio_is_cut_to_its_head_its_tail_or_a_window_between(write_items, encoder, tmp_path):
    frames = np.repeat(np.arange(1, 41, dtype=np.float32)[:, None], 128, axis=1)  # 42 with a zero frame at each end
    np.save(tmp_path / "a.npy", frames[None])
    lines = write_items({"id": 1, "analysis": "Long.", "filepaths": ["a.npy"]})
    evaluation, training = (pairs(lines, encoder, "audio", training) for training in (False, True))
    assert evaluation[0, 0].sequences["music"][:, 0].tolist() == list(range(16))
    found = [training[epoch, 0].sequences["music"][:, 0] for epoch in range(600)]
    assert {len(window) for window in found} == {16}
    starts = Counter(int(window[1]) - 1 for window in found)
    assert starts[0] / 600 == pytest.approx(1 / 3, abs=0.07)
    assert starts[26] / 600 == pytest.approx(1 / 3, abs=0.09)
    assert set(starts) == set(range(27))


def test_long_texts_are_cut_too(write_items, encoder, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 3, 128), np.float32))
    lines = write_items({"id": 1, "title": " ".join(map(str, range(99))), "filepaths": ["a.npy"]})
    evaluation, training = (pairs(lines, encoder, "audio", training) for training in (False, True))
    whole = encoder.tokenizer(lines[0]["title"])["input_ids"]
    assert evaluation[0, 0].sequences["text"].tolist() == whole[:24]
    assert len({tuple(training[epoch, 0].sequences["text"]) for epoch in range(20)}) > 2


def test_an_item_depends_on_seed_epoch_and_index_alone(training_data, encoder):
    lines = JsonLines(training_data.symbolic)
    first, again = (pairs(lines, encoder, "symbolic", True) for _ in range(2))
    for key in ((0, 5), (3, 5), (0, 11)):
        again[1, 7]  # what has been drawn before does not matter
        for name, sequence in first[key].sequences.items():
            np.testing.assert_array_equal(sequence, again[key].sequences[name])
    assert len({first[epoch, 5].sequences["text"].tobytes() for epoch in range(10)}) > 3
    other = Pairs(lines, np.arange(len(lines)), encoder, "symbolic", seed=1, training=True)
    assert any(first[0, i].sequences["text"].tobytes() != other[0, i].sequences["text"].tobytes() for i in range(9))


# ---------- M3 ----------


@pytest.fixture(scope="session")
def pieces(training_data, encoder) -> dict[bool, Pieces]:
    paths, _ = find_pieces([training_data.abc])
    return {training: Pieces(paths, encoder, 0.45, 0, training) for training in (True, False)}


def test_45_percent_of_the_patches_are_selected_rounded_up(pieces):
    for index in range(10):
        for training in (True, False):
            sequences = pieces[training][0, index].sequences
            count = len(sequences["targets"])
            assert sequences["selected"].sum() == -(-count * 45 // 100)
            assert len(sequences["inputs"]) == len(sequences["selected"]) == count <= 32
    selections = {pieces[True][epoch, 0].sequences["selected"].tobytes() for epoch in range(9)}
    assert len(selections) > 5


def test_selected_patches_are_masked_or_shuffled_or_left(pieces):
    kinds = Counter()
    for epoch in range(40):
        for index in range(20):
            sequences = pieces[True][epoch, index].sequences
            selected = sequences["selected"].astype(bool)
            inputs, targets = sequences["inputs"], sequences["targets"]
            np.testing.assert_array_equal(inputs[~selected], targets[~selected])
            if (inputs[selected] == MASK_ID).all():
                kinds["masked"] += 1
            elif np.array_equal(inputs, targets):
                kinds["left"] += 1
            else:
                kinds["shuffled"] += 1
                for given, patch in zip(inputs[selected], targets[selected], strict=True):
                    special = np.isin(patch, (PAD_ID, BOS_ID, EOS_ID))
                    np.testing.assert_array_equal(given[special], patch[special])
                    np.testing.assert_array_equal(np.sort(given), np.sort(patch))
    shares = {kind: count / sum(kinds.values()) for kind, count in kinds.items()}
    assert shares == pytest.approx({"masked": 0.8, "shuffled": 0.1, "left": 0.1}, abs=0.04)


def test_evaluation_leaves_pieces_as_they_are_and_selects_the_same_patches_each_time(pieces):
    for index in range(5):
        first, later = (pieces[False][epoch, index].sequences for epoch in (0, 7))
        np.testing.assert_array_equal(first["inputs"], first["targets"])
        np.testing.assert_array_equal(first["selected"], later["selected"])
        np.testing.assert_array_equal(first["targets"], pieces[False].encoder.encode_symbolic(
            pieces[False].paths[index].read_text(encoding="utf-8"))[:32])  # fmt: skip


def test_folders_are_searched_for_abc_and_mtf(tmp_path):
    for name in ("b/deep/2.MTF", "b/1.abc", "a.abc", "notes.txt"):
        tmp_path.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(name).write_text("X:1\n")
    paths, issues = find_pieces([tmp_path])
    assert [path.name for path in paths] == ["a.abc", "1.abc", "2.MTF"] and not issues
    assert find_pieces([]) == ([], [])
    tmp_path.joinpath("c.abc").touch()
    os.mkfifo(tmp_path / "d.abc")
    tmp_path.joinpath("._a.abc").write_bytes(b"\0")  # macOS's
    paths, issues = find_pieces([tmp_path])
    assert [path.name for path in paths] == ["a.abc", "1.abc", "2.MTF", "c.abc"]
    assert [(Path(issue.file).name, issue.reason) for issue in issues] == [
        ("d.abc", "passed over: a FIFO, not a file"),
        ("c.abc", "empty file"),
    ]
    tmp_path.joinpath("none").mkdir()
    with pytest.raises(UserError, match=r"no \.abc \.mtf file under .*none"):
        find_pieces([tmp_path / "none"])


# ---------- batches ----------


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (48, 4), (49, 5), (7, 16), (3, 1)])
def test_processes_share_out_training_items_evenly_and_each_at_most_once(size, batch_size, processes):
    shares = [GlobalBatchSampler(size, batch_size, processes, rank, seed=0) for rank in range(processes)]
    orders = []
    for epoch in range(3):
        for share in shares:
            share.set(epoch)
        batches = list(zip(*shares, strict=True))
        assert len(batches) == len(shares[0])
        assert {len(part) for batch in batches for part in batch} == {min(batch_size, size // processes)}
        order = [key for batch in batches for part in batch for key in part]
        assert len(set(order)) == len(order) > size - batch_size * processes
        assert {key[0] for key in order} == {epoch} and {key[1] for key in order} <= set(range(size))
        orders.append([index for _, index in order])
    assert len(orders[0]) < 4 or orders[0] != orders[1]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (48, 4), (49, 5), (2, 16), (1, 1)])
def test_processes_evaluate_every_item_once_and_in_order(size, batch_size, processes):
    shares = [GlobalBatchSampler(size, batch_size, processes, rank, seed=None) for rank in range(processes)]
    order = [index for batch in zip(*shares, strict=True) for part in batch for _, index in part]
    assert order == list(range(size))


def test_global_batches_do_not_depend_on_the_number_of_processes():
    def global_batches(processes: int) -> list:
        shares = [GlobalBatchSampler(50, 12 // processes, processes, rank, seed=0) for rank in range(processes)]
        return [sum(parts, []) for parts in zip(*shares, strict=True)]

    assert global_batches(1) == global_batches(2) == global_batches(3)


def test_an_epoch_goes_on_at_any_batch():
    share = GlobalBatchSampler(50, 4, 2, 1, seed=0)
    share.set(3)
    whole = list(share)
    for first in range(7):
        share.set(3, first)
        assert len(share) == 6 - first and list(share) == whole[first:]


def test_sequences_are_padded_to_the_longest_of_the_batch(training_data, encoder):
    examples = pairs(JsonLines(training_data.symbolic), encoder, "symbolic", False)
    chosen = [examples[0, index] for index in range(3)]
    batch = Collate({"text": 1})(chosen)
    for name, pad_id in (("text", 1), ("music", PAD_ID)):
        stacked, masks = batch.tensors[name]
        lengths = [len(example.sequences[name]) for example in chosen]
        assert stacked.shape[:2] == masks.shape == (3, max(lengths))
        assert masks.sum(dim=1).tolist() == lengths
        assert (stacked[masks == 0] == pad_id).all()
        for row, example in zip(stacked, chosen, strict=True):
            np.testing.assert_array_equal(row[: len(example.sequences[name])], example.sequences[name])
    assert batch.names == ["tune 0", "tune 1", "tune 2"]
    parts = list(batch.pieces(2))
    assert [part.names for part in parts] == [["tune 0", "tune 1"], ["tune 2"]]
    assert torch.equal(torch.cat([part.tensors["music"][0] for part in parts]), batch.tensors["music"][0])


def batches_of(examples: Examples, workers: int) -> list[Batch]:
    """The batches of an epoch."""
    share = GlobalBatchSampler(len(examples), 7, 1, 0, seed=0 if examples.training else None)
    share.set(2)
    return list(Loader(examples, share, Collate({"text": 1}), workers, torch.device("cpu")))


def assert_same_batches(found: list[Batch], wanted: list[Batch]) -> None:
    assert [batch.names for batch in found] == [batch.names for batch in wanted]
    assert [batch.skipped for batch in found] == [batch.skipped for batch in wanted]
    for first, second in zip(found, wanted, strict=True):
        for name, pair in first.tensors.items():
            assert all(torch.equal(a, b) for a, b in zip(pair, second.tensors[name], strict=True))


def test_any_number_of_worker_processes_gives_the_same_batches_and_skips_the_same_bad_file(
    write_items, training_data, encoder, tmp_path
):
    rows = training_data.rows(training_data.symbolic)
    for row in rows:
        row["filepaths"] = [str(training_data.folder / name) for name in row["filepaths"]]
    whole = batches_of(pairs(write_items(*rows), encoder, "symbolic", True), 0)
    bad = int(whole[5].names[0].removeprefix("tune "))
    tmp_path.joinpath("bad.abc").write_bytes(b"K:C\nC4|\n% caf\xe9\n")
    rows[bad]["filepaths"] = ["bad.abc"]
    lines = write_items(*rows)
    assert not check_pairs(lines, "symbolic", 128)  # which reads no music
    examples = pairs(lines, encoder, "symbolic", True)
    plain, worked = (batches_of(examples, workers) for workers in (0, 2))
    assert len(whole) == len(plain) == 6
    assert_same_batches(worked, plain)
    # All else is as it was, and the batch as large.
    assert_same_batches(plain[:5], whole[:5])
    assert plain[5].names[1:] == whole[5].names[1:] and plain[5].names[0] != whole[5].names[0]
    [issue] = plain[5].skipped
    assert issue.file == f"{lines.path}:{bad + 1}"
    assert issue.reason.startswith(f"{tmp_path}/bad.abc: not UTF-8: byte 0xe9 at position 13")
    evaluated = batches_of(pairs(lines, encoder, "symbolic", False), 0)
    assert sum(map(len, evaluated)) == 47 and [issue] == [i for batch in evaluated for i in batch.skipped]


# ---------- splits and checks ----------


@pytest.mark.parametrize(("size", "share", "held_out"), [(1000, 0.01, 10), (10, 0.01, 1), (2, 0.5, 1), (50, 0.1, 5)])
def test_a_share_of_the_items_is_held_out_always_the_same(size, share, held_out):
    training, evaluation = split(size, share, seed=42)
    assert len(evaluation) == held_out
    assert sorted([*training, *evaluation]) == list(range(size))
    assert all(np.array_equal(a, b) for a, b in zip(split(size, share, 42), (training, evaluation), strict=True))


def test_objects_are_found_by_position_with_little_memory(tmp_path):
    path = tmp_path / "many.jsonl"
    count = 50_000
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"id": number, "title": "é" * (number % 50)}, ensure_ascii=False))
            file.write("\n\n" if number % 10 == 0 else "\r\n")
    tracemalloc.start()
    lines = JsonLines(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lines) == count and peak < 50 * count
    for index in (0, 1, 9, 10, 11, count - 1):
        assert lines[index] == {"id": index, "title": "é" * (index % 50)}
    assert lines.place(0) == f"{path}:1" and lines.place(1) == f"{path}:3" and lines.place(11) == f"{path}:14"


@pytest.mark.parametrize("start", ["", "\n", " \r\n"])
def test_a_byte_order_mark_is_no_part_of_the_items(tmp_path, start):
    path = tmp_path / "items.jsonl"
    path.write_text(f'{start}{{"id": 1}}\n{{"id": 2}}\n', encoding="utf-8-sig", newline="")
    lines = JsonLines(path)
    assert [lines[index] for index in range(len(lines))] == [{"id": 1}, {"id": 2}]
    assert lines.place(0) == f"{path}:{1 + bool(start)}"


GOOD = {"id": "1", "filepaths": ["good.abc"], "analysis": "A tune."}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ('{"id": "1", "filepaths": ["good.abc"],', "Expecting property name"),
        ("[1, 2]", "not a JSON object"),
        ({**GOOD, "filepaths": ["gone.abc"]}, r"there is no file .*gone\.abc"),
        ({**GOOD, "filepaths": ["."]}, "takes .abc .mtf files"),
        ({**GOOD, "filepaths": ["good.abc", "notes.pdf"]}, r"notes\.pdf: symbolic training takes \.abc \.mtf files"),
        ({**GOOD, "filepaths": ["right.npy"]}, r"right\.npy: symbolic training takes"),
        ({**GOOD, "filepaths": ["empty.abc"]}, r"empty\.abc is empty"),
        ({**GOOD, "filepaths": "good.abc"}, '"filepaths" must be a list'),
        ({**GOOD, "filepaths": []}, '"filepaths" must be a list'),
        ({**GOOD, "filepaths": [None]}, '"filepaths" must be a list'),
        ({"id": "1", "analysis": "A tune."}, '"filepaths" must be a list'),
        ({**GOOD, "analysis": " "}, "no text in any of its fields"),
        ({"id": "1", "filepaths": ["good.abc"], "language": "en"}, "no text in any of its fields"),
        ({**GOOD, "translations": "Ein Lied"}, '"translations" must be an object'),
        ({**GOOD, "analysis": "A \ud800 tune."}, r"a text holds the lone surrogate U\+D800"),
        ({**GOOD, "translations": {"language": "de", "scene": "\udfff"}}, r"the lone surrogate U\+DFFF"),
        ({**GOOD, "filepaths": ["fifo.abc"]}, r"fifo\.abc is a FIFO, not a file"),
        ({**GOOD, "filepaths": ["a\0b.abc"]}, ""),
        ("[" * 100_000, ""),
        ("no JSON", "Expecting value"),
        (b"\xff\xfe", ""),
    ],
)
def test_bad_items_are_named_before_training_and_skipped_in_it(write_items, encoder, tmp_path, item, reason):
    tmp_path.joinpath("good.abc").write_text("K:C\nC|\n")
    tmp_path.joinpath("empty.abc").touch()
    os.mkfifo(tmp_path / "fifo.abc")
    lines = write_items(GOOD, "", item, {**GOOD, "translations": {"language": "de"}, "title": None})
    with pytest.raises(UserError, match=rf"1 items cannot be trained on:\n  {lines.path}:3: .*{reason}"):
        refuse(check_pairs(lines, "symbolic", 128))
    # What training meets when it reads, and what --check finds.
    for examples in (pairs(lines, encoder, "symbolic", training) for training in (True, False)):
        places = {issue.file for epoch in range(9) for issue in examples[epoch, 1].skipped}
        assert places == {f"{lines.path}:3"} or "notes.pdf" in str(item)
        assert bool(examples[0, 1].sequences) == examples.training
        issues, _ = check_examples(examples)
        assert [issue.file for issue in issues] == [f"{lines.path}:3"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.ones((1, 4, 64), np.float32), r"float32 of shape \(1, 4, 64\)"),
        (np.ones(128, np.float32), r"of shape \(128,\)"),
        (np.ones((1, 0, 128), np.float32), r"of shape \(1, 0, 128\)"),
        (np.ones((1, 4, 128), np.int64), "int64 of shape"),
        (b"RIFF and so on", r"not a \.npy file"),
        (b"\x93NUMPY\x01\x00", r"not a whole \.npy file"),
    ],
)
def test_audio_features_of_another_form_are_named_before_training(write_items, tmp_path, content, reason):
    np.save(tmp_path / "good.npy", np.ones((13, 4, 128), np.float16))
    if isinstance(content, bytes):
        tmp_path.joinpath("bad.npy").write_bytes(content)
    else:
        np.save(tmp_path / "bad.npy", content)
    lines = write_items(
        {"id": 1, "title": "A", "filepaths": ["good.npy"]}, {"id": 2, "title": "B", "filepaths": ["bad.npy"]}
    )
    with pytest.raises(UserError, match=rf"{lines.path}:2: .*{reason}"):
        refuse(check_pairs(lines, "audio", 128))


def test_many_bad_items_are_counted_and_an_empty_file_is_refused(write_items):
    with pytest.raises(UserError, match=r"(?s)50 items cannot be trained on.*:20: .*… and 30 more") as error:
        refuse(check_pairs(write_items(*["{}"] * 50), "symbolic", 128))
    assert str(error.value).count("\n") == 21
    with pytest.raises(UserError, match="there is no item in it"):
        check_pairs(write_items(""), "symbolic", 128)


def test_reading_everything_finds_bad_files_wherever_they_stand(write_items, encoder, tmp_path):
    tmp_path.joinpath("good.abc").write_text("K:C\nC|\n")
    tmp_path.joinpath("header.abc").write_text("X:1\nT:Nothing\nK:C\n")
    lines = write_items(GOOD, {**GOOD, "filepaths": ["good.abc", "header.abc"]})
    check_pairs(lines, "symbolic", 128)
    with pytest.raises(UserError, match=rf"1 items .*\n  {lines.path}:2: .*header\.abc: no bars of ABC"):
        refuse(check_examples(pairs(lines, encoder, "symbolic", True))[0])
    with pytest.raises(UserError, match=r"1 items .*\n  .*header\.abc: no bars of ABC"):
        refuse(check_examples(Pieces(find_pieces([tmp_path])[0], encoder, 0.45, 0, True))[0])


def test_items_in_standard_abc_and_with_bars_that_are_not_read_whole_are_counted(write_items, encoder, tmp_path):
    long_bar = "C2" * 40
    tunes = {"good": "[V:1]C|", "standard": "C|", "long": f"[V:1]{long_bar}|", "both": f"{long_bar}|\n{long_bar}|"}
    for name, music in tunes.items():
        voice = "" if "[V:1]" not in music else "V:1\n"
        tmp_path.joinpath(f"{name}.abc").write_text(f"M:80/4\nL:1/4\nK:C\n{voice}{music}\n")
    lines = write_items(*({**GOOD, "filepaths": [f"{name}.abc"]} for name in tunes))
    wanted = {"standard ABC, which was interleaved first": 2, "bars longer than the 62 characters of a patch": 2}
    whole = pairs(lines, encoder, "symbolic", True), Pieces(find_pieces([tmp_path])[0], encoder, 0.45, 0, True)
    for examples in whole:
        assert check_examples(examples) == ([], wanted)
        assert Collate({})([examples[0, index] for index in range(4)]).remarks == wanted


def noted_reads(lines: JsonLines, monkeypatch) -> list[int]:
    """The positions of the items that are read from now on."""
    read, get = [], JsonLines.__getitem__
    monkeypatch.setattr(JsonLines, "__getitem__", lambda self, index: (read.append(int(index)), get(self, index))[1])
    return read


@pytest.fixture
def checked_items(write_items, tmp_path, monkeypatch):
    """Twenty audio items that have passed, two files each, and the list of the items that are read after that."""
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    for number in range(20):
        np.save(tmp_path / f"{number}.npy", np.ones((1, 4, 128), np.float32))
    names = [[f"{number}.npy", str(tmp_path / f"{(number + 1) % 20}.npy")] for number in range(20)]
    lines = write_items(*({"id": n, "title": "Lärm", "filepaths": files} for n, files in enumerate(names)))
    check_pairs(lines, "audio", 128)
    return lines, noted_reads(lines, monkeypatch)


def test_items_that_have_passed_are_not_read_again(checked_items):
    lines, read = checked_items
    check_pairs(JsonLines(lines.path), "audio", 128)
    assert not read
    with pytest.raises(UserError, match="not floats of shape"):
        refuse(check_pairs(lines, "audio", 64))  # another width is another question
    assert len(read) == 20


def test_items_whose_files_have_changed_are_checked_again_until_they_pass(checked_items, tmp_path):
    lines, read = checked_items
    np.save(tmp_path / "7.npy", np.ones((1, 4, 64), np.float32))
    tmp_path.joinpath("11.npy").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"(?s)^4 items.*:7: .*7\.npy.*:8: .*:11: there is no file .*:12: "):
            refuse(check_pairs(lines, "audio", 128))
    assert read == [6, 7, 10, 11] * 2
    for name in ("7", "11"):
        np.save(tmp_path / f"{name}.npy", np.ones((1, 5, 128), np.float32))
    check_pairs(lines, "audio", 128)
    assert read == [6, 7, 10, 11] * 3
    check_pairs(lines, "audio", 128)
    assert read == [6, 7, 10, 11] * 3
    stat = tmp_path.joinpath("3.npy").stat()
    os.utime(tmp_path / "3.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # of the same size
    check_pairs(lines, "audio", 128)
    assert read[12:] == [2, 3]


def test_a_changed_jsonl_is_checked_anew(checked_items, write_items):
    lines, read = checked_items
    changed = write_items(*(lines[index] for index in range(20)), "{}")
    read.clear()
    with pytest.raises(UserError, match=r"1 items .*\n  .*:21: no text"):
        refuse(check_pairs(changed, "audio", 128))
    assert read == list(range(21))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"no archive"])
def test_a_damaged_record_costs_nothing_but_time(checked_items, tmp_path, content):
    lines, read = checked_items
    (record,) = tmp_path.glob("cache/checked/*.npz")
    for damaged in (content, record.read_bytes()[:-40], record.read_bytes()[:200] + b"\0" * 50):
        record.write_bytes(damaged)
        read.clear()
        check_pairs(lines, "audio", 128)
        assert len(read) == 20
        check_pairs(lines, "audio", 128)
        assert len(read) == 20


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(checked_items, tmp_path, monkeypatch):
    lines, read = checked_items
    tmp_path.joinpath("file").touch()
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        check_pairs(lines, "audio", 128)
    assert len(read) == 40

"""The real music that the demo and the benchmarks take."""

import itertools
import re

import corpus
from clamp3.formats.midi import midi_to_mtf
from clamp3.inputs.patchilizer import M3Patchilizer, has_music


def test_there_are_thousands_of_tunes_each_with_a_name_of_its_own(corpus_tunes):
    assert len(corpus_tunes) > 10_000
    assert len({tune.name for tune in corpus_tunes}) == len(corpus_tunes)
    assert {tune.collection for tune in corpus_tunes} == {collection.title for collection in corpus.COLLECTIONS}
    assert all(tune.name.isascii() and tune.name.replace("_", "").isalnum() for tune in corpus_tunes)


def test_all_tunes_have_bars_and_no_more_than_notation(corpus_tunes):
    patchilizer = M3Patchilizer()
    for tune in corpus_tunes:
        assert has_music(patchilizer.split(tune.abc)), tune.name
        for line in tune.abc.splitlines():
            assert line.startswith(("L:", "Q:", "M:", "K:", "V:1 ", "[V:1]")), (tune.name, line)
            assert not line.startswith("[V:1]") or re.search(r"[|:\]][\d,.-]*$", line), (tune.name, line)


def test_descriptions_say_what_the_source_says(corpus_tunes):
    assert all(corpus.describe(tune).startswith(f"{tune.title}\n") for tune in corpus_tunes)
    reel = next(tune for tune in corpus_tunes if tune.rhythm == "reel" and tune.region)
    assert corpus.describe(reel).splitlines() == [
        reel.title,
        "A reel from Ireland",
        f"Key of {reel.key}, metre {reel.metre}",
        "O'Neill's Music of Ireland",
    ]


def test_a_note_before_a_repeat_is_no_field():
    source = "X:1\nT:Tune, The\nM:6/16\nK:Am % really\nA:|\nK:D\nd|\\\nw:la\nN:a remark\n"
    tune = corpus.read_tune(source, corpus.COLLECTIONS[1], number=7)
    assert tune.abc == "L:1/16\nM:6/16\nK:Am\nV:1 treble\n[V:1]A:|\n[V:1][K:D] d|\n"
    assert (tune.name, tune.title, tune.key) == ("ryansMammoth_00007_the_tune", "The Tune", "A minor")


def test_scores_are_midi_files_with_notes():
    names = []
    for name, data in itertools.islice(corpus.scores(3), 3):
        names.append(name)
        assert "\nnote_on " in midi_to_mtf(data)
    assert len(set(names)) == 3

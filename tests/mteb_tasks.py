"""Small MTEB tasks of folk tunes rendered to audio, which need no network."""

import io
import sys
from functools import cache
from itertools import islice

import numpy as np
import soundfile
from datasets import Audio, Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval

from clamp3.formats.midi import mtf_to_midi
from corpus import folk_tunes
from descriptions import full_description
from notes import read_melody, to_mtf, to_sound
from synthesizer import render

RATES = (24_000, 44_100, 16_000)
PAIRS = 16
INSTRUMENTS = ("flute", "fiddle")
TRAINING, TEST = 6, 10  # tunes of each


@cache
def pairs() -> tuple[list[str], list[bytes]]:
    """Descriptions of tunes, and the tunes as audio files of several formats and rates."""
    tunes = list(islice(folk_tunes(), PAIRS))
    files = []
    for number, tune in enumerate(tunes):
        rate = RATES[number % len(RATES)]
        sound = render(mtf_to_midi(to_mtf(read_melody(tune.abc))), 8, rate)  # (samples, 2)
        file = io.BytesIO()
        soundfile.write(file, sound, rate, format=("WAV", "FLAC")[number % 2])
        files.append(file.getvalue())
    return [full_description(tune) for tune in tunes], files


@cache
def by_instrument() -> list[tuple[np.ndarray, int, int]]:
    """Audio (2, samples), its rate, and the index of its instrument in INSTRUMENTS, the training examples first."""
    played = []
    for number, tune in enumerate(islice(folk_tunes(), len(INSTRUMENTS) * (TRAINING + TEST))):
        label, rate = number % len(INSTRUMENTS), RATES[number % len(RATES)]
        sound = to_sound(read_melody(tune.abc), 4, rate, INSTRUMENTS[label])
        played.append((np.stack([sound, sound / 2]), rate, label))
    return played


def described(**kwargs) -> TaskMetadata:
    return TaskMetadata(
        dataset={"path": "none/none", "revision": "none"},
        description="Folk tunes of music21's corpus",
        reference=None,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        **kwargs,
    )


class TunesRetrieval(AbsTaskRetrieval):
    """Retrieve audio files by descriptions of the tunes in them."""

    metadata = described(
        name="TunesRetrieval",
        type="Any2AnyRetrieval",
        category="t2a",
        modalities=["text", "audio"],
        main_score="ndcg_at_10",
    )

    def load_data(self, **kwargs) -> None:
        texts, files = pairs()
        names = [str(number) for number in range(PAIRS)]
        sounds = [{"bytes": data, "path": None} for data in files]
        split = {
            "queries": Dataset.from_dict({"id": names, "text": texts}),
            "corpus": Dataset.from_dict({"id": names, "audio": sounds}).cast_column("audio", Audio()),
            "relevant_docs": {name: {name: 1} for name in names},
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


class TunesInstrument(AbsTaskClassification):
    """Classify the instrument by a logistic regression over features of stereo audio at several rates."""

    metadata = described(
        name="TunesInstrument", type="AudioClassification", category="a2c", modalities=["audio"], main_score="accuracy"
    )
    input_column_name = "audio"
    samples_per_label = TRAINING
    n_experiments = 2

    def load_data(self, **kwargs) -> None:
        rows = [{"audio": {"array": s, "sampling_rate": rate}, "label": label} for s, rate, label in by_instrument()]
        split = len(INSTRUMENTS) * TRAINING
        self.dataset = DatasetDict(train=Dataset.from_list(rows[:split]), test=Dataset.from_list(rows[split:]))
        self.data_loaded = True


class TunesLost(TunesInstrument):
    """A task whose data cannot be loaded."""

    metadata = TunesInstrument.metadata.model_copy(update={"name": "TunesLost"})

    def load_data(self, **kwargs) -> None:
        raise OSError("the data are lost")


def register() -> None:
    """Register these tasks by name with MTEB, like its own."""
    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY
    registry.update({task.metadata.name: task for task in (TunesRetrieval, TunesInstrument, TunesLost)})

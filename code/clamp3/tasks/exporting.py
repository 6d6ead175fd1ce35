"""A model -> a folder of ONNX files, put in place when its features are measured to be those of the model."""

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from clamp3.audio.encoder import AudioEncoder
from clamp3.audio.onnx_mert import OnnxMert
from clamp3.errors import UserError, ignore
from clamp3.features.embedder import Embedder
from clamp3.features.onnx_towers import OnnxTowers
from clamp3.inputs.tokenizer import TOKENIZER_FILE, read_serialized, serialized
from clamp3.io.files import content_hash, write_whole
from clamp3.modalities import AUDIO, MODALITIES, SAMPLING_RATE, SYMBOLIC, TEXT
from clamp3.models.onnx_files import FORMAT, FP32, INT8, MERT_KEY, ONNX_FILE, TEXT_FOLDER, Session, is_onnx
from clamp3.models.onnx_quantization import quantize_well
from clamp3.models.pretrained import Pretrained, find_pretrained
from clamp3.search.ranking import normalized
from clamp3.tasks.diagnosis.machine import processor_facts
from clamp3.tasks.diagnosis.samples import PIECES, TEXTS, TUNES, frames, mtf, sound

LEAST_COSINE = {FP32: 0.9999, INT8: 0.998}
LEAST_OVERLAP = 0.95
NEIGHBOURS = 10
ROUNDS = 3  # in which the contenders take turns
SOUND = "sound"  # what the listening network and the audio tower make of it together
REPORT_JSON, REPORT_TABLE = "parity.json", "parity.md"
COLUMNS: tuple[str, ...] = (
    *("tower", "items", "least cosine", "mean cosine", "neighbours kept"),
    *("MB before", "MB after", "speed", "wide"),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parity:
    """How near exported features are to the original's, for one tower; "sound" is MERT with the audio tower."""

    tower: str
    precision: str
    items: int
    cosine_min: float
    cosine_mean: float
    overlap: float  # of the 10 nearest neighbours of each item among the others, the share that stay
    bytes_before: int
    bytes_after: int
    speed: float  # original's time over the exported one's, on this processor
    wide: list[str] = field(default_factory=list)  # kinds of matrices that are not quantized

    @property
    def is_good(self) -> bool:
        """Whether the bounds are kept; a value that is not finite keeps none."""
        return self.cosine_min >= LEAST_COSINE[self.precision] and self.overlap >= LEAST_OVERLAP


def export_model(
    weights: str | Path,
    folder: Path,
    int8: bool = False,
    towers: Collection[str] | None = None,
    mert: str | Path | None = None,
) -> list[Parity]:
    """Write the towers of `weights`, as `find_pretrained` takes them, to `folder` as ONNX files, which must be new.

    MERT is exported too where it is `mert`, a folder or a name on the hub, or lies in the weights' folder. The folder
    takes its place if all of what is returned `is_good`, and otherwise is removed. Raises UserError where that is not
    possible.
    """
    _require_packages()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give a new folder")
    if is_onnx(weights):
        raise UserError(f"{weights} holds ONNX files already: give the weights that they were exported from")
    found = find_pretrained(weights, towers=towers)
    original = Embedder(found.model, found.sizes, "cpu", mert=mert or found.mert, weights=found.path)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir(parents=True)
        exporter = _Exporter(original, found, partial, INT8 if int8 else FP32)
        found_parity = exporter.run(mert or found.mert)
        if all(one.is_good for one in found_parity):
            os.rename(partial, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found_parity


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f'exporting needs {error.name}: pip install "clamp3[onnx]"') from None


class _Exporter:
    """The steps of `export_model`, into a folder that is there."""

    def __init__(self, original: Embedder, found: Pretrained, folder: Path, precision: str):
        from clamp3.models.clamp3 import CLaMP3Model

        if not isinstance(found.model, CLaMP3Model):
            raise UserError("M3 has hidden states alone, and is not exported: give CLaMP 3's weights")
        self.original, self.model, self.folder, self.precision = original, found.model, folder, precision
        self.sizes = found.sizes
        self.described: dict[str, Any] = {
            "format": FORMAT,
            "precision": precision,
            "sizes": {name: size for name, size in self.sizes.to_knobs().items() if name != "TEXT_MODEL_NAME"},
            "towers": {},
            "exported_from": {"weights": found.path.name, "fingerprint": original.fingerprint},
        }

    def run(self, mert: str | Path | None) -> list[Parity]:
        """Write all files, the description and the report; returns what it says."""
        from clamp3.models.description import versions

        chosen = list(self.model.towers)
        if others := set(chosen) - {TEXT.name, SYMBOLIC.name, AUDIO.name}:
            raise UserError(f"no inputs to compare with for {', '.join(sorted(others))}: leave them out by towers")
        parities = [self.tower(name) for name in chosen]
        if AUDIO.name in chosen and mert is not None:
            parities.append(self.mert(mert))
        self.described["versions"] = {**versions(), "onnxruntime": version("onnxruntime")}
        self._describe()
        report: dict[str, Any] = {"bounds": {"cosine": LEAST_COSINE[self.precision], "overlap": LEAST_OVERLAP}}
        report |= {"processor": processor_facts()[0], "towers": [asdict(one) for one in parities]}
        write_whole(self.folder / REPORT_JSON, json.dumps(report, indent=2).encode() + b"\n")
        write_whole(self.folder / REPORT_TABLE, markdown(parities).encode())
        return parities

    def tower(self, modality: str) -> Parity:
        """Export a tower, and compare."""
        from clamp3.models.onnx_export import export_tower

        path = self.folder / f"{modality}.onnx"
        items = sequences(self.original, modality)
        expected, _ = _features(self.original, modality, items)
        entry: dict[str, Any] = {"file": path.name, "padding": self.original._towers.padding(modality)}
        if modality == TEXT.name:
            entry["tokenizer"] = self._save_tokenizer()
        self.original._towers.prepare(modality)
        parts = [getattr(self.model, part) for part in MODALITIES[modality].parts]
        before = sum(weight.numel() * weight.element_size() for part in parts for weight in part.parameters())

        def exported() -> Embedder:
            self.described["towers"][modality] = {**entry, "sha256": content_hash(path)}
            towers = OnnxTowers(self.folder, self.described, [modality])
            return Embedder(towers, self.sizes, weights=self.folder)

        export_tower(self.model, self.sizes, modality, path)

        def compare() -> Parity:
            found, _ = _features(exported(), modality, items)
            return self._parity(modality, expected, found, before, path)

        parity = self._quantized(path, compare)
        contenders = (self.original, exported())
        times = [[_features(one, modality, items)[1] for one in contenders] for _ in range(ROUNDS)]
        return self._timed(parity, times)

    def _save_tokenizer(self) -> dict[str, Any]:
        """Write the text tower's tokenizer; returns what onnx.json says of it. UserError for one of another kind."""
        tokenizer, name = self.original.tokenizer, self.sizes.text_model_name
        if not (found := serialized(tokenizer)):
            raise UserError(f"the tokenizer of {name} is none of the kind that a tokenizer.json describes")
        path = self.folder / TEXT_FOLDER / TOKENIZER_FILE
        write_whole(path, found[0].encode())
        again = read_serialized(path, found[1])
        if any(again(text)["input_ids"] != tokenizer(text)["input_ids"] for text in TEXTS.values()):
            raise UserError(f"the tokenizer of {name} does more than its tokenizer.json says")
        return {"sha256": content_hash(path), "special_tokens": found[1]}

    def mert(self, mert: str | Path) -> Parity:
        """Export what listens to sound, and compare what it makes of sounds together with the audio tower."""
        from clamp3.audio.mert import build_hubert, find_mert
        from clamp3.models.onnx_export import export_mert

        path = self.folder / f"{MERT_KEY}.onnx"
        sounds = waveforms()
        network = build_hubert(find_mert(str(mert)))
        before = sum(weight.numel() * weight.element_size() for weight in network.parameters())
        export_mert(network, path)
        listener, width = self.original.audio_encoder, self.sizes.audio_hidden_size
        expected, _ = self._heard(self.original, listener, sounds)
        towers = Embedder(OnnxTowers(self.folder, self.described, [AUDIO.name]), self.sizes, weights=self.folder)

        def exported() -> OnnxMert:
            self.described[MERT_KEY] = {"file": path.name, "sha256": content_hash(path)}
            return OnnxMert(Session(path, self.described[MERT_KEY]["sha256"]), width)

        def compare() -> Parity:
            return self._parity(SOUND, expected, self._heard(towers, exported(), sounds)[0], before, path)

        parity = self._quantized(path, compare)
        contenders: tuple[tuple[Embedder, AudioEncoder], ...]
        contenders = (self.original, listener), (towers, exported())
        times = [[self._heard(one, ears, sounds)[1] for one, ears in contenders] for _ in range(ROUNDS)]
        return self._timed(parity, times)

    def _quantized(self, path: Path, compare: Callable[[], Parity]) -> Parity:
        """Quantize a file in place, if that is asked for; returns what `compare` then finds."""
        if self.precision == FP32:
            return compare()
        found: list[Parity] = []  # the last of them is of what the file has become

        def is_good() -> bool:
            found.append(compare())
            return found[-1].is_good

        whole = path.with_suffix(".wide")
        os.rename(path, whole)
        wide = quantize_well(whole, path, lambda: 1 - compare().cosine_min, is_good)
        whole.unlink()
        return replace(found[-1], wide=wide)

    def _heard(
        self, embedder: Embedder, listener: AudioEncoder, sounds: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, float]:
        """Features of waveforms, and the seconds that listening takes."""
        start = time.perf_counter()
        heard = dict(listener.extract(iter([listener.prepare(one, ignore) for one in sounds])))
        seconds = time.perf_counter() - start
        encoded = [embedder.encode_audio_features(heard[index]) for index in range(len(sounds))]
        return _features(embedder, AUDIO.name, encoded)[0], seconds

    def _parity(self, tower: str, expected: np.ndarray, found: np.ndarray, before: int, path: Path) -> Parity:
        cosines = (normalized(expected) * normalized(found)).sum(axis=1)
        overlap, after = neighbour_overlap(expected, found), path.stat().st_size
        least, mean = float(cosines.min()), float(cosines.mean())
        return Parity(tower, self.precision, len(found), least, mean, overlap, before, after, speed=1.0)

    def _timed(self, parity: Parity, times: list[list[float]]) -> Parity:
        """`parity` with the median of the ratios of `times`, pairs of the original's and the exported one's."""
        logger.info("%s: cosine %.6f at least, overlap %.3f", parity.tower, parity.cosine_min, parity.overlap)
        return replace(parity, speed=median(before / after for before, after in times))

    def _describe(self) -> None:
        write_whole(self.folder / ONNX_FILE, json.dumps(self.described, indent=2).encode() + b"\n")


# ---------- what is compared ----------


def sequences(encoder: Embedder, modality: str) -> list[np.ndarray]:
    """Inputs of a tower that come with the library, of many lengths; the last is longer than it takes at once."""
    if modality == TEXT.name:
        texts = [one.description for one in TUNES] + [*TEXTS.values()]
        long = " ".join(texts) * (1 + encoder.sizes.max_text_length // 300)
        return [encoder.encode_text(text) for text in [*texts, long]]
    if modality == SYMBOLIC.name:
        pieces = [one.abc for one in TUNES] + [mtf(piece) for piece in range(PIECES)]
        return [encoder.encode_symbolic(piece) for piece in [*pieces, _medley(1 + encoder.sizes.patch_length // 100)]]
    width, longest = encoder.sizes.audio_hidden_size, encoder.sizes.max_audio_length
    lengths = [*range(1, 2 * PIECES), 2 * longest + 3]
    return [encoder.encode_audio_features(frames(piece, width, length)) for piece, length in enumerate(lengths)]


def _medley(times: int) -> str:
    """The bars of all tunes, more than a hundred, so many times over."""
    fields, first, bars = TUNES[0].abc.partition("[V:1]")
    others = "".join("[V:1]" + one.abc.partition("[V:1]")[2] for one in TUNES[1:])
    return fields + (first + bars + others) * times


def waveforms() -> list[np.ndarray]:
    """Melodies of a second or more; the last takes two windows."""
    seconds = [1 + 0.1 * (piece % 3) for piece in range(PIECES - 1)] + [6.5]
    return [sound(piece, SAMPLING_RATE, length) for piece, length in enumerate(seconds)]


def _features(embedder: Embedder, modality: str, items: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Features (items, hidden) and the seconds that they take."""
    start = time.perf_counter()
    found = dict(embedder.embed(modality, items))
    return np.stack([found[index] for index in range(len(items))]), time.perf_counter() - start


def neighbour_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Of the 10 nearest neighbours of each row by cosine, among the other rows, the share that both have."""
    nearest = []
    for features in map(normalized, (first, second)):
        cosines = features @ features.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(features) - 1)])
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(*nearest, strict=True)]))


# ---------- the report ----------


def rows(parities: Sequence[Parity]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of the report: its head, and a row for each tower."""
    table: list[tuple[str, ...]] = [
        (
            one.tower,
            str(one.items),
            f"{one.cosine_min:.6f}",
            f"{one.cosine_mean:.6f}",
            f"{one.overlap:.3f}",
            f"{one.bytes_before / 1e6:.1f}",
            f"{one.bytes_after / 1e6:.1f}",
            f"{one.speed:.2f}x",
            ", ".join(one.wide) or "-",
        )
        for one in parities
    ]
    return COLUMNS, table


def markdown(parities: Sequence[Parity]) -> str:
    """The report for people."""
    head, table = rows(parities)
    lines = [head, ("---",) * len(head), *table]
    precision = parities[0].precision
    return (
        f"# Parity of the ONNX files in {precision} with the model in fp32\n\n"
        + "".join(f"| {' | '.join(line)} |\n" for line in lines)
        + f"\nBounds: cosine {LEAST_COSINE[precision]}, neighbours {LEAST_OVERLAP} (of the {NEIGHBOURS} nearest of "
        "each item). Sound is what the listening network and the audio tower make of it together. Speed is the "
        f"model's time over that of the ONNX file, on {processor_facts()[0]}.\n"
    )

"""Every parser of the project, with good files for it; what `fuzz` feeds mutations of these files to.

Samples are real music where there is any: folk tunes, chorales, and the small damaged files of tests/cases.
"""

import atexit
import io
import json
import os
import shutil
import sqlite3
import tempfile
import wave
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import av
import numpy as np
import torch
from safetensors.torch import save

import config
from clamp3.cli.settings import override
from clamp3.errors import UserError, ignore
from clamp3.features.cache import CACHE_FILE, CachedFeature, FeatureCache
from clamp3.features.manifest import MANIFEST_FILE, check_or_record_maker
from clamp3.formats.abc import interleave, read_abc, split_tunes
from clamp3.formats.audio import read_audio
from clamp3.formats.midi import midi_to_mtf, mtf_to_midi
from clamp3.formats.musicxml import abc_to_musicxml, musicxml_to_abc
from clamp3.formats.mxl import extracted
from clamp3.inputs.encoder import InputEncoder
from clamp3.io.files import load_array, read_text
from clamp3.io.reports import load_issues
from clamp3.models.releases import tiny_sizes
from clamp3.models.weight_files import fingerprint, read_weights
from clamp3.search.collection import ready_feature
from clamp3.search.index import Entry, Index
from clamp3.search.indexing import read_metadata
from clamp3.search.pairing import pair_by_csv
from clamp3.tasks.labels import read_labels, read_prompts
from clamp3.tasks.probe import Probe
from clamp3.training.checks import Record, check_pair, check_pairs
from clamp3.training.data import Pairs
from clamp3.training.texts import JsonLines
from corpus import Tune, corpus_folder, describe, folk_tunes
from mutations import MAX_BYTES, ON_BYTES, ON_TEXT, ON_XML, Mutation, mutated, rezipped
from notes import read_melody, to_mtf

CASES = Path(__file__).parent.parent / "cases"
TUNES_PARSED = 5  # of a mutated book of tunes


class Wrong(Exception):
    """What was read is not what was written, and nothing says so."""


@dataclass(frozen=True)
class Parser:
    """`parse` gets a mutated file's bytes and a scratch folder of its own; it raises only what is documented.

    Those are ValueError (UserError is one) and OSError.
    """

    samples: Callable[[], list[bytes]]
    parse: Callable[[bytes, Path], object]
    mutations: Sequence[Mutation] = ON_BYTES + ON_TEXT
    is_zip: bool = False  # half of its mutations are of a member
    longest: int = MAX_BYTES

    def input(self, chance: Random) -> bytes:
        samples = self.samples()
        data = chance.choice(samples)
        if not self.is_zip or chance.random() < 0.5:
            return mutated(data, chance, samples, self.mutations, self.longest)
        return rezipped(data, chance, lambda content: mutated(content, chance, [content], ON_XML))


@cache
def encoder() -> InputEncoder:
    found = InputEncoder(tiny_sizes())
    assert found.tokenizer is not None  # loaded before children are forked
    return found


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@cache
def first_tunes() -> list[Tune]:
    """Reading all 12,000 would take longer than the short form of the tests does."""
    return list(islice(folk_tunes(), 1200))


# ---------- notation ----------


@cache
def abc_samples() -> list[bytes]:
    tunes = [tune.abc.encode() for tune in first_tunes()[::80]]
    books = sorted((corpus_folder() / "airdsAirs").glob("*.abc"), key=lambda path: path.stat().st_size)[:1]
    voices = [musicxml_to_abc(data, ignore).encode() for data in musicxml_samples()[:4]]
    cases = [path.read_bytes() for path in sorted((CASES / "abc").iterdir())]
    return tunes + [book.read_bytes()[:8000] for book in books] + voices + cases


def parse_abc(data: bytes, _folder: Path) -> None:
    for tune in split_tunes(read_abc(data))[:TUNES_PARSED]:
        encoder().encode_symbolic(interleave(tune, ignore), ignore)


def parse_abc_to_musicxml(data: bytes, _folder: Path) -> None:
    for tune in split_tunes(read_abc(data))[:1]:
        abc_to_musicxml(tune, ignore)


@cache
def mtf_samples() -> list[bytes]:
    tunes = [to_mtf(read_melody(tune.abc)) for tune in first_tunes()[::150]]
    golden = json.loads((CASES.parent / "golden" / "mtf.json").read_text(encoding="utf-8"))
    texts = [value for entry in golden for value in entry.values() if str(value).startswith("ticks_per_beat")]
    return [text.encode() for text in tunes + texts if len(text) < 20_000]


def parse_mtf(data: bytes, folder: Path) -> None:
    path = written(folder, "a.mtf", data)
    encoder().encode_symbolic(read_text(path), ignore)
    mtf_to_midi(path)


@cache
def midi_samples() -> list[bytes]:
    cases = [path.read_bytes() for path in sorted((CASES / "midi").iterdir())]
    return [mtf_to_midi(text.decode()) for text in mtf_samples()] + cases


def parse_midi(data: bytes, _folder: Path) -> None:
    midi_to_mtf(data, note=ignore)
    encoder().encode_symbolic(midi_to_mtf(data, m3_compatible=True, note=ignore), ignore)


@cache
def mxl_samples() -> list[bytes]:
    paths = sorted((corpus_folder() / "bach").glob("*.mxl"), key=lambda path: path.stat().st_size)
    return [path.read_bytes() for path in paths[:4]] + [(CASES / "scores" / "w3c_container.mxl").read_bytes()]


@cache
def musicxml_samples() -> list[bytes]:
    cases = [path.read_bytes() for path in sorted((CASES / "scores").glob("*.musicxml"))]
    return [extracted(data, ignore) for data in mxl_samples()[:2]] + cases * 2


def parse_musicxml(data: bytes, _folder: Path) -> None:
    interleave(musicxml_to_abc(data, ignore), ignore)


# ---------- texts and tables ----------


@cache
def text_samples() -> list[bytes]:
    texts = [describe(tune) for tune in first_tunes()[::120]]
    prompts = ["reel\njig: a jig | ein Jig\nhornpipe: {}\n", "夜曲\nwaltz: 华尔兹 | a slow {}\n"]
    return [text.encode() for text in (*texts, *prompts, "Für Elise\r\nein Lied\u2028zwei\n")]


def parse_text(data: bytes, folder: Path) -> None:
    path = written(folder, "a.txt", data)
    try:
        read_prompts(path, ["a {} tune"])
    except UserError:
        pass
    encoder().encode_text(read_text(path), ignore)


@cache
def csv_samples() -> list[bytes]:
    rows = "".join(f"tunes/{number}.abc,texts/{number % 7}.txt\n" for number in range(20))
    described = 'file,title,"key, mode"\na.abc,"The ""Slow"" Air",G major\r\nb.abc,"two\nlines",\n\nc.abc,夜曲,D\n'
    return [("query,reference\n" + rows).encode(), ("file,label\n" + rows).encode(), described.encode(), b"a,reel\n"]


def parse_csv(data: bytes, folder: Path) -> None:
    path = written(folder, "a.csv", data)
    names = [f"tunes/{number}.abc" for number in range(20)], [f"texts/{number}.txt" for number in range(7)]
    readings = (
        lambda: pair_by_csv(path, *names),
        lambda: read_labels(path),
        lambda: read_metadata(path, folder),
    )
    for read in readings:
        try:
            read()
        except UserError:
            continue


@cache
def jsonl_samples() -> list[bytes]:
    rows = []
    for number, tune in enumerate(first_tunes()[:600:100]):
        item = {"id": f"tune {number}", "title": tune.title, "genres": [tune.rhythm], "analysis": describe(tune)}
        item |= {"artists": None, "tags": [], "language": "en", "filepaths": ["a.abc", "a.mtf"]}
        item["translations"] = {"language": "de", "analysis": f"Ein Lied: {tune.title}", "scene": None}
        rows.append(json.dumps(item, ensure_ascii=bool(number % 2)).encode() + b"\n")
    return [b"".join(rows), *rows]


def parse_jsonl(data: bytes, folder: Path) -> None:
    path = written(folder, "a.jsonl", data)
    for name, sample in (("a.abc", abc_samples()[0]), ("a.mtf", mtf_samples()[0])):
        if not (folder / name).exists():
            written(folder, name, sample)
    lines = JsonLines(path)
    try:
        check_pairs(lines, "symbolic", 128)
    except UserError:  # that lists what is wrong
        pass
    for index in range(min(len(lines), 20)):
        try:
            check_pair(lines[index], folder, "symbolic", 128)
        except Exception:  # a line can hold anything
            continue
        for training in (True, False):
            Pairs(lines, np.array([index]), encoder(), "symbolic", 0, training)[0, 0]


@cache
def config_samples() -> list[bytes]:
    knobs = {name: value for name, value in vars(config).items() if name.isupper()}
    return [json.dumps(knobs).encode(), b'{"PATCH_LENGTH": 256, "LOGIT_SCALE": 2, "M3_EVAL_FOLDERS": ["a"]}']


def parse_config(data: bytes, folder: Path) -> None:
    override(dict(vars(config)), str(written(folder, "knobs.json", data)))
    override(dict(vars(config)), data.decode())


# ---------- arrays and sound ----------


def array_bytes(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


@cache
def npy_samples() -> list[bytes]:
    rng = np.random.default_rng(0)
    shapes = ((1, 9, 128), (13, 5, 128), (1, 128), (128,), (40, 128))
    arrays = [rng.standard_normal(shape).astype(kind) for shape in shapes for kind in ("<f4", ">f8", "<f2")]
    arrays.append(np.asfortranarray(arrays[0]))
    return [array_bytes(array) for array in arrays] + [array_bytes(arrays[0], version=(3, 0))]


def parse_npy(data: bytes, folder: Path) -> None:
    path = written(folder, "a.npy", data)
    for read in (ready_feature, lambda path: encoder().encode_audio_features(load_array(path))):
        try:
            read(path)
        except (ValueError, OSError):
            continue
    load_array(path, mmap_mode="r")


SOUNDS = (  # codec, container
    *(("pcm_s16le", "wav"), ("pcm_f32le", "wav"), ("adpcm_ms", "wav"), ("flac", "flac"), ("flac", "ogg")),
    *(("libopus", "ogg"), ("libmp3lame", "mp3"), ("aac", "ipod"), ("aac", "adts"), ("alac", "ipod")),
    *(("pcm_s16be", "aiff"), ("pcm_s16be", "au"), ("pcm_s16le", "caf"), ("pcm_s16le", "w64"), ("ac3", "ac3")),
    *(("libopus", "webm"), ("flac", "matroska"), ("wmav2", "asf"), ("mp2", "mp2"), ("tta", "tta")),
    *(("wavpack", "wv"), ("pcm_s16le", "avi"), ("mp2", "mpegts"), ("aac", "flv"), ("pcm_u8", "voc")),
    *(("aac", "mov"), ("aac", "mp4"), ("eac3", "eac3"), ("mp2", "mpeg"), ("aac", "3gp")),
)


def encoded_sound(codec: str, container: str, samples: np.ndarray, rate: int) -> bytes:
    """`samples` (frames, 2) in a file of that kind. Raises FFmpegError or ValueError where this PyAV has none."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", "stereo")
        frame.rate = rate
        for packet in (packet for one in (frame, None) for packet in stream.encode(one)):
            file.mux(packet)
    return buffer.getvalue()


@cache
def sound_samples() -> list[bytes]:
    """0.3 s of a chirp in all kinds of files, and the first bytes of those of tests/cases."""
    rate = 48_000
    time = np.arange(int(0.3 * rate)) / rate
    chirp = np.sin(2 * np.pi * (300 + 2000 * time) * time).astype(np.float32)
    made = []
    for codec, container in SOUNDS:
        try:
            made.append(encoded_sound(codec, container, np.stack([chirp, chirp / 2], 1), rate))
        except (av.FFmpegError, ValueError):  # this build of FFmpeg has no such encoder
            continue
    assert len(made) >= len(SOUNDS) // 2
    with wave.open(plain := io.BytesIO(), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(bytes(range(256)) * 8)
    cases = [path.read_bytes()[:30_000] for path in sorted((CASES / "sound").iterdir())]
    return [*made, plain.getvalue(), *cases]


def parse_sound(data: bytes, _folder: Path) -> None:
    samples = read_audio(data, note=ignore)
    if not np.isfinite(samples).all():
        raise Wrong("samples that are not finite")


# ---------- weights ----------


@cache
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{n}.weight": torch.randn(16, 8 + n, generator=generator) for n in range(4)}


@cache
def checkpoint_samples() -> list[bytes]:
    buffers = [io.BytesIO() for _ in range(2)]
    torch.save({"model": tensors(), "epoch": 1, "min_eval_loss": np.float64(0.5), "modality": "audio"}, buffers[0])
    torch.save(tensors(), buffers[1])
    return [buffer.getvalue() for buffer in buffers]


@cache
def good_fingerprints() -> set[str]:
    with tempfile.TemporaryDirectory() as folder:
        samples = [("a.pth", data) for data in checkpoint_samples()]
        samples += [("a.safetensors", data) for data in safetensors_samples()]
        return {fingerprint(written(Path(folder), name, data)) for name, data in samples}


def check_weights(path: Path, needs_checksum: bool) -> None:
    """Weights that differ from the good ones are refused where checksums are stored, and never pass for them."""
    found = read_weights(path)
    good = tensors()
    if found.keys() == good.keys() and all(torch.equal(found[name], good[name]) for name in good):
        return
    if fingerprint(path) in good_fingerprints():
        raise Wrong("other weights under the good ones' fingerprint")
    if needs_checksum and has_bad_checksum(path):
        raise Wrong("damaged weights are taken, against the checksums stored with them")


def has_bad_checksum(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except Exception:  # whatever else is wrong with it
        return False


def parse_checkpoint(data: bytes, folder: Path) -> None:
    check_weights(written(folder, "a.pth", data), needs_checksum=True)


@cache
def safetensors_samples() -> list[bytes]:
    return [save(tensors()), save(tensors(), {"format": "pt"})]


def parse_safetensors(data: bytes, folder: Path) -> None:
    check_weights(written(folder, "a.safetensors", data), needs_checksum=False)


@cache
def probe_samples() -> list[bytes]:
    rng = np.random.default_rng(0)
    probe = Probe(["jig", "reel"], *(rng.random(shape, np.float32) for shape in ((2, 8), (2,), (8,), (8,))), "tiny")
    with tempfile.TemporaryDirectory() as folder:
        probe.save(Path(folder, "probe"))
        return [Path(folder, "probe").read_bytes()]


def parse_probe(data: bytes, folder: Path) -> None:
    Probe.load(written(folder, "probe", data)).predict(np.ones((2, 8), np.float32))


# ---------- what the project itself writes ----------


@cache
def truth() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"/music/{number}.abc": rng.standard_normal(8).astype(np.float32) for number in range(40)}


@cache
def index_folder() -> dict[str, bytes]:
    """The files of a small index."""
    with tempfile.TemporaryDirectory() as folder, closing(Index.create(Path(folder, "index"))) as index:
        entries = [Entry(Path(name), "symbolic", name * 2, 9, 9, {"title": name}) for name in truth()]
        with index.writing():
            index.add(entries, np.stack(list(truth().values())))
            index.compact(approximate=True)
        return {path.name: path.read_bytes() for path in index.folder.iterdir()}


@cache
def index_samples() -> list[bytes]:
    """Each file of the index, with its name before it."""
    return [name.encode() + b"\0" + data for name, data in index_folder().items() if data]


@dataclass(frozen=True)
class IndexParser(Parser):
    """One file of an index is mutated, and the others are as they were."""

    def input(self, chance: Random) -> bytes:
        samples = self.samples()
        name, _, data = chance.choice(samples).partition(b"\0")
        others = [sample.partition(b"\0")[2] for sample in samples]
        return name + b"\0" + mutated(data, chance, others, self.mutations)


def parse_index(data: bytes, folder: Path) -> None:
    place = folder / "index"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    name, _, changed = data.partition(b"\0")
    for known, content in index_folder().items():
        written(place, known, changed if known == name.decode() else content)
    query = np.arange(8, dtype=np.float32)
    with closing(Index(place)) as index:
        for entry in index.entries():
            str(entry.path)
        index.counts()
        for approximate in (False, None, True):
            for cosine, entry in index.search(query, 5, approximate):
                if str(entry.path) not in truth():
                    raise Wrong(f"a file that was never added: {entry.path}")
                feature = truth()[str(entry.path)].astype(np.float64)
                right = feature @ query / np.linalg.norm(feature) / np.linalg.norm(query)
                if not abs(cosine - right) < 1e-5:
                    raise Wrong(f"{entry.path} has a cosine of {cosine}, not of {right}")


@cache
def cache_samples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        cache_file = FeatureCache(10)
        cache_file.path = Path(folder, CACHE_FILE)
        cache_file.put({name.encode(): CachedFeature(feature, ["mended"]) for name, feature in truth().items()})
        with closing(sqlite3.connect(cache_file.path)) as database:
            database.execute("VACUUM")
        return [cache_file.path.read_bytes()]


def parse_cache(data: bytes, folder: Path) -> None:
    place = folder / "cache"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    os.environ["CLAMP3_CACHE"] = str(place)
    written(place, CACHE_FILE, data)
    kept = FeatureCache(10)
    fresh = {b"fresh": CachedFeature(np.ones(8, np.float32), [])}
    expected = {name.encode(): feature for name, feature in truth().items()} | {b"fresh": fresh[b"fresh"].feature}
    for _ in range(2):
        for key, cached in (kept.get(list(expected)) or {}).items():
            if not np.array_equal(cached.feature, expected[key]) or not isinstance(cached.repairs, list):
                raise Wrong(f"another feature than was kept under {key!r}")
        kept.put(fresh)


@cache
def recorded() -> Path:
    """A JSONL file whose items have passed, which a record in cache/ beside it remembers by path and times."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = written(folder, "a.jsonl", jsonl_samples()[0])
    for name, sample in (("a.abc", abc_samples()[0]), ("a.mtf", mtf_samples()[0])):
        written(folder, name, sample)
    return path


def check_recorded() -> Path:
    """Check the items of `recorded`; returns where they are remembered."""
    os.environ["CLAMP3_CACHE"] = str(recorded().parent / "cache")
    if check_pairs(lines := JsonLines(recorded()), "symbolic", 128):
        raise Wrong("good items are refused")
    return Record(lines.path, "symbolic", 128).path


@cache
def record_samples() -> list[bytes]:
    before = os.environ.get("CLAMP3_CACHE")
    sample = check_recorded().read_bytes()
    os.environ.pop("CLAMP3_CACHE") if before is None else os.environ.update(CLAMP3_CACHE=before)
    return [sample]


def parse_record(data: bytes, _folder: Path) -> None:
    os.environ["CLAMP3_CACHE"] = str(recorded().parent / "cache")
    path = Record(recorded(), "symbolic", 128).path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        check_recorded()
    except (ValueError, OSError) as error:  # it is to be a miss
        raise Wrong("a damaged record stops the check") from error


@cache
def manifest_samples() -> list[bytes]:
    maker = {"kind": "global features", "weights": "0123456789abcdef", "file": "a.pth", "precision": "fp32"}
    issues = [{"file": f"a{number}.abc", "reason": "no bars"} for number in range(5)]
    return [
        json.dumps({**maker, "audio_encoder": None, "version": "3.0"}, indent=2).encode(),
        b"".join(json.dumps(issue).encode() + b"\n" for issue in issues),
    ]


def parse_manifest(data: bytes, folder: Path) -> None:
    load_issues(written(folder, "warnings.jsonl", data))
    written(folder, MANIFEST_FILE, data)
    maker = {"kind": "global features", "weights": "0123456789abcdef", "file": "a.pth", "precision": "fp32"}
    check_or_record_maker(folder, maker, is_new=False)


NOTATION = Parser(abc_samples, parse_abc)
PARSERS: dict[str, Parser] = {
    "ABC": NOTATION,
    "ABC to MusicXML": replace(NOTATION, parse=parse_abc_to_musicxml, longest=8192),  # 10 kB/s
    "MTF": Parser(mtf_samples, parse_mtf),
    "MIDI": Parser(midi_samples, parse_midi, ON_BYTES),
    "MusicXML": Parser(musicxml_samples, parse_musicxml, ON_XML),
    ".mxl": Parser(mxl_samples, parse_musicxml, ON_BYTES, is_zip=True),
    "text, prompts": Parser(text_samples, parse_text),
    "CSV": Parser(csv_samples, parse_csv),
    "JSONL": Parser(jsonl_samples, parse_jsonl),
    "settings": Parser(config_samples, parse_config),
    ".npy": Parser(npy_samples, parse_npy),
    "sound": Parser(sound_samples, parse_sound, ON_BYTES),
    ".pth": Parser(checkpoint_samples, parse_checkpoint, ON_BYTES, is_zip=True),
    ".safetensors": Parser(safetensors_samples, parse_safetensors),
    "probe": Parser(probe_samples, parse_probe),
    "index": IndexParser(index_samples, parse_index, ON_BYTES),
    "cache": Parser(cache_samples, parse_cache, ON_BYTES),
    "record of checks": Parser(record_samples, parse_record, ON_BYTES, is_zip=True),
    "manifest, reports": Parser(manifest_samples, parse_manifest),
}

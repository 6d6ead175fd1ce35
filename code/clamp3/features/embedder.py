"""Sequences -> segments -> batches -> features. `Embedder` is the library's front door.

PyTorch is imported where a model in PyTorch is loaded: ONNX files do without.
"""

import contextlib
import hashlib
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, overload

import numpy as np
from tqdm import tqdm

from clamp3.audio.encoder import AudioEncoder, audio_encoder_identity, load_audio_encoder
from clamp3.errors import Note, UserError, warn
from clamp3.features.calls import (
    Errors,
    Layers,
    Output,
    Positions,
    Wanted,
    as_features,
    as_list,
    as_sound,
    checked_count,
    checked_text,
    kind_of,
    numbered,
    of_item,
    overloaded,
)
from clamp3.features.memory import return_freed_memory
from clamp3.features.onnx_towers import OnnxTowers
from clamp3.features.reading import READING_VERSION, Item, in_thread, is_sound, read_item, read_raw, read_sounds
from clamp3.formats.registry import format_of
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.segments import batches, cut, pad
from clamp3.inputs.tokenizer import Tokenizer
from clamp3.io.memory import as_memory_allows
from clamp3.io.reports import describe_error
from clamp3.io.workers import Processes
from clamp3.modalities import AUDIO, MODALITIES, SAMPLING_RATE, SYMBOLIC, TEXT
from clamp3.models.hub import upload_folder
from clamp3.models.onnx_files import is_onnx
from clamp3.models.releases import is_name
from clamp3.sizes import ModelSizes

if TYPE_CHECKING:
    import mido
    import torch
    from torch import nn

    from clamp3.features.explanation import Explanation
    from clamp3.features.passages import Passage
    from clamp3.features.towers import Towers
    from clamp3.models.clamp3 import CLaMP3Model
    from clamp3.models.m3 import M3Model

    Midi: TypeAlias = str | Path | bytes | mido.MidiFile
    Samples: TypeAlias = np.ndarray | torch.Tensor
    Sound: TypeAlias = str | Path | bytes | BinaryIO | Samples | tuple[Samples, int]

# Enough to keep the arithmetic units busy; more makes no CPU faster, since activations then leave its caches. In ONNX
# padding is computed too, of which smaller batches have less.
BATCH_TOKENS = {"cpu": 2048, "onnx": 512, "other": 32768}
# Batches sorted together: the more, the less padding; a bound on what waits in memory.
CHUNK_BATCHES = 16
_preparing = threading.RLock()  # held while an Embedder, of several threads perhaps, loads its audio encoder


def _unit_length(feature: Any) -> Any:
    if isinstance(feature, Positions):
        return replace(feature, states=_unit_length(feature.states))
    return feature / np.linalg.norm(feature, axis=-1, keepdims=True)


def _chunks(items: Iterable[Item], chunk_tokens: int) -> Iterator[list[Item]]:
    """Items of one modality together, until their sequences come to `chunk_tokens`."""
    waiting: dict[str, list[Item]] = {}
    tokens: Counter[str] = Counter()
    for item in items:
        waiting.setdefault(item.modality, []).append(item)
        tokens[item.modality] += 0 if item.error is not None else len(item.content)
        if tokens[item.modality] >= chunk_tokens:
            yield waiting.pop(item.modality)
            tokens[item.modality] = 0
    yield from waiting.values()


class Embedder(InputEncoder):
    """Turns text, symbolic music and audio features into CLaMP 3 features.

    Results are float32 and in input order. They do not depend on what else is in a call: items are batched by length
    for speed, and padding is masked. A tower's weights are read when it is first used. Threads may share an Embedder.

    Each `embed_*` method takes a list of n items and returns features (n, clamp3_hidden_size). All of them take these:
    - `normalize`: features, or states, of length 1.
    - `pooled=False`: a list of the n items' hidden states (length, hidden) in place of the features.
    - `layers="all"`: a list of the states of all layers of a tower, its embeddings first: (layers + 1, length, hidden)
      with `pooled=False`, else their means over the positions (layers + 1, hidden).
    - `projected=True`, with `pooled=False`: a list of Positions, states in the shared space whose weighted sum is the
      feature. With `normalize` each state has the length 1, and the sum is another one.
    - `errors`: with "raise" an item without a feature raises ValueError, and a path that cannot be read OSError; with
      "skip" such items are left out, with a RepairWarning each; with "return" two things are returned: features of all
      n items, NaN for those without one (None in a list), and a dict of their errors by index.
    - `progress`: show a bar.
    """

    def __init__(
        self,
        model: "CLaMP3Model | M3Model | OnnxTowers",
        sizes: ModelSizes,
        device: "str | torch.device | None" = None,
        precision: str = "fp32",
        batch_tokens: int | None = None,
        mert: str | Path | AudioEncoder | None = None,
        weights: Path | None = None,
        as_is: bool = False,
        processes: Processes | None = None,
    ):
        """The model is taken over: it goes to the device and into evaluation mode, and loses its unused poolers.

        It may be OnnxTowers in its place, whose device and precision are their own, as is their MERT by default.
        `batch_tokens` bounds a padded batch (tokens, patches or frames); None takes what suits the device. `mert` is
        what listens to raw sound: a MERT's folder or name on the hub, by default the released one's, which is loaded
        when sound is first embedded, or any AudioEncoder. `weights` is the file that the model was loaded from; a
        tokenizer.json beside it is used where the text model's name is not that of a local folder. With `as_is`,
        symbolic text is not interleaved first (see InputEncoder). `processes` convert scores and MIDI files, which
        takes a main module with a `__main__` guard; by default that is done in this process.
        In bf16 and fp16 the layers compute in that precision; embeddings, means and projections stay in float32.
        """
        super().__init__(sizes, as_is)
        self._towers = model if isinstance(model, OnnxTowers) else _in_torch(model, device, precision)
        given = None if batch_tokens is None else checked_count("batch_tokens", batch_tokens, 1)
        kind = "onnx" if isinstance(model, OnnxTowers) else "cpu" if self.device.type == "cpu" else "other"
        self.batch_tokens = given or BATCH_TOKENS[kind]
        own_mert = model.mert if isinstance(model, OnnxTowers) else None
        self.audio_encoder_name = own_mert if mert is None else mert
        self.processes = processes
        self.weights = weights
        self._audio_encoder: AudioEncoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "saas",
        device: "str | torch.device | None" = None,
        precision: str = "fp32",
        batch_tokens: int | None = None,
        sizes: ModelSizes | None = None,
        mert: str | Path | AudioEncoder | None = None,
        as_is: bool = False,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        towers: Collection[str] | None = None,
    ) -> "Embedder":
        """Load "saas" (best for audio), "c2" (best for symbolic music), "m3" (its hidden states), "tiny", or your own.

        That is a file that training has written, a folder that `save_pretrained` has, or the hub's name of such a
        folder, of a `revision` and with a `token` if given. A released file is taken from the working directory if it
        is there, else from the Hugging Face cache, where it is downloaded once. "tiny" is the small model that lies in
        the package, with its own MERT. With `towers`, some of "text", "symbolic" and "audio", only these are read, and
        of a folder on the hub only these downloaded. `sizes` are those of weights that do not say them themselves.
        With `as_is`, symbolic text is not interleaved first, as in the original. A folder of ONNX files, which
        `clamp3 export` has written, is run by onnxruntime on the CPU, in the precision that they have.
        """
        if revision is not None and (is_name(weights) or Path(weights).exists()):
            raise UserError(f"{weights} has no revisions, as models on the hub have: leave out {revision=}")
        if is_onnx(weights):
            onnx = OnnxTowers.load(Path(weights), device, precision, towers)
            if sizes is not None and replace(sizes, text_model_name=onnx.sizes.text_model_name) != onnx.sizes:
                raise UserError(f"{weights} says its sizes itself, and they are not those that are given")
            return cls(onnx, onnx.sizes, batch_tokens=batch_tokens, mert=mert, weights=onnx.path, as_is=as_is)
        from clamp3.features.towers import check_process
        from clamp3.models.pretrained import find_pretrained

        check_process()
        found = find_pretrained(weights, sizes, revision, token, towers)
        mert = mert if mert is not None else found.mert
        return cls(found.model, found.sizes, device, precision, batch_tokens, mert, found.path, as_is)

    def save_pretrained(self, folder: str | Path, precision: str = "fp32", *, name: str | None = None) -> None:
        """Write the model to `folder`, for `from_pretrained`: a file for each tower, config.json, tokenizer, a card.

        In bf16 or fp16 the files have half the size, and features differ by the rounding. The card calls it `name`, by
        default as the folder. Raises UserError where the folder holds other things, or where this Embedder has
        rounded its weights.
        """
        mert = self.audio_encoder_name
        own = Path(mert) if isinstance(mert, str | Path) and Path(mert).is_dir() else None
        self._towers.save(self.sizes, Path(folder), precision, self.fingerprint, own, name)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        message: str = "Upload by clamp3",
        precision: str = "fp32",
    ) -> str:
        """Upload what `save_pretrained` writes to the hub's model `repository`, which is made if need be.

        Returns its address. Raises UserError where the hub refuses.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, repository.rpartition("/")[2])
            self.save_pretrained(folder, precision, name=repository)
            return upload_folder(folder, repository, private, token, revision, message)

    def __getstate__(self) -> dict[str, Any]:
        """What it takes elsewhere: the weights themselves, in place of a map of their file, and the tokenizer.

        A MERT is loaded anew where sound is next embedded.
        """
        self._towers.own_weights()
        if self._towers.has_text:
            with contextlib.suppress(UserError):  # then texts cannot be embedded here either
                _ = self.tokenizer
        return {**self.__dict__, "_audio_encoder": None}

    def __repr__(self) -> str:
        return f"Embedder({self.weights or 'unnamed weights'}, device={self.device}, precision={self.precision})"

    @property
    def device(self) -> Any:
        """Where features are computed: a torch.device, or of ONNX files what is called cpu."""
        return self._towers.device

    @device.setter
    def device(self, device: "torch.device") -> None:
        self._towers.device = device

    @property
    def precision(self) -> str:
        """In which the layers compute."""
        return self._towers.precision

    @property
    def _model(self) -> "CLaMP3Model | M3Model":
        """The model in PyTorch. Raises UserError where there is none."""
        return self._towers.model

    @property
    def weights(self) -> Path | None:
        """The file that the model was loaded from, for reports; None where that is not known."""
        return self._weights

    @weights.setter
    def weights(self, path: Path | None) -> None:
        self._weights = path
        self.fingerprint = self._towers.fingerprint_of(path)

    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]":
        """The model's weights by their names in its file, but those that no feature needs.

        To change one in place, use `torch.no_grad()` and not its `data`: layers may hold a copy, which is made anew
        where PyTorch counts the change.
        """
        return self._towers.named_parameters()

    # ---------- sequences -> features ----------

    @overloaded
    def embed_text(
        self,
        texts: Sequence[str],
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of texts in any of 100 languages; each line of a text counts once."""
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        return self._embed_each("embed_text", TEXT.name, self._encode_text, texts, wanted)

    @overloaded
    def embed_symbolic(
        self,
        texts: Sequence[str],
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of pieces, each ABC or MTF; ABC is interleaved first unless it is, or the Embedder has `as_is`."""
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        return self._embed_each("embed_symbolic", SYMBOLIC.name, self._encode_symbolic, texts, wanted)

    @overloaded
    def embed_audio_features(
        self,
        arrays: Sequence[np.ndarray],
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of recordings, each MERT features (…, frames, audio_hidden_size)."""
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        return self._embed_each("embed_audio_features", AUDIO.name, self.encode_audio_features, arrays, wanted)

    # ---------- raw files ----------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The text model's tokenizer. Raises UserError as `load_tokenizer` does, and where it is another model's."""
        return self._towers.load_tokenizer(self.sizes.text_model_name, self.tokenizer_folder)

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where a tokenizer may lie beside the weights; None where they say themselves which they take."""
        return None if self.weights is None or self._towers.name_their_tokenizer else self.weights.parent

    @property
    def audio_encoder(self) -> AudioEncoder:
        """The network that turns sound into audio features: MERT, or what has taken its place.

        Raises UserError where it cannot be had, or where the audio tower reads frames of another width.
        """
        self._towers.check(AUDIO.name)
        with _preparing:
            if self._audio_encoder is None:
                encoder = load_audio_encoder(self.audio_encoder_name, *self._towers.for_listening)
                if encoder.width != self.sizes.audio_hidden_size:
                    raise UserError(
                        f"the audio encoder gives frames of {encoder.width} numbers, and this model's audio tower "
                        f"reads {self.sizes.audio_hidden_size}"
                    )
                self._audio_encoder = encoder
            return self._audio_encoder

    @property
    def identity(self) -> str | None:
        """What tells features that can be compared with this Embedder's, and no others; None for unknown weights.

        It stands for the weights, the sizes at which inputs are cut, and the version of what reads files.
        """
        if self.fingerprint is None:
            return None
        facts = (
            self.fingerprint,
            astuple(replace(self.sizes, text_model_name="")),
            READING_VERSION,
            *["as_is"] * self.as_is,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    @cached_property
    def audio_encoder_identity(self) -> str | None:
        """What tells the network that turns sound into audio features from others; None where that is not known."""
        return audio_encoder_identity(self.audio_encoder_name)

    def prepare_for(self, paths: Iterable[Path]) -> None:
        """Load what reading `paths` takes besides weights. Raises UserError where it cannot be had."""
        paths = list(paths)
        for modality in {known.modality for path in paths if (known := format_of(path))}:
            if resource := MODALITIES[modality].resource:
                getattr(self, resource)  # loaded by being asked for
        if any(is_sound(path) for path in paths):
            _ = self.audio_encoder

    def read_raw(self, paths: Sequence[Path], workers: int = 0) -> Iterator[Item]:
        """The items of raw files of any kinds for `embed_items`, as `reading.read_raw`.

        Scores and MIDI files are converted in `workers` processes, which takes a main module with a `__main__` guard;
        with 0, by the Embedder's `processes`, or in this process if it has none.
        """
        return read_raw(self, paths, lambda: self.audio_encoder, Processes(workers) if workers else self.processes)

    @overload
    def embed_files(
        self,
        paths: Sequence[str | Path],
        normalize: bool = ...,
        pooled: Literal[True] = ...,
        *,
        layers: Literal["last"] = ...,
        projected: Literal[False] = ...,
        workers: int = ...,
        errors: Literal["raise", "skip"] = ...,
        progress: bool = ...,
    ) -> np.ndarray: ...

    @overload
    def embed_files(
        self,
        paths: Sequence[str | Path],
        normalize: bool = ...,
        *,
        pooled: Literal[False],
        layers: Layers = ...,
        projected: Literal[False] = ...,
        workers: int = ...,
        errors: Literal["raise", "skip"] = ...,
        progress: bool = ...,
    ) -> list[np.ndarray]: ...

    @overload
    def embed_files(
        self,
        paths: Sequence[str | Path],
        normalize: bool = ...,
        pooled: bool = ...,
        *,
        layers: Layers = ...,
        projected: bool = ...,
        workers: int = ...,
        errors: Errors = ...,
        progress: bool = ...,
    ) -> Any: ...

    def embed_files(
        self,
        paths: Sequence[str | Path],
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        workers: int = 0,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of files of any kinds, told by their extensions; an error names its file.

        They are text (.txt), scores (.xml .musicxml .mxl .abc), MIDI (.mid .midi .mtf), sound (.wav .mp3 .flac .ogg …)
        and MERT features (.npy). `workers` is as in `read_raw`.
        """
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        files = [Path(one) if isinstance(one, str | PathLike) else one for one in as_list("embed_files", paths)]
        items = self._read_files(files, checked_count("workers", workers, 0))
        return self._results(items, numbered(files), wanted)

    def passages(self, file: str | Path) -> "list[Passage]":
        """The passages of a file of any kind, each with its span and its feature (clamp3_hidden_size,).

        They are windows of bars of a score or of MIDI, windows of seconds of sound, and the lines of a text, each
        encoded on its own. Raises as `embed_files` for a file without a feature.
        """
        from clamp3.features.passages import embed_with_passages

        ((item, _, found),) = embed_with_passages(self, [Path(file)])
        for repair in item.repairs:
            warn(f"{file}: {repair}")
        if item.error is not None:
            raise of_item(item.error, str(file))
        return found

    def explain(self, query: Any, item: Any) -> "Explanation":
        """Where the cosine of two items comes from: each bar's, message run's, frame's and word's share of it.

        Both are of any kinds, as `embed_any` takes. The shares of either add up to the cosine. Raises ValueError and
        OSError as `embed_any`.
        """
        from clamp3.features.explanation import explained

        sources = [query, item]
        read = sorted(self._read_any(sources), key=lambda one: one.index)
        for one in read:
            if one.error is not None:
                raise of_item(one.error, numbered(sources)[one.index])
        found: dict[int, Positions] = {}
        for one, positions in self.embed_items(iter(read), pooled=False, projected=True):
            if positions is None:
                raise one.error or MemoryError()
            found[one.index] = positions
        return explained(self, sources, read, [found[0], found[1]])

    def embed_items(
        self, items: Iterator[Item], pooled: bool = True, layers: Layers = "last", projected: bool = False
    ) -> Iterator[tuple[Item, Any]]:
        """Yield each of `items`, in any order, with its feature as in `embed`, or with None if it has an error.

        They are taken as they are needed, the next while those at hand are computed: any number fits into memory.
        """
        yield from self._embed_items(items, Output(pooled, layers, projected))

    def _embed_items(self, items: Iterator[Item], output: Output) -> Iterator[tuple[Item, Any]]:
        read = partial(next, _chunks(items, CHUNK_BATCHES * self.batch_tokens), None)
        upcoming = in_thread(read)
        while (chunk := upcoming.result()) is not None:
            upcoming = in_thread(read)
            yield from ((item, None) for item in chunk if item.error is not None)
            whole = [item for item in chunk if item.error is None]
            if whole:
                sequences = [item.content for item in whole]
                for index, feature in self._embed(whole[0].modality, sequences, output):
                    if feature is None:
                        whole[index].error = MemoryError()
                    yield whole[index], feature

    @overloaded
    def embed_midi(
        self,
        sources: "Sequence[Midi]",
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of pieces of MIDI, each a path, the bytes of a file or a mido.MidiFile."""
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        return self._embed_each("embed_midi", SYMBOLIC.name, self._encode_midi, sources, wanted)

    @overloaded
    def embed_musicxml(
        self,
        sources: Sequence[str | Path | bytes],
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of scores, each the path or the bytes of a .xml, .musicxml or .mxl file."""
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        return self._embed_each("embed_musicxml", SYMBOLIC.name, self._encode_musicxml, sources, wanted)

    @overload
    def embed_audio(
        self,
        sources: "Sequence[Sound]",
        sampling_rate: int = ...,
        normalize: bool = ...,
        pooled: Literal[True] = ...,
        *,
        layers: Literal["last"] = ...,
        projected: Literal[False] = ...,
        errors: Literal["raise", "skip"] = ...,
        progress: bool = ...,
    ) -> np.ndarray: ...

    @overload
    def embed_audio(
        self,
        sources: "Sequence[Sound]",
        sampling_rate: int = ...,
        normalize: bool = ...,
        *,
        pooled: Literal[False],
        layers: Layers = ...,
        projected: Literal[False] = ...,
        errors: Literal["raise", "skip"] = ...,
        progress: bool = ...,
    ) -> list[np.ndarray]: ...

    @overload
    def embed_audio(
        self,
        sources: "Sequence[Sound]",
        sampling_rate: int = ...,
        normalize: bool = ...,
        pooled: bool = ...,
        *,
        layers: Layers = ...,
        projected: bool = ...,
        errors: Errors = ...,
        progress: bool = ...,
    ) -> Any: ...

    def embed_audio(
        self,
        sources: "Sequence[Sound]",
        sampling_rate: int = SAMPLING_RATE,
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of recordings, each a path, the bytes of a file, an open file, or samples.

        Samples are an array or a tensor (samples,), (samples, channels) or (channels, samples), whose longer side is
        time, at `sampling_rate` Hz, or a pair of such samples and their own rate. Rows of sound as `datasets` has
        them, {"array": …, "sampling_rate": …} or {"bytes": …, "path": …}, will do too.
        """
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        recordings = as_list("embed_audio", sources)
        return self._results(self._read_sounds(recordings, sampling_rate), numbered(recordings), wanted)

    # ---------- items of any kinds, and how alike they are ----------

    def embed_any(
        self,
        items: Sequence[Any],
        normalize: bool = False,
        pooled: bool = True,
        *,
        layers: Layers = "last",
        projected: bool = False,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Any:
        """Features of items of any kinds, told by their types.

        A Path is a file of any kind, and an open file is sound. A str is ABC, MTF or else a text. Bytes are those of a
        MIDI, MusicXML or sound file. Arrays, tensors, pairs (samples, rate) and rows of `datasets` are sound, as in
        `embed_audio`.
        """
        wanted = Wanted(normalize, Output(pooled, layers, projected), errors, progress)
        listed = as_list("embed_any", items)
        return self._results(self._read_any(listed), numbered(listed), wanted)

    def similarity(self, queries: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        """The cosine of each query with each reference: (queries, references).

        Both are lists as `embed_any` takes, or features that are there already: an array or a tensor
        (n, clamp3_hidden_size), or a list of rows (clamp3_hidden_size,).
        """
        first, second = self._unit_features("similarity", queries, references)
        return first @ second.T

    def scores(self, queries: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        """The cosine of each query with the reference at its place (n,), such as a reward for generated music.

        As `similarity`. Raises ValueError where there are not as many of both.
        """
        first, second = self._unit_features("scores", queries, references, pairs=True)
        return (first * second).sum(axis=1)

    def top_k(self, queries: Sequence[Any], references: Sequence[Any], k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Indices and cosines, both (queries, k), of the k references nearest to each query, best first."""
        k = checked_count("k", k, 1)
        first, second = self._unit_features("top_k", queries, references)
        cosines = first @ second.T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(cosines, order, axis=1)

    def _unit_features(self, method: str, *sides: Sequence[Any], pairs: bool = False) -> list[np.ndarray]:
        """Features of length 1 of the queries and of the references that `method` was given."""
        ready = [as_features(side) for side in sides]
        listed = [as_list(method, side) if found is None else found for side, found in zip(sides, ready, strict=True)]
        if pairs and len(listed[0]) != len(listed[1]):
            raise ValueError(f"{len(listed[0])} queries and {len(listed[1])} references do not make pairs")
        wanted = Wanted(True, Output(), "raise", False)
        found = []
        for side, noun in zip(listed, ("query", "reference"), strict=True):
            if not isinstance(side, np.ndarray):
                found.append(self._results(self._read_any(side), numbered(side, noun), wanted))
            elif side.shape[1] != self.sizes.clamp3_hidden_size:
                raise ValueError(f"features must be (n, {self.sizes.clamp3_hidden_size}), not {side.shape}")
            else:
                found.append(_unit_length(side.astype(np.float32)))
        return found

    def _read_any(self, items: Sequence[Any]) -> Iterator[Item]:
        """The items of `embed_any` for `embed_items`, in any order."""
        places: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            places.setdefault(kind_of(item), []).append(index)
        readers: dict[str, tuple[str, Callable[[Any, Note], np.ndarray]]] = {
            "text": (TEXT.name, self._encode_text),
            "symbolic": (SYMBOLIC.name, self._encode_symbolic),
            "midi": (SYMBOLIC.name, self._encode_midi),
            "musicxml": (SYMBOLIC.name, self._encode_musicxml),
        }
        for kind, (modality, encode) in readers.items():
            for index in places.get(kind, ()):
                yield read_item(Item(index, modality), partial(encode, items[index]))
        for index in places.get("unknown", ()):
            known = "a str, a Path, bytes, an open file, samples, a pair (samples, rate) or a mido.MidiFile"
            error = ValueError(f"{type(items[index]).__name__} is no kind of item: give {known}")
            yield Item(index, SYMBOLIC.name, error=error)
        if files := places.get("file"):
            for item in self.read_raw([items[index] for index in files]):
                yield replace(item, index=files[item.index])
        if sounds := places.get("sound"):
            for item in self._read_sounds([items[index] for index in sounds], SAMPLING_RATE):
                yield replace(item, index=sounds[item.index])

    def _read_files(self, paths: Sequence[Any], workers: int) -> Iterator[Item]:
        """The items of `embed_files`, in any order."""
        places = [index for index, path in enumerate(paths) if isinstance(path, Path)]
        for index in set(range(len(paths))).difference(places):
            error = ValueError(f"a path is a str or a Path, not {type(paths[index]).__name__}")
            yield Item(index, SYMBOLIC.name, error=error)
        for item in self.read_raw([paths[index] for index in places], workers):
            yield replace(item, index=places[item.index])

    def _encode_text(self, text: Any, note: Note) -> np.ndarray:
        return self.encode_text(checked_text(text), note)

    def _encode_symbolic(self, text: Any, note: Note) -> np.ndarray:
        return self.encode_symbolic(checked_text(text), note)

    def _encode_midi(self, source: "Midi", note: Note) -> np.ndarray:
        from clamp3.formats.midi import midi_to_mtf

        return self.encode_symbolic(midi_to_mtf(source, m3_compatible=True, note=note), note)

    def _encode_musicxml(self, source: str | Path | bytes, note: Note) -> np.ndarray:
        from clamp3.formats.abc import interleave
        from clamp3.formats.musicxml import musicxml_to_abc

        return self.encode_symbolic(interleave(musicxml_to_abc(source, note), note), note)

    def _read_sounds(self, sources: "Sequence[Sound]", sampling_rate: int) -> Iterator[Item]:
        from clamp3.formats.audio import load_sound

        def sound(source: "Sound") -> Callable[[int, Note], np.ndarray]:
            return lambda rate, note: load_sound(as_sound(source), sampling_rate, rate, note)

        return read_sounds(self, self.audio_encoder, map(sound, sources))

    # ---------- what the methods share ----------

    def _embed_each(
        self,
        method: str,
        modality: str,
        encode: Callable[[Any, Note], np.ndarray],
        sources: Iterable[Any],
        wanted: Wanted,
    ) -> Any:
        """What `method` returns for `sources`, each of which `encode` turns into a sequence of its tower."""
        listed = as_list(method, sources)
        items = (read_item(Item(index, modality), partial(encode, one)) for index, one in enumerate(listed))
        return self._results(items, numbered(listed), wanted)

    def _results(self, items: Iterator[Item], names: Sequence[str], wanted: Wanted) -> Any:
        """What an `embed_*` method returns for `items`; `names` are what errors and remarks call them."""
        features: dict[int, Any] = {}
        errors: dict[int, Exception] = {}
        with tqdm(total=len(names), disable=not wanted.progress, unit="item") as bar:
            for item, feature in self._embed_items(items, wanted.output):
                name = names[item.index]
                for repair in item.repairs:
                    warn(f"{name}: {repair}")
                if feature is not None:
                    features[item.index] = _unit_length(feature) if wanted.normalize else feature
                else:
                    assert item.error is not None
                    errors[item.index] = item.error
                    if wanted.errors == "raise":
                        raise of_item(item.error, name)
                    if wanted.errors == "skip":
                        warn(f"left out, {name}: {describe_error(item.error)}")
                bar.update()
        if wanted.errors == "return":
            nothing = np.full(self.sizes.clamp3_hidden_size, np.nan, np.float32) if wanted.output.is_global else None
            return self._stacked([features.get(index, nothing) for index in range(len(names))], wanted.output), errors
        return self._stacked([features[index] for index in sorted(features)], wanted.output)

    def _stacked(self, features: list[Any], output: Output) -> Any:
        """Global features in one array, anything else in a list."""
        if not output.is_global:
            return features
        return np.stack(features) if features else np.zeros((0, self.sizes.clamp3_hidden_size), np.float32)

    def embed(
        self,
        modality: str,
        sequences: Sequence[np.ndarray],
        pooled: bool = True,
        layers: Layers = "last",
        projected: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, feature) for each of `sequences` (what an InputEncoder makes) as soon as it is whole.

        Pooled: (clamp3_hidden_size,), the mean of the segments' global features, each weighted by the positions that
        it alone covers. Else the hidden states (length, hidden), or what `Output` lists. Raises MemoryError where the
        memory does not suffice for one segment alone.
        """
        for index, feature in self._embed(modality, sequences, Output(pooled, layers, projected)):
            if feature is None:
                raise MemoryError("there is not enough memory for a single segment")
            yield index, feature

    def _embed(
        self, modality: str, sequences: Sequence[np.ndarray], output: Output
    ) -> Iterator[tuple[int, np.ndarray | Positions | None]]:
        """`embed`, with None for the feature of a sequence for which the memory does not suffice."""
        segments = {
            index: cut(index, len(sequence), self.max_lengths[modality]) for index, sequence in enumerate(sequences)
        }
        parts: dict[int, dict[int, np.ndarray]] = {index: {} for index in segments}
        everything = [segment for owned in segments.values() for segment in owned]
        for batch in batches(everything, self.batch_tokens):
            inputs = [sequences[segment.owner][segment.start : segment.stop] for segment in batch]
            forward = partial(self._forward, modality, output=output)
            for segment, feature in zip(batch, as_memory_allows(forward, inputs), strict=True):
                if segment.owner not in parts:  # another segment of it did not fit
                    continue
                if feature is None:
                    del parts[segment.owner]
                    yield segment.owner, None
                    continue
                done, owned = parts[segment.owner], segments[segment.owner]
                done[segment.start] = feature
                if len(done) == len(owned):
                    yield segment.owner, output.join([done[segment.start] for segment in owned], owned)
                    del parts[segment.owner]
            return_freed_memory()

    def _forward(self, modality: str, sequences: list[np.ndarray], output: Output) -> np.ndarray:
        """One padded batch through its tower -> (batch, …), as `Output` lists; lengths are those of the longest."""
        self._towers.prepare(modality)
        return self._towers.forward(modality, *pad(sequences, self._towers.padding(modality)), output)


def _in_torch(model: "CLaMP3Model | M3Model", device: "str | torch.device | None", precision: str) -> "Towers":
    from clamp3.features.towers import Towers

    return Towers(model, device, precision)


def checked_method(name: str) -> str:
    """`name`. Raises ValueError where no method of an Embedder that embeds has it."""
    if not (name.startswith("embed_") and hasattr(Embedder, name)):
        raise ValueError(f"an Embedder has no method {name}")
    return name

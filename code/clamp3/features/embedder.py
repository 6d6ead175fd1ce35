"""Sequences -> segments -> batches -> features. `Embedder` is the library's front door."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from torch import nn

from clamp3.audio.encoder import AudioEncoder, audio_encoder_identity, load_audio_encoder
from clamp3.distributed import PRECISIONS, checked_precision, usable_device
from clamp3.errors import UserError, warn
from clamp3.features.reading import READING_VERSION, Item, is_sound, read_raw
from clamp3.formats.registry import format_of
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.patchilizer import PAD_ID
from clamp3.inputs.segments import Segment, batches, cut, pad
from clamp3.inputs.tokenizer import load_tokenizer
from clamp3.io.reports import describe_error
from clamp3.modalities import AUDIO, MODALITIES, SYMBOLIC, TEXT
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import PACKABLE, is_packable
from clamp3.models.m3 import M3Model, M3PatchEncoder
from clamp3.models.releases import RELEASES, TINY, ensure_weights, tiny_sizes
from clamp3.models.text import check_vocabulary
from clamp3.models.weight_files import fingerprint
from clamp3.models.weights import build_model
from clamp3.sizes import ModelSizes

if TYPE_CHECKING:
    import mido
    from transformers import PreTrainedTokenizerBase

    Midi: TypeAlias = str | Path | bytes | mido.MidiFile

# Enough to keep the arithmetic units busy; more makes no CPU faster, since activations then leave its caches.
BATCH_TOKENS = {"cpu": 2048, "other": 32768}
# Batches sorted together: the more, the less padding; a bound on what waits in memory.
CHUNK_BATCHES = 16
_preparing = threading.RLock()  # held while an Embedder, of several threads perhaps, gets itself ready

T = TypeVar("T")
Samples = np.ndarray | torch.Tensor
Sound = str | Path | bytes | BinaryIO | Samples | tuple[Samples, int]
Features = np.ndarray | list[np.ndarray]  # (n, clamp3_hidden_size) pooled, else n times (length, hidden)


def _as_list(method: str, items: Iterable[T]) -> list[T]:
    """The items of a call of `method`. Raises ValueError for one item in place of a list of them."""
    if isinstance(items, str | bytes | Path | np.ndarray | torch.Tensor) or not isinstance(items, Iterable):
        raise ValueError(f"give a list of items, {method}([item]), not one {type(items).__name__}")
    return list(items)


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

    Each `embed_*` method takes a list of n items and returns features (n, clamp3_hidden_size), of length 1 with
    `normalize`; with `pooled=False`, a list of the n items' hidden states (length, hidden). It raises ValueError for
    an item without a feature, and OSError for a path that cannot be read.
    """

    def __init__(
        self,
        model: CLaMP3Model | M3Model,
        sizes: ModelSizes,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        batch_tokens: int | None = None,
        mert: str | Path | AudioEncoder | None = None,
        weights: Path | None = None,
        as_is: bool = False,
    ):
        """The model is taken over: it goes to the device and into evaluation mode, and loses its unused poolers.

        `batch_tokens` bounds a padded batch (tokens, patches or frames); None takes what suits the device. `mert` is
        what listens to raw sound: a MERT's folder or name on the hub, by default the released one's, which is loaded
        when sound is first embedded, or any AudioEncoder. `weights` is the file that the model was loaded from; a
        tokenizer.json beside it is used where the text model's name is not that of a local folder. With `as_is`,
        symbolic text is not interleaved first (see InputEncoder).
        In bf16 and fp16 the layers compute in that precision; embeddings, means and projections stay in float32.
        """
        super().__init__(sizes, as_is)
        self.device = usable_device(device)
        self.precision = checked_precision(precision)
        self.batch_tokens = batch_tokens or BATCH_TOKENS["cpu" if self.device.type == "cpu" else "other"]
        self.audio_encoder_name = mert
        self.weights = weights
        self._model = model.eval()
        self._ready: set[str] = set()
        self._audio_encoder: AudioEncoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "saas",
        device: str | torch.device | None = None,
        precision: str = "fp32",
        batch_tokens: int | None = None,
        sizes: ModelSizes | None = None,
        mert: str | Path | AudioEncoder | None = None,
        as_is: bool = False,
    ) -> "Embedder":
        """Load "saas" (best for audio), "c2" (best for symbolic music), "m3" (its hidden states), or a file.

        A released file is taken from the working directory if it is there, else from the Hugging Face cache, where it
        is downloaded once. "tiny" is the small model that lies in the repository, with its own MERT. `sizes` are those
        of a model of your own. With `as_is`, symbolic text is not interleaved first, as in the original.
        """
        if weights == "tiny":
            path, sizes, mert = TINY / "clamp3.safetensors", sizes or tiny_sizes(), mert or TINY / "mert"
        elif weights in RELEASES:
            path = Path(RELEASES[str(weights)].file_name)
        else:
            path = Path(weights)
            if not path.is_file():
                raise UserError(f"no weights at {path}: give {', '.join(RELEASES)}, tiny, or the path of a .pth file")
        sizes = sizes or ModelSizes()
        path = ensure_weights(path)
        return cls(build_model(None, sizes, path), sizes, device, precision, batch_tokens, mert, path, as_is)

    def __repr__(self) -> str:
        return f"Embedder({self.weights or 'unnamed weights'}, device={self.device}, precision={self.precision})"

    @property
    def weights(self) -> Path | None:
        """The file that the model was loaded from, for reports; None where that is not known."""
        return self._weights

    @weights.setter
    def weights(self, path: Path | None) -> None:
        self._weights = path
        # Now, not when it is first needed: the file may be another one by then.
        self.fingerprint = fingerprint(path) if path else None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's weights by their names in its file, but those that no feature needs."""
        return ((name, weight) for name, weight in self._model.named_parameters() if ".pooler." not in name)

    # ---------- sequences -> features ----------

    @overload
    def embed_text(self, texts: Sequence[str], normalize: bool = ..., pooled: Literal[True] = ...) -> np.ndarray: ...

    @overload
    def embed_text(
        self, texts: Sequence[str], normalize: bool = ..., *, pooled: Literal[False]
    ) -> list[np.ndarray]: ...

    @overload
    def embed_text(self, texts: Sequence[str], normalize: bool = ..., pooled: bool = ...) -> Features: ...

    def embed_text(self, texts: Sequence[str], normalize: bool = False, pooled: bool = True) -> Features:
        """Features of texts in any of 100 languages; each line of a text counts once."""
        return self._collect("embed_text", TEXT.name, self.encode_text, texts, normalize, pooled)

    @overload
    def embed_symbolic(
        self, texts: Sequence[str], normalize: bool = ..., pooled: Literal[True] = ...
    ) -> np.ndarray: ...

    @overload
    def embed_symbolic(
        self, texts: Sequence[str], normalize: bool = ..., *, pooled: Literal[False]
    ) -> list[np.ndarray]: ...

    @overload
    def embed_symbolic(self, texts: Sequence[str], normalize: bool = ..., pooled: bool = ...) -> Features: ...

    def embed_symbolic(self, texts: Sequence[str], normalize: bool = False, pooled: bool = True) -> Features:
        """Features of pieces, each ABC or MTF; ABC is interleaved first unless it is, or the Embedder has `as_is`."""
        encode = partial(self.encode_symbolic, note=warn)
        return self._collect("embed_symbolic", SYMBOLIC.name, encode, texts, normalize, pooled)

    @overload
    def embed_audio_features(
        self, arrays: Sequence[np.ndarray], normalize: bool = ..., pooled: Literal[True] = ...
    ) -> np.ndarray: ...

    @overload
    def embed_audio_features(
        self, arrays: Sequence[np.ndarray], normalize: bool = ..., *, pooled: Literal[False]
    ) -> list[np.ndarray]: ...

    @overload
    def embed_audio_features(
        self, arrays: Sequence[np.ndarray], normalize: bool = ..., pooled: bool = ...
    ) -> Features: ...

    def embed_audio_features(
        self, arrays: Sequence[np.ndarray], normalize: bool = False, pooled: bool = True
    ) -> Features:
        """Features of recordings, each MERT features (…, frames, audio_hidden_size)."""
        return self._collect("embed_audio_features", AUDIO.name, self.encode_audio_features, arrays, normalize, pooled)

    # ---------- raw files ----------

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The text model's tokenizer. Raises UserError as `load_tokenizer` does, and where it is another model's."""
        tokenizer = load_tokenizer(self.sizes.text_model_name, self.weights.parent if self.weights else None)
        if isinstance(self._model, CLaMP3Model):
            check_vocabulary(self._model.text_model, tokenizer, self.sizes.text_model_name)
        return tokenizer

    @property
    def audio_encoder(self) -> AudioEncoder:
        """The network that turns sound into audio features: MERT, or what has taken its place.

        Raises UserError where it cannot be had, or where the audio tower reads frames of another width.
        """
        with _preparing:
            if self._audio_encoder is None:
                encoder = load_audio_encoder(self.audio_encoder_name, self.device, self.precision)
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
        if any((known := format_of(path)) and known.modality == TEXT.name for path in paths):
            _ = self.tokenizer  # loaded by being asked for
        if any(is_sound(path) for path in paths):
            _ = self.audio_encoder

    def read_raw(self, paths: Sequence[Path], workers: int = 0) -> Iterator[Item]:
        """The items of raw files of any kinds for `embed_items`; `workers` as in `reading.read_raw`."""
        return read_raw(self, paths, lambda: self.audio_encoder, workers)

    @overload
    def embed_files(
        self, paths: Sequence[str | Path], normalize: bool = ..., pooled: Literal[True] = ...
    ) -> np.ndarray: ...

    @overload
    def embed_files(
        self, paths: Sequence[str | Path], normalize: bool = ..., *, pooled: Literal[False]
    ) -> list[np.ndarray]: ...

    @overload
    def embed_files(self, paths: Sequence[str | Path], normalize: bool = ..., pooled: bool = ...) -> Features: ...

    def embed_files(self, paths: Sequence[str | Path], normalize: bool = False, pooled: bool = True) -> Features:
        """Features of files of any kinds, told by their extensions; an error names its file.

        They are text (.txt), scores (.xml .musicxml .mxl .abc), MIDI (.mid .midi .mtf), sound (.wav .mp3 .flac .ogg …)
        and MERT features (.npy).
        """
        files = [Path(path) for path in _as_list("embed_files", paths)]
        features: dict[int, np.ndarray] = {}
        for item, feature in self.embed_items(self.read_raw(files), pooled):
            path = files[item.index]
            for repair in item.repairs:
                warn(f"{path}: {repair}")
            if isinstance(item.error, OSError):
                raise item.error
            if item.error is not None:
                raise ValueError(f"{path}: {describe_error(item.error)}") from item.error
            assert feature is not None
            features[item.index] = feature
        return self._in_order(features, normalize, pooled)

    def embed_items(self, items: Iterator[Item], pooled: bool = True) -> Iterator[tuple[Item, np.ndarray | None]]:
        """Yield each of `items`, in any order, with its feature as in `embed`, or with None if it has an error.

        They are taken as they are needed, the next while those at hand are computed: any number fits into memory.
        """
        chunks = _chunks(items, CHUNK_BATCHES * self.batch_tokens)
        with ThreadPoolExecutor(max_workers=1) as reader:
            upcoming = reader.submit(next, chunks, None)
            while (chunk := upcoming.result()) is not None:
                upcoming = reader.submit(next, chunks, None)
                yield from ((item, None) for item in chunk if item.error is not None)
                whole = [item for item in chunk if item.error is None]
                if whole:
                    sequences = [item.content for item in whole]
                    for index, feature in self.embed(whole[0].modality, sequences, pooled):
                        yield whole[index], feature

    @overload
    def embed_midi(
        self,
        sources: Sequence["Midi"],
        normalize: bool = ...,
        pooled: Literal[True] = ...,
    ) -> np.ndarray: ...

    @overload
    def embed_midi(
        self, sources: Sequence["Midi"], normalize: bool = ..., *, pooled: Literal[False]
    ) -> list[np.ndarray]: ...

    @overload
    def embed_midi(self, sources: Sequence["Midi"], normalize: bool = ..., pooled: bool = ...) -> Features: ...

    def embed_midi(self, sources: Sequence["Midi"], normalize: bool = False, pooled: bool = True) -> Features:
        """Features of pieces of MIDI, each a path, the bytes of a file or a mido.MidiFile."""
        from clamp3.formats.midi import midi_to_mtf

        texts = [midi_to_mtf(source, m3_compatible=True) for source in _as_list("embed_midi", sources)]
        return self.embed_symbolic(texts, normalize, pooled)

    @overload
    def embed_musicxml(
        self, sources: Sequence[str | Path | bytes], normalize: bool = ..., pooled: Literal[True] = ...
    ) -> np.ndarray: ...

    @overload
    def embed_musicxml(
        self, sources: Sequence[str | Path | bytes], normalize: bool = ..., *, pooled: Literal[False]
    ) -> list[np.ndarray]: ...

    @overload
    def embed_musicxml(
        self, sources: Sequence[str | Path | bytes], normalize: bool = ..., pooled: bool = ...
    ) -> Features: ...

    def embed_musicxml(
        self, sources: Sequence[str | Path | bytes], normalize: bool = False, pooled: bool = True
    ) -> Features:
        """Features of scores, each the path or the bytes of a .xml, .musicxml or .mxl file."""
        from clamp3.formats.abc import interleave
        from clamp3.formats.musicxml import musicxml_to_abc

        texts = [interleave(musicxml_to_abc(source)) for source in _as_list("embed_musicxml", sources)]
        return self.embed_symbolic(texts, normalize, pooled)

    @overload
    def embed_audio(
        self, sources: Sequence[Sound], sampling_rate: int = ..., normalize: bool = ..., pooled: Literal[True] = ...
    ) -> np.ndarray: ...

    @overload
    def embed_audio(
        self, sources: Sequence[Sound], sampling_rate: int = ..., normalize: bool = ..., *, pooled: Literal[False]
    ) -> list[np.ndarray]: ...

    @overload
    def embed_audio(
        self, sources: Sequence[Sound], sampling_rate: int = ..., normalize: bool = ..., pooled: bool = ...
    ) -> Features: ...

    def embed_audio(
        self, sources: Sequence[Sound], sampling_rate: int = 24_000, normalize: bool = False, pooled: bool = True
    ) -> Features:
        """Features of recordings, each a path, the bytes of a file, an open file, or samples.

        Samples are an array or a tensor (samples,), (samples, channels) or (channels, samples), whose longer side is
        time, at `sampling_rate` Hz, or a pair of such samples and their own rate.
        """
        from clamp3.formats.audio import load_sound

        recordings, encoder = _as_list("embed_audio", sources), self.audio_encoder
        waveforms = (load_sound(source, sampling_rate, encoder.rate, warn) for source in recordings)
        frames = dict(encoder.extract(encoder.prepare(waveform, warn) for waveform in waveforms))
        return self.embed_audio_features([frames[index] for index in range(len(frames))], normalize, pooled)

    def _collect(
        self,
        method: str,
        modality: str,
        encode: Callable[[Any], np.ndarray],
        items: Iterable[Any],
        normalize: bool,
        pooled: bool,
    ) -> Features:
        sequences = [encode(item) for item in _as_list(method, items)]
        return self._in_order(dict(self.embed(modality, sequences, pooled)), normalize, pooled)

    def _in_order(self, features: dict[int, np.ndarray], normalize: bool, pooled: bool) -> Features:
        """What the library's users get of features by index."""
        ordered = [features[index] for index in range(len(features))]
        if normalize:
            ordered = [feature / np.linalg.norm(feature, axis=-1, keepdims=True) for feature in ordered]
        if not pooled:
            return ordered
        return np.stack(ordered) if ordered else np.zeros((0, self.sizes.clamp3_hidden_size), np.float32)

    def embed(
        self, modality: str, sequences: Sequence[np.ndarray], pooled: bool = True
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, feature) for each of `sequences` (what an InputEncoder makes) as soon as it is whole.

        Pooled: (clamp3_hidden_size,), the mean of the segments' global features, each weighted by the positions that
        it alone covers. Else the hidden states (length, hidden).
        """
        segments = {
            index: cut(index, len(sequence), self.max_lengths[modality]) for index, sequence in enumerate(sequences)
        }
        parts: dict[int, dict[int, np.ndarray]] = {index: {} for index in segments}
        everything = [segment for owned in segments.values() for segment in owned]
        for batch in batches(everything, self.batch_tokens):
            inputs = [sequences[segment.owner][segment.start : segment.stop] for segment in batch]
            for segment, feature in zip(batch, self._forward(modality, inputs, pooled), strict=True):
                done, owned = parts[segment.owner], segments[segment.owner]
                done[segment.start] = feature if pooled else feature[segment.covered : segment.length]
                if len(done) == len(owned):
                    ordered = [done[segment.start] for segment in owned]
                    yield segment.owner, self._join(ordered, owned) if pooled else np.concatenate(ordered)
                    del parts[segment.owner]

    @staticmethod
    def _join(features: list[np.ndarray], segments: list[Segment]) -> np.ndarray:
        weights = [segment.weight for segment in segments]
        return np.average(features, axis=0, weights=weights).astype(np.float32)

    @torch.inference_mode()
    def _forward(self, modality: str, sequences: list[np.ndarray], pooled: bool) -> np.ndarray:
        """One padded batch through its tower -> (batch, clamp3_hidden_size), or (batch, longest, hidden)."""
        self._prepare(modality)
        inputs, masks = (torch.from_numpy(array) for array in pad(sequences, self._padding(modality)))
        return self._model.get_features(modality, inputs, masks, get_global=pooled).float().cpu().numpy()

    def _padding(self, modality: str) -> int:
        """What fills up sequences; masks keep it from having an effect."""
        if modality == TEXT.name and isinstance(self._model, CLaMP3Model):
            return self._model.text_model.config.pad_token_id or 0
        return PAD_ID

    def _prepare(self, modality: str) -> None:
        """Bring a tower to the device and into the precision, once; leave out what features do not need."""
        with _preparing:
            if modality in self._ready:
                return
            if modality not in self._model.towers:
                raise ValueError(f"M3 reads symbolic music alone, not {modality}; load CLaMP 3 for that")
            if isinstance(self._model, M3Model):
                tower: nn.Module = self._model.encoder
            else:
                tower = getattr(self._model, MODALITIES[modality].tower)
                getattr(self._model, MODALITIES[modality].projection).to(self.device)
            if isinstance(tower, M3PatchEncoder):
                tower.patch_embedding.store_by_character()
            network = self._model.towers[modality]
            if is_packable(network):
                network.pooler = None  # type: ignore[assignment]  # its output is not used
            tower.to(self.device)
            if self.precision != "fp32":
                lower_precision(network, PRECISIONS[self.precision])
            self._ready.add(modality)


def lower_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers of `network` compute in `dtype`, while its embeddings stay in float32.

    A network of another family than BERT and RoBERTa keeps its weights and computes under autocast.
    """
    if isinstance(network, PACKABLE):
        network.encoder.to(dtype)
        network.embeddings.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
        return
    forward = network.forward

    def autocast_forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(network.parameters()).device.type, dtype):
            return forward(*args, **kwargs)

    network.forward = autocast_forward

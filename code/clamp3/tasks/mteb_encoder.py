"""The model as an MTEB encoder of text and audio, so that MTEB's tasks (those of MAEB among them) can be run with it.

    import mteb
    from clamp3 import Embedder
    from clamp3.tasks.mteb_encoder import MtebEncoder

    model = MtebEncoder(Embedder.from_pretrained("saas"))
    mteb.evaluate(model, mteb.get_tasks(["GTZANGenre"]), cache=mteb.ResultCache("results"))
`code/mteb_eval.py` does that from the command line. MTEB is optional: no other module of the library imports it.
"""

import warnings
from collections.abc import Iterable, Iterator, Sized
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from clamp3.errors import Note, RepairWarning
from clamp3.features.embedder import Embedder
from clamp3.features.reading import Item, read_item, read_sounds
from clamp3.formats.audio import read_audio, resampled
from clamp3.io.reports import FileIssue
from clamp3.models.releases import RELEASES, TINY, release_named
from clamp3.search.ranking import normalized
from clamp3.sizes import XLM_R_BASE

try:
    import datasets
    from mteb import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_implementations.facebookai import XLMR_LANGUAGES
    from mteb.types import BatchedInput, PromptType
except ImportError as error:
    raise ImportError(
        f"MTEB cannot be imported ({error}): pip install 'mteb>=2.26,<3', which takes Python 3.11 or newer"
    ) from error
MODALITIES = ("text", "audio")
TINY_LANGUAGES = ["eng-Latn", "deu-Latn", "fra-Latn", "spa-Latn", "zho-Hans"]


class MtebEncoder(AbsEncoder):
    """An Embedder with MTEB's interface. Features are normalized to unit length and compared by cosine.

    An input without a feature (a blank text, unreadable audio) becomes zeros, with a cosine of 0 to everything. Such
    inputs are listed in `failures`, and a warning counts them; `repairs` lists inputs that were damaged or very short
    but could be read.
    """

    def __init__(self, embedder: Embedder):
        self.model = embedder
        self.mteb_model_meta = model_meta(embedder)
        self.failures: list[FileIssue] = []
        self.repairs: list[FileIssue] = []

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        show_progress_bar: bool = True,
        **kwargs: object,
    ) -> np.ndarray:
        """Features (n, clamp3_hidden_size) float32 of the n items of `inputs`, in order.

        Batches hold strings under "text" and what `waveform` takes under "audio". Items with both get the sum of the
        two features, as in MTEB's other models of text and audio. Prompts are ignored: the model was trained with
        none. At most a few recordings are decoded at a time, whatever the loader's batch size. Raises ValueError for
        batches with neither text nor audio, and UserError where the tokenizer or MERT is not available.
        """
        inputs = undecoded(inputs)
        first: dict[str, Any] = next(iter(inputs), {})
        if first and not set(MODALITIES) & set(first):
            raise ValueError(f"this model reads text and audio; {task_metadata.name} gives {', '.join(first)}")
        source = f"{task_metadata.name}, {hf_subset}, {hf_split}" + (f", {prompt_type.value}" if prompt_type else "")
        parts = []
        for modality in MODALITIES:
            if modality in first:
                items = self._items(modality, chain.from_iterable(batch[modality] for batch in inputs))
                total = len(cast(Sized, inputs.dataset))
                progress = tqdm(items, modality, total, delay=1, disable=not show_progress_bar)
                parts.append(self._features(self.model.embed_items(progress), source))
        return np.sum(parts, axis=0) if parts else np.zeros((0, self.model.sizes.clamp3_hidden_size), np.float32)

    def _items(self, modality: str, values: Iterable) -> Iterator[Item]:
        """Encoded inputs of the towers, for texts or recordings."""
        if modality == "audio":
            sounds = (partial(waveform, value) for value in values)
            yield from read_sounds(self.model, self.model.audio_encoder, sounds)
        else:
            for index, text in enumerate(values):
                yield read_item(Item(index, "text"), partial(self.model.encode_text, text))

    def _features(self, embedded: Iterable[tuple[Item, np.ndarray | None]], source: str) -> np.ndarray:
        """Normalized features in the order of the items, zeros for items without one."""
        features, failures = {}, []
        for item, feature in embedded:
            name = f"{source}, {item.modality} {item.index + 1}"
            self.repairs += [FileIssue(name, repair) for repair in item.repairs]
            if problem := item.problem(feature, self.model.precision):
                failures.append(FileIssue(name, problem))
            features[item.index] = np.zeros(self.model.sizes.clamp3_hidden_size) if feature is None else feature
        if failures:
            counted = f"{len(failures)} of {len(features)} inputs have no feature and count as zeros"
            example = f"{failures[0].file}: {failures[0].reason}"
            warnings.warn(RepairWarning(f"{counted}, such as {example}"), stacklevel=3)
        self.failures += failures
        return normalized(np.stack([features[index] for index in range(len(features))]))


def undecoded(loader: DataLoader) -> DataLoader:
    """The same batches, with the audio files of a data set left undecoded, for `read_audio`.

    The library `datasets` would decode them with torchcodec, which is not available for every version of PyTorch.
    """
    dataset: Any = loader.dataset
    features = getattr(dataset, "features", None) or {}
    if not isinstance(features.get("audio"), datasets.Audio):
        return loader
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    return DataLoader(dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn)


def waveform(audio: Any, rate: int, note: Note) -> np.ndarray:
    """Audio in any form that MTEB's data sets have -> mono float32 (samples,) at `rate` Hz.

    It is a dictionary of an `array`, (samples,) or (channels, samples), and its `sampling_rate` in Hz; a dictionary of
    a file's `bytes` or else its `path`; or a torchcodec decoder. Raises as `read_audio`.
    """
    if hasattr(audio, "get_all_samples"):
        samples = audio.get_all_samples()
        array, array_rate = samples.data, samples.sample_rate
    elif audio.get("array") is not None:
        array, array_rate = audio["array"], audio["sampling_rate"]
    else:
        return read_audio(Path(audio["path"]) if audio["bytes"] is None else audio["bytes"], rate, note)
    channels = np.atleast_2d(np.asarray(array, np.float32))
    return resampled([channels.T], int(array_rate), rate)


def model_meta(embedder: Embedder) -> ModelMeta:
    """The model's description in MTEB's results. Its revision identifies the weights.

    Parameters are counted without MERT, which has a file of its own and is only loaded for audio.
    """
    weights, sizes = embedder.weights, embedder.sizes
    release = release_named(weights.name) if weights else None
    parameters = {name: tensor.numel() for name, tensor in embedder.named_parameters()}
    is_tiny = weights is not None and weights.parent == TINY
    settings = {"precision": embedder.precision} if embedder.precision != "fp32" else {}
    if embedder.audio_encoder_name and not is_tiny:
        settings["mert"] = str(embedder.audio_encoder_name)
    return ModelMeta(
        loader=None,
        name=model_name(weights),
        revision=embedder.fingerprint or "no_revision_available",
        release_date=None,
        languages=TINY_LANGUAGES if is_tiny else XLMR_LANGUAGES if sizes.text_model_name == XLM_R_BASE else None,
        modalities=["audio", "text"],
        n_parameters=sum(parameters.values()),
        n_embedding_parameters=parameters.get("text_model.embeddings.word_embeddings.weight"),
        memory_usage_mb=round(sum(parameters.values()) * 4 / 2**20),
        max_tokens=float("inf"),  # longer texts are cut into segments, whose features are averaged
        embed_dim=sizes.clamp3_hidden_size,
        license="not specified",
        open_weights=True if release or is_tiny else None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        reference="https://arxiv.org/abs/2502.10362",
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        experiment_kwargs=settings or None,
    )


def model_name(weights: Path | None) -> str:
    """The name of the weights in MTEB's form, organization/model."""
    if weights is None:
        return "clamp3/unnamed"
    variant = next((name for name, release in RELEASES.items() if release.file_name == weights.name), None)
    if variant:
        return f"{RELEASES[variant].repository}-{variant}"
    return "clamp3/tiny" if weights.parent == TINY else f"clamp3/{weights.stem}"

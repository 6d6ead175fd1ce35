"""CLaMP 3 as a module of sentence-transformers (an optional package), whose models search, compare and evaluate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule

from clamp3.errors import UserError
from clamp3.features.calls import as_sound
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model

MODEL_FOLDER = "clamp3"  # in the folder that a module is saved to


class Clamp3Module(InputModule):
    """`SentenceTransformer(modules=[Clamp3Module("saas")])` encodes texts, symbolic music, files and sound.

    Strings are ABC or MTF, or else texts; a string that names a file of sound is that file. Sound is samples at
    24 kHz, or {"array": samples, "sampling_rate": Hz}. It is for encoding, and cannot be trained.
    """

    save_in_root = False

    def __init__(self, weights: str | Path | Embedder = "saas", **options: Any):
        """`options` are those of `Embedder.from_pretrained` but the device, which is sentence-transformers' affair."""
        super().__init__()
        if not isinstance(weights, Embedder):
            weights = Embedder.from_pretrained(weights, "cpu", **options)
        self.embedder = weights
        if not isinstance(self.embedder._model, CLaMP3Model):
            raise UserError("M3 has no global features; give CLaMP 3's weights")
        self.network = self.embedder._model  # moves with the module

    @property
    def modalities(self) -> list[Any]:
        """What sentence-transformers calls them: a batch that mixes them is a "message" to it."""
        return ["text", "audio", "message"]

    @property
    def max_seq_length(self) -> None:
        """There is none: what is longer than a tower takes is read in segments."""
        return None

    def get_embedding_dimension(self) -> int:
        return self.embedder.sizes.clamp3_hidden_size

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The items for `forward`. Prompts go before strings."""
        from sentence_transformers.base.modality import infer_modality

        items: list[Any] = []
        for one in inputs:
            if isinstance(one, str) and infer_modality(one) == "audio":
                items.append(Path(one))
            else:
                items.append((prompt or "") + one if isinstance(one, str) else as_sound(one))
        return {"items": items}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` (n, clamp3_hidden_size)."""
        if torch.is_grad_enabled() and self.training:
            raise UserError("this module is for encoding, and cannot be trained: `clamp3 train` trains models")
        device = next(self.network.parameters()).device
        self.embedder.device = device
        found = self.embedder.embed_any(features["items"])
        features["sentence_embedding"] = torch.from_numpy(found).to(device)
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """What `save` writes beside the model, and `load` reads."""
        return {"precision": self.embedder.precision, "as_is": self.embedder.as_is}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the model to `output_path`, as `Embedder.save_pretrained`. Raises UserError as that does."""
        Path(output_path).mkdir(parents=True, exist_ok=True)
        self.embedder.save_pretrained(Path(output_path, MODEL_FOLDER))
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> "Clamp3Module":
        """What `save` has written, in a folder of this machine or on the hub."""
        options = ("token", "cache_folder", "revision", "local_files_only")
        where = {name: kwargs[name] for name in options if name in kwargs}
        folder = cls.load_dir_path(model_name_or_path, subfolder=f"{subfolder}/{MODEL_FOLDER}", **where)
        if folder is None:
            raise UserError(f"{model_name_or_path} holds no model that Clamp3Module.save has written")
        return cls(folder, **cls.load_config(model_name_or_path, subfolder=subfolder, **where))

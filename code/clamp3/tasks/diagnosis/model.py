"""Checks of the weights: the file, its tensors, the tokenizer, and what the model computes."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.errors import UserError
from clamp3.tasks.diagnosis.findings import GB, Finding, Subject, Unchecked, fault, ok, warning
from clamp3.tasks.diagnosis.samples import PIECES, TEXTS, TUNES, frames, mtf, sound

if TYPE_CHECKING:
    import numpy as np

    from clamp3.features.embedder import Embedder

DOWNLOAD_AGAIN = "delete the file and download or copy it again"
TINY_SHA256 = {
    "clamp3.safetensors": "50d0975c2421190cb0fa6e952e5992f240d971bc4c39aadc70e00d806fda3c6e",
    "m3.safetensors": "fa9972ba8cf9f863661fb6d620ba6e354851b60853ee8d4c991457f0cbd35e8d",
}
COLLAPSED = 0.02  # relative spread (see `_spread`); untrained models have 0.1 to 0.2
ONE_DIRECTION = 0.98  # share of the variance along the first principal axis; untrained models have 0.2 to 0.4
MOSTLY = 0.5  # share of unknown tokens from which a text counts as unreadable
# The ids of a text, by the vocabulary's size: of XLM-R's tokenizer and the small model's.
KNOWN_TEXT = "a lively Irish reel"
KNOWN_IDS = {250_002: [0, 10, 6867, 538, 120552, 156735, 2], 6000: [0, 285, 1734, 4578, 602, 439, 2]}
PERMUTATIONS, CHANCE = 9999, 0.05
TOLERANCE, DEVICE_TOLERANCE, LOWEST_BF16_COSINE = 1e-5, 1e-3, 0.99
# The first numbers of the small model's features of a known input, recorded on an AMD EPYC with AVX2.
RECORDED = {
    "text": [0.2159377, -0.0487791, -0.2338080, 0.1285593, 0.6561784, -0.2278646, -0.0862313, 1.2348861],
    "symbolic music": [-0.1400400, -0.5431219, 0.3724383, 0.1180140, 0.4632692, -0.5898385, -0.6250388, -0.2617045],
    "audio features": [-1.1591307, 0.2205604, -0.0396328, -1.9682870, -0.4753335, -0.5875924, -0.1906159, -0.9552554],
    "sound": [-0.3729073, 0.2653057, -0.1694462, -0.4462277, -0.3441042, 0.1883908, -0.7585061, -0.0481768],
}


# ---------- the file ----------


def weights(subject: Subject) -> Iterator[Finding]:
    """The file of weights: where it is, and that it is intact."""
    if subject.found is None:
        yield _missing(subject)
    path = subject.weights
    if path is None:
        return
    size, sha256 = _known(subject)
    described = f"{path}: {path.stat().st_size / 1e6:,.1f} MB"
    if size is not None and path.stat().st_size != size:
        yield fault(f"{described}, {path.stat().st_size:,} bytes; the released file has {size:,}", DOWNLOAD_AGAIN)
    elif problem := _damage(path, sha256):
        yield fault(f"{described}, {problem}", DOWNLOAD_AGAIN)
    elif sha256:
        yield ok(f"{described}, with the expected SHA-256")
    else:
        yield ok(f"{described}; no SHA-256 is known for it")


def _missing(subject: Subject) -> Finding:
    from clamp3.models.hub import file_url, is_offline

    release, paths = subject.release, [path.absolute() for path in subject.candidates]
    if release is None:
        places = " or ".join(map(str, dict.fromkeys(paths)))
        return fault(f"no weights at {places}", "put the file there, or fix the knobs from which its name follows")
    folders = " or ".join(dict.fromkeys(str(path.parent) for path in paths))
    if not is_offline():
        size = f"{release.size / GB:.2f} GB" if release.size else "of unknown size"
        return warning(
            f"{release.file_name} is not on this machine",
            f"it is downloaded ({size}) when first needed; or put it into {folders}",
        )
    return fault(
        f"{release.file_name} is not on this machine, and HF_HUB_OFFLINE forbids downloading it",
        f"download {file_url(release.repository, release.file_name)} and put it into {folders}",
    )


def _known(subject: Subject) -> tuple[int | None, str | None]:
    """The size in bytes and the SHA-256 that the file should have, where known."""
    from clamp3.models.releases import release_named

    assert subject.weights is not None
    if subject.is_tiny:
        return None, TINY_SHA256.get(subject.weights.name)
    release = release_named(subject.weights.name)
    return (release.size, release.sha256) if release else (None, None)


def _damage(path: Path, sha256: str | None) -> str | None:
    """What is wrong with a file, by its known SHA-256, or else by the checksums that it holds."""
    from clamp3.io.files import content_hash
    from clamp3.models.weight_files import read_checkpoint

    if sha256:
        return None if content_hash(path) == sha256 else "damaged or modified: its SHA-256 is not the expected one"
    try:
        read_checkpoint(path)
    except UserError as error:
        return str(error)
    return None


def tensors(subject: Subject) -> Iterator[Finding]:
    """That all weights are finite, and no matrix is zero."""
    network = subject.embedder
    named = list(network.named_parameters())
    advice = (
        "use another epoch's weights, or train again with a lower learning rate"
        if not subject.release
        else DOWNLOAD_AGAIN
    )
    infinite = [name for name, tensor in named if not tensor.isfinite().all()]
    empty = [name for name, tensor in named if min(tensor.shape, default=0) > 1 and not tensor.any()]
    if infinite:
        yield fault(f"NaN or infinite values in {_listed(infinite)}", advice)
    if empty:
        yield fault(f"only zeros in {_listed(empty)}", advice)
    if not infinite and not empty:
        count = sum(tensor.numel() for _, tensor in named)
        yield ok(f"{len(named)} tensors, {count / 1e6:.1f} M parameters, all finite")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---------- what it computes ----------


def towers(subject: Subject) -> Iterator[Finding]:
    """That no tower has collapsed: different inputs must have different features."""
    network = subject.embedder
    symbolic = [tune.abc for tune in TUNES] + [mtf(piece) for piece in range(PIECES)]
    if _is_m3(network):
        states = [feature.mean(axis=0) for feature in network.embed_symbolic(symbolic, pooled=False)]
        yield _spread("symbolic", states, f"{len(TUNES)} tunes in ABC and {PIECES} in MTF")
        return
    described = [tune.description for tune in TUNES] + list(TEXTS.values())
    yield _spread("text", network.embed_text(described), f"{len(described)} texts")
    yield _spread("symbolic", network.embed_symbolic(symbolic), f"{len(TUNES)} tunes in ABC and {PIECES} in MTF")
    if _hears(network):
        encoder = network.audio_encoder
        heard = network.embed_audio([sound(piece, encoder.rate) for piece in range(PIECES)], encoder.rate)
        yield _spread("audio", heard, f"{PIECES} sounds")
    else:
        made = [frames(piece, network.sizes.audio_hidden_size) for piece in range(PIECES)]
        yield _spread(
            "audio",
            network.embed_audio_features(made),
            f"{PIECES} synthetic sequences of frames (MERT is not on this machine)",
        )


def _is_m3(network: "Embedder") -> bool:
    return any(name.startswith("decoder.") for name, _ in network.named_parameters())


def _hears(network: "Embedder") -> bool:
    """Whether the model's audio encoder is on this machine."""
    from clamp3.audio.mert import RELEASED, WEIGHTS_FILES
    from clamp3.models.hub import cached_file
    from clamp3.sizes import ModelSizes

    if network.audio_encoder_name is not None:
        return True
    is_released_width = network.sizes.audio_hidden_size == ModelSizes().audio_hidden_size
    return is_released_width and any(cached_file(RELEASED, name) for name in WEIGHTS_FILES)


def _spread(tower: str, features: "np.ndarray | list[np.ndarray]", inputs: str) -> Finding:
    import numpy as np

    rows = np.asarray(features, np.float64)
    advice = f"use other weights (an earlier epoch's, or the released ones): these cannot tell {tower} inputs apart"
    if not np.isfinite(rows).all():
        return fault(f"{tower}: the features of {inputs} are not finite", advice)
    around = rows - rows.mean(axis=0)
    spread = np.linalg.norm(around, axis=1).mean() / max(np.linalg.norm(rows, axis=1).mean(), 1e-30)
    described = f"{tower}: the features of {inputs} have a relative spread of {spread:.2g}"
    if spread < COLLAPSED:
        return fault(f"{described}: all the same", advice)
    variances = np.linalg.svd(around, compute_uv=False) ** 2
    if variances[0] > ONE_DIRECTION * variances.sum():
        return fault(f"{described}, along one direction only", advice)
    return ok(described)


def tokenizer(subject: Subject) -> Iterator[Finding]:
    """That texts in ten scripts become meaningful tokens."""
    if _is_m3(subject.embedder):
        raise Unchecked("M3 reads no texts")
    known = subject.embedder.tokenizer
    advice = "use the tokenizer that the weights were trained with: TEXT_MODEL_NAME, or tokenizer.json beside them"
    unreadable, changed, seen = [], [], {}
    for script, text in TEXTS.items():
        ids = known(text, add_special_tokens=False)["input_ids"]
        seen[script] = tuple(ids)
        if not ids or sum(one == known.unk_token_id for one in ids) > MOSTLY * len(ids):
            unreadable.append(script)
        elif _plain(str(known.decode(ids))) != _plain(text):
            changed.append(script)
    described = f"{len(known):,} tokens"
    expected = KNOWN_IDS.get(len(known))
    if expected and known(KNOWN_TEXT)["input_ids"] != expected:
        yield fault(f"{described}, but it does not give the ids of the known tokenizer of that size", advice)
    if len(set(seen.values())) < len(seen) - len(unreadable):
        yield fault(f"{described}: different texts have the same ids", advice)
    if unreadable:
        found = f"{described}: texts in {', '.join(unreadable)} become mostly {known.unk_token or 'nothing'}"
        only_some = not expected and "Latin" not in unreadable and len(unreadable) <= len(TEXTS) / 2
        yield warning(found, "this model cannot read such texts") if only_some else fault(found, advice)
    if changed:
        yield warning(f"{described}: texts in {', '.join(changed)} are not restored from their ids", advice)
    if not unreadable and not changed:
        yield ok(f"{described}: texts in {len(TEXTS)} scripts are tokenized and restored")


def _plain(text: str) -> str:
    """`text` without what tokenizers normalize: case, accents, spaces, compatibility forms."""
    parts = unicodedata.normalize("NFKD", text).casefold()
    return "".join(one for one in parts if not one.isspace() and not unicodedata.combining(one))


def pairs(subject: Subject) -> Iterator[Finding]:
    """That tunes lie closer to their own descriptions than to others."""
    import numpy as np

    if _is_m3(subject.embedder):
        raise Unchecked("M3 reads no texts")
    texts = subject.embedder.embed_text([tune.description for tune in TUNES], normalize=True)
    tunes = subject.embedder.embed_symbolic([tune.abc for tune in TUNES], normalize=True)
    cosines = texts @ tunes.T
    count = len(cosines)
    paired = np.trace(cosines) / count
    margin = paired - (cosines.sum() - np.trace(cosines)) / (count * count - count)
    rng = np.random.default_rng(0)
    others = [cosines[np.arange(count), rng.permutation(count)].mean() for _ in range(PERMUTATIONS)]
    chance = (1 + sum(other >= paired for other in others)) / (1 + PERMUTATIONS)
    described = (
        f"the cosine of {count} folk tunes to their own descriptions is on average {margin:.3f} higher than to the "
        f"others' (permutation test: p = {chance:.4f})"
    )
    if chance < CHANCE:
        yield ok(described)
    elif subject.is_tiny or subject.release:
        yield fault(described, f"the weights or the tokenizer are not the right ones; {DOWNLOAD_AGAIN}")
    else:
        yield warning(described, "the weights are untrained, were trained on other music, or have the wrong tokenizer")


def numerics(_subject: Subject) -> Iterator[Finding]:
    """That this machine computes the recorded features of the small model, and how close bf16 comes to them."""
    import numpy as np

    from clamp3.distributed import default_device
    from clamp3.models.releases import TINY

    if not TINY.is_dir():
        raise Unchecked("needs the small model, which is not installed")
    found = small_features("cpu")
    for name, expected in RECORDED.items():
        off = np.abs(found[name][: len(expected)] - expected).max() / np.abs(expected).max()
        if not off <= TOLERANCE:
            yield fault(
                f"the small model's features of {name} differ from the recorded ones (relative error {off:.1g})",
                "try another version of PyTorch; --variant tiny tells whether the small model's file is intact",
            )
            return
    lower = small_features("cpu", "bf16")
    cosine = min(_cosine(found[name], lower[name]) for name in found)
    described = f"fp32 gives the recorded features (to {TOLERANCE:g}); bf16's have a cosine of {cosine:.5f} to them"
    yield ok(described) if cosine > LOWEST_BF16_COSINE else warning(described, "use --precision fp32")
    if (device := default_device()).type != "cpu":
        there = small_features(str(device))
        off = max(np.abs(there[name] - found[name]).max() / np.abs(found[name]).max() for name in found)
        described = f"features on {device} differ from the CPU's by a relative error of {off:.1g}"
        yield ok(described) if off <= DEVICE_TOLERANCE else fault(described, "use --device cpu")


def _cosine(a: "np.ndarray", b: "np.ndarray") -> float:
    import numpy as np

    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def small_features(device: str, precision: str = "fp32") -> dict[str, "np.ndarray"]:
    """The small model's features of a known input of each kind."""
    from clamp3.features.embedder import Embedder

    network = Embedder.from_pretrained("tiny", device, precision)
    rate = network.audio_encoder.rate
    return {
        "text": network.embed_text([TUNES[0].description])[0],
        "symbolic music": network.embed_symbolic([TUNES[0].abc])[0],
        "audio features": network.embed_audio_features([frames(0, network.sizes.audio_hidden_size)])[0],
        "sound": network.embed_audio([sound(0, rate)], rate)[0],
    }

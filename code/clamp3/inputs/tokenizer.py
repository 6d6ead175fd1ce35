"""The text tower's tokenizer: XLM-R's comes with the library, others from a folder, the hub's cache or the hub."""

import hashlib
import lzma
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clamp3.errors import UserError
from clamp3.io.files import content_hash, matching_files, parse_json
from clamp3.io.wrong_files import problem_in, problem_of_text_file
from clamp3.sizes import XLM_R_BASE

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "*.model", "config.json")  # what tokenizers of all kinds consist of
SHIPPED = Path(__file__).parent / "xlm_roberta" / f"{TOKENIZER_FILE}.xz"
SPECIAL_TOKENS = {
    **{"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
# transformers' classes for a tokenizer.json as it stands: of version 4, which sets add_prefix_space anew, and of 5.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# What a tokenizer_config.json may say, beside the special tokens, that changes no ids.
IDLE_SETTINGS = {"add_prefix_space", "backend", "model_max_length", "tokenizer_class", "clean_up_tokenization_spaces"}
OLDER_FILES = ("special_tokens_map.json", "added_tokens.json")  # which say more, for transformers alone
MANY_UNKNOWN = 1 / 3  # of a text's letters
SHOWN_LETTERS = 10
_lock = threading.Lock()  # a tokenizer that encodes in one thread refuses to in another ("Already borrowed")


class Tokenizer:
    """A tokenizer.json as it stands, read by the library tokenizers: transformers takes as long to import as all else.

    It gives the ids of transformers' PreTrainedTokenizerFast, and has what is used here of its methods and names, so
    that one of transformers' can stand in its place.
    """

    sep_token: str
    sep_token_id: int
    pad_token: str
    pad_token_id: int
    bos_token: str | None
    cls_token: str | None
    eos_token: str | None
    unk_token: str | None
    unk_token_id: int | None

    def __init__(self, tokenizer: "tokenizers.Tokenizer", special_tokens: dict[str, "str | tokenizers.AddedToken"]):
        """`special_tokens` by their names, such as sep_token."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}  # with flags of their own
        added = [token for token in special_tokens.values() if not (isinstance(token, str) and token in there)]
        tokenizer.add_special_tokens(list(dict.fromkeys(added)))
        self._tokenizer = tokenizer
        for name in SPECIAL_TOKENS:
            token = str(special_tokens[name]) if name in special_tokens else None
            setattr(self, name, token)
            setattr(self, f"{name}_id", None if token is None else tokenizer.token_to_id(token))

    def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> dict[str, Any]:
        """All that is known of the tokens of `text`; `options` of transformers' tokenizers change nothing here."""
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids, "offset_mapping": encoding.offsets}

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()


def load_tokenizer(name: str, weights_folder: Path | None = None) -> Tokenizer:
    """The tokenizer of the text model `name`, one of the hub or a local folder.

    A local folder comes first, then one beside the weights (`weights_folder` holds tokenizer.json), then, for XLM-R
    base, the one that comes with the library. Raises UserError where it cannot be had, and where it lacks a token that
    texts take.
    """
    try:
        if Path(name).is_dir():
            tokenizer = _from_pretrained(name)
        elif weights_folder is not None and (weights_folder / TOKENIZER_FILE).is_file():
            tokenizer = _beside_weights(weights_folder)
        else:
            tokenizer = shipped_tokenizer() if name == XLM_R_BASE else _from_pretrained(name)
    except Exception as error:  # a damaged file makes the readers raise errors of many kinds
        places = [Path(name), *([weights_folder] if weights_folder else [])]
        for place in places:
            if place.is_dir() and (problem := problem_in(place, TOKENIZER_FILES)):
                raise UserError(f"no tokenizer for {name}: {problem}") from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"no tokenizer for {name}: {reason}\n"
            "  with a network it is downloaded once; without one, copy the Hugging Face cache (the folder that "
            "HF_HOME names) from a machine that has it"
        ) from error
    for token, use in (("sep_token", "joins the lines of a text"), ("pad_token", "fills up the texts of a batch")):
        if getattr(tokenizer, token) is None:
            raise UserError(
                f"the tokenizer of {name} has no {token}, which {use}: take a text encoder, such as {XLM_R_BASE}, or "
                f"name a {token} in its tokenizer_config.json"
            )
    return tokenizer


def serialized(tokenizer: Any) -> tuple[str, dict[str, str]] | None:
    """The text of a tokenizer.json for `tokenizer`, and its special tokens; None where it is of no such kind."""
    inner = tokenizer._tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return None
    tokens = {name: getattr(tokenizer, name, None) for name in SPECIAL_TOKENS if name != "mask_token"}  # has flags
    return inner.to_str(), {name: str(token) for name, token in tokens.items() if token is not None}


def read_serialized(path: Path, special_tokens: dict[str, Any]) -> Tokenizer:
    """The tokenizer of which `serialized` has given the text at `path` and the tokens. Raises UserError if damaged."""
    import tokenizers

    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")), special_tokens)
    except Exception as error:  # whatever a damaged file leads the reader to
        raise UserError(f"no tokenizer in {path}: {problem_of_text_file(path) or error}") from None


def tokenizer_identity(name: str, weights_folder: Path | None = None) -> str:
    """What tells the tokenizer that `load_tokenizer` would load from others: a folder's content, or a name."""
    folder = Path(name)
    if not folder.is_dir():
        if weights_folder is None or not (weights_folder / TOKENIZER_FILE).is_file():
            return name
        folder = weights_folder
    contents = [f"{path.name} {content_hash(path)}" for path in matching_files(folder, TOKENIZER_FILES)]
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]


def tokenizer_files(name: str) -> dict[str, bytes]:
    """The files of the tokenizer that `load_tokenizer` would load from a local folder or the hub, by their names.

    Raises UserError as `load_tokenizer`.
    """
    if Path(name).is_dir():
        return {path.name: path.read_bytes() for path in matching_files(Path(name), TOKENIZER_FILES)}
    if name == XLM_R_BASE:
        return {TOKENIZER_FILE: lzma.decompress(SHIPPED.read_bytes())}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer: Any = load_tokenizer(name)  # of the hub, so one of transformers'
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def shipped_tokenizer() -> Tokenizer:
    """XLM-R base's tokenizer, unpacked into memory."""
    return _xlm_roberta(lzma.decompress(SHIPPED.read_bytes()).decode("utf-8"))


def _beside_weights(folder: Path) -> Tokenizer:
    if (folder / SETTINGS_FILE).is_file():
        return _from_pretrained(str(folder))
    return _xlm_roberta((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))


def _xlm_roberta(serialized: str) -> Tokenizer:
    """A tokenizer with XLM-R's special tokens, from the text of a tokenizer.json."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(serialized)
    known: dict[str, Any] = {
        name: token for name, token in SPECIAL_TOKENS.items() if tokenizer.token_to_id(token) is not None
    }
    if "mask_token" in known:
        known["mask_token"] = tokenizers.AddedToken(known["mask_token"], lstrip=True)
    return Tokenizer(tokenizer, known)


def _from_pretrained(name: str) -> Tokenizer:
    tokenizer = _plain(Path(name)) or _from_transformers(name)
    # Where the files are missing, some library versions make one that knows no words.
    words = tokenizer("music", add_special_tokens=False)["input_ids"]
    if not set(words) - {tokenizer.unk_token_id}:
        raise ValueError("its vocabulary is missing")
    return tokenizer


def _plain(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder that says in full what its tokenizer.json does not, else None."""
    import tokenizers

    if not (folder / TOKENIZER_FILE).is_file() or not (folder / SETTINGS_FILE).is_file():
        return None
    if any((folder / name).exists() for name in OLDER_FILES):
        return None
    settings = parse_json((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or settings.get("tokenizer_class") not in PLAIN_CLASSES:
        return None
    special: dict[str, Any] = {
        name: token for name, token in settings.items() if name in SPECIAL_TOKENS and isinstance(token, str)
    }
    space = _adds_prefix_space(str(folder))
    set_anew = settings.get("add_prefix_space", space if settings["tokenizer_class"] == PLAIN_CLASSES[1] else False)
    if settings.keys() - special.keys() - IDLE_SETTINGS or set_anew != space:
        return None
    return Tokenizer(tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE)), special)


def _from_transformers(name: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        if "TokenizersBackend" not in str(error):  # transformers 5's name, in the files it saves, for the class below
            raise
        return PreTrainedTokenizerFast.from_pretrained(name, add_prefix_space=_adds_prefix_space(name))


def _adds_prefix_space(name: str) -> bool:
    """Whether a folder's tokenizer.json puts a space before texts; transformers 4 goes by its own settings alone."""
    path = Path(name, TOKENIZER_FILE)
    settings = parse_json(path.read_text(encoding="utf-8")).get("pre_tokenizer") if path.is_file() else None
    return bool((settings or {}).get("add_prefix_space", False))


def token_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """`text` with the special tokens around it -> ids (tokens,). Safe in threads.

    Raises ValueError for half of a character (a lone surrogate), such as JSON and file names can hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds {text[error.start]!a}, which is half of a character, and no text") from None
    with _lock:
        return np.array(tokenizer(text, verbose=False)["input_ids"], np.int64)


def unknown_letters(tokenizer: Tokenizer, text: str) -> str | None:
    """A remark where `tokenizer` does not know many of the letters: the model has hardly learned such a language."""
    if text.isascii() or not getattr(tokenizer, "is_fast", True):
        return None
    with _lock:
        encoding = tokenizer(text, verbose=False, return_offsets_mapping=True)
    letters = [place for place, character in enumerate(text) if character.isalpha()]
    unknown = _unknown_places(encoding["offset_mapping"], encoding["input_ids"], tokenizer.unk_token_id)
    unknown &= set(letters)
    if len(unknown) <= MANY_UNKNOWN * len(letters):
        return None
    seen = "".join(dict.fromkeys(text[place] for place in sorted(unknown)))[:SHOWN_LETTERS]
    return (
        f"the model's tokenizer does not know {len(unknown)} of {len(letters)} letters ({seen}), so the model may not "
        "know the language"
    )


def _unknown_places(offsets: list[tuple[int, int]], ids: list[int], unk_token_id: int | None) -> set[int]:
    """The places of characters without a token of their own: the unknown one stands for them, or one for each byte."""
    tokens_within = Counter(first for first, last in offsets if last - first == 1)
    in_bytes = {place for place, count in tokens_within.items() if count > 1}
    spans = (range(*span) for span, number in zip(offsets, ids, strict=True) if number == unk_token_id)
    return in_bytes.union(*spans)

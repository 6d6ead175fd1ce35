"""Raw files -> what the models take."""

from pathlib import Path

from clamp3.io.files import read_text


def read_symbolic(path: Path) -> str:
    """The interleaved ABC or the MTF of a score or a MIDI file, told by its extension.

    Raises ValueError for other extensions, for several tunes in a file and for damaged files.
    """
    from clamp3.formats.abc import interleave, read_abc
    from clamp3.formats.midi import MIDI_EXTENSIONS, midi_to_mtf

    extension = path.suffix.lower()
    if extension in MIDI_EXTENSIONS:
        return midi_to_mtf(path, m3_compatible=True)
    if extension == ".mtf":
        return read_text(path)
    if extension == ".abc":
        return interleave(read_abc(path))
    if extension in (".xml", ".musicxml", ".mxl"):
        from clamp3.formats.musicxml import musicxml_to_abc

        return interleave(musicxml_to_abc(path))
    raise ValueError(f"nothing here reads {extension or 'files without an extension'}")

"""What the page shows of a file: a score to engrave, notes to play, a text, or a recording."""

import re
from bisect import bisect_right
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from clamp3.errors import Note, ignore
from clamp3.features.reading import Item, read_item
from clamp3.formats.abc import VOICE_SWITCH, interleave, is_interleaved, read_abc, split_tunes
from clamp3.formats.midi import TIME_FIRST, is_mtf, midi_to_mtf
from clamp3.formats.notes import DRUMS
from clamp3.formats.registry import (
    ABC,
    FRAMES,
    HUMDRUM,
    MEI,
    MIDI,
    MTF,
    MUSICXML,
    TEXT,
    Format,
    check_size,
    format_of,
    score_to_abc,
)
from clamp3.inputs.passages import TICKS_PER_BEAT, Message, Metre, bars_of
from clamp3.inputs.patchilizer import M3Patchilizer
from clamp3.io.files import read_text
from clamp3.io.folders import Job, Outcome
from clamp3.io.reports import describe_error
from clamp3.io.workers import Processes, in_processes

View = dict[str, Any]  # "kind", and what belongs to it; "remarks" for people
LARGEST = 2_000_000  # bytes of a file that is shown: more would keep the browser busy for minutes
MOST_NOTES = 20_000
MOST_BARS = 10_000  # of MIDI, whose times are told
BARS = 4  # on a line of a score, if nothing else is said
LONG_LINE = 300  # characters of ABC that no engraver breaks by itself
TEMPO = 500_000  # microseconds to a quarter note, where a MIDI file does not say
SHOWN_FIELDS = "TCOR"  # of ABC: what is shown above the notes


def view(path: Path, processes: Processes | None = None, bars: int = BARS, is_numbered: bool = False) -> View:
    """How to show a file, a score with `bars` on a line. What cannot be shown has the kind "none" and a reason.

    With `is_numbered`, the "places" of a score are those of its bars, counted as in passages: of each, where it begins
    and ends in the ABC of each voice, in UTF-16 units, as scripts count. MIDI has the seconds of its "bars" in any
    case. With `processes`, scores that are converted are so in one of them, within its limits of time and memory.
    """
    known = format_of(path)
    if known and known.decode:
        return {"kind": "sound"}
    if known in (MUSICXML, HUMDRUM, MEI) and processes:
        with_one = Processes(1, processes.time_limit, processes.memory_limit)
        (outcome,) = in_processes(partial(view_job, bars, is_numbered=is_numbered), [Job(path, (), 0)], with_one)
    else:
        outcome = view_job(bars, Job(path, (), 0), is_numbered)
    if outcome.failure:
        return {"kind": "none", "reason": outcome.failure}
    return {**outcome.content, "remarks": [*outcome.content.get("remarks", ()), *outcome.warnings]}


def view_job(bars: int, job: Job, is_numbered: bool = False) -> Outcome:
    """The view of a file as the content of an outcome, in whatever process."""
    item = read_item(Item(0, ""), partial(_read, job.source, bars, is_numbered))
    failure = None if item.error is None else describe_error(item.error)
    return Outcome(job, failure, tuple(item.repairs), item.content)


def _read(path: Path, bars: int, is_numbered: bool, note: Note) -> View:
    known = format_of(path)
    if known is None or known is FRAMES:
        raise ValueError("a file of features, which has nothing to show")
    check_size(path, known)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has over {LARGEST / 1e6:.0f} MB, too much to show")
    if known is TEXT:
        return {"kind": "text", "text": read_text(path)}
    if known is MIDI:
        return notes_view(midi_to_mtf(path, m3_compatible=True, note=note))
    if known is MTF:
        return notes_view(read_text(path))
    if is_numbered:
        abc = _abc(path, known, None, note)
        if known is ABC and re.search("^w:", abc, re.MULTILINE):
            note("shown without its lyrics, so that its bars are known")
        abc, places = laid_out(abc, bars, note)
        return {"kind": "score", "abc": abc, "places": places}
    return {"kind": "score", "abc": _abc(path, known, bars, note)}


def _abc(path: Path, known: Format, bars: int | None, note: Note) -> str:
    """ABC that an engraver sets well: of a few bars on each line. Where `bars` is None, as it stands."""
    if known is ABC:
        text = read_abc(path)
        abc = split_tunes(text)[0]
        longest = max(map(len, abc.splitlines()), default=0)
        if bars is not None and bars >= BARS and longest <= LONG_LINE and not is_interleaved(abc):
            return abc if re.search("^X:", abc, re.MULTILINE) else f"X:1\n{abc}"
    else:
        abc = score_to_abc(path, note)
    return abc if bars is None else on_lines(abc, bars, note)


def on_lines(abc: str, bars: int = BARS, note: Note = ignore) -> str:
    """ABC, standard or interleaved, as people write it: voice after voice, so many bars on a line; without words."""
    return laid_out(abc, bars, note)[0]


def laid_out(abc: str, bars: int = BARS, note: Note = ignore) -> tuple[str, list[list[tuple[int, int]]]]:
    """The same, and where each bar is in it: in each voice, from which UTF-16 unit to which.

    Without places where the bars that the model reads are not told apart by lines.
    """
    fields = dict(re.findall(rf"^([{SHOWN_FIELDS}]):\s*(\S[^\n]*)$", abc, re.MULTILINE)[::-1])
    shown = "".join(f"{name}:{fields[name]}\n" for name in SHOWN_FIELDS if name in fields)
    head, rows, interleaved = [], [], interleave(abc, note)
    for line in interleaved.splitlines():
        if line.startswith("[V:"):
            rows.append(line)
        elif line[:2] not in {f"{name}:" for name in (*SHOWN_FIELDS, "X")}:
            head.append(line)
    lines = ["X:1", *shown.splitlines(), *head]
    end = sum(_units(line) + 1 for line in lines)
    places: list[list[tuple[int, int]]] = [[] for _ in rows]
    for start in range(0, len(rows), bars):
        voices: dict[str, list[tuple[int, str]]] = defaultdict(list)  # the bars of each: their rows, their music
        for number, row in enumerate(rows[start : start + bars], start):
            _, *parts = VOICE_SWITCH.split(row)
            for name, _options, music in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
                voices[name].append((number, f" {music.strip()}"))
        for name, some in voices.items():
            lines.append(f"[V:{name}]" + "".join(music for _, music in some))
            end += _units(f"[V:{name}]")
            for number, music in some:
                begin, end = end, end + _units(music)
                places[number].append((begin, end))
            end += 1  # the line's own
    text = "\n".join([*lines, ""])
    is_told_apart = max(bars_of(M3Patchilizer().split(interleaved)), default=0) == len(rows)
    return text, places if is_told_apart else []


def _units(text: str) -> int:
    """The length in UTF-16."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def notes_view(mtf: str) -> View:
    """The notes of MTF: [second, seconds, key, velocity] each, in order; and the seconds at which its "bars" begin.

    Raises ValueError where there is no note.
    """
    if not is_mtf(mtf):
        raise ValueError("not MTF: its first line must be ticks_per_beat and a number")
    first, *lines = mtf.splitlines()
    division = int(first.split()[1])
    now, at, tempo, drums = 0.0, 0, TEMPO, 0  # seconds, ticks
    clock, metres = [(0, 0.0, _seconds_of_tick(division, TEMPO))], []  # from which tick and second, how long a tick is
    notes: list[list[float]] = []
    sounding: dict[tuple[int, int], list[list[float]]] = defaultdict(list)
    for line in lines:
        name, *values = line.split(" ")
        ticks = int(values[0 if name in TIME_FIRST else -1]) if values else 0
        now += ticks * _seconds_of_tick(division, tempo)
        at += ticks
        if name == "set_tempo":
            tempo = int(values[0])
            clock.append((at, now, _seconds_of_tick(division, tempo)))
        elif name == "time_signature":
            metres.append(Message(at, " ".join([name, *values[:2]]), "", 0))
        elif name in ("note_on", "note_off"):
            channel, key, velocity = map(int, values[1:4])
            if channel == DRUMS:
                drums += 1
            elif name == "note_on" and velocity:
                notes.append([now, 0.0, key, velocity])
                sounding[channel, key].append(notes[-1])
            elif sounding[channel, key]:
                started = sounding[channel, key].pop(0)
                started[1] = now - started[0]
    for left in sounding.values():
        for started in left:
            started[1] = now - started[0]
    if not notes:
        raise ValueError("it has no notes but drums" if drums else "it has no notes")
    remarks = ["MIDI is not engraved: these are its notes over time"]
    remarks += ["all instruments are played on a piano, without the drums" if drums else "played on a piano"]
    if len(notes) > MOST_NOTES:
        remarks.append(f"only the first {MOST_NOTES} of {len(notes)} notes are shown")
    rounded = [[round(number, 4) for number in found] for found in notes[:MOST_NOTES]]
    return {"kind": "notes", "notes": rounded, "bars": _bar_starts(division, metres, clock, at), "remarks": remarks}


def _bar_starts(division: int, metres: list[Message], clock: list[tuple[int, float, float]], end: int) -> list[float]:
    """The seconds at which the bars begin, counted as in passages, and that at which the last one ends."""
    metre = Metre(division if division > 0 else TICKS_PER_BEAT, metres)
    count = min(metre.bar(max(end - 1, 0)) + 2, MOST_BARS)
    starts = []
    for tick in (metre.start(bar) for bar in range(count)):
        since, second, length = clock[bisect_right(clock, (tick, float("inf"), 0.0)) - 1]
        starts.append(round(second + (tick - since) * length, 4))
    return starts


def _seconds_of_tick(division: int, tempo: int) -> float:
    """`division`: ticks in a quarter note; a negative one is SMPTE's, of frames a second and ticks in a frame."""
    if division >= 0:
        return tempo / 1e6 / max(division, 1)
    return 1 / max(-(division >> 8) * (division & 0xFF), 1)

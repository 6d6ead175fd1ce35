"""Music without barlines: cuts bars of ABC that are longer than a patch where phrases end."""

from bisect import bisect_left, bisect_right
from fractions import Fraction
from itertools import accumulate
from math import lcm

from clamp3.formats.abc_notes import BREATH, SLUR_END, Unit, accidentals, carried


class _Track:
    """One voice's music, taken bar by bar from its start. Times are whole numbers, which are compared fast."""

    def __init__(self, played: list[Unit], per_whole: int):
        self.units, self.per_whole = played, per_whole  # of which a whole note has so many
        self.ends = list(accumulate(self.count(unit.duration) for unit in played))
        self.at = 0  # of `units`, the first that is not taken
        self.altered: dict[str, str] = {}  # accidentals from before the last cut, which a barline would end
        self.seen, self.said, self.size = 0, {}, 0  # type: ignore[var-annotated]

    def count(self, duration: Fraction) -> int:
        return duration.numerator * (self.per_whole // duration.denominator)

    def begin_bar(self) -> None:
        """Start measuring a bar at what has not been taken yet."""
        self.seen, self.said, self.size = self.at, {}, 0

    def look_ahead(self, time: int) -> int:
        """The characters of a bar that ends at `time`; within a bar, calls come in order of time."""
        while self.seen < len(self.units) and self.ends[self.seen] <= time:
            self.size += len(self._carried(self.units[self.seen], self.said))
            self.seen += 1
        parts = self.parts(time)
        return self.size + (len(parts[0].text) if parts else 0)

    def _carried(self, unit: Unit, said: dict[str, str]) -> str:
        if "[K:" in unit.text:  # from here on the key's own hold
            said |= dict.fromkeys("ABCDEFG", "")
        text = carried(unit.text, {letter: sign for letter, sign in self.altered.items() if letter not in said})
        said |= accidentals(text)
        return text

    def parts(self, time: int) -> tuple[Unit, Unit] | None:
        """The two halves of the note that lasts over `time`, if it can be split."""
        index = bisect_right(self.ends, time)
        if index == len(self.units):
            return None
        begins = self.ends[index] - self.count(self.units[index].duration)
        return self.units[index].split(Fraction(time - begins, self.per_whole))

    def ends_at(self, time: int) -> bool:
        """Whether no note lasts over `time`."""
        index = bisect_left(self.ends, time)
        return index == len(self.ends) or self.ends[index] == time

    def end(self, time: int) -> int:
        """How plainly a phrase ends at `time`."""
        found = range(bisect_left(self.ends, time), bisect_right(self.ends, time))
        return max((self.units[index].end for index in found), default=0)

    def take(self, time: int) -> str:
        """The bar up to `time`."""
        if not self.ends_at(time) and (parts := self.parts(time)):
            index = bisect_right(self.ends, time)
            self.units[index : index + 1] = parts
            self.ends.insert(index, time)
        said: dict[str, str] = {}
        text = ""
        while self.at < len(self.units) and self.ends[self.at] <= time:
            text += self._carried(self.units[self.at], said)
            self.at += 1
        self.altered |= said
        return text


def cut(played: list[list[Unit]], room: int) -> list[tuple[str, ...]]:
    """One long bar, what each voice has `played`, as shorter ones of at most `room` characters, if the notes allow it.

    Each is a tuple with the voices' notes ("" where a voice has ended). All voices are cut at the same times: at line
    ends, breath marks and fermatas; where there is none in reach, at the end of a slur, else by length. A note that
    is held over a cut becomes two tied ones. Accidentals that the new barlines would end are written again.
    """
    per_whole = lcm(*{unit.duration.denominator for one in played for unit in one})
    tracks = [_Track(one, per_whole) for one in played]
    times = sorted({time for track in tracks for time in track.ends})
    bars, at = [], 0
    while at < len(times):
        time = _bar_end(tracks, times, at, room)
        bars.append(tuple(track.take(time) for track in tracks))
        at = bisect_right(times, time)
    return bars


def _bar_end(tracks: list[_Track], times: list[int], at: int, room: int) -> int:
    """Where a bar ends that begins before `times[at]`: at a phrase's plain end, else at the best time with room."""
    for track in tracks:
        track.begin_bar()
    best: dict[int, int] = {}  # the last time by how good it is
    for index in range(at, len(times)):
        time = times[index]
        is_whole = all(track.ends_at(time) for track in tracks)
        if not is_whole and not all(track.ends_at(time) or track.parts(time) for track in tracks):
            continue
        if best and max(track.look_ahead(time) for track in tracks) > room:
            break
        phrase = max(track.end(time) for track in tracks)
        if phrase == BREATH or index == len(times) - 1:
            return time
        best[2 * is_whole + (phrase == SLUR_END)] = time
    return best[max(best)] if best else times[-1]

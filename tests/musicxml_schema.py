"""The elements of the MusicXML 4.0 schema that may stand in a score, each with the parents that may hold it.

A line names a parent, then children of it, each with an example of its content where it needs one: attributes in
brackets, text behind an equals sign. Left out are those that are the music itself (`MUSIC`): what they say changes the
notes.
"""

import re

MUSIC = (
    "pitch unpitched rest chord grace duration divisions transpose backup forward note tie tied measure part".split()
)
SCHEMA = """
score-partwise: work movement-number=1 movement-title=A%|B identification defaults credit[page=1]
work: work-number=op.1 work-title=T opus[href=a]
identification: creator[type=lyricist]=L rights=C encoding source=S relation=R miscellaneous
encoding: encoding-date=2026-01-01 encoder=E software=X encoding-description=D supports[type=yes,element=beam]
miscellaneous: miscellaneous-field[name=a]=b
defaults: scaling concert-score page-layout system-layout staff-layout[number=1] appearance music-font word-font
defaults: lyric-font[number=1] lyric-language
scaling: millimeters=7 tenths=40
page-layout: page-height=1000 page-width=700 page-margins[type=both]
page-margins: left-margin=1 right-margin=1 top-margin=1 bottom-margin=1
system-layout: system-margins system-distance=70 top-system-distance=70 system-dividers
system-margins: left-margin=1 right-margin=1
system-dividers: left-divider right-divider
staff-layout: staff-distance=60
appearance: line-width[type=beam]=5 note-size[type=cue]=60 distance[type=hyphen]=9 glyph[type=f-clef]=fClef
appearance: other-appearance[type=a]=b
credit: credit-type=title link[href=a] bookmark[id=b] credit-image[source=a,type=b] credit-words=W credit-symbol=segno
part-list: part-group[type=start,number=1] part-group[type=stop,number=1]
part-group: group-name=G group-name-display group-abbreviation=G. group-abbreviation-display group-symbol=brace
part-group: group-barline=yes group-time
score-part: identification part-link[href=a] part-name-display part-abbreviation=P. part-abbreviation-display
score-part: group=score score-instrument[id=I9] player[id=L9] midi-device[port=1] midi-instrument[id=I9]
part-name-display: display-text=x accidental-text=flat
group-name-display: display-text=x accidental-text=flat
part-link: instrument-link[id=I9] group-link=a
score-instrument: instrument-name=x instrument-abbreviation=y instrument-sound=keyboard.piano solo ensemble=3
score-instrument: virtual-instrument
virtual-instrument: virtual-library=a virtual-name=b
player: player-name=x
midi-instrument: midi-channel=1 midi-name=a midi-bank=1 midi-program=1 midi-unpitched=36 volume=80 pan=0 elevation=0
measure: attributes direction harmony figured-bass print sound listening barline[location=middle] grouping[type=start]
measure: link[href=a] bookmark[id=a]
attributes: footnote level key time staves=1 part-symbol=brace instruments=2 clef staff-details directive=Allegro
attributes: measure-style for-part
key: cancel=2 fifths=1 mode=minor key-step=F key-alter=1 key-accidental=sharp key-octave[number=1]=4
time: beats=3 beat-type=4 interchangeable senza-misura=X
interchangeable: time-relation=bracket beats=3 beat-type=4
clef: sign=F line=4 clef-octave-change=-1
staff-details: staff-type=ossia staff-lines=4 line-detail[line=1] staff-tuning[line=1] capo=2 staff-size=60
staff-tuning: tuning-step=E tuning-alter=-1 tuning-octave=2
for-part: part-clef part-transpose
part-clef: sign=G line=2 clef-octave-change=1
part-transpose: diatonic=1 chromatic=2 octave-change=1 double
measure-style: multiple-rest=2 measure-repeat[type=start]=1 measure-repeat[type=stop] beat-repeat[type=start]
measure-style: slash[type=start]
slash: slash-type=quarter slash-dot except-voice=1
direction: direction-type offset=2 footnote level=1 voice=1 staff=1 sound listening
direction-type: rehearsal=A segno coda words=%|:C[D]"E" symbol=segno wedge[type=crescendo] wedge[type=stop]
direction-type: wedge[type=continue] dynamics dashes[type=start] bracket[type=start,line-end=up] pedal[type=start]
direction-type: pedal[type=stop] pedal[type=change] pedal[type=sostenuto] pedal[type=discontinue] metronome
direction-type: octave-shift[type=up,size=8] octave-shift[type=stop,size=8] octave-shift[type=continue,size=8]
direction-type: harp-pedals damp damp-all eyeglasses string-mute[type=on] scordatura image[source=a,type=b]
direction-type: principal-voice[type=start,symbol=none]=H percussion accordion-registration staff-divide[type=down]
direction-type: other-direction=O
dynamics: p pp ppp pppp ppppp pppppp f ff fff ffff fffff ffffff mp mf sf sfp sfpp fp rf rfz sfz sffz fz n pf sfzp
dynamics: other-dynamics=x
metronome: beat-unit=quarter beat-unit-dot beat-unit-tied per-minute=ca.60-72 metronome-arrows metronome-note
metronome: metronome-relation=equals
beat-unit-tied: beat-unit=quarter beat-unit-dot
metronome-note: metronome-type=quarter metronome-dot metronome-beam=begin metronome-tied[type=start]
metronome-note: metronome-tuplet[type=start]
metronome-tuplet: actual-notes=3 normal-notes=2 normal-type=eighth normal-dot
harp-pedals: pedal-tuning
pedal-tuning: pedal-step=C pedal-alter=1
scordatura: accord[string=1]
accord: tuning-step=C tuning-alter=1 tuning-octave=3
percussion: glass=wind-chimes metal=gong wood=castanets pitched=celesta membrane=snare-drum effect=siren timpani
percussion: beater=finger stick stick-location=rim other-percussion=x
stick: stick-type=yarn stick-material=soft
accordion-registration: accordion-high accordion-middle=2 accordion-low
harmony: root numeral function=V kind=major-seventh kind=none inversion=1 bass degree frame offset=1 footnote level
harmony: staff=1
root: root-step=C root-alter=1
numeral: numeral-root=1 numeral-alter=-1 numeral-key
numeral-key: numeral-fifths=2 numeral-mode=major
bass: bass-separator=/ bass-step=G bass-alter=-1
degree: degree-value=9 degree-alter=1 degree-type=add
frame: frame-strings=6 frame-frets=4 first-fret=2 frame-note
frame-note: string=1 fret=2 fingering=1 barre[type=start]
figured-bass: figure footnote level extend[type=start]
figure: prefix=sharp figure-number=6 suffix=slash extend[type=start] footnote level
print: page-layout system-layout staff-layout[number=1] measure-layout measure-numbering=system part-name-display
print: part-abbreviation-display
measure-layout: measure-distance=5
sound: instrument-change[id=I9] midi-device[port=1] midi-instrument[id=I9] play offset=1 swing
instrument-change: instrument-sound=a solo ensemble=2 virtual-instrument
swing: straight first=2 second=1 swing-type=eighth swing-style=x
play: ipa=a mute=on semi-pitched=high other-play[type=a]=b
listening: sync[type=tempo] other-listening[type=a]=b offset=1
barline: bar-style=dashed footnote level wavy-line[type=start] segno coda fermata ending[number=1,type=start]
barline: ending[number=1,type=discontinue] repeat[direction=forward] repeat[direction=backward,times=3]
grouping: feature[type=a]
note: cue instrument[id=I9] footnote level type=quarter dot accidental=natural accidental=quarter-flat
note: time-modification
note: stem=up stem=none notehead=x notehead=none notehead-text staff=1 beam[number=1]=begin notations lyric[number=1]
note: lyric[number=chorus] play listen
time-modification: actual-notes=3 normal-notes=2 normal-type=eighth normal-dot
notehead-text: display-text=x accidental-text=flat
notations: footnote level slur[type=start,number=1] slur[type=stop,number=1] slur[type=continue,number=1]
notations: tuplet[type=start] tuplet[type=stop] glissando[type=start,number=1] glissando[type=stop,number=1]
notations: slide[type=start,number=1] slide[type=stop,number=1] ornaments technical articulations dynamics
notations: fermata=angled arpeggiate non-arpeggiate[type=top] accidental-mark=sharp other-notation[type=single]=x
tuplet: tuplet-actual tuplet-normal
tuplet-actual: tuplet-number=3 tuplet-type=eighth tuplet-dot
tuplet-normal: tuplet-number=2 tuplet-type=eighth tuplet-dot
ornaments: trill-mark turn delayed-turn inverted-turn delayed-inverted-turn vertical-turn inverted-vertical-turn shake
ornaments: wavy-line[type=start] wavy-line[type=stop] mordent inverted-mordent schleifer tremolo[type=single]=3
ornaments: tremolo[type=unmeasured]=0 tremolo[type=start]=2 tremolo[type=stop]=2 haydn other-ornament=x
ornaments: accidental-mark=flat
technical: up-bow down-bow harmonic open-string thumb-position fingering=1 fingering=2!|3 pluck=p double-tongue
technical: triple-tongue stopped snap-pizzicato fret=2 string=3 hammer-on[type=start]=H pull-off[type=stop]=P bend
technical: tap=T heel toe fingernails hole arrow handbell=damp brass-bend flip smear open half-muted harmon-mute golpe
technical: other-technical=x
harmonic: natural artificial base-pitch touching-pitch sounding-pitch
bend: bend-alter=1 pre-bend release with-bar=scoop
hole: hole-type=ring hole-closed=yes hole-shape=round
arrow: arrow-direction=up arrow-style=single arrowhead circular-arrow=clockwise
harmon-mute: harmon-closed=yes
articulations: accent strong-accent staccato tenuto detached-legato staccatissimo spiccato scoop plop doit falloff
articulations: breath-mark=comma caesura=normal stress unstress soft-accent other-articulation=x
lyric: syllabic=begin syllabic=end text=la-_*~|: elision=_ extend[type=start] laughing humming end-line end-paragraph
lyric: footnote level
listen: assess[type=yes] wait other-listen[type=a]=b
"""
CHILD = re.compile(r"(?P<name>[a-z-]+)(?:\[(?P<attributes>[^\]]*)\])?(?:=(?P<text>\S+))?")


def children() -> list[tuple[str, str, dict[str, str], str]]:
    """(parent, name, attributes, text) of each element."""
    found = []
    for line in SCHEMA.strip().splitlines():
        parent, _, names = line.partition(": ")
        for name in names.split():
            match = CHILD.fullmatch(name)
            assert match, name
            pairs = (match["attributes"] or "").split(",") if match["attributes"] else []
            found.append((parent, match["name"], dict(pair.split("=") for pair in pairs), match["text"] or ""))
    return found

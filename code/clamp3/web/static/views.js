// What is shown of a file, by the kind of its view: engraved, drawn, read or heard.

import { Player, silence } from "./player.js";

const SVG = "http://www.w3.org/2000/svg";
const LEVELS = 3; // of strength, in which places are coloured

function svg(name, values) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
  return element;
}

// How many bars of a score go on a line of `place`. (abcjs could break lines itself, but gets signatures wrong then.)
export function barsFor(place) {
  return place.clientWidth < 500 ? 2 : 4;
}

// Fills `place` with a view, as the server describes it, and marks the `passage` that was found, if any.
// Returns remarks for people; `place.colour` then colours the bars that explain a match.
export function show(place, found, passage) {
  const remarks = found.remarks || [];
  const shown = { score: engrave, notes: draw, text: write, sound: listen }[found.kind];
  place.colour = null;
  return [...remarks, ...(shown ? shown(place, found, passage) : [`Not shown: ${found.reason}.`])];
}

function engrave(place, { abc, places = [] }, passage) {
  const paper = document.createElement("div");
  paper.className = "score";
  place.append(paper);
  const width = Math.max(Math.min(place.clientWidth, 900) - 40, 260);
  const [tune] = ABCJS.renderAbc(paper, abc, {
    staffwidth: width,
    add_classes: true,
    paddingleft: 0,
    paddingright: 12,
  });
  paper.querySelector("svg")?.setAttribute("role", "img");
  const sequence = tune.setUpAudio();
  const meter = tune.getMeterFraction();
  const whole = tune.millisecondsPerMeasure() / 1000 / (meter.num / meter.den); // seconds of a whole note
  const notes = sequence.tracks.flat().filter((event) => event.cmd === "note").map((event) => (
    [event.start * whole, event.duration * whole, event.pitch, event.volume]
  )).sort((first, second) => first[0] - second[0]);
  tune.setTiming();
  let sounding = [];
  const player = addPlayer(place, notes, (second, isPlaying) => {
    sounding.forEach((element) => element.classList.remove("sounding"));
    const event = isPlaying && tune.noteTimings.findLast((one) => one.type === "event" && one.milliseconds <= second * 1000);
    sounding = event ? (event.elements || []).flat() : [];
    sounding.forEach((element) => element.classList.add("sounding"));
  });
  const marked = new MarkedScore(paper, tune, places);
  markBars(marked, player, passage);
  const count = (tune.warnings || []).length;
  place.colour = (shares) => marked.colour(shares);
  return count ? [`The engraver passed over ${count} sign${count > 1 ? "s" : ""} that it does not know.`] : [];
}

// Shades the bars of a passage, with which the player begins.
function markBars(marked, player, passage) {
  if (!passage?.bars) return;
  marked.shade(passage.bars);
  player.seek(marked.second(passage.bars[0]));
}

function draw(place, { notes, bars = [] }, passage) {
  const keys = notes.map((note) => note[2]);
  const [low, high] = [Math.min(...keys) - 1, Math.max(...keys) + 1];
  const end = Math.max(...notes.map((note) => note[0] + note[1]), 0.1);
  const height = high - low + 1;
  const roll = svg("svg", {
    class: "roll",
    role: "img",
    "aria-label": `${notes.length} notes over ${Math.round(end)} seconds`,
    viewBox: `0 0 1000 ${height}`,
    preserveAspectRatio: "none",
  });
  for (const [start, length, key] of notes) {
    const width = Math.max(length / end * 1000, 0.5);
    roll.append(svg("rect", { class: "note", x: start / end * 1000, y: high - key, width, height: 0.9 }));
  }
  const line = svg("line", { x1: 0, x2: 0, y1: 0, y2: height });
  roll.append(line);
  place.append(roll);
  const player = addPlayer(place, notes, (second) => {
    line.setAttribute("x1", second / end * 1000);
    line.setAttribute("x2", second / end * 1000);
  });
  const marked = new MarkedRoll(roll, bars, 1000 / end, height);
  markBars(marked, player, passage);
  place.colour = (shares) => marked.colour(shares);
  return [];
}

function write(place, { text }, passage) {
  const sheet = document.createElement("pre");
  const [first, last] = passage?.lines || [0, 0];
  text.split("\n").forEach((line, index, lines) => {
    const isFound = lines.length > 1 && index + 1 >= first && index + 1 <= last;
    sheet.append(isFound ? Object.assign(document.createElement("mark"), { textContent: line }) : line);
    if (index + 1 < lines.length) sheet.append("\n");
  });
  place.append(sheet);
  return [];
}

function listen(place, found, passage) {
  const audio = document.createElement("audio");
  const start = passage?.seconds ? passage.seconds[0] : 0;
  audio.controls = true;
  audio.preload = "metadata";
  audio.src = found.address + (start ? `#t=${start}` : "");
  audio.setAttribute("aria-label", `Recording ${found.file}`);
  audio.addEventListener("play", () => {
    silence();
    document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); });
  });
  audio.addEventListener("error", () => {
    place.append(Object.assign(document.createElement("p"), { textContent: "This recording cannot be played here." }));
  });
  place.append(audio);
  return [];
}

function clock(second) {
  return `${Math.floor(second / 60)}:${String(Math.floor(second % 60)).padStart(2, "0")}`;
}

function addPlayer(place, notes, follow) {
  const bar = document.querySelector("#player").content.cloneNode(true).firstElementChild;
  const [button, position, time] = ["play", "position", "time"].map((name) => bar.querySelector(`.${name}`));
  const player = new Player(notes, (second, isPlaying) => {
    button.textContent = isPlaying ? "Pause" : "Play";
    position.value = second;
    time.textContent = `${clock(second)} / ${clock(player.duration)}`;
    follow(second, isPlaying);
  });
  position.max = player.duration;
  time.textContent = `0:00 / ${clock(player.duration)}`;
  button.addEventListener("click", async () => {
    document.querySelectorAll("audio").forEach((audio) => audio.pause());
    if (player.isPlaying) return player.pause();
    try {
      await player.play();
    } catch (error) {
      time.textContent = error.message;
    }
  });
  position.addEventListener("input", () => player.seek(Number(position.value)));
  place.append(bar);
  return player;
}

// ---------- marks ----------

// What each bar adds, from 1 to LEVELS by its strength; `places` are what an explanation has of a file.
function levelsOf(places) {
  const sums = new Map();
  for (const { unit, first, last, share } of places) {
    if (unit !== "bars") continue;
    for (let bar = first; bar <= last; bar++) sums.set(bar, (sums.get(bar) || 0) + share / (last - first + 1));
  }
  const most = Math.max(...sums.values());
  return new Map([...sums].filter(([, sum]) => sum > 0).map(([bar, sum]) => [bar, Math.ceil(LEVELS * sum / most)]));
}

// An engraved score, whose bars can be marked: `places` has of each bar where it begins and ends in the ABC.
class MarkedScore {
  constructor(paper, tune, places) {
    this.paper = paper;
    this.tune = tune;
    const ranges = places.flatMap((some, index) => some.map(([first, end]) => [first, end, index + 1])).sort((a, b) => a[0] - b[0]);
    this.bars = new Map(); // the elements of each
    const voices = tune.lines.flatMap((line) => (line.staff || []).flatMap((staff) => staff.voices));
    for (const element of voices.flat()) {
      const range = ranges.findLast(([first]) => first <= element.startChar);
      if (!range || element.startChar >= range[1] || !element.abselem) continue;
      if (!this.bars.has(range[2])) this.bars.set(range[2], { at: element.startChar, elements: [] });
      this.bars.get(range[2]).elements.push(...(element.abselem.elemset || []));
    }
  }

  // The second at which a bar begins to sound.
  second(bar) {
    const start = this.bars.get(bar);
    const event = start && this.tune.noteTimings.find((one) => one.type === "event" && (one.startCharArray || []).some((at) => at >= start.at));
    return event ? event.milliseconds / 1000 : 0;
  }

  // Shades the bars of the passage found: a band in each system.
  shade([first, last]) {
    const systems = new Map();
    for (let bar = first; bar <= last; bar++) {
      for (const element of this.bars.get(bar)?.elements || []) {
        const system = element.closest(".abcjs-staff-wrapper");
        if (!system) continue;
        const box = element.getBBox();
        const [left, right] = systems.get(system) || [Infinity, -Infinity];
        systems.set(system, [Math.min(left, box.x), Math.max(right, box.x + box.width)]);
      }
    }
    for (const [system, [left, right]] of systems) {
      const staves = [...system.querySelectorAll(".abcjs-staff")].map((staff) => staff.getBBox());
      const top = Math.min(...staves.map((box) => box.y)) - 12;
      const bottom = Math.max(...staves.map((box) => box.y + box.height)) + 12;
      system.prepend(svg("rect", { class: "found", x: left - 4, y: top, width: right - left + 8, height: bottom - top, rx: 4 }));
    }
  }

  // Colours the bars that explain a match; none: as it was.
  colour(places) {
    this.paper.querySelectorAll("[data-why]").forEach((element) => element.removeAttribute("data-why"));
    for (const [bar, level] of levelsOf(places)) {
      for (const element of this.bars.get(bar)?.elements || []) element.dataset.why = level;
    }
  }
}

// Notes over time, whose bars begin at the seconds `starts`, and the last of which ends at the last of them.
class MarkedRoll {
  constructor(roll, starts, width, height) {
    this.roll = roll;
    this.starts = starts;
    this.height = height;
    this.scale = width;
  }

  second(bar) {
    return this.starts[Math.min(bar, this.starts.length) - 1] || 0;
  }

  band(first, last, values) {
    const [from, to] = [this.second(first), this.second(last + 1)].map((second) => second * this.scale);
    this.roll.prepend(svg("rect", { x: from, y: 0, width: Math.max(to - from, 1), height: this.height, ...values }));
  }

  shade([first, last]) {
    this.band(first, last, { class: "found" });
  }

  colour(places) {
    this.roll.querySelectorAll("rect[data-why]").forEach((band) => band.remove());
    for (const [bar, level] of levelsOf(places)) this.band(bar, bar, { "data-why": level });
    this.roll.querySelectorAll(".found").forEach((band) => this.roll.prepend(band));
  }
}

// A place as people read it: bars 9–16, 0:40–1:00, or a word.
export function named({ unit, first, last, text }) {
  if (unit === "seconds") return `${clock(first)}–${clock(last)}`;
  if (unit === "words") return text;
  return first === last ? `${unit.slice(0, -1)} ${first}` : `${unit} ${first}–${last}`;
}

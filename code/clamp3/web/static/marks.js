// Marks in what is shown of a file: the passage that was found, and the places that explain why.

const SVG = "http://www.w3.org/2000/svg";
const LEVELS = 3; // of strength, in which places are coloured

export function svg(name, values) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
  return element;
}

// What each bar adds, from 1 to LEVELS by its strength; `places` are what an explanation has of a file.
export function levelsOf(places) {
  const sums = new Map();
  for (const { unit, first, last, share } of places) {
    if (unit !== "bars") continue;
    for (let bar = first; bar <= last; bar++) sums.set(bar, (sums.get(bar) || 0) + share / (last - first + 1));
  }
  const most = Math.max(...sums.values());
  return new Map([...sums].filter(([, sum]) => sum > 0).map(([bar, sum]) => [bar, Math.ceil(LEVELS * sum / most)]));
}

// An engraved score, whose bars can be marked: `places` has of each bar where it begins and ends in the ABC.
export class MarkedScore {
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
export class MarkedRoll {
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

function clock(second) {
  return `${Math.floor(second / 60)}:${String(Math.floor(second % 60)).padStart(2, "0")}`;
}

// A place as people read it: bars 9–16, 0:40–1:00, or a word.
export function named({ unit, first, last, text }) {
  if (unit === "seconds") return `${clock(first)}–${clock(last)}`;
  if (unit === "words") return text;
  return first === last ? `${unit.slice(0, -1)} ${first}` : `${unit} ${first}–${last}`;
}

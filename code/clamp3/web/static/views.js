// What is shown of a file, by the kind of its view: engraved, drawn, read or heard.

import { Player, silence } from "./player.js";

const SVG = "http://www.w3.org/2000/svg";

// How many bars of a score go on a line of `place`. (abcjs could break lines itself, but gets signatures wrong then.)
export function barsFor(place) {
  return place.clientWidth < 500 ? 2 : 4;
}

// Fills `place` with a view, as the server describes it. Returns remarks for people, and what can be done with it:
// `mark(name, places)` colours places from `first` to `last`, bars, seconds or lines, in place of those that have this
// name; their `strength` is from 0 to 1. `seek(first)` lets it play from there.
export function show(place, found) {
  const nothing = { remarks: [], mark: () => {}, seek: () => {} };
  const views = { score: engrave, notes: draw, text: write, sound: listen };
  const shown = views[found.kind] ? views[found.kind](place, found) : { remarks: [`Not shown: ${found.reason}.`] };
  return { ...nothing, ...shown, remarks: [...(found.remarks || []), ...(shown.remarks || [])] };
}

function element(name, values) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
}

// Whether a passage is the whole, which goes from `first` to `last`: then there is nothing to mark.
const isWhole = (name, place, first, last) => name === "passage" && place.first <= first && place.last >= last;

// Puts a mark behind what `svg` shows: `boxes` of x, y, width and height for each of `places`.
function markIn(svg, name, places, boxes) {
  svg.querySelector(`.${name}`)?.remove();
  const group = element("g", { class: name });
  for (const place of places) {
    for (const box of boxes(place)) group.append(element("rect", { ...box, "fill-opacity": opacity(place) }));
  }
  const first = svg.querySelector("style")?.nextSibling || svg.firstChild;
  svg.insertBefore(group, name === "passage" ? first : svg.querySelector(".passage")?.nextSibling || first);
}

function opacity(place) {
  return place.strength === undefined ? 1 : 0.15 + 0.6 * place.strength ** 2;
}

function write(place, found) {
  const sheet = document.createElement("pre");
  sheet.append(...found.text.split("\n").map((line) => Object.assign(document.createElement("span"), { textContent: `${line}\n` })));
  place.append(sheet);
  const lines = [...sheet.children];
  const last = lines.findLastIndex((line) => line.textContent.trim()) + 1;
  const mark = (name, places) => lines.forEach((line, index) => line.classList.toggle(name, places.some((one) => (
    one.unit === "lines" && one.first <= index + 1 && index < one.last && !isWhole(name, one, 1, last)
  ))));
  return { mark };
}

// The boxes of each bar of a tune: of each voice, from the barline before it to its own.
function barBoxes(tune, places) {
  const boxes = places.map(() => []);
  for (const voice of tune.makeVoicesArray()) {
    let before = null; // the barline
    for (const { elem, top, height, line } of voice) {
      const at = elem.abcelem.startChar;
      const bar = Number.isInteger(at) ? places.findIndex((some) => some.some(([begin, end]) => begin <= at && at < end)) : -1;
      const own = boxes[bar]?.find((box) => box.line === line && box.top === top);
      const end = elem.x + elem.w;
      if (own) own.end = Math.max(own.end, end);
      else if (bar >= 0) boxes[bar].push({ line, top, height, start: before?.line === line ? before.end : elem.x - 6, end });
      if (elem.type === "bar") before = { line, end };
    }
  }
  return boxes.map((some) => some.map(({ top, height, start, end }) => ({ x: start, y: top, width: end - start, height })));
}

function engrave(place, { abc, places }) {
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
  const said = (tune.warnings || []).length;
  const remarks = said ? [`The engraver passed over ${said} sign${said > 1 ? "s" : ""} that it does not know.`] : [];
  if (!places?.length) return { remarks };
  const boxes = barBoxes(tune, places);
  const of = ({ unit, first, last }) => (unit === "bars" ? boxes.slice(first - 1, last).flat() : []);
  const mark = (name, some) => (
    markIn(paper.querySelector("svg"), name, some.filter((one) => !isWhole(name, one, 1, places.length)), of)
  );
  const seek = (bar) => {
    const inside = (at) => (places[bar - 1] || []).some(([begin, end]) => begin <= at && at < end);
    const event = tune.noteTimings.find((one) => (one.startCharArray || []).some(inside));
    if (event) player.seek(event.milliseconds / 1000);
  };
  return { remarks, mark, seek };
}

function draw(place, { notes, bars }) {
  const keys = notes.map((note) => note[2]);
  const [low, high] = [Math.min(...keys) - 1, Math.max(...keys) + 1];
  const end = Math.max(...notes.map((note) => note[0] + note[1]), 0.1);
  const roll = document.createElementNS(SVG, "svg");
  roll.setAttribute("class", "roll");
  roll.setAttribute("role", "img");
  roll.setAttribute("aria-label", `${notes.length} notes over ${Math.round(end)} seconds`);
  roll.setAttribute("viewBox", `0 0 1000 ${high - low + 1}`);
  roll.setAttribute("preserveAspectRatio", "none");
  const add = (name, values) => roll.appendChild(element(name, values));
  for (const [start, length, key] of notes) {
    add("rect", { x: start / end * 1000, y: high - key, width: Math.max(length / end * 1000, 0.5), height: 0.9 });
  }
  const line = add("line", { x1: 0, x2: 0, y1: 0, y2: high - low + 1 });
  place.append(roll);
  const player = addPlayer(place, notes, (second) => {
    line.setAttribute("x1", second / end * 1000);
    line.setAttribute("x2", second / end * 1000);
  });
  const second = (bar) => Math.min(bars[bar - 1] ?? end, end);
  const box = ({ unit, first, last }) => (unit === "bars" ? [{
    x: second(first) / end * 1000, width: (second(last + 1) - second(first)) / end * 1000, y: 0, height: high - low + 1,
  }] : []);
  const mark = (name, places) => markIn(roll, name, places.filter((one) => !isWhole(name, one, 1, bars.length - 1)), box);
  return { mark, seek: (bar) => player.seek(second(bar)) };
}

function listen(place, found) {
  const audio = document.createElement("audio");
  audio.controls = true;
  audio.preload = "metadata";
  audio.src = found.address;
  audio.setAttribute("aria-label", `Recording ${found.file}`);
  audio.addEventListener("play", () => {
    silence();
    document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); });
  });
  audio.addEventListener("error", () => {
    place.append(Object.assign(document.createElement("p"), { textContent: "This recording cannot be played here." }));
  });
  const strip = element("svg", { class: "strip", viewBox: "0 0 1000 1", preserveAspectRatio: "none", "aria-hidden": true, hidden: "" });
  place.append(audio, strip);
  const ready = new Promise((resolve) => { audio.addEventListener("loadedmetadata", resolve, { once: true }); });
  const mark = (name, places) => ready.then(() => {
    const x = (second) => Math.min(second / audio.duration, 1) * 1000;
    const some = places.filter((one) => !isWhole(name, one, 0, audio.duration));
    markIn(strip, name, some, ({ unit, first, last }) => (
      unit === "seconds" ? [{ x: x(first), width: x(last) - x(first), y: 0, height: 1 }] : []
    ));
    strip.toggleAttribute("hidden", !strip.querySelector("rect"));
  });
  return { mark, seek: (second) => ready.then(() => { audio.currentTime = second; }) };
}

export function clock(second) {
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

// What is shown of a file, by the kind of its view: engraved, drawn, read or heard.

import { Player, silence } from "./player.js";

const SVG = "http://www.w3.org/2000/svg";

// How many bars of a score go on a line of `place`. (abcjs could break lines itself, but gets signatures wrong then.)
export function barsFor(place) {
  return place.clientWidth < 500 ? 2 : 4;
}

// Fills `place` with a view, as the server describes it. Returns remarks for people.
export function show(place, found) {
  const remarks = found.remarks || [];
  if (found.kind === "score") return [...remarks, ...engrave(place, found.abc)];
  if (found.kind === "notes") draw(place, found.notes);
  else if (found.kind === "text") place.append(Object.assign(document.createElement("pre"), { textContent: found.text }));
  else if (found.kind === "sound") listen(place, found);
  else return [...remarks, `Not shown: ${found.reason}.`];
  return remarks;
}

function engrave(place, abc) {
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
  addPlayer(place, notes, (second, isPlaying) => {
    sounding.forEach((element) => element.classList.remove("sounding"));
    const event = isPlaying && tune.noteTimings.findLast((one) => one.type === "event" && one.milliseconds <= second * 1000);
    sounding = event ? (event.elements || []).flat() : [];
    sounding.forEach((element) => element.classList.add("sounding"));
  });
  const said = (tune.warnings || []).length;
  return said ? [`The engraver passed over ${said} sign${said > 1 ? "s" : ""} that it does not know.`] : [];
}

function draw(place, notes) {
  const keys = notes.map((note) => note[2]);
  const [low, high] = [Math.min(...keys) - 1, Math.max(...keys) + 1];
  const end = Math.max(...notes.map((note) => note[0] + note[1]), 0.1);
  const roll = document.createElementNS(SVG, "svg");
  roll.setAttribute("class", "roll");
  roll.setAttribute("role", "img");
  roll.setAttribute("aria-label", `${notes.length} notes over ${Math.round(end)} seconds`);
  roll.setAttribute("viewBox", `0 0 1000 ${high - low + 1}`);
  roll.setAttribute("preserveAspectRatio", "none");
  const add = (name, values) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
    roll.append(element);
    return element;
  };
  for (const [start, length, key] of notes) {
    add("rect", { x: start / end * 1000, y: high - key, width: Math.max(length / end * 1000, 0.5), height: 0.9 });
  }
  const line = add("line", { x1: 0, x2: 0, y1: 0, y2: high - low + 1 });
  place.append(roll);
  addPlayer(place, notes, (second) => {
    line.setAttribute("x1", second / end * 1000);
    line.setAttribute("x2", second / end * 1000);
  });
}

function listen(place, found) {
  const audio = document.createElement("audio");
  audio.controls = true;
  audio.preload = "metadata";
  audio.src = found.address + (found.start ? `#t=${found.start}` : "");
  audio.setAttribute("aria-label", `Recording ${found.file}`);
  audio.addEventListener("play", () => {
    silence();
    document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); });
  });
  audio.addEventListener("error", () => {
    place.append(Object.assign(document.createElement("p"), { textContent: "This recording cannot be played here." }));
  });
  place.append(audio);
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
}
